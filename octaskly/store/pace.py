"""How long commits take of late: whether the event loop may make the next one.

A mean, since some take longer on any disk: the one that moves the log into the file,
or one beside other work. Where each of these handed the next ones to the thread, a busy
machine made half of all commits there, at a wake-up each way.
"""

from __future__ import annotations

from typing import Final

QUICK_S: Final = 0.002  #: where commits take no longer, the loop makes small ones
MEAN_OF: Final = 8  #: so many count, roughly
SLOW_S: Final = 0.008  #: nothing counts for more, and at first all are taken for slow
TURN: Final = 32  #: of so many the thread makes one, behind which it tidies up


class Pace:
    """The mean of what commits took, and how many the loop made in a row."""

    def __init__(self) -> None:
        self._mean_s = SLOW_S
        self.own = 0  #: commits that the loop made since the thread's last

    @property
    def is_quick(self) -> bool:
        """Whether the loop shall make the next one, if that is small."""
        return self._mean_s <= QUICK_S and self.own < TURN

    def note(self, took_s: float) -> None:
        """Count a commit."""
        self._mean_s += (min(took_s, SLOW_S) - self._mean_s) / MEAN_OF

    def fail(self) -> None:
        """A commit failed: the thread tries again, and makes the next ones."""
        self._mean_s = SLOW_S
