"""How often something took how long, counted where it happens and read when asked."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence


class Histogram:
    """Values counted by size.

    One thread adds; whoever reads meanwhile may see the last value half.

    Args:
        bounds: Upper ends of the sizes, rising; what is above them counts, too.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  #: the last one has what is above all
        self.total = 0.0  #: of all values

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_all(self, values: list[float]) -> None:
        """Count many values, which are put into order; they cost little each."""
        values.sort()
        start = 0
        for number, bound in enumerate(self.bounds):
            end = bisect_right(values, bound, start)
            self.counts[number] += end - start
            start = end
        self.counts[-1] += len(values) - start
        self.total += sum(values)
