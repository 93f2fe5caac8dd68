"""The sliding window of a rate, over random times of requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octaskly.api.security.rate_limit import SLOT_S, WINDOW_S, SlidingWindow

#: Seconds between two requests: bursts, single ones, and pauses about a window long.
gaps = st.one_of(
    st.just(0.0),
    st.floats(0.0, 3.0, allow_nan=False),
    st.sampled_from([0.999999, 1.0, 59.0, 59.999, 60.0, 60.5, 61.0, 61.5]),
    st.floats(0.0, 200.0, allow_nan=False),
)


@given(st.lists(gaps, max_size=80), st.integers(1, 8), st.floats(0.0, 1e6))
def test_window_never_holds_more_than_the_limit_and_never_refuses_early(
    gaps: list[float], limit: int, began_s: float
) -> None:
    """It refuses only a client with `limit` requests within a window and one slot."""
    window, now_s = SlidingWindow(), began_s
    taken: list[float] = []
    for gap in gaps:
        now_s += gap
        recent = [at for at in taken if now_s - at < WINDOW_S]
        nearly = [at for at in taken if now_s - at <= WINDOW_S + SLOT_S]
        if window.count_request(now_s, limit):
            taken.append(now_s)
            assert len(recent) < limit
        else:
            assert len(nearly) >= limit


@given(st.lists(gaps, min_size=1, max_size=40), st.integers(1, 4))
def test_client_that_waits_the_stated_time_is_admitted(
    gaps: list[float], limit: int
) -> None:
    """The stated wait is never zero."""
    window, now_s = SlidingWindow(), 0.0
    for gap in gaps:
        now_s += gap
        if not window.count_request(now_s, limit):
            wait_s = window.seconds_until_free(now_s)
            now_s += wait_s

            assert 1 <= wait_s <= WINDOW_S + SLOT_S
            assert window.count_request(now_s, limit)
