"""Pending acknowledgements: answers that wait until their data is durable.

An answer waits for this node's disk and for one standby. If no standby acknowledges
within `replication_wait_s`, the answer is sent and reports one copy. Later answers do
not wait until a standby is in sync again.

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
"""An action for replicated data; it gets the time and the number of durable copies."""

ALWAYS = float("-inf")
NEVER = float("inf")


@dataclass(slots=True)
class _PendingAck:
    """A waiting answer."""

    commit_number: int  #: durable here once this write is
    append_number: int  #: on a standby that acknowledged this append
    since_s: float
    on_replicated: WhenReplicated
    remaining_copies: frozenset[NodeId] = frozenset()
    """Connected standbys that had acknowledged it when the epoch ended."""


class PendingAcks:
    """The waiting answers, oldest first.

    Args:
        journal: The source of the durable write number.
        replication_wait_s: Longest wait for a standby, in seconds.
        acked_standbys: Returns the standbys that have acknowledged an append.
        timers: The heap with the timer `REPLICATION`.
    """

    def __init__(
        self,
        journal: Journal,
        replication_wait_s: float,
        acked_standbys: Callable[[int], frozenset[NodeId]],
        timers: TimerHeap,
    ) -> None:
        self.unreplicated_since_s: float | None = ALWAYS
        """Time since when no standby has been in sync; None: one is."""
        self._journal = journal
        self._replication_wait_s = replication_wait_s
        self._acked_standbys = acked_standbys
        self._timers = timers
        self._pending: deque[_PendingAck] = deque()

    @property
    def is_unreplicated(self) -> bool:
        """Return True if no standby is in sync, so waits for one are limited."""
        return self.unreplicated_since_s is not None

    @property
    def is_empty(self) -> bool:
        """Return True if no answer waits."""
        return not self._pending

    def when_replicated(self, callback: WhenReplicated, now: Moment) -> list[Effect]:
        """Call `callback` once everything appended so far has two durable copies.

        After `replication_wait_s`, one copy is enough.
        """
        number, append_number = self._journal.last_number, self._journal.last_append
        self._pending.append(_PendingAck(number, append_number, now.mono_s, callback))
        return self.release_acks(now)

    def would_release(self, now: Moment) -> bool:
        """Return True if `when_replicated` would call its callback at once."""
        journal = self._journal
        if self._pending or not journal.is_all_durable:
            return False
        has_copy = bool(self._acked_standbys(journal.last_append))
        return has_copy or now.mono_s >= self._single_copy_at_s(now.mono_s)

    def release_acks(self, now: Moment) -> list[Effect]:
        """Release the answers that are sufficiently replicated, in order."""
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
            if copies == 1 and now.mono_s < self._single_copy_at_s(first.since_s):
                at_s = self._single_copy_at_s(first.since_s)
                self._timers.set_earlier(Timer.REPLICATION, at_s)
                break
            self._pending.popleft()
            effects += first.on_replicated(now, copies)
        return effects

    def note_current_copies(self) -> None:
        """Keep the copies of each answer before the list of standbys is cleared."""
        for ack in self._pending:
            ack.remaining_copies = self._acked_standbys(ack.append_number)

    def discount_node(self, node: NodeId) -> None:
        """Stop counting the copies of a node that may never return."""
        for ack in self._pending:
            ack.remaining_copies -= {node}

    def deadline(self) -> float:
        """Return the time at which the first answer is sent with a single copy."""
        if not self._pending:
            return NEVER
        first = self._pending[0]
        has_copy = (
            first.remaining_copies or first.commit_number <= self._journal.persisted
        )
        return self._single_copy_at_s(first.since_s) if has_copy else NEVER

    def _single_copy_at_s(self, asked_s: float) -> float:
        """Return the time at which an answer may be sent with a single copy."""
        since_s = (
            asked_s if self.unreplicated_since_s is None else self.unreplicated_since_s
        )
        return min(asked_s, since_s) + self._replication_wait_s
