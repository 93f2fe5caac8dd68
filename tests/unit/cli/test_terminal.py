"""Output on streams that take only a part at a time."""

from __future__ import annotations

import io
import os
import threading
from typing import Any

from octaskly.cli.output.terminal import _write_all


def test_an_unbuffered_stream_gets_every_byte() -> None:
    """As with PYTHONUNBUFFERED, on a pipe that is shared with a program like node."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    data = bytes(range(256)) * 4096
    received: list[bytes] = []

    def receive() -> None:
        with os.fdopen(reads, "rb") as pipe:
            received.append(pipe.read())

    reader = threading.Thread(target=receive)
    reader.start()
    raw: Any = os.fdopen(writes, "wb", buffering=0)
    with io.TextIOWrapper(raw, write_through=True) as text:
        _write_all(text, data)
    reader.join()

    assert received == [data]
