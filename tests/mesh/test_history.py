"""The checker of fault cases: it sees changed outcomes, and measures gaps."""

from collections.abc import Sequence

import pytest

from tests.mesh.history import (
    History,
    Operation,
    Outcome,
    Read,
    Run,
    Split,
    command_of,
    key_of,
)
from tests.mesh.invariants import Evidence, i5_results_are_kept


def read(output: str, ended_s: float = 1.0, state: str = "completed") -> Read:
    return Read("task", "h1", ended_s, ended_s, 200, state, output)


def history(*reads: Read) -> History:
    made = History(token="")
    made.reads += reads
    return made


def evidence(reads: Sequence[Read], runs: Sequence[Run]) -> Evidence:
    """Return all data of a case with one task, which is completed."""
    return Evidence(
        history=history(*reads),
        lists={"h1": {"task": {"id": "task", "status": "completed"}}},
        held={},
        logs={},
        writers={},
        runs=runs,
        spooled={},
        heads={},
        suspects=(),
    )


def accepted(ended_s: float) -> Operation:
    return Operation("key", "h1", ended_s, ended_s, Outcome.OK, 201, "task")


def test_outcome_of_another_run_is_a_change_although_both_are_completed() -> None:
    """Commands print a number that differs in each run."""
    one, two = read("1"), read("2", 2.0)

    assert history(one, read("1"), two).changed() == [(one, two)]


def test_equal_outcomes_and_unfinished_tasks_are_no_change() -> None:
    """A task that runs has no outcome yet."""
    assert history(read("", state="running"), read("1"), read("1")).changed() == []


def test_change_is_excused_only_by_a_split_in_the_life_of_its_task() -> None:
    """Guarantee G4."""
    seen = history(read("1"), read("2", 2.0))
    assert seen.changed_without_split() == seen.changed()

    seen.operations.append(accepted(0.5))
    for split, is_excused in (
        (Split(1.5), True),
        (Split(2.5), False),
        (Split(0.1, ended_s=0.3), False),
        (Split(0.1, ended_s=0.7), True),
    ):
        seen.splits = [split]
        assert seen.changed_without_split() == ([] if is_excused else seen.changed())


def test_output_of_no_run_of_the_task_is_found() -> None:
    """Another task or the checker itself would have to be the source."""
    run = Run("task", 1, "h1", 7, "1")
    i5_results_are_kept(evidence([read("1\n")], [run]))

    with pytest.raises(AssertionError, match="output of no run"):
        i5_results_are_kept(evidence([read("2\n")], [run]))


def test_gap_leaves_out_periods_in_which_no_host_could_accept() -> None:
    """All hosts slept from 2 to 9; after that, it took a second."""
    seen = history()
    seen.operations += [accepted(0.5), accepted(10.0), accepted(1.0)]
    assert seen.longest_gap_s() == 9.0

    seen.outages.append((2.0, 9.0))

    assert seen.longest_gap_s() == 2.0


def test_key_of_a_command_does_not_depend_on_its_end() -> None:
    """Lists cut long commands."""
    assert key_of(command_of("F1-2-3", "sleep 1")[:200]) == "F1-2-3"
