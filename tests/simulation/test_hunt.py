"""The command that searches for seeds that fail."""

from __future__ import annotations

import pytest

from tests.simulation.hunt import KINDS, asked, failures, run_of


def test_hunt_starts_at_a_given_seed_with_a_given_number_of_processes() -> None:
    """So a finding of one machine can be repeated on another, beside other work."""
    said = asked(["2", "unordered", "--first", "5", "--processes", "1"])

    assert (said.count, said.kind, said.first, said.processes) == (2, "unordered", 5, 1)
    assert list(failures(range(5, 6), said.kind, said.processes)) == []


def test_command_line_names_all_kinds_of_worlds() -> None:
    """And the command accepts no other kind."""
    assert {"seed", "unordered", "half_left"} <= set(KINDS)
    assert not {"of", "failover"} & set(KINDS)
    assert all(callable(run_of(kind)) for kind in KINDS)
    with pytest.raises(SystemExit):
        asked(["2", "unknown"])
