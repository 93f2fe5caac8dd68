"""Flows that read state: task lists, explanations, nodes and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

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
    """Filter of a task list.

    `name`, `labels`, `text`, `mine` or `ended_within_s` makes it a search.
    """

    status: Status
    worker_id: str  #: name or id of the node
    array: str | Task  #: list the members of this array; other lists omit members
    name: str
    labels: Mapping[str, str]
    text: str  #: substring of the command or the name
    mine: bool  #: only tasks of the subject of the token, or of the local user
    ended_within_s: int  #: only tasks that ended so recently
    newest: bool  #: newest first


_SEARCH_FIELDS: Final = frozenset({"name", "labels", "text", "mine", "ended_within_s"})


def tasks(requests: RequestFlow, task_filter: TaskFilter) -> EmittingFlow[Task]:
    """Emit tasks, read page by page."""
    query = _query(task_filter)
    is_search = bool(_SEARCH_FIELDS & task_filter.keys())
    while True:
        page = yield from requests.send_and_decode(
            Call("GET", rest_calls.TASKS, dict(query)), TaskPage
        )
        for task in page.tasks:
            yield Emit(task)
        if is_search and page.next is not None:
            query["after"] = page.next
        elif not is_search and len(page.tasks) == PAGE:
            query["offset"] += PAGE
        else:
            return


def _query(task_filter: TaskFilter) -> dict[str, Any]:
    query: dict[str, Any] = {**task_filter, "limit": PAGE}
    if not _SEARCH_FIELDS & task_filter.keys():
        query["offset"] = 0
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
