"""Backoff doubles and is capped."""

from __future__ import annotations

import pytest

from octaskly.core.retry import backoff


def test_the_wait_doubles_until_the_cap() -> None:
    """The first wait is the base, and no wait is above the cap."""
    waits = [backoff(n, base_s=0.2, cap_s=5.0) for n in range(1, 8)]

    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_million_failures_are_no_overflow() -> None:
    """A node that fails for weeks still gets a number."""
    assert backoff(1_000_000, base_s=0.2, cap_s=5.0) == 5.0


@pytest.mark.parametrize("failures", [0, -1])
def test_failures_count_from_one(failures: int) -> None:
    """Backoff before the first failure is a mistake of the caller."""
    with pytest.raises(ValueError, match="counts from 1"):
        backoff(failures, base_s=1.0, cap_s=2.0)
