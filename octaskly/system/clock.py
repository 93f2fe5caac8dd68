"""The one clock and the one pair of dice of an agent."""

from __future__ import annotations

import random
import time

from octaskly.core.model.ids import Moment


class SystemClock:
    """Clock port on the real machine.

    The monotonic side is CLOCK_BOOTTIME: unlike CLOCK_MONOTONIC it goes on while the
    machine sleeps, so a woken dispatcher cannot believe that it still reigns.
    """

    def now(self) -> Moment:
        """Return both clocks."""
        mono_s, wall_ns = time.clock_gettime(time.CLOCK_BOOTTIME), time.time_ns()
        # Without the class's own `__new__`, which is a function of Python: this is
        # asked a dozen times for each task.
        return tuple.__new__(Moment, (mono_s, wall_ns // 1_000_000))

    def draw(self) -> float:
        """Return a random number in [0, 1)."""
        return random.random()  # noqa: S311  jitter, no secret

    def hex_digits(self, count: int) -> str:
        """Return `count` random hex digits, for ids that need not be secret."""
        return f"{random.getrandbits(4 * count):0{count}x}"
