"""Who did what, from where, and with what answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from octaskly.core.model.ids import NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One request that changed something, or was refused; or several that are alike."""

    id: str  #: unique in the mesh, so that it may be handed over twice
    at_ms: int  #: wall clock of the node that decided
    subject: str | None  #: None: nobody was known
    role: str | None
    action: str  #: method and path of the route, or a word for what is no request
    target: str | None  #: the task, node or token that the path names
    source: str  #: an address, or `uid N` on the local socket
    received_by: NodeId  #: the node that the client asked
    decided_by: NodeId  #: the node that carried it out or refused it
    status: int  #: of the answer
    tasks: tuple[str, ...] = ()  #: the first of those that came of it
    task_count: int = 0
    count: int = 1  #: of requests
    last_ms: int | None = None  #: when the last one was, of several

    @property
    def is_unauthenticated(self) -> bool:
        """Whether nobody showed who asks; what is counted as one still has a role."""
        return self.subject is None and self.role is None


@dataclass(frozen=True, slots=True)
class AuditPage:
    """A part of the audit log, oldest first."""

    entries: tuple[AuditEntry, ...]
    cursor: str | None  #: behind the last one; None where the page is empty


class AuditLog(Protocol):
    """The log of deeds; it only grows, until they are too old or too many."""

    async def record_entries(self, entries: Sequence[AuditEntry]) -> None:
        """Write deeds, and return when they are safe.

        Raises:
            NotDispatcher: another node is dispatcher; nothing was written.
            NotDurable: one copy is too few.
        """

    async def join_times(self, nodes: Iterable[NodeId]) -> Mapping[NodeId, int]:
        """Return of those that were met as new ones when that was, in wall-clock ms."""

    async def read_page(
        self, *, since_ms: int | None, after: str | None, limit: int
    ) -> AuditPage:
        """Read deeds since a time, or behind a cursor; by default the latest.

        Raises:
            ValueError: `after` is no cursor.
            NotDispatcher: another node is dispatcher.
        """
