"""Age of tasks on one disk, independent of the clocks that wrote their facts.

The timestamp of a fact comes from the clock of its writer. A disk trusts a timestamp
that is close to its own clock when it stores the fact. Otherwise it keeps the time of
storing beside the task (`stored_ms`), and the age counts from the later of both.

A step of the disk's own clock ahead would make everything on the disk older at once. So
the disk keeps such steps, and nothing that it stored before a step ages by it.

Source: docs/explanation/log.md, "Age".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from octaskly.core.model.field_types import TIME_MS_MAX
from octaskly.core.model.hlc import (
    HLC_AHEAD_MS,
    HLC_COUNTER_BITS,
    HLC_EPOCH_MS,
    hlc_of,
    wall_ms_of,
)
from octaskly.core.model.ids import Moment

CLOCK_ERROR_MS_MAX: Final = 3_600_000  #: smaller errors of a clock are not corrected


class ClockStep(NamedTuple):
    """One step of the wall clock ahead."""

    before_ms: int  #: wall clock immediately before the step
    gained_ms: int


def trusted_timestamps(
    stored_ms: int, error_ms_max: int = CLOCK_ERROR_MS_MAX
) -> tuple[int, int]:
    """Return the first and the last timestamp that need no `stored_ms` beside them.

    The range includes the lead that a correct node may adopt from other clocks.
    """
    latest_ms = _latest_ms(stored_ms, error_ms_max)
    return hlc_of(stored_ms - error_ms_max), hlc_of(latest_ms)


class TaskAges(NamedTuple):
    """The clock of one disk and its steps: what the age of a task is computed from."""

    wall_ms: int
    steps: tuple[ClockStep, ...] = ()  #: in their order
    error_ms_max: int = CLOCK_ERROR_MS_MAX

    def since_hlc(self, hlc: int, stored_ms: int) -> int:
        """Return the timestamp from which the age of a task counts.

        Args:
            hlc: Timestamp of the latest fact.
            stored_ms: As stored beside it; 0 if the disk trusted the timestamp.
        """
        if not self.steps and not stored_ms:
            return hlc  # The usual case.
        stored_hlc = hlc_of(stored_ms)
        for before_ms, gained_ms in self.steps:
            gained_hlc = gained_ms << HLC_COUNTER_BITS
            if stored_hlc <= hlc_of(before_ms):
                stored_hlc += gained_hlc
            if hlc <= hlc_of(_latest_ms(before_ms, self.error_ms_max)):
                hlc += gained_hlc
        return max(hlc, stored_hlc)

    def age_ms(self, hlc: int, stored_ms: int) -> int:
        """Return the age of a task, which does not depend on any node's wall clock."""
        age_ms = self.wall_ms - wall_ms_of(self.since_hlc(hlc, stored_ms))
        return min(max(age_ms, 0), TIME_MS_MAX - 1)


class ClockWatch:
    """Compares the wall clock with the monotonic clock, from one step to the next."""

    def __init__(self, now: Moment, error_ms_max: int = CLOCK_ERROR_MS_MAX) -> None:
        self._error_ms_max = error_ms_max
        self._offset_ms = _offset_ms(now)  #: wall clock minus monotonic clock

    def find_step(self, now: Moment) -> ClockStep | None:
        """Return the step ahead since the last `follow_clock`, if there was one.

        A clock before 2020 was never set, and no timestamp is that early.
        """
        expected_ms = now.wall_ms - _offset_ms(now) + self._offset_ms
        before_ms = max(expected_ms, HLC_EPOCH_MS)
        gained_ms = now.wall_ms - before_ms
        if gained_ms <= self._error_ms_max:
            return None
        return ClockStep(before_ms, gained_ms)

    def follow_clock(self, now: Moment) -> None:
        """Count from the wall clock as it is now, if it was stepped either way."""
        if abs(_offset_ms(now) - self._offset_ms) > self._error_ms_max:
            self._offset_ms = _offset_ms(now)


def storing_time_ms(now: Moment) -> int:
    """Return the wall clock for `stored_ms`; it is not before any timestamp's range."""
    return max(now.wall_ms, HLC_EPOCH_MS)


def join_steps(
    stored: Iterable[ClockStep], unrecorded: ClockStep | None
) -> tuple[ClockStep, ...]:
    """Return the steps on a disk, and the one that it has not stored yet."""
    return (*stored, *(() if unrecorded is None else (unrecorded,)))


def _latest_ms(stored_ms: int, error_ms_max: int) -> int:
    return stored_ms + HLC_AHEAD_MS + error_ms_max


def _offset_ms(now: Moment) -> int:
    return now.wall_ms - round(now.mono_s * 1000)
