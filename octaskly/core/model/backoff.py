"""Exponential backoff between attempts."""

from __future__ import annotations

DOUBLINGS_MAX = 30  #: beyond this every cap is reached, and powers stay small


def backoff(failures: int, *, base_s: float, cap_s: float) -> float:
    """Return the wait after `failures`, in seconds: doubled up to the cap.

    It has no jitter: one sender repeats itself on one link, so that no herd of others
    can be in step with it.

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
