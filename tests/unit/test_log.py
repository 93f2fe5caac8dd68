"""The agent's log: one event is one line, whoever chose the words in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from octaskly import log

NASTY = "x\x1b[2J\x1b]0;t\x07\r\n<3>forged event\u202etxt\u2028y\x9b1m"


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    """Leave the settings of the process as they were."""
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("style", ["console", "json", "journal"])
def test_what_others_say_stays_on_the_line_that_tells_of_it(
    style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No forged line, no colour, no title of the terminal, in any form of the log."""
    logger = log.configure(style, "info", {"NO_COLOR": "1"})
    logger.warning("peer refused", peer=NASTY, more=[NASTY, {NASTY: NASTY}])
    logger.error("failed", error=repr(ValueError(NASTY)))

    out = capsys.readouterr().err
    assert len(out.splitlines()) == out.count("\n") == 2
    assert all(line.isprintable() for line in out.splitlines())
    assert out.startswith("<4>") == (style == "journal")
