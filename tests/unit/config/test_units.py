"""Amounts with units: what people write, and what messages show."""

from __future__ import annotations

import pytest

from octaskly.cli.output.render import data_size
from octaskly.config.units import BYTES, COUNT, SECONDS


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65_536),
        ("10G", 10_000_000_000),
        ("10GB", 10_000_000_000),
        ("10 GB", 10_000_000_000),
        ("64kB", 64_000),
        ("64KB", 64_000),
        ("10GiB", 10 << 30),
        ("64 MiB", 64 << 20),
        ("1T", 1_000_000_000_000),
        ("10iB", None),
        ("10g", None),
        ("10GiBB", None),
        ("1.5G", None),
        ("G", None),
        ("-1", None),
    ],
)
def test_a_size_is_decimal_unless_it_says_otherwise(
    text: str, size: int | None
) -> None:
    """As the units of SI and IEC say."""
    assert BYTES.parse(text) == size


@pytest.mark.parametrize("text", ["10G", "64M", "64MiB", "8K", "2KiB", "3TiB", "8190"])
def test_a_size_is_shown_as_it_was_set(text: str) -> None:
    """The shortest text that means it."""
    size = BYTES.parse(text)

    assert size is not None
    assert BYTES.format(size) == text


def test_a_limit_has_the_same_number_in_settings_and_messages() -> None:
    """`doctor` showed a limit of 10G as 11 GB."""
    size = BYTES.parse("10G")

    assert size is not None
    assert data_size(size) == "10 GB"


def test_other_units_have_no_multiples_of_bytes() -> None:
    """Counts have none, and times their own."""
    assert [COUNT.parse("12"), COUNT.parse("12M")] == [12, None]
    assert [SECONDS.parse("15m"), SECONDS.parse("15M")] == [900, None]
    assert SECONDS.format(7200) == "2h"
