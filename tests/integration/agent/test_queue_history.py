"""The dispatcher's queue history: evenly spaced, bounded, of one epoch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from octaskly.agent.gateway.queue_history import SAMPLES_MAX, QueueHistorySampler
from octaskly.core.effects import PublishMeshState
from octaskly.core.model.ids import Moment, NodeId
from octaskly.ports.gateway import QueueSample
from tests.contract import log_kit as kit
from tests.integration.agent.test_event_feed import EPOCH, Bench
from tests.support.api_node import ADMIN, api_node


class Hands:
    """A clock that a test moves."""

    s = 0.0

    def now(self) -> Moment:
        return Moment(self.s, kit.WALL_MS + int(self.s * 1000))

    def draw(self) -> float:
        return 0.5


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "log.db")
    await asyncio.to_thread(made.store.open)
    yield made
    await made.store.close()


async def test_a_point_has_the_queue_length_and_the_rate_of_ends(bench: Bench) -> None:
    """The first sample has nothing to compare with, so it makes none."""
    clock = Hands()
    history = QueueHistorySampler(bench.store, bench.view, clock)
    await bench.add(kit.submitted(1), kit.submitted(2), kit.assigned(1))
    await history.record_sample()
    clock.s = 4.0
    await bench.add(kit.finished(1))
    await history.record_sample()

    at_ms = kit.WALL_MS + 4000
    assert history.samples() == (
        QueueSample(at_ms=at_ms, queued=1, running=0, ended_per_s=0.25),
    )


async def test_at_most_ten_minutes_are_kept(bench: Bench) -> None:
    """An epoch may last for months."""
    clock = Hands()
    history = QueueHistorySampler(bench.store, bench.view, clock)
    for _ in range(SAMPLES_MAX + 5):
        clock.s += 5.0
        await history.record_sample()

    assert len(history.samples()) == SAMPLES_MAX
    assert history.samples()[-1].at_ms == clock.now().wall_ms


async def test_a_new_epoch_clears_the_history(bench: Bench) -> None:
    """Another node saw the time in between."""
    history = QueueHistorySampler(bench.store, bench.view, Hands())
    for _ in range(2):
        await history.record_sample()
    lost = PublishMeshState(EPOCH, NodeId("other"), is_serving=False, roster=None)
    bench.view.on_published(lost)
    await history.record_sample()

    assert history.samples() == ()


async def test_the_api_shows_the_points() -> None:
    """In seconds and in tasks a second, as everywhere in the API."""
    async with api_node() as node:
        node.gateway.points.append(
            QueueSample(at_ms=1_770_379_200_000, queued=5, running=2, ended_per_s=1.4)
        )
        answer = await node.ask("GET", "/api/v1/stats/history", headers=ADMIN)

    assert answer.json == {
        "points": [
            {
                "at": "2026-02-06T12:00:00Z",
                "queued": 5,
                "running": 2,
                "ended_per_second": 1.4,
            }
        ]
    }
