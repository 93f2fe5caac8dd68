"""Flows that read state: task lists, explanations, nodes and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

from msgspec import UNSET

from octaskly.client.flows import rest_calls
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.rest_calls import Call
from octaskly.client.flows.steps import Emit, EmittingFlow, Flow
from octaskly.client.flows.task_fields import Status, encode_json, ref_of
from octaskly.rest.client_types import Task, TaskPage
from octaskly.rest.mesh import NodeInfo, NodePage, Stats
from octaskly.rest.tasks import Explanation

PAGE: Final = 1000  #: tasks per request


class TaskFilter(TypedDict, total=False):
    """Filter of a task list."""

    status: Status
    worker_id: str  #: name or id of the node
    array: str | Task  #: list the members of this array; other lists omit members
    name: str
    labels: Mapping[str, str]
    text: str  #: substring of the command or the name
    mine: bool  #: only tasks of the subject of the token, or of the local user
    ended_within_s: int  #: only tasks that ended so recently
    newest: bool  #: newest first


def tasks(requests: RequestFlow, task_filter: TaskFilter) -> EmittingFlow[Task]:
    """Emit tasks, read page by page.

    A page begins after a task of the page before, because an offset would skip tasks if
    earlier ones matched no longer. It is read before those tasks are emitted, because
    the caller may forget them.
    """
    query = _query(task_filter)
    page = yield from _read_page(requests, query)
    while (after := _end_of(page)) is not None:
        following = yield from _read_page(requests, {**query, "after": after})
        for task in page.tasks:
            yield Emit(task)
        page = following
    for task in page.tasks:
        yield Emit(task)


def _read_page(requests: RequestFlow, query: Mapping[str, Any]) -> Flow[TaskPage]:
    call = Call("GET", rest_calls.TASKS, query)
    return (yield from requests.send_and_decode(call, TaskPage))


def _end_of(page: TaskPage) -> str | None:
    """Return the task after which the next page begins, None at the end."""
    if page.next is not UNSET:  # A search, which says where it stopped.
        return page.next
    return page.tasks[-1].id if len(page.tasks) == PAGE else None


def _query(task_filter: TaskFilter) -> dict[str, Any]:
    query: dict[str, Any] = {**task_filter, "limit": PAGE}
    if "array" in task_filter:
        query["array"] = ref_of(task_filter["array"])
    if labels := query.pop("labels", None):
        query["label"] = [f"{name}={value}" for name, value in labels.items()]
    for flag in ("newest", "mine"):
        if flag in query:
            query[flag] = "true" if query[flag] else "false"
    # Reject lone surrogates here, with our error rather than that of `urlencode`.
    encode_json(query)
    return query


def explain(requests: RequestFlow, task: str | Task) -> Flow[Explanation]:
    """Return the reason for a task's state."""
    return (
        yield from requests.send_and_decode(
            rest_calls.explain(ref_of(task)), Explanation
        )
    )


def nodes(requests: RequestFlow) -> Flow[list[NodeInfo]]:
    """Return the nodes of the mesh."""
    page = yield from requests.send_and_decode(Call("GET", rest_calls.NODES), NodePage)
    return page.nodes


def stats(requests: RequestFlow) -> Flow[Stats]:
    """Return statistics of the whole mesh."""
    return (yield from requests.send_and_decode(Call("GET", rest_calls.STATS), Stats))
