"""Files for tasks, left at the node that is asked; each is known by its SHA-256."""

from __future__ import annotations

from typing import Final

from octaskly.client.errors import NotFound
from octaskly.client.flows.api_calls import Call, resource_path
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.steps import Flow
from octaskly.rest.tasks import FileLeft

FILES: Final = "/api/v1/files"
BYTES_A_SECOND_MIN: Final = 1 << 20  #: a slower way to the node is as good as none


def upload_file(
    requests: RequestFlow, sha256: str, data: bytes | memoryview
) -> Flow[FileLeft]:
    """Leave a file, unless it is there."""
    path = resource_path(FILES, sha256)
    try:
        return (yield from requests.send_and_decode(Call("GET", path), FileLeft))
    except NotFound:
        headers = {"Content-Type": "application/octet-stream"}
        wait_s = len(data) / BYTES_A_SECOND_MIN
        call = Call("POST", path, body=data, headers=headers, extra_wait_s=wait_s)
        return (yield from requests.send_and_decode(call, FileLeft))


def release_file(requests: RequestFlow, sha256: str) -> Flow[None]:
    """Say that no task will name a file any more."""
    yield from requests.send(Call("DELETE", resource_path(FILES, sha256)))
