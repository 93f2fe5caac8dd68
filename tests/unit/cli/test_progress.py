"""Progress of transfers: what the line on a terminal says."""

from __future__ import annotations

import time

import pytest

from octaskly.cli.output.progress import TransferProgress
from octaskly.cli.output.terminal import ProgressLine


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that were drawn; time passes by 0.25 s with each report."""
    now_s = [100.0]
    shown: list[str] = []

    def monotonic() -> float:
        now_s[0] += 0.25
        return now_s[0]

    monkeypatch.setattr(time, "monotonic", monotonic)
    monkeypatch.setattr(ProgressLine, "show", lambda _, text: shown.append(text))
    return shown


def test_the_line_has_files_bytes_rate_and_remaining_time(lines: list[str]) -> None:
    """The rate is that of the last seconds."""
    sending = TransferProgress("sending")
    sending.expect(3, 100_000_000)
    for _ in range(8):
        sending.add(0, 10_000_000)
    sending.add(1, 0)

    assert lines[0] == "sending 0 of 3 files, 30 MB of 100 MB, 40 MB/s, 2 s left"
    assert lines[-1] == "sending 1 of 3 files, 80 MB of 100 MB, 35 MB/s, 1 s left"


def test_what_takes_a_moment_is_not_shown(lines: list[str]) -> None:
    """Small files are sent before anybody could read it."""
    sending = TransferProgress("sending")
    sending.expect(1, 10)
    sending.add(1, 10)

    assert lines == []


def test_what_an_earlier_fetch_got_counts_in_no_rate(lines: list[str]) -> None:
    """It took no time now."""
    fetching = TransferProgress("fetching")
    for arrived in (50_000_000, 60_000_000, 70_000_000):
        fetching.set_bytes(arrived, 100_000_000)

    assert lines == ["fetching 70 MB of 100 MB, 40 MB/s, 1 s left"]


def test_bytes_that_were_sent_in_vain_are_taken_back(lines: list[str]) -> None:
    """A resumed upload says how far it really is."""
    sending = TransferProgress("sending")
    sending.expect(1, 100_000_000)
    for size_bytes in (40_000_000, 40_000_000, -60_000_000, 9_000_000, 9_000_000):
        sending.add(0, size_bytes)

    assert lines == ["sending 0 of 1 file, 38 MB of 100 MB, 36 MB/s, 2 s left"]
