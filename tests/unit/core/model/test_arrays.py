"""Members of an array, and the ones left to run."""

from __future__ import annotations

import pytest

from octaskly.core.model.arrays import (
    ArrayProgress,
    RemainingMembers,
    array_state,
    member_spec,
    split_member_id,
)
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import ArraySpec, InputTree, TaskOptions
from octaskly.core.model.tasks import TaskSpec, TaskState

QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED = TaskState


def runs(rest: RemainingMembers) -> list[int]:
    taken = []
    while rest:
        taken.append(rest.pop())
    return taken


def test_members_are_assigned_in_order() -> None:
    """One run is one entry, whatever its length."""
    assert runs(RemainingMembers([(0, 2), (5, 5), (7, 8)])) == [0, 1, 2, 5, 7, 8]


@pytest.mark.parametrize(
    ("position", "left"),
    [(0, [1, 2, 5]), (1, [0, 2, 5]), (2, [0, 1, 5]), (5, [0, 1, 2]), (4, [0, 1, 2, 5])],
)
def test_a_cancelled_member_is_removed(position: int, left: list[int]) -> None:
    """It is never assigned."""
    rest = RemainingMembers([(0, 2), (5, 5)])

    rest.remove(position)

    assert runs(rest) == left


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ([(0, 9)], [(0, 9)]),
        ([(0, 9)], [(2, 3), (5, 12)]),
        ([(0, 1), (4, 6), (8, 8)], [(1, 4), (6, 9)]),
        ([(3, 4)], []),
        ([], [(0, 9)]),
        ([(0, 0), (2, 2), (4, 4)], [(0, 4)]),
    ],
)
def test_members_assigned_elsewhere_are_removed(
    mine: list[tuple[int, int]], theirs: list[tuple[int, int]]
) -> None:
    """After a heal, members have run that this node had still to assign."""
    rest = RemainingMembers(mine)

    rest.intersect(theirs)

    both = set(runs(RemainingMembers(mine))) & set(runs(RemainingMembers(theirs)))
    assert runs(rest) == sorted(both)


@pytest.mark.parametrize(
    ("task", "place"),
    [
        ("task-001-abcdef12.5", ("task-001-abcdef12", 5)),
        ("mine.5~" + "a" * 14, ("mine~" + "a" * 14, 5)),
        ("mine.2.5~" + "a" * 14, ("mine.2~" + "a" * 14, 5)),
        ("mine.5~" + "a" * 15, None),
        ("task-001-abcdef12", None),
        ("task-001-abcdef12.05", None),
        ("mine.5", None),
    ],
)
def test_an_id_shows_whether_it_belongs_to_a_member(
    task: str, place: tuple[str, int] | None
) -> None:
    """A name that a client chose never makes a task a member."""
    assert split_member_id(TaskId(task)) == place


def test_a_member_is_derived_from_its_array() -> None:
    """The item is one word for the shell, and unchanged in the environment."""
    items = ("a", "b c; rm -rf /")
    options = TaskOptions(
        env=(("A", "1"), ("Z", "2")),
        array=ArraySpec(count=2, has_items=True, items=items),
    )
    array = TaskSpec(
        id=TaskId("task-007-abcdef12"),
        command="x {} {}",
        inputs=("in", "of {}"),
        options=options,
    )

    member = member_spec(array, 1)

    assert member is not None
    assert member.id == "task-007-abcdef12.1"
    assert member.command == "x 'b c; rm -rf /' 'b c; rm -rf /'"
    assert member.inputs == ("in", "of b c; rm -rf ")  # Normalised, as all paths.
    assert member.array is None
    assert member.options is not None
    assert member.options.env == (
        ("A", "1"),
        ("OCTASKLY_INDEX", "1"),
        ("OCTASKLY_ITEM", "b c; rm -rf /"),
        ("Z", "2"),
    )
    assert member_spec(array, 2) is None


def test_a_member_has_the_folders_of_its_item() -> None:
    """The digest of the item is the same in an array that repeats some members."""
    tree = InputTree(sha256="0" * 64, node="ash", folders=("all", "items/{sha256}"))
    options = TaskOptions(
        array=ArraySpec(count=1, has_items=True, items=("a/b",)), tree=tree
    )

    member = member_spec(
        TaskSpec(id=TaskId("task-007-abcdef12"), command="x", options=options), 0
    )

    assert member is not None
    assert member.options is not None
    assert member.options.tree == InputTree(
        sha256="0" * 64,
        node="ash",
        folders=(
            "all",
            "items/c14cddc033f64b9dea80ea675cf280a015e672516090a5626781153dc68fea11",
        ),
    )


@pytest.mark.parametrize(
    ("progress", "by", "state"),
    [
        (ArrayProgress(queued=3), None, QUEUED),
        (ArrayProgress(queued=1, running=2), None, RUNNING),
        (ArrayProgress(queued=2, completed=1), None, RUNNING),
        (ArrayProgress(queued=2, cancelled=1), None, QUEUED),
        (ArrayProgress(completed=3), None, COMPLETED),
        (ArrayProgress(completed=3), "ada", COMPLETED),
        (ArrayProgress(completed=2, failed=1), None, FAILED),
        (ArrayProgress(completed=2, cancelled=1), None, CANCELLED),
        (ArrayProgress(completed=1, failed=1, cancelled=1), None, FAILED),
        (ArrayProgress(completed=1, failed=1, cancelled=1), "ada", CANCELLED),
        (ArrayProgress(failed=2, cancelled=1), "max_fails", FAILED),
        (ArrayProgress(running=1, cancelled=2), "ada", RUNNING),
        (ArrayProgress(cancelled=3), "ada", CANCELLED),
    ],
)
def test_the_state_of_an_array_follows_from_its_members(
    progress: ArrayProgress, by: str | None, state: TaskState
) -> None:
    """It has ended when all have, and then the worst end counts."""
    assert array_state(ArraySpec(count=3, max_fails=1), progress, by) is state
