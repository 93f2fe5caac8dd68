"""Where the bytes of an attempt's files came from, for explanations."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.ports import InputSources

ATTEMPTS_MAX: Final = 1000  #: of which a node remembers the sources

AttemptKey = tuple[TaskId, AttemptId]


class SourceTally:
    """Counts the bytes of one attempt's files; several threads may fetch them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._needed_bytes: dict[str, int] = {}
        self._sent_bytes = Counter[str]()
        self.awaited = ""  #: files that have not arrived, for people

    def set_needed(self, tree: str, size_bytes: int) -> None:
        """Set the bytes that the attempt needs of a tree."""
        with self._lock:
            self._needed_bytes[tree] = size_bytes

    def add_sent(self, node: str, size_bytes: int) -> None:
        """Count bytes that a node sent."""
        with self._lock:
            self._sent_bytes[node] += size_bytes

    def read(self) -> InputSources:
        """Return the counts so far."""
        with self._lock:
            return InputSources(
                sum(self._needed_bytes.values()),
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
