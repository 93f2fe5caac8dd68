"""Matching: heavy tasks get room, and never starve behind small ones."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.model.ids import NodeId
from octaskly.core.model.task_options import Requirements
from octaskly.core.protocol.messages import Results
from octaskly.core.scheduling.matching import RESERVE_AFTER_S
from tests.support.builders import draft, moment, node_info
from tests.support.dispatcher import deliver_results
from tests.support.dispatcher_with_workers import DispatcherWithWorkers, draft_requiring


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
