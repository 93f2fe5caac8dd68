"""Ages of tasks: which timestamps a disk trusts, and steps of its own clock."""

from __future__ import annotations

import pytest

from octaskly.core.log.task_ages import (
    CLOCK_ERROR_MS_MAX,
    ClockStep,
    ClockWatch,
    TaskAges,
    storing_time_ms,
    trusted_timestamps,
)
from octaskly.core.model.hlc import HLC_AHEAD_MS, HLC_EPOCH_MS, hlc_of
from octaskly.core.model.ids import Moment

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000


def moment(elapsed_ms: int, step_ms: int = 0, start_ms: int = NOW_MS) -> Moment:
    return Moment(100.0 + elapsed_ms / 1000, start_ms + elapsed_ms + step_ms)


def watch(start_ms: int = NOW_MS) -> ClockWatch:
    return ClockWatch(moment(0, start_ms=start_ms))


@pytest.mark.parametrize(
    ("ahead_ms", "is_trusted"),
    [
        (0, True),
        (-CLOCK_ERROR_MS_MAX, True),
        (-CLOCK_ERROR_MS_MAX - 1, False),
        (CLOCK_ERROR_MS_MAX + HLC_AHEAD_MS, True),
        (CLOCK_ERROR_MS_MAX + HLC_AHEAD_MS + 1, False),
    ],
)
def test_a_timestamp_close_to_the_clock_is_trusted(
    ahead_ms: int, is_trusted: bool
) -> None:
    """A correct node may be ahead by what it adopted from other clocks."""
    first_hlc, last_hlc = trusted_timestamps(NOW_MS)

    assert (first_hlc <= hlc_of(NOW_MS + ahead_ms) <= last_hlc) is is_trusted


def test_age_counts_from_the_later_of_both_times() -> None:
    """A timestamp in the future counts as well."""
    ages = TaskAges(NOW_MS)

    assert ages.age_ms(hlc_of(NOW_MS - DAY_MS), 0) == DAY_MS
    assert ages.age_ms(hlc_of(NOW_MS - DAY_MS), NOW_MS - 5) == 5
    assert ages.age_ms(hlc_of(NOW_MS - 3), NOW_MS - 5) == 3
    assert ages.age_ms(hlc_of(NOW_MS + DAY_MS), NOW_MS - 5) == 0


def test_a_clock_that_keeps_time_has_no_steps() -> None:
    """Nor has one that is set back, or that gains less than the error allowed."""
    clock = watch()

    for now in (
        moment(40 * DAY_MS),
        moment(10, HOUR_MS),
        moment(10, -30 * DAY_MS),
    ):
        assert clock.find_step(now) is None


def test_a_step_is_found_until_the_watch_follows_it() -> None:
    """Readers use it until it is stored."""
    clock, now = watch(), moment(10, 30 * DAY_MS)

    found = [clock.find_step(now) for _ in range(2)]
    clock.follow_clock(now)

    assert found == [ClockStep(NOW_MS + 10, 30 * DAY_MS)] * 2
    assert clock.find_step(moment(20, 30 * DAY_MS)) is None


def test_small_steps_add_up() -> None:
    """A clock that gains half an hour three times has gained more than an hour."""
    clock = watch()
    clock.follow_clock(moment(10, HOUR_MS // 2))
    clock.follow_clock(moment(20, HOUR_MS))

    assert clock.find_step(moment(30, 3 * HOUR_MS // 2)) is not None


def test_a_step_ahead_is_measured_from_a_clock_that_was_set_back() -> None:
    """What is stored meanwhile has the times of the clock that is behind."""
    clock, back = watch(), moment(10, -DAY_MS)
    clock.follow_clock(back)

    step = clock.find_step(moment(20))

    assert step == ClockStep(NOW_MS + 20 - DAY_MS, DAY_MS)
    assert TaskAges(NOW_MS + 20, (step,)).age_ms(0, back.wall_ms) == 10


def test_nothing_ages_by_the_time_before_2020() -> None:
    """A board boots in 1970, and all timestamps begin in 2020."""
    clock = watch(start_ms=0)
    stored_ms = storing_time_ms(moment(5, start_ms=0))
    now = Moment(moment(DAY_MS).mono_s, NOW_MS)

    step = clock.find_step(now)

    assert stored_ms == HLC_EPOCH_MS
    assert step is not None
    ages = TaskAges(NOW_MS, (step,))
    assert ages.age_ms(7, stored_ms) == 0


def test_a_task_stored_before_several_steps_ages_by_none_of_them() -> None:
    """A task stored after them is not affected."""
    steps = (ClockStep(NOW_MS, DAY_MS), ClockStep(NOW_MS + DAY_MS + 10, DAY_MS))
    ages = TaskAges(NOW_MS + 2 * DAY_MS + 20, steps)
    late_hlc = hlc_of(NOW_MS - 30 * DAY_MS)

    assert ages.age_ms(late_hlc, NOW_MS - 5) == 25
    assert ages.age_ms(hlc_of(NOW_MS - 5), 0) == 25
    assert ages.age_ms(late_hlc, NOW_MS + 2 * DAY_MS + 15) == 5
