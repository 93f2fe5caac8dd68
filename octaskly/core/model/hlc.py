"""Hybrid logical timestamps: they order facts the same way on all nodes.

The high bits are milliseconds since 2020, the low bits a counter. So timestamps grow
even when the wall clock stands still or goes back. A timestamp also orders the queue
within each priority band.
"""

from __future__ import annotations

from octaskly.core.model.tasks import ORD_HLC_MASK, TaskSpec

HLC_EPOCH_MS = 1_577_836_800_000  #: 2020-01-01T00:00:00Z
HLC_COUNTER_BITS = 15
HLC_MAX = 1 << 62  #: above all timestamps; leaves room for increments
HLC_AHEAD_MS = 3_600_000  #: longest lead of another clock that a node adopts


def hlc_of(wall_ms: int) -> int:
    """Return the first timestamp of a millisecond."""
    return (wall_ms - HLC_EPOCH_MS) << HLC_COUNTER_BITS


def wall_ms_of(hlc: int) -> int:
    """Return the wall-clock millisecond of a timestamp."""
    return (hlc >> HLC_COUNTER_BITS) + HLC_EPOCH_MS


def hlc_of_latest_remote(wall_ms: int) -> int:
    """Return the latest timestamp that a node adopts from others.

    The bound keeps one wrong clock from advancing the clocks of all nodes.
    """
    return hlc_of(wall_ms + HLC_AHEAD_MS)


def hlc_next(last: int, wall_ms: int) -> int:
    """Return a timestamp above `last` and not behind the wall clock."""
    return max(hlc_of(wall_ms), last + 1)


def accepted_hlc(spec: TaskSpec) -> int:
    """Return when a task was accepted, by the clock of its dispatcher."""
    return spec.ord & ORD_HLC_MASK
