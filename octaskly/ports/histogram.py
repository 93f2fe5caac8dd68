"""Histogram with fixed buckets, for metrics."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence


class Histogram:
    """Counts and sum of values, by bucket.

    Only one thread may add values. A concurrent reader may see the count of the last
    value without its sum.

    Args:
        bounds: Upper bounds of the buckets, in rising order. One more bucket holds
            values above all of them.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  #: the last bucket is above all bounds
        self.total = 0.0  #: sum of all values

    def observe(self, value: float) -> None:
        """Add one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_all(self, values: list[float]) -> None:
        """Add many values at a low cost each. The list is sorted in place."""
        values.sort()
        start = 0
        for number, bound in enumerate(self.bounds):
            end = bisect_right(values, bound, start)
            self.counts[number] += end - start
            start = end
        self.counts[-1] += len(values) - start
        self.total += sum(values)
