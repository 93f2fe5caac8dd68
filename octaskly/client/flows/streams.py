"""Flows that read event streams: logs, events, ended tasks."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from octaskly.client.flows import rest_calls
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.rest_calls import Call
from octaskly.client.flows.resumable import ResumableEvents
from octaskly.client.flows.retry import Deadline
from octaskly.client.flows.sse import Event
from octaskly.client.flows.steps import CloseStream, Emit, EmittingFlow
from octaskly.client.flows.task_fields import ref_of
from octaskly.rest.client_types import FINAL, Task

Stream = Literal["stdout", "stderr", "both"]
LogKind = Literal["stdout", "stderr", "attempt", "gap", "state", "end"]
EventType = Literal["task", "node"]


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a task's log: a chunk of output, or a change of the task.

    `kind` is `stdout` or `stderr` for a chunk in `data`; `attempt` for the start of an
    attempt, whose offsets restart at 0; `gap` for output that was not kept; `state`
    while no node runs the task; `end` for the last event. `details` has the fields
    that the REST reference lists.
    """

    kind: LogKind
    data: bytes = b""
    offset: int | None = None  #: of `data` in its stream, in bytes
    id: str = ""  #: pass it as `after` to resume after this event
    details: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """The data as text; characters split between chunks become U+FFFD."""
        return self.data.decode("utf-8", "replace")


def logs(
    requests: RequestFlow,
    task: str | Task,
    *,
    follow: bool,
    stream: str,
    attempt: int | None,
    after: str,
    deadline: Deadline,
) -> EmittingFlow[Log]:
    """Emit the log of a task."""
    path = rest_calls.resource_path(rest_calls.TASKS, ref_of(task), "logs")
    query = {
        "stream": stream,
        "follow": "true" if follow else "false",
        "attempt": attempt,
    }

    def call(last_id: str) -> Call:
        return rest_calls.open_stream(path, query, last_id)

    source = ResumableEvents(requests, call, deadline, last_id=after)
    while True:
        event = yield from source.next_event()
        if event.kind:
            yield Emit(_log(event))
        if event.kind == "end":
            yield CloseStream()
            return


def _log(event: Event) -> Log:
    details = event.data
    if event.kind not in ("stdout", "stderr"):
        return msgspec.convert(
            {"kind": event.kind, "id": event.id, "details": details}, Log
        )
    text: str = details["data"]
    data = base64.b64decode(text) if "encoding" in details else text.encode()
    kind: LogKind = "stdout" if event.kind == "stdout" else "stderr"
    return Log(kind=kind, data=data, offset=details["offset"], id=event.id)


def events(
    requests: RequestFlow,
    *,
    types: Sequence[str],
    task: str | Task | None,
    after: str,
    deadline: Deadline,
) -> EmittingFlow[Event]:
    """Emit the changes of tasks and nodes, without end."""
    only = None if task is None else ref_of(task)
    source = _event_stream(requests, types, only, deadline, after=after)
    while True:
        event = yield from source.next_event()
        if event.kind:
            yield Emit(event)


def as_ended(
    requests: RequestFlow,
    tasks: Iterable[str | Task],
    *,
    deadline: Deadline,
    on_waiting: Callable[[Task], None] = lambda _: None,
    on_change: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> EmittingFlow[Task]:
    """Emit tasks as they end.

    Args:
        requests: Makes the requests.
        tasks: The tasks to wait for.
        deadline: When to give up.
        on_waiting: Is called with each task that has not ended at the start.
        on_change: Is called with each change of a task, also of a member of an array.
    """
    waiting = dict.fromkeys(map(ref_of, tasks))
    only = next(iter(waiting)) if len(waiting) == 1 else None
    source = _event_stream(requests, ("task",), only, deadline)
    is_synced = False
    while waiting:
        event = yield from source.next_event()
        if event.kind == "task":
            on_change(event.data)
        if not is_synced or event.kind == "reset":
            # Tasks may have ended before this event, so check every task.
            is_synced = True
            ended = list(waiting)
        elif event.kind == "task" and event.data["status"] in FINAL:
            ended = [event.data["id"]]
        else:
            continue
        for ref in [ref for ref in ended if ref in waiting]:
            task = yield from requests.send_and_decode(
                rest_calls.task(ref), Task, deadline
            )
            del waiting[ref]
            if task.is_final:
                yield Emit(task)
            else:
                waiting[task.id] = None  # Events use the full id.
                on_waiting(task)
    yield CloseStream()


def _event_stream(
    requests: RequestFlow,
    types: Sequence[str],
    task: str | None,
    deadline: Deadline,
    *,
    after: str = "",
) -> ResumableEvents:
    query = {"types": ",".join(types), "task": task}

    def call(last_id: str) -> Call:
        return rest_calls.open_stream(rest_calls.EVENTS, query, last_id)

    return ResumableEvents(requests, call, deadline, last_id=after)
