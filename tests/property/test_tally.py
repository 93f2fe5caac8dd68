"""Values counted by size, one by one and many at once."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from octaskly.ports.histogram import Histogram

BOUNDS = (0.1, 1, 10)


@given(st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0, 2.0, 10.0, 11.0])))
def test_counting_many_values_equals_counting_each(values: list[float]) -> None:
    """A value equal to a bound belongs below it, as Prometheus defines `le`."""
    single, together = Histogram(BOUNDS), Histogram(BOUNDS)
    for value in values:
        single.observe(value)
    together.observe_all(list(values))

    assert single.counts == together.counts
    assert math.isclose(single.total, together.total)
    assert single.counts[0] == sum(value <= BOUNDS[0] for value in values)
    assert sum(single.counts) == len(values)
