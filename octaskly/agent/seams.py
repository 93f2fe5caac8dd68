"""What the loop needs of the parts that act for it; the parts do not know the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from octaskly.core.messages import Message, Packed
from octaskly.core.model import Address, AttemptId, NodeId, Reason, TaskId, TaskSpec


class Runner(Protocol):
    """Runs attempts on this machine."""

    def start(self, items: Sequence[tuple[AttemptId, TaskSpec]]) -> None:
        """Take attempts; each is reported once through the callback given at birth."""

    def stop(
        self,
        items: Sequence[tuple[TaskId, AttemptId]],
        reason: Reason = Reason.CANCELLED,
    ) -> None:
        """End attempts, and all that they started; unknown ones are ignored.

        They are reported as cancelled, or as released where `reason` is DRAINING; what
        has ended by itself is told as it was, but never as a success after a cancel.
        """

    def hand_back(self) -> None:
        """Report the attempts that have not begun as released."""

    def freeze(self, *, is_frozen: bool) -> None:
        """Stop every process of every attempt where it is, or let it go on.

        While they are stopped nothing is started, and no time counts.
        """

    async def close(self) -> None:
        """End every tree and every launcher."""


class Links(Protocol):
    """Connected peers; at most one link each."""

    @property
    def link_count(self) -> int:
        """How many peers are connected."""

    def send(self, peer: NodeId, messages: Sequence[Message | Packed]) -> None:
        """Queue messages; drops the link when its outbox is over its bound."""

    def dial(self, node: NodeId | None, addresses: Sequence[Address]) -> None:
        """Start a dial unless connected to `node` or dialling it."""

    def disconnect(self, peer: NodeId, reason: str) -> None:
        """Send Leave and close."""

    async def close(self) -> None:
        """Close the listener and all links."""


class Advertiser(Protocol):
    """What the loop asks of discovery."""

    def browse(self, *, is_wanted: bool) -> None:
        """Ask afresh, or stop asking."""

    def advertise(self, *, is_dispatcher: bool, term: int) -> None:
        """Say what this node is now."""
