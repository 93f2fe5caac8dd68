"""Where the bytes of an attempt's files came from, for explanations."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Final

from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.ports.files import InputSources

ATTEMPTS_MAX: Final = 1000  #: of which a node remembers the sources

AttemptKey = tuple[TaskId, AttemptId]


@dataclass(slots=True)
class _TreeBytes:
    """The bytes of one tree."""

    needed: int = 0
    found: int = 0  #: here at the first look
    sent: int = 0
    is_complete: bool = False  #: all of it is here now

    @property
    def present(self) -> int:
        """The bytes that were here, or came for another attempt meanwhile."""
        return max(0, self.needed - self.sent) if self.is_complete else self.found


class SourceTally:
    """Counts the bytes of one attempt's files; several threads may fetch them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trees: dict[str, _TreeBytes] = {}
        self._sent_bytes = Counter[str]()
        self.awaited = ""  #: files that have not arrived, for people

    def set_needed(self, tree: str, size_bytes: int, found_bytes: int) -> None:
        """Set the bytes that the attempt needs of a tree, and those found here.

        If it looks for them several times, what is found the first time counts.
        """
        with self._lock:
            self._trees.setdefault(tree, _TreeBytes(size_bytes, found_bytes))

    def set_complete(self, tree: str) -> None:
        """Note that all of a tree is here."""
        with self._lock:
            self._trees[tree].is_complete = True

    def add_sent(self, tree: str, node: str, size_bytes: int) -> None:
        """Count bytes of a tree that a node sent."""
        with self._lock:
            self._trees[tree].sent += size_bytes
            self._sent_bytes[node] += size_bytes

    def read(self) -> InputSources:
        """Return the counts so far."""
        with self._lock:
            trees = self._trees.values()
            return InputSources(
                sum(tree.needed for tree in trees),
                sum(tree.present for tree in trees),
                dict(self._sent_bytes),
                self.awaited,
            )


class SourceHistory:
    """The sources of the latest attempts."""

    def __init__(self) -> None:
        self._tallies: dict[AttemptKey, SourceTally] = {}

    def tally_of(self, attempt: AttemptKey) -> SourceTally:
        """Return the tally of an attempt, a new one the first time."""
        if (known := self._tallies.get(attempt)) is not None:
            return known
        tally = self._tallies[attempt] = SourceTally()
        if len(self._tallies) > ATTEMPTS_MAX:
            del self._tallies[next(iter(self._tallies))]
        return tally

    def set_awaited(self, attempt: AttemptKey, files: str) -> None:
        """Set which files an attempt awaits, or that it awaits none."""
        if (tally := self._tallies.get(attempt)) is not None:
            tally.awaited = files

    def read(self, attempt: AttemptKey) -> InputSources | None:
        """Return the sources of an attempt; None if they are not known."""
        tally = self._tallies.get(attempt)
        return None if tally is None else tally.read()
