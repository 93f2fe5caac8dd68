"""Flows that upload files for tasks to a node, addressed by SHA-256."""

from __future__ import annotations

from typing import Final

from octaskly.client.errors import NotFound
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.rest_calls import Call, resource_path
from octaskly.client.flows.steps import Flow
from octaskly.rest.tasks import StoredFile

FILES: Final = "/api/v1/files"
BYTES_A_SECOND_MIN: Final = 1 << 20  #: slower uploads time out


def upload_file(
    requests: RequestFlow, sha256: str, data: bytes | memoryview
) -> Flow[StoredFile]:
    """Upload a file, unless the node has it."""
    path = resource_path(FILES, sha256)
    try:
        return (yield from requests.send_and_decode(Call("GET", path), StoredFile))
    except NotFound:
        headers = {"Content-Type": "application/octet-stream"}
        wait_s = len(data) / BYTES_A_SECOND_MIN
        call = Call("POST", path, body=data, headers=headers, extra_wait_s=wait_s)
        return (yield from requests.send_and_decode(call, StoredFile))


def release_file(requests: RequestFlow, sha256: str) -> Flow[None]:
    """Allow the node to delete a file that no further task will use."""
    yield from requests.send(Call("DELETE", resource_path(FILES, sha256)))
