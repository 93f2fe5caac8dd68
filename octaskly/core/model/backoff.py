"""Exponential backoff between attempts."""

from __future__ import annotations

DOUBLINGS_MAX = 30  #: enough to reach every cap; bounds the power of two


def backoff(failures: int, *, base_s: float, cap_s: float) -> float:
    """Return the seconds to wait after `failures`: doubled each time, up to the cap.

    The result has no jitter. `retry_delay_s` in `core.scheduling.retry_policy` adds it,
    because tasks that failed together would otherwise retry together.

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
