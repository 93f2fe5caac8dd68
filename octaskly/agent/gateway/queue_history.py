"""The recent history of the queue, so that charts do not start empty.

The dispatcher takes a sample every few seconds and keeps a fixed number in memory. The
samples cover its own epoch only, because the log has no history of the queue.
"""

from __future__ import annotations

import asyncio
from collections import deque

from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.core.model.ids import Moment
from octaskly.core.model.tasks import TaskState
from octaskly.errors import StoreError
from octaskly.ports.gateway import QueueSample
from octaskly.ports.store import Clock
from octaskly.store import Store

SAMPLE_PERIOD_S = 5.0
SAMPLES_MAX = 120  #: ten minutes


class QueueHistorySampler:
    """Samples the queue on the dispatcher; other nodes have no samples."""

    def __init__(self, store: Store, view: MeshView, clock: Clock) -> None:
        self._store, self._view, self._clock = store, view, clock
        self._samples: deque[QueueSample] = deque(maxlen=SAMPLES_MAX)
        #: The time of the last sample and the number of ended tasks then.
        self._last_ended: tuple[Moment, int] | None = None

    def samples(self) -> tuple[QueueSample, ...]:
        """Return the samples, oldest first."""
        return tuple(self._samples)

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            await self.record_sample()
            await asyncio.sleep(SAMPLE_PERIOD_S)

    async def record_sample(self) -> None:
        """Add a sample, or delete all samples if this node is not dispatcher."""
        if not self._view.is_serving:
            self._samples.clear()
            self._last_ended = None
            return
        try:
            counts = (await self._store.read_stats()).counts
        except StoreError:
            return  # The agent logs the failure elsewhere; the chart has a gap.
        now = self._clock.now()
        ended = sum(count for state, count in counts.items() if state.is_final)
        if self._last_ended is not None:
            before, ended_before = self._last_ended
            # The count drops when ended tasks are purged.
            passed = max(0, ended - ended_before)
            point = QueueSample(
                at_ms=now.wall_ms,
                queued=counts.get(TaskState.QUEUED, 0),
                running=counts.get(TaskState.RUNNING, 0),
                ended_per_s=passed / max(now.mono_s - before.mono_s, 0.001),
            )
            self._samples.append(point)
        self._last_ended = now, ended
