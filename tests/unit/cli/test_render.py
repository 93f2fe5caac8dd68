"""Widths of text in a terminal, and durations in tables."""

from __future__ import annotations

import pytest

from octaskly.cli.output.render import cut, duration, pad, print_table, width


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
