"""What is known of the memory of a task, and what is not."""

from __future__ import annotations

import resource

from octaskly.runner import usage


def spent(user_s: float, system_s: float, peak_kb: int) -> resource.struct_rusage:
    """Return what the kernel would say."""
    return resource.struct_rusage((user_s, system_s, peak_kb, *[0] * 13))


def test_a_peak_that_may_be_the_launchers_is_not_told() -> None:
    """A process begins as a copy of the launcher, so small ones look as large."""
    own_kb = usage.own_peak_kb()
    gauge = usage.Gauge()

    assert own_kb > 1000
    assert gauge.read(spent(0.0004, 0.0008, own_kb)) == (1, None)
    assert gauge.read(spent(1.5, 0.25, own_kb + 100_000)) == (1750, own_kb + 100_000)
    assert gauge.read(spent(0, 0, own_kb)) == (0, None)
