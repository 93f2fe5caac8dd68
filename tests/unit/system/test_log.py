"""The agent's log: one event is one line, whatever its values contain."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from octaskly.system import log

NASTY = "x\x1b[2J\x1b]0;t\x07\r\n<3>forged event\u202etxt\u2028y\x9b1m"


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    """Restore the settings of the process afterwards."""
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("style", ["console", "json", "journal"])
def test_foreign_text_stays_on_its_line(
    style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No forged line, no colour and no terminal title, in any form of the log."""
    logger = log.configure(style, "info", {"NO_COLOR": "1"})
    logger.warning("link to peer refused", peer=NASTY, more=[NASTY, {NASTY: NASTY}])
    logger.error("failed", error=repr(ValueError(NASTY)))
    logger.error("failed", file=Path(NASTY), reason=ValueError(NASTY))

    out = capsys.readouterr().err
    assert len(out.splitlines()) == out.count("\n") == 3
    assert all(line.isprintable() for line in out.splitlines())
    assert out.startswith("<4>") == (style == "journal")


@pytest.mark.parametrize(
    ("style", "is_terminal", "time"),
    [
        ("auto", True, r"\d\d:\d\d:\d\d \[warning"),
        ("auto", False, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z \[warning"),
        ("json", True, r'\{.*"timestamp": ?"\d{4}-\d\d-\d\dT'),
    ],
)
def test_a_person_at_a_terminal_reads_the_time_of_day(
    style: str,
    time: str,
    *,
    is_terminal: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program gets the date and the time zone."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)

    log.configure(style, "info", {"NO_COLOR": "1"}).warning("disk is low", free=1)

    assert re.match(time, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("style", "leads_there", "prefix"),
    [
        ("auto", True, "<4>event="),
        ("json", True, '<4>{"'),
        ("auto", False, "20"),
        ("json", False, '{"'),
    ],
)
def test_lines_carry_a_priority_if_the_journal_reads_them(
    style: str, prefix: str, *, leads_there: bool, tmp_path: Path
) -> None:
    """The variable alone proves nothing: a desktop's terminal inherits it."""
    file = tmp_path / "stderr"
    script = (
        "import os, sys; from octaskly.system.log import configure;"
        "configure(sys.argv[1], 'info', os.environ).warning('disk is low', free=1)"
    )
    with file.open("wb") as stderr:
        here = os.fstat(stderr.fileno())
        stream = f"{here.st_dev}:{here.st_ino if leads_there else here.st_ino + 1}"
        subprocess.run(
            [sys.executable, "-c", script, style],
            env={"JOURNAL_STREAM": stream},
            stderr=stderr,
            check=True,
        )

    line = file.read_text()
    assert line.startswith(prefix)
    assert "disk is low" in line
    assert line.count("\n") == 1


LOSSY_LOG = """
from octaskly.system.log import configure, use_lossy_stderr
use_lossy_stderr()
log = configure("json", "info", {})
for _ in range(300):
    log.warning("disk is low", more="x" * 3_000)
print("going on", flush=True)
input()
log.warning("disk is full")
"""


@contextmanager
def lossy_log(stderr: int, redirection: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run a process that logs much, says so, and logs one more line when asked."""
    shell = ("sh", "-c", f'exec "$@" {redirection}', "sh")
    with subprocess.Popen(
        [*shell, sys.executable, "-c", LOSSY_LOG],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("redirection", ["2>/dev/full", ""])
def test_a_log_that_cannot_be_written_stops_nothing(redirection: str) -> None:
    """The disk is full, or the program that reads it has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with lossy_log(writer, redirection) as process:
            stdout, _ = process.communicate("\n", timeout=60)
    finally:
        os.close(writer)

    assert (stdout, process.returncode) == ("going on\n", 0)


def terminal() -> tuple[int, int]:
    """Return both ends of a terminal that changes nothing."""
    reader, writer = os.openpty()
    tty.setraw(writer)
    return reader, writer


def sockets() -> tuple[int, int]:
    """Return both ends of a connection, as to the systemd journal."""
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


def text_in(reader: int) -> str:
    """Return what there is to read, until there is nothing for a moment."""
    text = b""
    while select.select([reader], [], [], 0.3)[0]:
        text += os.read(reader, 1 << 16)
    return text.decode()


@pytest.mark.parametrize("open_ends", [os.pipe, terminal, sockets])
def test_a_log_that_nobody_reads_stops_nothing(
    open_ends: Callable[[], tuple[int, int]],
) -> None:
    """Once it is read again, it goes on; each line in it is whole."""
    reader, writer = open_ends()
    try:
        with lossy_log(writer) as process:
            assert process.stdin
            assert process.stdout
            assert select.select([process.stdout], [], [], 60)[0]
            text = text_in(reader)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait(60) == 0
        text += text_in(reader)
    finally:
        os.close(reader)
        os.close(writer)

    events = [json.loads(line)["event"] for line in text.splitlines()]
    assert events == ["disk is low"] * (len(events) - 1) + ["disk is full"]
    assert 2 < len(events) < 300
