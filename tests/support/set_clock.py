"""A clock that a test sets."""

from __future__ import annotations

from octaskly.core.model.ids import Moment


class SetClock:
    """A clock port; its monotonic and its wall clock have the same seconds."""

    def __init__(self, now_s: float = 1_000_000.0) -> None:
        self.now_s = now_s

    def now(self) -> Moment:
        """Return both clocks."""
        return Moment(self.now_s, int(self.now_s * 1000))

    def draw(self) -> float:
        """Return no random number, but 0.5."""
        return 0.5
