"""Cycles are looked for when that was asked for, the young ones first."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from octaskly.agent.process_hooks import YOUNG_OBJECTS_MAX, GarbageCollection


class Knot:
    """Ends only when it is looked for."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def cycles() -> Iterator[GarbageCollection]:
    """Begin anew; afterwards Python looks as it did."""
    before = gc.get_threshold()
    made = GarbageCollection()
    made.freeze_startup_objects()
    yield made
    gc.set_threshold(*before)
    gc.unfreeze()


def test_cycles_are_looked_for_when_much_was_made(cycles: GarbageCollection) -> None:
    """Not before; and not by Python itself."""
    knot = weakref.ref(Knot())

    cycles.collect_if_due()
    assert knot() is not None

    made: list[list[int]] = [[] for _ in range(2 * YOUNG_OBJECTS_MAX)]
    assert knot() is not None
    cycles.collect_if_due()

    assert knot() is None
    assert made


def test_what_grew_old_is_looked_at_in_a_calm_moment(cycles: GarbageCollection) -> None:
    """Once, since nothing grows old before the next look at what is young."""
    knot = Knot()
    ended = weakref.ref(knot)
    made: list[list[int]] = [[] for _ in range(2 * YOUNG_OBJECTS_MAX)]
    cycles.collect_if_due()
    del knot
    assert ended() is not None

    cycles.collect_if_due()

    assert ended() is None
    assert made
