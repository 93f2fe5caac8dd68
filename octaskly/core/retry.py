"""When to try again: backoff as functions of how often it failed.

It does not know what is tried, and it rolls no dice: draws come with the call.
"""

from __future__ import annotations

DOUBLINGS_MAX = 30  #: beyond this every cap is reached, and powers stay small


def ceiling(failures: int, *, base_s: float, cap_s: float) -> float:
    """Return the longest wait after `failures`, in seconds: doubled up to the cap.

    Used as it is where one sender repeats itself on one link, so that no herd of
    others can be in step with it.

    Args:
        failures: Failures so far, from 1.
        base_s: Wait after the first failure.
        cap_s: Upper bound.

    Raises:
        ValueError: `failures` is below 1.
    """
    if failures < 1:
        raise ValueError(f"failures is {failures}; it counts from 1")
    doublings = min(failures - 1, DOUBLINGS_MAX)
    return float(min(cap_s, base_s * (1 << doublings)))


def backoff(failures: int, *, base_s: float, cap_s: float, jitter: float) -> float:
    """Return the seconds to wait before the next try: full jitter.

    Args:
        failures: Failures so far, from 1.
        base_s: Delay after the first failure, before jitter.
        cap_s: Upper bound before jitter.
        jitter: Draw from [0, 1), passed in so that a replay repeats it.

    Raises:
        ValueError: `failures` is below 1.

    Source: "full jitter", M. Brooker, Exponential Backoff And Jitter, 2015.
    """
    return ceiling(failures, base_s=base_s, cap_s=cap_s) * jitter
