"""Planted bugs: a test of the checks in `test_seeds`."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import FIRST, MUTANTS, Hunt, Plant

SEEDS = 200  #: seeds within which each planted bug must show


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "hunt"), MUTANTS, ids=[plant.__name__ for plant, _ in MUTANTS]
)
def test_planted_bug_is_caught(
    plant: Plant, hunt: Hunt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulation proves something only if it can fail."""
    plant(monkeypatch)

    def find() -> None:
        for seed in dict.fromkeys((FIRST.get(plant, 0), *range(SEEDS))):
            hunt(seed)

    # A core whose tables contradict each other may stumble before a check fails.
    with pytest.raises((AssertionError, KeyError)):
        find()
