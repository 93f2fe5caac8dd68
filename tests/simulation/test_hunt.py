"""The command that hunts for seeds that fail."""

from __future__ import annotations

import pytest

from tests.simulation.hunt import KINDS, asked, failures, run_of


def test_a_hunt_may_begin_at_a_seed_in_so_many_processes() -> None:
    """So that what one machine found is repeated on another, beside other work."""
    said = asked(["2", "unordered", "--first", "5", "--processes", "1"])

    assert (said.count, said.kind, said.first, said.processes) == (2, "unordered", 5, 1)
    assert list(failures(range(5, 6), said.kind, said.processes)) == []


def test_all_kinds_of_worlds_are_named() -> None:
    """And no other is hunted in."""
    assert {"seed", "unordered", "half_left"} <= set(KINDS)
    assert not {"of", "failover"} & set(KINDS)
    assert all(callable(run_of(kind)) for kind in KINDS)
    with pytest.raises(SystemExit):
        asked(["2", "unknown"])
