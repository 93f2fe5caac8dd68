"""When to ask mDNS afresh: seldom while the mesh is found, often while not."""

from __future__ import annotations

import math

from octaskly.core.effects import Browse, Effect
from octaskly.core.model.ids import Moment

BROWSE_S = (1.0, 2.0, 4.0, 8.0, 16.0)  #: after losing the mesh; then every 20 s
BROWSE_EVERY_S = 20.0
BROWSE_SPREAD = 0.25  #: share by which a dispatcher's browsing is spread


class Browsing:
    """The times of this node's questions."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._asked = 0
        self._next_s = math.inf

    @property
    def is_on(self) -> bool:
        """Whether this node browses."""
        return self._next_s < math.inf

    def start(self, now: Moment, *, is_patient: bool = False) -> list[Effect]:
        """Browse from now on, first at once; or a second later, if still needed then.

        In a crowd each question costs all of them something, and all ask at once.
        """
        self._since_s, self._asked = now.mono_s, 0
        self._next_s = now.mono_s + BROWSE_S[0]
        return [] if is_patient else [Browse(is_wanted=True)]

    def stop(self) -> list[Effect]:
        """Browse no more."""
        if not self.is_on:
            return []
        self._next_s = math.inf
        return [Browse(is_wanted=False)]

    def on_time(self, now: Moment, *, draw: float, is_reigning: bool) -> list[Effect]:
        """Ask again when it is due."""
        if now.mono_s < self._next_s:
            return []
        self._asked += 1
        if is_reigning:
            spread = 1.0 + BROWSE_SPREAD * (2.0 * draw - 1.0)
            self._next_s = now.mono_s + BROWSE_EVERY_S * spread
        elif self._asked < len(BROWSE_S) and self._since_s is not None:
            self._next_s = self._since_s + BROWSE_S[self._asked]
        else:
            self._next_s = now.mono_s + BROWSE_EVERY_S
        return [Browse(is_wanted=True)]

    def deadline(self) -> float:
        """Return when to ask next."""
        return self._next_s
