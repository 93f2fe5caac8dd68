"""Turns: at equal priority, submitters and their arrays share the slots."""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import ArraySpec, Requirements, TaskOptions
from octaskly.core.scheduling.turns import IDLE_MAX, Turns, release
from tests.support.builders import draft, node_info, spec
from tests.support.dispatcher import queued_count
from tests.support.dispatcher_with_workers import (
    DispatcherWithWorkers,
    array_draft,
    draft_requiring,
)
from tests.unit.core.scheduling.test_queue_lanes import (
    in_hand,
    started,
    stored,
    with_reads,
)


def mesh_of(slots: int) -> DispatcherWithWorkers:
    """Return a mesh with one worker."""
    return DispatcherWithWorkers(node_info("b", slots))


def run(mesh: DispatcherWithWorkers, count: int) -> list[str]:
    """End the oldest attempt again and again; return the kinds that were placed."""
    placed: list[str] = []
    for _ in range(count):
        placed += mesh.end(next(iter(mesh.live)))
    return [command.split()[0] for command in placed]


def held(mesh: DispatcherWithWorkers) -> Counter[str]:
    """Return how many tasks of each kind run."""
    return Counter(command.split()[0] for command in mesh.live)


def test_a_single_task_gets_the_next_free_slot_while_an_array_runs() -> None:
    """The same user has submitted both."""
    mesh = mesh_of(4)
    mesh.ask(array_draft("long", 5000))

    assert mesh.ask(draft("hostname")) == []
    assert mesh.end("long 0") == ["hostname"]
    assert mesh.end("long 1") == ["long 4"]


def test_submitters_hold_equal_numbers_of_slots() -> None:
    """The later one gets each slot that becomes free, until it has its half."""
    mesh = mesh_of(4)
    mesh.ask(array_draft("ann", 5000), by="ann")
    mesh.ask(array_draft("bo", 5000), by="bo")

    assert run(mesh, 2) == ["bo", "bo"]
    for _ in range(50):
        run(mesh, 1)
        assert held(mesh)["ann"] in {1, 2, 3}
    assert held(mesh) == {"ann": 2, "bo": 2}


def test_long_tasks_do_not_take_the_slots_of_short_ones() -> None:
    """Counts of tasks would be equal, but not the slots."""
    mesh = mesh_of(4)
    mesh.ask(array_draft("short", 5000), by="ann")
    mesh.ask(array_draft("long", 5000), by="bo")

    for _ in range(50):
        mesh.end(next(each for each in mesh.live if each.startswith("short")))

    assert held(mesh) == {"short": 2, "long": 2}


def test_on_one_slot_submitters_alternate_and_so_do_the_arrays_of_each() -> None:
    """Nobody holds a slot when the next task is chosen."""
    mesh = mesh_of(1)
    mesh.ask(array_draft("a1", 500), by="ann")
    mesh.ask(array_draft("a2", 500), by="ann")
    mesh.ask(*(draft(f"a3 {n}") for n in range(500)), by="ann")
    mesh.ask(array_draft("bo", 500), by="bo")

    placed = run(mesh, 12)

    assert placed[1::2] == ["bo"] * 6 or placed[::2] == ["bo"] * 6
    assert Counter(placed) == {"a1": 2, "a2": 2, "a3": 2, "bo": 6}


def test_a_task_counts_by_its_slots() -> None:
    """Two tasks of one slot weigh as much as one of two."""
    mesh = mesh_of(8)
    pair = Requirements(cpus=2)
    mesh.ask(array_draft("pair", 500, pair), by="ann")
    mesh.ask(array_draft("one", 500), by="bo")

    run(mesh, 200)

    assert held(mesh) == {"pair": 2, "one": 4}


def test_a_higher_priority_comes_first_whatever_its_submitter_holds() -> None:
    """Turns only decide at equal priority."""
    mesh = mesh_of(2)
    urgent = replace(array_draft("urgent", 3), priority=1)
    mesh.ask(array_draft("ann", 500), by="ann")
    mesh.ask(urgent, by="bo")

    assert run(mesh, 4) == ["urgent", "urgent", "urgent", "ann"]


def test_a_stream_of_new_arrays_starves_no_older_one() -> None:
    """Each new array would come first if it started at the clock."""
    mesh = mesh_of(1)
    mesh.ask(array_draft("old", 500))
    placed: list[str] = []

    for n in range(20):
        mesh.ask(array_draft(f"new{n}", 1))
        placed += run(mesh, 2)

    assert placed.count("old") == 20


def test_members_of_an_array_keep_their_order() -> None:
    """Other arrays run between them."""
    mesh = mesh_of(3)
    mesh.ask(array_draft("a", 50))
    mesh.ask(array_draft("b", 50))
    seen = dict.fromkeys(mesh.live)

    for _ in range(90):
        mesh.end(next(iter(mesh.live)))
        seen |= dict.fromkeys(mesh.live)

    for name in "ab":
        own = [int(c.split()[1]) for c in seen if c.startswith(name)]
        assert own == sorted(own)


def test_a_million_tasks_of_one_submitter_hide_none_of_another() -> None:
    """Each submitter has a window of its own, and so have the arrays of each."""
    limits = Limits(window_tasks=6, load_tasks=2)
    many = [replace(spec(f"a{n}", ord=n), submitter="ann") for n in range(100)]
    one = replace(spec("b", ord=200), submitter="bo")
    array = replace(
        spec("array", ord=300),
        submitter="ann",
        options=TaskOptions(array=ArraySpec(count=9)),
    )

    queue = started(limits, *many, one, array)

    assert {"a0", "b", "array"} <= in_hand(queue)
    assert queued_count(queue) < 12


def test_one_submitter_with_many_requirements_takes_not_all_lanes() -> None:
    """A lane of another submitter replaces one of these."""
    limits = Limits(lanes=4)
    mine = [
        replace(
            spec(f"a{n}", ord=n),
            submitter="ann",
            options=TaskOptions(requires=Requirements(memory_mb=1 + n)),
        )
        for n in range(9)
    ]
    queue = started(limits, *mine)
    other = replace(mine[0], id="b", submitter="bo", ord=50)

    queue.admit([other])
    with_reads(queue, stored(*mine, other))

    assert "b" in in_hand(queue)


def test_a_new_dispatcher_knows_the_held_slots() -> None:
    """They follow from the attempts that it finds."""
    turns = Turns()
    turns.charge(("ann", None), 3)
    turns.charge(("bo", None), 1)

    of_ann, _ = turns.join(("ann", None))
    of_bo, _ = turns.join(("bo", None))

    assert (of_ann.held, of_bo.held) == (3, 1)


def test_ended_arrays_are_forgotten() -> None:
    """There may be millions over the years."""
    turns = Turns()
    for n in range(10 * IDLE_MAX):
        flow = ("ann", spec(f"a{n}").id)
        turns.join(flow)
        release(turns.charge(flow, 1), 1)

    assert len(turns._submitters.shares["ann"].flows.shares) <= 2 * IDLE_MAX


def test_a_reserved_worker_takes_no_other_task_of_the_same_priority() -> None:
    """Else a stream of small tasks would starve a large one."""
    mesh = mesh_of(2)
    mesh.ask(draft("t0"), draft("t1"))
    mesh.ask(draft_requiring("pair", Requirements(cpus=2)), by="bo")
    mesh.ask(*(draft(f"u{n}") for n in range(9)))
    assert mesh.end("t0", at=1) == ["u0"]
    assert mesh.end("t1", at=9) == ["u1"]

    assert mesh.end("u0", at=10) == []
    assert mesh.end("u1", at=11) == ["pair"]
