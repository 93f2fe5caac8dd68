"""The time until which a visitor stays, as people and programs type it."""

from __future__ import annotations

import time

import click
import pytest

from octaskly.cli.agent import parse_until


@pytest.mark.parametrize(
    "text",
    [
        *("2020-01-01", "2020-01-01T00:00Z", "0001-01-01T00:00"),  # The past.
        *("0", "0s", "-1h", "25:99", "", "tomorrow", "1e400", "9" * 99 + "d"),
        *("9" * 18 + "d", "9999999d"),  # No clock can show these.
        "2099-12-24T16:40+99:00",
    ],
)
def test_a_time_that_is_over_or_is_none_is_refused(text: str) -> None:
    """Before anything is joined: an invite admits only once."""
    with pytest.raises(click.UsageError, match="--until"):
        parse_until(text)


@pytest.mark.parametrize("text", ["2h", "23:59", "2099-12-24T16:40+01:00"])
def test_a_time_is_in_the_future(text: str) -> None:
    """A time of the day is its next occurrence."""
    assert parse_until(text) > time.time() * 1000 - 1000
