"""Files for tasks, left at the node that is asked; each is known by its SHA-256."""

from __future__ import annotations

from typing import Final

import msgspec

from octaskly.client.errors import NotFound
from octaskly.client.flows.calls import Call, path_of
from octaskly.client.flows.request import Asker
from octaskly.client.flows.steps import Flow

FILES: Final = "/api/v1/files"
BYTES_A_SECOND_MIN: Final = 1 << 20  #: a slower way to the node is as good as none


class Left(msgspec.Struct, frozen=True):
    """A file at a node."""

    node: str  #: id


def leave(asker: Asker, sha256: str, data: bytes | memoryview) -> Flow[Left]:
    """Leave a file, unless it is there."""
    path = path_of(FILES, sha256)
    try:
        return (yield from asker.asked(Call("GET", path), Left))
    except NotFound:
        headers = {"Content-Type": "application/octet-stream"}
        wait_s = len(data) / BYTES_A_SECOND_MIN
        call = Call("POST", path, body=data, headers=headers, wait_s=wait_s)
        return (yield from asker.asked(call, Left))


def let_go(asker: Asker, sha256: str) -> Flow[None]:
    """Say that no task will name a file any more."""
    yield from asker.ask(Call("DELETE", path_of(FILES, sha256)))
