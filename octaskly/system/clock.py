"""System clock and random numbers of an agent."""

from __future__ import annotations

import random
import time
from typing import Final

from octaskly.core.model.ids import Moment

loop_time: Final = time.monotonic
"""The clock of the event loop, in seconds; `loop.time()` is a slower way to read it."""


class SystemClock:
    """Implements the `Clock` port with the system's clocks.

    The monotonic clock is CLOCK_BOOTTIME. Unlike CLOCK_MONOTONIC it includes suspended
    time, so a dispatcher that wakes from suspend knows that its epoch may have ended.
    """

    def now(self) -> Moment:
        """Return the monotonic and the wall clock."""
        mono_s, wall_ns = time.clock_gettime(time.CLOCK_BOOTTIME), time.time_ns()
        # `tuple.__new__` avoids `Moment.__new__`, a slower function in Python: `now` is
        # called a dozen times per task.
        return tuple.__new__(Moment, (mono_s, wall_ns // 1_000_000))

    def draw(self) -> float:
        """Return a random number in [0, 1)."""
        return random.random()  # noqa: S311  jitter, no secret

    def hex_digits(self, count: int) -> str:
        """Return `count` random hex digits, for ids that need not be secret."""
        return f"{random.getrandbits(4 * count):0{count}x}"
