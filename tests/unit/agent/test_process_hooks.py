"""Garbage collection: of young objects often, of all objects in a quiet moment."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from octaskly.agent.process_hooks import (
    MANY_COLLECTIONS,
    YOUNG_OBJECTS_MAX,
    GarbageCollection,
)


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
    young, second, _ = gc.get_threshold()
    gc.set_threshold(young, second, 1 << 30)  # Full ones are made by the agent only.
    yield made
    gc.set_threshold(*before)
    gc.unfreeze()


def test_young_cycles_are_collected_after_few_allocations(
    cycles: GarbageCollection,
) -> None:
    """Python collects them itself, in a step that is short."""
    cycle = weakref.ref(Cycle())
    cycles.collect_if_due()
    assert cycle() is not None

    made: list[list[int]] = [[] for _ in range(2 * YOUNG_OBJECTS_MAX)]

    assert cycle() is None
    assert made


def test_old_objects_are_collected_in_an_idle_moment(cycles: GarbageCollection) -> None:
    """Neither by Python itself nor while young objects are collected."""
    cycle = Cycle()
    ended = weakref.ref(cycle)
    many = (MANY_COLLECTIONS + 1) * YOUNG_OBJECTS_MAX
    made: list[list[int]] = [[] for _ in range(many)]
    del cycle
    cycles.collect_if_due()  # It notes what was collected until now.
    made += [[] for _ in range(many)]
    cycles.collect_if_due()
    assert ended() is not None

    cycles.collect_if_due()

    assert ended() is None
    assert made
