"""Planted bugs: what every check is worth that holds in `test_seeds`."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import FIRST, MUTANTS, Hunt, Plant

SEEDS = 200  #: within which each planted bug must show


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "hunt"), MUTANTS, ids=[plant.__name__ for plant, _ in MUTANTS]
)
def test_a_planted_bug_is_caught(
    plant: Plant, hunt: Hunt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulation that finds nothing is only worth something if it could."""
    plant(monkeypatch)

    def find() -> None:
        for seed in dict.fromkeys((FIRST.get(plant, 0), *range(SEEDS))):
            hunt(seed)

    with pytest.raises(AssertionError):
        find()
