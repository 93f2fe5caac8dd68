"""Output on streams that take only a part at a time."""

from __future__ import annotations

import io
import os
import threading
from typing import Any

import pytest

from octaskly.cli.output import terminal
from octaskly.cli.output.terminal import ProgressLine, _write_all


@pytest.mark.parametrize("buffering", [0, -1], ids=["PYTHONUNBUFFERED", "buffered"])
def test_a_stream_that_does_not_block_gets_every_byte(buffering: int) -> None:
    """As a pipe that is shared with a program like node."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    data = bytes(range(256)) * 4096
    received: list[bytes] = []

    def receive() -> None:
        with os.fdopen(reads, "rb") as pipe:
            received.append(pipe.read())

    reader = threading.Thread(target=receive)
    reader.start()
    raw: Any = os.fdopen(writes, "wb", buffering=buffering)
    with io.TextIOWrapper(raw, write_through=True) as text:
        _write_all(text, data)
    reader.join()

    assert received == [data]


def test_a_reader_that_pauses_stops_no_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `| less` does: the thread that sends files draws the line of progress."""
    monkeypatch.setattr(terminal, "is_terminal", lambda **_: True)
    line = ProgressLine(is_quiet=False)
    is_written, has_shown = threading.Event(), threading.Event()

    def write() -> None:
        with terminal._no_progress():
            is_written.set()
            assert has_shown.wait(30.0)

    writer = threading.Thread(target=write)
    writer.start()
    assert is_written.wait(30.0)
    line.show("1 of 2")
    has_shown.set()
    writer.join()


def test_a_line_is_whole_on_a_stream_that_takes_a_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As PYTHONUNBUFFERED on a pipe that does not block, or on a disk that is full."""

    class Part(io.RawIOBase):
        """Takes 3 bytes at a time."""

        taken = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.taken += bytes(data[:3])
            return len(data[:3])

    part: Any = Part()
    monkeypatch.setattr(
        "sys.stdout", io.TextIOWrapper(part, "utf-8", write_through=True)
    )

    terminal.print_line("ready: ü")
    terminal.print_exact("task-1")

    assert part.taken.decode() == "ready: ü\ntask-1\n"
