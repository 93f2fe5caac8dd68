"""Matching: heavy tasks get room, and never starve behind small ones."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import VISITOR_PREFIX, NodeId
from octaskly.core.model.task_options import Requirements, VisitorRule
from octaskly.core.model.tasks import Attempt, EndReason
from octaskly.core.protocol.messages import Results
from octaskly.core.scheduling.matching import RESERVE_AFTER_S
from tests.support.builders import attempt, draft, moment, node_info, released
from tests.support.dispatcher import deliver_results, reattach_report
from tests.support.dispatcher_with_workers import DispatcherWithWorkers, draft_requiring

LACKS_INPUT = released(EndReason.INPUTS, "input data.csv")


def test_a_task_holds_as_many_slots_as_its_cpus() -> None:
    """Other tasks get the rest; it waits while too few slots are free."""
    mesh = DispatcherWithWorkers(node_info("b", 4))

    assert mesh.ask(draft_requiring("three", Requirements(cpus=3))) == ["three"]
    assert mesh.ask(draft_requiring("two", Requirements(cpus=2)), draft("one")) == [
        "one"
    ]
    assert mesh.end("one") == []
    assert mesh.end("three") == ["two"]


def test_memory_and_gpus_are_granted_once() -> None:
    """Slots alone would have room."""
    mesh = DispatcherWithWorkers(node_info("b", 8, memory_mb=100, gpus=("0", "1")))

    assert mesh.ask(draft_requiring("big", Requirements(memory_mb=60))) == ["big"]
    assert mesh.ask(draft_requiring("more", Requirements(memory_mb=60))) == []
    assert mesh.ask(draft_requiring("both", Requirements(gpus=2))) == ["both"]
    assert mesh.ask(draft_requiring("another", Requirements(gpus=1))) == []
    assert mesh.end("big") == ["more"]
    assert mesh.end("both") == ["another"]


def test_a_task_runs_only_on_a_node_that_meets_all_requirements() -> None:
    """Labels, name, system and machine each exclude a node."""
    mesh = DispatcherWithWorkers(
        node_info("a", 4, labels=(("disk", "hdd"),)),
        node_info("b", 4, labels=(("disk", "ssd"),), arch="aarch64"),
        node_info("c", 4, os="darwin"),
    )

    mesh.ask(draft_requiring("label", Requirements(labels=(("disk", "ssd"),))))
    mesh.ask(draft_requiring("name", Requirements(node="c")))
    mesh.ask(draft_requiring("arch", Requirements(arch="aarch64")))
    mesh.ask(draft_requiring("os", Requirements(os="darwin")))

    assert [mesh.where(c) for c in ("label", "name", "arch", "os")] == [*"bcbc"]


def test_a_task_with_resources_is_never_sent_ahead_of_free_slots() -> None:
    """Its share would be reserved while it only waits."""
    mesh = DispatcherWithWorkers(node_info("b", 2))
    deliver_results(mesh.dispatch, NodeId("b"), Results((), 10), moment())
    mesh.ask(*(draft(f"t{n}") for n in range(3)))

    assert mesh.ask(draft_requiring("pair", Requirements(cpus=2))) == []
    assert mesh.ask(draft_requiring("here", Requirements(node="b"))) == ["here"]


def test_a_heavy_task_does_not_starve_behind_a_stream_of_small_ones() -> None:
    """After a while one worker is reserved for it, and only one."""
    mesh = DispatcherWithWorkers(node_info("a", 2), node_info("b", 2))
    mesh.ask(*(draft(f"t{n}") for n in range(4)))
    mesh.ask(draft_requiring("pair", Requirements(cpus=2)))
    mesh.ask(*(draft(f"u{n}") for n in range(20)))
    assert mesh.end("t0", at=1) == ["u0"]

    late = RESERVE_AFTER_S + 1
    first = mesh.end("t1", at=late)
    kept = mesh.dispatch._step.matcher.reservation
    assert kept is not None

    placed = first
    for command in list(mesh.live):
        placed += mesh.end(command, at=late + 1)

    assert "pair" in placed
    assert mesh.where("pair") == kept.node
    assert mesh.dispatch._step.matcher.reservation is None


def test_an_earlier_task_may_use_a_reserved_worker() -> None:
    """Priority counts more than waiting time."""
    mesh = DispatcherWithWorkers(node_info("b", 2))
    mesh.ask(draft("t0"), draft("t1"))
    mesh.ask(draft_requiring("pair", Requirements(cpus=2)))
    mesh.end("t0", at=1)
    mesh.ask(draft("t2"), at=1)
    late = RESERVE_AFTER_S + 1
    mesh.ask(draft("later"), at=late)
    assert mesh.dispatch._step.matcher.reservation is not None

    assert mesh.end("t1", at=late) == []
    urgent = replace(draft("urgent"), priority=1)
    assert mesh.ask(urgent, at=late) == ["urgent"]


def test_an_unrunnable_task_reserves_no_worker() -> None:
    """It may wait for ever."""
    mesh = DispatcherWithWorkers(node_info("b", 2))
    mesh.ask(draft_requiring("huge", Requirements(cpus=99)))

    assert mesh.ask(draft("t0"), at=RESERVE_AFTER_S + 1) == ["t0"]
    assert mesh.dispatch._step.matcher.reservation is None


def test_a_worker_reserved_in_vain_is_offered_to_the_next_task() -> None:
    """In the same step: no other event may follow for long."""
    mesh = DispatcherWithWorkers(
        node_info("b", 2, memory_mb=100), node_info("c", 4, memory_mb=50)
    )
    memory = Requirements(memory_mb=40)
    mesh.ask(*(draft_requiring(f"m{n}", memory) for n in range(3)))
    late = RESERVE_AFTER_S + 1
    assert mesh.ask(draft_requiring("m3", memory)) == []
    assert mesh.ask(draft_requiring("hopeless", Requirements(node="z")), at=late) == []
    kept = mesh.dispatch._step.matcher.reservation
    assert kept is not None
    assert kept.node == "c"
    assert mesh.ask(draft_requiring("pair", Requirements(cpus=2)), at=late) == []
    on_b = next(command for command in mesh.live if mesh.where(command) == "b")

    placed = mesh.end(on_b, at=late)

    assert placed == ["m3", "pair"]
    assert (mesh.where("m3"), mesh.where("pair")) == ("b", "c")


def test_a_task_that_a_worker_refused_keeps_its_place_in_the_order() -> None:
    """A higher priority comes first, and a worker may still have its inputs."""
    mesh = DispatcherWithWorkers(node_info("b", 1), node_info("c", 1))
    mesh.ask(draft("long"), by="ann")
    mesh.ask(draft("refused"), by="bob")
    mesh.ask(replace(draft("urgent"), priority=1), by="ann")

    assert mesh.end("refused", how=LACKS_INPUT) == ["urgent"]
    mesh.ask(replace(draft("urgent too"), priority=1), by="ann")

    assert mesh.end("long") == ["urgent too"]
    assert mesh.end("urgent too") == ["refused"]


def test_a_task_that_a_worker_refused_waits_for_its_turn() -> None:
    """Whoever holds the fewest slots comes first."""
    mesh = DispatcherWithWorkers(node_info("b", 2), node_info("c", 2))
    mesh.ask(*(draft(f"a{n}") for n in range(4)), by="ann")
    refused, *_ = (command for command in mesh.live if mesh.where(command) == "c")
    ended, *_ = (command for command in mesh.live if mesh.where(command) == "b")
    mesh.ask(*(draft(f"b{n}") for n in range(3)), by="bob")

    assert mesh.end(refused, how=LACKS_INPUT) == ["b0"]
    assert mesh.end(ended) == ["b1"]


def test_a_heavy_task_that_a_worker_refused_does_not_starve() -> None:
    """A worker that has not refused it is reserved for it."""
    mesh = DispatcherWithWorkers(node_info("b", 2), node_info("c", 2))
    mesh.ask(draft_requiring("pair", Requirements(cpus=2)))
    refusing = mesh.where("pair")
    mesh.ask(draft("t0"), draft("t1"))
    mesh.ask(*(draft(f"u{n}") for n in range(20)))
    mesh.end("pair", how=LACKS_INPUT)
    late = RESERVE_AFTER_S + 1

    mesh.end("t0", at=late)
    kept = mesh.dispatch._step.matcher.reservation
    assert kept is not None
    placed = []
    for command in list(mesh.live):
        placed += mesh.end(command, at=late + 1)

    assert kept.node != refusing
    assert "pair" in placed
    assert mesh.where("pair") == kept.node


def test_a_refused_task_does_not_delay_one_that_other_workers_refused() -> None:
    """The first of them may wait for a worker that is busy for days."""
    mesh = DispatcherWithWorkers(*(node_info(name, 1) for name in "bcd"))
    mesh.ask(draft("x"), draft("y"), draft("long"))
    mesh.end("x", how=LACKS_INPUT)
    assert mesh.end("y", how=LACKS_INPUT) == ["x", "y"]
    mesh.end("x", how=LACKS_INPUT)
    assert mesh.ask(draft("z")) == ["z"]
    mesh.end("z", how=LACKS_INPUT)

    assert mesh.end("y") == ["z"]
    assert mesh.end("long") == ["x"]


def test_what_visitors_returned_does_not_delay_what_they_may_run() -> None:
    """That two of them returned it may become known while it waits."""
    visitor = NodeId(VISITOR_PREFIX + "v")
    asked = Requirements(visitors=VisitorRule.ALLOWED)
    mesh = DispatcherWithWorkers(replace(node_info(visitor, 1), leaves_ms=10**15))
    mesh.ask(*(draft_requiring(name, asked) for name in ("long", "first", "second")))
    queue = mesh.dispatch._queue
    (first,) = (task for task in queue.tasks.waiting if task.spec.command == "first")
    end = released(EndReason.RETURNED)
    returned = (Attempt(attempt(n), visitor, end.state, end) for n in (1, 2))
    queue.join(first, TaskRecord(first.spec.id, attempts=tuple(returned)))

    assert mesh.end("long") == ["second"]
    mesh.dispatch.on_worker_up(node_info("b", 1), moment())
    came = mesh.dispatch.on_reattach(*reattach_report("b", 1), moment())
    assert mesh.note(came) == ["first"]
