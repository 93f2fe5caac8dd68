"""Which commits the event loop makes: where most of the last ones were quick."""

from __future__ import annotations

from octaskly.store.writing.commit_queue import MEAN_OF, QUICK_S, SLOW_S, TURN, Pace


def quick() -> Pace:
    """Return the pace of a disk that has been quick for a while."""
    pace = Pace()
    for _ in range(4 * MEAN_OF):
        pace.note(QUICK_S / 2)
    return pace


def is_quick(pace: Pace) -> bool:
    """Return what it says now."""
    return pace.is_quick


def test_a_disk_must_show_that_it_is_quick() -> None:
    """Two or three commits say little."""
    pace = Pace()
    for _ in range(3):
        assert not is_quick(pace)
        pace.note(QUICK_S / 2)
    assert not is_quick(pace)
    assert is_quick(quick())


def test_one_slow_commit_changes_nothing_however_slow_it_was() -> None:
    """Several do, for as many moments."""
    pace = quick()
    pace.note(1000.0)
    assert is_quick(pace)
    pace.note(1000.0)
    assert not is_quick(pace)
    for _ in range(2 * MEAN_OF):
        pace.note(QUICK_S / 2)
    assert is_quick(pace)


def test_a_disk_that_is_slow_now_and_again_is_quick() -> None:
    """As it is beside other work: each eighth commit takes four times as long."""
    pace = quick()
    for number in range(100):
        pace.note(SLOW_S / 2 if number % 8 == 0 else QUICK_S / 2)
        assert is_quick(pace)


def test_a_failure_and_a_turn_leave_the_next_to_the_thread() -> None:
    """The one until commits were quick again, the other until it made one."""
    pace = quick()
    pace.fail()
    assert not is_quick(pace)
    pace = quick()
    pace.own = TURN
    assert not is_quick(pace)
    pace.own = 0
    assert is_quick(pace)
