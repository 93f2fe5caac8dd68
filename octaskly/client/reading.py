"""Looking: tasks in pages, why a task waits, the nodes, the mesh in numbers."""

from __future__ import annotations

from typing import Final

from octaskly.client import calls
from octaskly.client.asked import ref_of
from octaskly.client.asker import Asker
from octaskly.client.calls import Call
from octaskly.client.records import (
    Explanation,
    NodeInfo,
    NodePage,
    Stats,
    Task,
    TaskPage,
)
from octaskly.client.steps import Emit, Emitting, Flow

PAGE: Final = 1000  #: tasks of one request


def tasks(
    asker: Asker, *, status: str | None, worker_id: str | None, array: str | Task | None
) -> Emitting[Task]:
    """Hand out tasks, oldest first, a page at a time."""
    offset = 0
    while True:
        query = {
            "status": status,
            "worker_id": worker_id,
            "array": None if array is None else ref_of(array),
            "limit": PAGE,
            "offset": offset,
        }
        call = Call("GET", calls.TASKS, query)
        page = yield from asker.asked(call, TaskPage)
        for task in page.tasks:
            yield Emit(task)
        offset += len(page.tasks)
        if len(page.tasks) < PAGE:
            return


def explain(asker: Asker, task: str | Task) -> Flow[Explanation]:
    """Say why a task is where it is."""
    path = calls.path_of(calls.TASKS, ref_of(task), "explain")
    return (yield from asker.asked(Call("GET", path), Explanation))


def nodes(asker: Asker) -> Flow[list[NodeInfo]]:
    """Return the members."""
    page = yield from asker.asked(Call("GET", calls.NODES), NodePage)
    return page.nodes


def stats(asker: Asker) -> Flow[Stats]:
    """Count the whole mesh."""
    return (yield from asker.asked(Call("GET", calls.STATS), Stats))
