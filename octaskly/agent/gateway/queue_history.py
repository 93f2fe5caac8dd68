"""How the queue stood of late, for charts that shall not begin empty.

The dispatcher looks every few seconds, and keeps a fixed number of points in memory: of
its own reign alone, as history is no part of the log.
"""

from __future__ import annotations

import asyncio
from collections import deque

from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.core.model.ids import Moment
from octaskly.core.model.tasks import TaskState
from octaskly.errors import StoreError
from octaskly.ports import Clock, DurableStore, QueueSample

SAMPLE_PERIOD_S = 5.0
SAMPLES_MAX = 120  #: ten minutes


class QueueHistorySampler:
    """The points of this reign, none elsewhere than at the dispatcher."""

    def __init__(self, store: DurableStore, view: MeshView, clock: Clock) -> None:
        self._store, self._view, self._clock = store, view, clock
        self._samples: deque[QueueSample] = deque(maxlen=SAMPLES_MAX)
        self._last_ended: tuple[Moment, int] | None = (
            None  #: and what had ended by then
        )

    def samples(self) -> tuple[QueueSample, ...]:
        """Return them, the oldest first."""
        return tuple(self._samples)

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            await self.record_sample()
            await asyncio.sleep(SAMPLE_PERIOD_S)

    async def record_sample(self) -> None:
        """Add a point, or forget all where this node does not reign."""
        if not self._view.is_serving:
            self._samples.clear()
            self._last_ended = None
            return
        try:
            counts = (await self._store.read_stats()).counts
        except StoreError:
            return  # The agent says so elsewhere; the chart has a gap.
        now = self._clock.now()
        ended = sum(count for state, count in counts.items() if state.is_final)
        if self._last_ended is not None:
            before, ended_before = self._last_ended
            # What was forgotten meanwhile had ended before.
            passed = max(0, ended - ended_before)
            point = QueueSample(
                at_ms=now.wall_ms,
                queued=counts.get(TaskState.QUEUED, 0),
                running=counts.get(TaskState.RUNNING, 0),
                ended_per_s=passed / max(now.mono_s - before.mono_s, 0.001),
            )
            self._samples.append(point)
        self._last_ended = now, ended
