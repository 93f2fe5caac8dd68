"""Widths of text in a terminal, and durations in tables."""

from __future__ import annotations

import datetime as dt
import time

import pytest

from octaskly.cli.output.render import (
    clock_time,
    count_of,
    duration,
    print_table,
    time_left,
)
from octaskly.cli.output.terminal import cut, pad, width


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("plain", 5),
        ("naïve", 5),
        ("nai\u0308ve", 5),
        ("日本語", 6),
        ("\uff46\uff55", 4),
        ("한국어", 6),
        ("🚀 up", 5),
        ("…", 1),
        ("", 0),
    ],
)
def test_wide_characters_take_two_columns_and_combining_marks_none(
    text: str, columns: int
) -> None:
    """Terminals draw them so."""
    assert width(text) == columns
    assert width(pad(text, 12)) == 12


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("plain", 5, "plain"),
        ("plain", 4, "pla…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("e\u0301e\u0301e\u0301", 2, "e\u0301…"),
    ],
)
def test_long_text_is_cut_with_an_ellipsis(text: str, columns: int, shown: str) -> None:
    """No wide character is cut in half: a column may stay empty."""
    assert cut(text, columns) == shown
    assert width(shown) <= columns


def test_table_columns_are_aligned_for_any_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Chinese names or emoji once shifted the following columns."""
    rows = [["1", "日本語", "a"], ["2", "🚀", "b"], ["3", "plain", "c"]]

    print_table(["ID", "NAME", "COMMAND"], rows, state_column=0)

    lines = capsys.readouterr().out.splitlines()
    assert {width(line[: line.index(line.split()[-1])]) for line in lines} == {12}


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (0, "0 ms"),
        (999.4, "999 ms"),
        (999.6, "1.0 s"),
        (59_940, "59.9 s"),
        (59_960, "1m00s"),
        (119_700, "2m00s"),
        (3_599_700, "1h00m"),
        (7_199_000, "1h59m"),
    ],
)
def test_a_duration_is_rounded_before_it_is_split(
    milliseconds: float, shown: str
) -> None:
    """There is no 1m60s."""
    assert duration(milliseconds) == shown


def test_a_remaining_time_is_never_none() -> None:
    """Whole seconds: a tenth would only flicker."""
    left_ms = (0, 400, 1001, 59_000, 59_001, 160_000)

    assert [time_left(each) for each in left_ms] == [
        *("1 s left", "1 s left", "2 s left", "59 s left", "1m00s left", "2m40s left"),
    ]


def test_a_number_has_the_form_of_its_noun() -> None:
    """One file, two files, no file is plural as well."""
    assert [count_of(n, "file") for n in range(3)] == ["0 files", "1 file", "2 files"]


def test_a_time_of_today_has_no_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """People read it in their time zone."""
    monkeypatch.setenv("TZ", "Etc/GMT-2")
    time.tzset()
    now = dt.datetime(2026, 11, 29, 21, 0, tzinfo=dt.UTC)  # 23:00 there
    times = ("2026-11-28T22:30:05Z", "2026-11-28T21:59:00Z", "2025-01-01T00:00:00Z")

    assert [clock_time(each, now) for each in (*times, None, "soon")] == [
        *("00:30:05", "Nov 28 23:59", "2025-01-01", "-", "soon"),
    ]
    monkeypatch.undo()
    time.tzset()
