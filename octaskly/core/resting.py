"""Tasks that failed, or lost their worker twice, and wait before they are tried again.

Owns when each is due. They stay in hand meanwhile, so there is a bound on them:
beyond it tasks are tried again at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from heapq import heappop, heappush

from octaskly.core.inhand import InHand, Stage
from octaskly.core.model import Moment, TaskId
from octaskly.core.taskqueue import TaskQueue

RESTING_MAX = 10_000


class Resting:
    """Who waits, and until when."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._due: list[tuple[float, TaskId]] = []

    def forget(self) -> None:
        """Let nobody wait: the reign is over."""
        self._due.clear()

    def deadline(self) -> float:
        """Return when `rested` has something to yield."""
        return self._due[0][0] if self._due else math.inf

    def due_s(self, task: TaskId) -> float | None:
        """Return until when a task waits, None if it does not."""
        return next((due_s for due_s, id_ in self._due if id_ == task), None)

    def take(self, task: InHand, now: Moment, rest_s: float) -> None:
        """Let a task wait whose live attempt came to nothing, or queue it at once."""
        if task.final is not None or not task.is_sure or len(self._due) >= RESTING_MAX:
            self._queue.release(task)
            return
        self._queue.rest(task)
        heappush(self._due, (now.mono_s + rest_s, task.spec.id))

    def rested(self, now: Moment) -> Iterator[InHand]:
        """Yield the tasks that have waited long enough."""
        while self._due and self._due[0][0] <= now.mono_s:
            task = self._queue.tasks.get(heappop(self._due)[1])
            if task is not None and task.stage is Stage.RESTING:
                yield task
