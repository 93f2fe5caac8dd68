"""Garbage collection on request, youngest generation first."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from octaskly.agent.process_hooks import YOUNG_OBJECTS_MAX, GarbageCollection


class Cycle:
    """A reference cycle that is freed only by a collection."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def cycles() -> Iterator[GarbageCollection]:
    """Collect everything first; restore Python's settings afterwards."""
    before = gc.get_threshold()
    made = GarbageCollection()
    made.freeze_startup_objects()
    yield made
    gc.set_threshold(*before)
    gc.unfreeze()


def test_cycles_are_collected_after_many_allocations(cycles: GarbageCollection) -> None:
    """Neither earlier, nor by Python itself."""
    cycle = weakref.ref(Cycle())

    cycles.collect_if_due()
    assert cycle() is not None

    made: list[list[int]] = [[] for _ in range(2 * YOUNG_OBJECTS_MAX)]
    assert cycle() is not None
    cycles.collect_if_due()

    assert cycle() is None
    assert made


def test_old_objects_are_collected_in_an_idle_moment(cycles: GarbageCollection) -> None:
    """Once only: nothing grows old before the next young collection."""
    cycle = Cycle()
    ended = weakref.ref(cycle)
    made: list[list[int]] = [[] for _ in range(2 * YOUNG_OBJECTS_MAX)]
    cycles.collect_if_due()
    del cycle
    assert ended() is not None

    cycles.collect_if_due()

    assert ended() is None
    assert made
