"""Answers that promise durability: each waits until that is true.

It waits for this node's disk and for one standby. Where no standby acknowledges, it
leaves after `solo_s` with a count of one copy, and later ones leave without waiting,
until a standby is level again.

Source: docs/explanation/replication.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from octaskly.core.effects import Effect
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.replication.journal import Journal

WhenReplicated = Callable[[Moment, int], list[Effect]]
"""What happens once something is safe; it is given how many disks hold that."""

ALWAYS = float("-inf")
NEVER = float("inf")


@dataclass(slots=True)
class _PendingAck:
    """An answer that waits."""

    commit_number: int  #: durable here at this commit
    append_number: int  #: and at a standby that acknowledged this append
    since_s: float
    on_replicated: WhenReplicated
    remaining_copies: frozenset[NodeId] = frozenset()
    """Standbys that had acknowledged it when the reign ended, and are there still."""


class PendingAcks:
    """The answers that wait, in the order in which they were given.

    Args:
        journal: Tells what is durable here.
        solo_s: How long an answer waits for a standby, in seconds.
        holders: Returns which standbys have acknowledged an append.
    """

    def __init__(
        self,
        journal: Journal,
        replication_wait_s: float,
        acked_standbys: Callable[[int], frozenset[NodeId]],
        timers: TimerHeap,
    ) -> None:
        self.unreplicated_since_s: float | None = ALWAYS
        """Since when no standby is level, None if one is."""
        self._journal = journal
        self._replication_wait_s = replication_wait_s
        self._acked_standbys = acked_standbys
        self._timers = timers
        self._pending: deque[_PendingAck] = deque()

    @property
    def is_unreplicated(self) -> bool:
        """Whether no standby is level: answers leave without one, now or soon."""
        return self.unreplicated_since_s is not None

    @property
    def is_empty(self) -> bool:
        """Whether no answer waits."""
        return not self._pending

    def when_replicated(self, callback: WhenReplicated, now: Moment) -> list[Effect]:
        """Do `on_replicated` once all that was decided so far is durable in two places."""
        number, append_number = self._journal.last_number, self._journal.last_append
        self._pending.append(_PendingAck(number, append_number, now.mono_s, callback))
        return self.release_acks(now)

    def release_acks(self, now: Moment) -> list[Effect]:
        """Do what waited, in order, as far as it is safe."""
        if not self._pending:
            return []
        effects: list[Effect] = []
        while self._pending:
            first = self._pending[0]
            is_here = self._journal.persisted >= first.commit_number
            if not is_here and not first.remaining_copies:
                break
            copies = is_here + len(
                self._acked_standbys(first.append_number) | first.remaining_copies
            )
            if copies == 1 and now.mono_s < self._single_copy_at_s(first):
                at_s = self._single_copy_at_s(first)
                self._timers.set_earlier(Timer.REPLICATION, at_s)
                break
            self._pending.popleft()
            effects += first.on_replicated(now, copies)
        return effects

    def note_current_copies(self) -> None:
        """Remember where there are copies of each: the standbys are let go."""
        for ack in self._pending:
            ack.remaining_copies = self._acked_standbys(ack.append_number)

    def discount_node(self, node: NodeId) -> None:
        """Count on a node no more that may never come back with its copies."""
        for ack in self._pending:
            ack.remaining_copies -= {node}

    def deadline(self) -> float:
        """Return when the first leaves with a single copy, if only time is lacking."""
        if not self._pending:
            return NEVER
        first = self._pending[0]
        has_copy = (
            first.remaining_copies or first.commit_number <= self._journal.persisted
        )
        return self._single_copy_at_s(first) if has_copy else NEVER

    def _single_copy_at_s(self, ack: _PendingAck) -> float:
        """Return when an answer leaves with a single copy."""
        since_s = (
            ack.since_s
            if self.unreplicated_since_s is None
            else self.unreplicated_since_s
        )
        return min(ack.since_s, since_s) + self._replication_wait_s
