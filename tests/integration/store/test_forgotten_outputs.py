"""Which outputs on workers' disks are of tasks that the floor has deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from octaskly.core.model.arrays import member_id
from octaskly.core.model.hlc import HLC_EPOCH_MS
from octaskly.core.model.ids import StreamId
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.ports.files import KeptOutput
from octaskly.store import Store
from octaskly.store.reading.queries import CLOCK_ERROR_MS
from tests.contract import log_kit as kit
from tests.contract.test_log_retention import Bench

HORIZON_MS = HLC_EPOCH_MS  #: entries of the kit are all of this millisecond


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    clock = kit.HandClock(HLC_EPOCH_MS)
    path = tmp_path / "octaskly.db"
    made = Bench(lambda hear: Store(path, kit.PicklePacker(), hear, clock), clock)
    await made.open()
    yield made
    await made.log.close()


def kept(
    number: int, *, ended_ms: int = HORIZON_MS, stream: StreamId = kit.STREAM
) -> KeptOutput:
    return KeptOutput(kit.task_id(number), kit.attempt_id(stream=stream), ended_ms)


async def forget(bench: Bench) -> None:
    """Forget task 1, while task 2 waits."""
    await bench.add(kit.submitted(1), kit.assigned(1), kit.finished(1))
    await bench.add(kit.submitted(2))
    assert await bench.raise_floor()
    await bench.shows(2)


async def test_outputs_of_forgotten_tasks_are_found(bench: Bench) -> None:
    """Not those of others, and none before anything was forgotten."""
    await bench.add(kit.submitted(3))
    assert await bench.log.find_forgotten([kept(1)]) == ([], 0)
    await bench.add(kit.cancelled(3))
    await forget(bench)

    found, before_ms = await bench.log.find_forgotten([kept(2), kept(1)])

    assert found == [1]
    assert before_ms == HORIZON_MS + CLOCK_ERROR_MS


async def test_what_ended_after_the_floor_is_not_forgotten(bench: Bench) -> None:
    """Another node may have accepted it alone, and come back with it."""
    await forget(bench)
    latest_ms = HORIZON_MS + CLOCK_ERROR_MS
    outputs = [kept(1, ended_ms=latest_ms), kept(1, ended_ms=latest_ms + 1)]

    found, _ = await bench.log.find_forgotten(outputs)

    assert found == [0]


async def test_what_an_unknown_dispatcher_assigned_is_not_forgotten(
    bench: Bench,
) -> None:
    """The other part of a network split may have the task, however old it is."""
    await forget(bench)

    found, _ = await bench.log.find_forgotten([kept(1, stream=StreamId(12345))])

    assert found == []


async def test_what_was_assigned_after_the_known_part_of_a_log_is_not_forgotten(
    bench: Bench,
) -> None:
    """Its task may be in the part that has not arrived."""
    await forget(bench)
    await bench.take(kit.entries([kit.submitted(3)], stream=kit.OTHER))
    attempts = [kit.attempt_id(n, stream=kit.OTHER) for n in (1, 2)]

    found, _ = await bench.log.find_forgotten(
        [KeptOutput(kit.task_id(4), attempt, HORIZON_MS) for attempt in attempts]
    )

    assert found == [0]


async def test_members_stay_with_their_array(bench: Bench) -> None:
    """Also a member that has no row."""
    options = TaskOptions(array=ArraySpec(count=3))
    await forget(bench)
    await bench.add(kit.submitted(4, options=options))
    member = member_id(kit.task_id(4), 1)

    found, _ = await bench.log.find_forgotten(
        [KeptOutput(member, kit.attempt_id(), HORIZON_MS)]
    )

    assert found == []


async def test_a_task_whose_envelope_has_not_arrived_is_not_forgotten(
    bench: Bench,
) -> None:
    """A fact that came first says that it exists."""
    await forget(bench)
    await bench.add(kit.finished(5))

    found, _ = await bench.log.find_forgotten([kept(5), kept(6)])

    assert found == [1]
