"""The steps of a dispatcher that takes over many running attempts."""

from __future__ import annotations

from typing import Any

import pytest

from octaskly.core.scheduling.queued_task import QueuedTask
from tests.support.large_takeover import ATTEMPTS, WORKERS, takeover_steps

TASKS_PER_STEP = 1000


def test_no_step_of_a_takeover_touches_more_than_a_thousand_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One step used to go through all of them, and did so again and again."""
    touched: set[int] = set()
    plain = QueuedTask.__getattribute__

    def noted(task: QueuedTask, name: str) -> Any:
        touched.add(id(task))
        return plain(task, name)

    monkeypatch.setattr(QueuedTask, "__getattribute__", noted)
    largest: dict[str, int] = {}

    for name, step in takeover_steps():
        touched.clear()
        step()
        largest[name] = max(largest.get(name, 0), len(touched))

    print(largest)
    assert max(largest.values()) <= TASKS_PER_STEP
    assert largest["answer to LoadLive"] == TASKS_PER_STEP
    assert largest["reattach"] >= ATTEMPTS
    assert {"answer to LoadTasks", "workers given up", "ended"} <= largest.keys()
    assert WORKERS * ATTEMPTS > 26_000
