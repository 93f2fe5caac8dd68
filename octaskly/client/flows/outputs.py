"""Flows that read the outputs of a task: all as one archive, or one file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from octaskly.client.errors import NotOctaskly, ReplyLost
from octaskly.client.flows import rest_calls
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.rest_calls import Call, Response
from octaskly.client.flows.resumable import ResumableBody
from octaskly.client.flows.retry import Deadline
from octaskly.client.flows.steps import CloseStream, Emit, EmittingFlow
from octaskly.client.flows.task_fields import ref_of
from octaskly.rest.client_types import Task

PARTIAL_CONTENT: Final = 206
NO_QUERY: Final[Mapping[str, str]] = MappingProxyType({})


class ContentStart(NamedTuple):
    """A content, and the position in it to which the next bytes belong."""

    etag: str  #: the same for equal contents only
    offset: int  #: of the next byte
    size_bytes: int  #: of the whole content


def outputs_archive(
    requests: RequestFlow,
    task: str | Task,
    *,
    etag: str,
    offset: int,
    is_verified: bool = False,
    deadline: Deadline,
) -> EmittingFlow[ContentStart | bytes]:
    """Emit the archive of a task's outputs, each part after where it starts.

    Args:
        requests: Sends the requests.
        task: The task.
        etag: The etag of an archive that arrived in part; empty for none.
        offset: Number of bytes that have arrived.
        is_verified: Have nodes read each file before they send it, because bytes that
            arrived were wrong.
        deadline: Limit for the whole archive.
    """
    path = rest_calls.resource_path(rest_calls.TASKS, ref_of(task), "outputs.tar")
    at = ContentStart(etag, offset if etag else 0, 0)
    query = {"verify": "true"} if is_verified else {}
    yield from _content(requests, path, at, deadline, query=query, can_start_over=True)


def output(
    requests: RequestFlow, task: str | Task, path: str, *, deadline: Deadline
) -> EmittingFlow[bytes]:
    """Emit the bytes of an output file of a task.

    Raises:
        ReplyLost: after a lost connection, no node has the same file.
    """
    where = rest_calls.resource_path(
        rest_calls.TASKS, ref_of(task), "outputs", rest_calls.quoted(path)
    )
    at = ContentStart("", 0, 0)
    yield from _content(requests, where, at, deadline, can_start_over=False)


def _content(
    requests: RequestFlow,
    path: str,
    at: ContentStart,
    deadline: Deadline,
    *,
    query: Mapping[str, str] = NO_QUERY,
    can_start_over: bool,
) -> EmittingFlow[Any]:
    """Emit a content, which is resumed after each lost connection.

    Args:
        requests: Sends the requests.
        path: Its path in the API.
        at: What has arrived of it.
        deadline: Limit for the whole content.
        query: Parameters of the request.
        can_start_over: Emit also where parts start, because another content may begin.
    """

    def call() -> Call:
        if not at.offset:
            return Call("GET", path, query)
        rest = {"Range": f"bytes={at.offset}-", "If-Range": f'"{at.etag}"'}
        return Call("GET", path, query, headers=rest)

    body = ResumableBody(requests, call, deadline)
    head: Response | None = None
    while head is None or at.offset < at.size_bytes:
        data = yield from body.read_chunk()
        if body.response_head is not None and body.response_head is not head:
            head, arrived = body.response_head, at.offset
            at = _start(head, arrived, requests.node_label)
            if can_start_over:
                yield Emit(at)
            elif at.offset < arrived:
                raise ReplyLost(
                    "the output has changed since the connection was lost",
                    hint="read it again from its start",
                )
        if data:
            at = at._replace(offset=at.offset + len(data))
            yield Emit(data)
        elif data is not None and at.offset < at.size_bytes:
            yield from body.close_and_wait(
                ReplyLost(f"{requests.node_label} stopped sending the outputs")
            )
    yield CloseStream()


def _start(head: Response, offset: int, node_label: str) -> ContentStart:
    """Return what a response sends: the rest of a content, or all of it."""
    try:
        etag = head.headers["etag"].strip('"')
        if head.status != PARTIAL_CONTENT:
            return ContentStart(etag, 0, int(head.headers["content-length"]))
        size_bytes = int(head.headers["content-range"].rpartition("/")[2])
        return ContentStart(etag, offset, size_bytes)
    except (KeyError, ValueError):
        raise NotOctaskly(f"{node_label} sent outputs without their size") from None
