"""Hybrid timestamps: when a fact was written, in an order that all nodes agree on.

Milliseconds since 2020 stand above a counter, so timestamps grow even where the wall
clock stands still or goes back. They also give each task its place in the queue, below
the band of its priority.
"""

from __future__ import annotations

from octaskly.core.model.tasks import PRIORITY_SHIFT, TaskSpec

HLC_EPOCH_MS = 1_577_836_800_000  #: 2020-01-01T00:00:00Z
HLC_COUNTER_BITS = 15
HLC_MAX = 1 << 62  #: none is so late; beyond it there would be no room to count on
HLC_AHEAD_MS = 3_600_000  #: so far a node follows the clock of another that is ahead
ORD_HLC_MASK = (1 << PRIORITY_SHIFT) - 1  #: the bits of it in `TaskSpec.ord`


def hlc_of(wall_ms: int) -> int:
    """Return the first timestamp of a millisecond."""
    return (wall_ms - HLC_EPOCH_MS) << HLC_COUNTER_BITS


def wall_ms_of(hlc: int) -> int:
    """Return the millisecond in which a timestamp was given."""
    return (hlc >> HLC_COUNTER_BITS) + HLC_EPOCH_MS


def hlc_of_latest_remote(wall_ms: int) -> int:
    """Return the latest timestamp that is taken over from others.

    A clock that is wrong somewhere must not carry all others along.
    """
    return hlc_of(wall_ms + HLC_AHEAD_MS)


def hlc_next(last: int, wall_ms: int) -> int:
    """Return a timestamp above `last` and not behind the wall clock."""
    return max(hlc_of(wall_ms), last + 1)


def accepted_hlc(spec: TaskSpec) -> int:
    """Return when a task was accepted, by the clock of that dispatcher."""
    return spec.ord & ORD_HLC_MASK
