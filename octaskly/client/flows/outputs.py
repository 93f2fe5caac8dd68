"""The flow that fetches all outputs of a task as one archive."""

from __future__ import annotations

from typing import NamedTuple

from octaskly.client.errors import NotOctaskly, ReplyLost
from octaskly.client.flows import rest_calls
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.rest_calls import Call, Response
from octaskly.client.flows.resumable import ResumableBody
from octaskly.client.flows.retry import Deadline
from octaskly.client.flows.steps import CloseStream, Emit, EmittingFlow
from octaskly.client.flows.task_fields import ref_of
from octaskly.rest.client_types import Task

PARTIAL_CONTENT = 206


class ArchiveStart(NamedTuple):
    """The archive, and the position in it, to which the next bytes belong."""

    etag: str  #: the same for equal archives only
    offset: int  #: of the next byte
    size_bytes: int  #: of the whole archive


def outputs_archive(
    requests: RequestFlow,
    task: str | Task,
    *,
    etag: str,
    offset: int,
    deadline: Deadline,
) -> EmittingFlow[ArchiveStart | bytes]:
    """Emit the archive of a task's outputs, each part after where it starts.

    Args:
        requests: Sends the requests.
        task: The task.
        etag: The etag of an archive that arrived in part; empty for none.
        offset: Number of bytes that have arrived.
        deadline: Limit for the whole archive.
    """
    path = rest_calls.resource_path(rest_calls.TASKS, ref_of(task), "outputs.tar")
    at = ArchiveStart(etag, offset if etag else 0, 0)

    def call() -> Call:
        if not at.offset:
            return Call("GET", path)
        rest = {"Range": f"bytes={at.offset}-", "If-Range": f'"{at.etag}"'}
        return Call("GET", path, headers=rest)

    body = ResumableBody(requests, call, deadline)
    head: Response | None = None
    while not at.size_bytes or at.offset < at.size_bytes:
        data = yield from body.read_chunk()
        if body.response_head is not None and body.response_head is not head:
            head = body.response_head
            at = _start(head, at.offset, requests.node_label)
            yield Emit(at)
        if data:
            at = at._replace(offset=at.offset + len(data))
            yield Emit(data)
        elif data is not None and at.offset < at.size_bytes:
            yield from body.close_and_wait(
                ReplyLost(f"{requests.node_label} stopped sending the outputs")
            )
    yield CloseStream()


def _start(head: Response, offset: int, node_label: str) -> ArchiveStart:
    """Return what a response sends: the rest of the archive, or all of it."""
    try:
        etag = head.headers["etag"].strip('"')
        if head.status != PARTIAL_CONTENT:
            return ArchiveStart(etag, 0, int(head.headers["content-length"]))
        size_bytes = int(head.headers["content-range"].rpartition("/")[2])
        return ArchiveStart(etag, offset, size_bytes)
    except (KeyError, ValueError):
        raise NotOctaskly(f"{node_label} sent outputs without their size") from None
