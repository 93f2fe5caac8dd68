"""The agent's log: one event is one line, whatever its values contain."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
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
