"""A bound on the bytes a second of a sender."""

from __future__ import annotations

import pytest

from octaskly.system.byte_rate import AHEAD_S_MAX, ByteRate


class Clock:
    """A monotonic clock that a test sets."""

    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_a_sender_that_is_ahead_has_to_wait() -> None:
    """It may be ahead a little; what it did not send before counts for nothing."""
    clock = Clock()
    rate = ByteRate(1000, clock=clock)

    rate.add_bytes(int(1000 * AHEAD_S_MAX))
    assert rate.wait_s() == 0.0
    rate.add_bytes(2000)
    assert rate.wait_s() == pytest.approx(2.0)
    clock.now_s += 1.5
    assert rate.wait_s() == pytest.approx(0.5)
    clock.now_s += 100.0
    assert rate.wait_s() == 0.0
    rate.add_bytes(2000)
    assert rate.wait_s() == pytest.approx(2.0 - AHEAD_S_MAX)
