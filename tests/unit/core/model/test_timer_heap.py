"""Timers of one node: set, cleared and popped."""

from __future__ import annotations

import math
from random import Random

from octaskly.core.model.timer_heap import HEAP_ENTRIES_MAX, Timer, TimerHeap


def test_due_timers_are_ordered_by_time_then_declaration() -> None:
    """A replay must call the same handlers in the same order."""
    timers = TimerHeap()
    timers.set(Timer.RESULTS, 1.0)
    timers.set(Timer.ELECTION, 2.0)
    timers.set(Timer.DIAL, 2.0)
    timers.set(Timer.BROWSE, 3.0)

    assert timers.pop_due(2.0) == [Timer.RESULTS, Timer.DIAL, Timer.ELECTION]
    assert timers.next_at() == 3.0


def test_a_timer_that_is_set_again_is_due_once() -> None:
    """Later or earlier, the last time counts."""
    timers = TimerHeap()
    timers.set(Timer.DIAL, 1.0)
    timers.set(Timer.DIAL, 5.0)
    timers.set(Timer.BROWSE, 5.0)
    timers.set(Timer.BROWSE, 2.0)

    assert timers.pop_due(4.0) == [Timer.BROWSE]
    assert timers.pop_due(9.0) == [Timer.DIAL]
    assert timers.pop_due(9.0) == []


def test_set_earlier_never_postpones_a_timer() -> None:
    """A handler that is called early sets its timer again."""
    timers = TimerHeap()
    timers.set_earlier(Timer.DIAL, 5.0)
    timers.set_earlier(Timer.DIAL, 7.0)
    assert timers.next_at() == 5.0
    timers.set_earlier(Timer.DIAL, 3.0)
    assert timers.next_at() == 3.0


def test_a_cleared_timer_is_never_due() -> None:
    """Infinity clears it, too."""
    timers = TimerHeap()
    timers.set(Timer.DIAL, 1.0)
    timers.set(Timer.BROWSE, 1.0)
    timers.clear(Timer.DIAL)
    timers.set(Timer.BROWSE, math.inf)

    assert timers.next_at() == math.inf
    assert timers.pop_due(2.0) == []


def test_timers_that_are_set_repeatedly_use_no_more_memory() -> None:
    """A heap keeps outdated entries; its model has none."""
    timers, model, random = TimerHeap(), dict[Timer, float](), Random(1)
    now_s = 0.0
    for _ in range(5000):
        timer, at_s = random.choice(tuple(Timer)), now_s + random.random()
        timers.set(timer, at_s)
        model[timer] = at_s
        if random.random() < 0.1:
            now_s += 0.1
            due = sorted(
                (at_s, timer) for timer, at_s in model.items() if at_s <= now_s
            )
            assert timers.pop_due(now_s) == [timer for _, timer in due]
            for _, timer in due:
                del model[timer]
        assert timers.next_at() == min(model.values(), default=math.inf)
        assert len(timers._heap) <= HEAP_ENTRIES_MAX
