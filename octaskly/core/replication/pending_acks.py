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
from octaskly.core.replication.journal import Journal

WhenSafe = Callable[[Moment, int], list[Effect]]
"""What happens once something is safe; it is given how many disks hold that."""

ALWAYS = float("-inf")
NEVER = float("inf")


@dataclass(slots=True)
class _Promise:
    """An answer that waits."""

    number: int  #: durable here at this commit
    needed: int  #: and at a standby that acknowledged this append
    since_s: float
    then: WhenSafe
    elsewhere: frozenset[NodeId] = frozenset()
    """Standbys that had acknowledged it when the reign ended, and are there still."""


class Promises:
    """The answers that wait, in the order in which they were given.

    Args:
        journal: Tells what is durable here.
        solo_s: How long an answer waits for a standby, in seconds.
        holders: Returns which standbys have acknowledged an append.
    """

    def __init__(
        self,
        journal: Journal,
        solo_s: float,
        holders: Callable[[int], frozenset[NodeId]],
    ) -> None:
        self.bare_s: float | None = ALWAYS
        """Since when no standby is level, None if one is."""
        self._journal = journal
        self._solo_s = solo_s
        self._holders = holders
        self._waiting: deque[_Promise] = deque()

    @property
    def is_bare(self) -> bool:
        """Whether no standby is level: answers leave without one, now or soon."""
        return self.bare_s is not None

    @property
    def are_kept(self) -> bool:
        """Whether no answer waits."""
        return not self._waiting

    def make(self, then: WhenSafe, now: Moment) -> list[Effect]:
        """Do `then` once all that was decided so far is durable in two places."""
        number, needed = self._journal.number, self._journal.appended
        self._waiting.append(_Promise(number, needed, now.mono_s, then))
        return self.release(now)

    def release(self, now: Moment) -> list[Effect]:
        """Do what waited, in order, as far as it is safe."""
        if not self._waiting:
            return []
        effects: list[Effect] = []
        while self._waiting:
            first = self._waiting[0]
            is_here = self._journal.persisted >= first.number
            if not is_here and not first.elsewhere:
                break
            copies = is_here + len(self._holders(first.needed) | first.elsewhere)
            if copies == 1 and now.mono_s < self._alone_at_s(first):
                break
            self._waiting.popleft()
            effects += first.then(now, copies)
        return effects

    def note_copies(self) -> None:
        """Remember where there are copies of each: the standbys are let go."""
        for promise in self._waiting:
            promise.elsewhere = self._holders(promise.needed)

    def discount(self, node: NodeId) -> None:
        """Count on a node no more that may never come back with its copies."""
        for promise in self._waiting:
            promise.elsewhere -= {node}

    def deadline(self) -> float:
        """Return when the first leaves with a single copy, if only time is lacking."""
        if not self._waiting:
            return NEVER
        first = self._waiting[0]
        has_copy = first.elsewhere or first.number <= self._journal.persisted
        return self._alone_at_s(first) if has_copy else NEVER

    def _alone_at_s(self, promise: _Promise) -> float:
        """Return when an answer leaves with a single copy."""
        since_s = promise.since_s if self.bare_s is None else self.bare_s
        return min(promise.since_s, since_s) + self._solo_s
