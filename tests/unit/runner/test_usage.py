"""The memory usage of a task, if it is known."""

from __future__ import annotations

import struct

from octaskly.runner.processes import limits


def spent(user_us: int, system_us: int, peak_kb: int) -> bytes:
    """Return a usage report like the kernel's."""
    times = *divmod(user_us, 1_000_000), *divmod(system_us, 1_000_000)
    return struct.pack("@5l", *times, peak_kb)


def test_a_peak_that_may_belong_to_the_launcher_is_omitted() -> None:
    """A process starts as a copy of the launcher, so small ones look as large."""
    own_kb = limits.own_peak_kb()
    gauge = limits.UsageReader()

    assert own_kb > 1000
    assert gauge.parse_usage(spent(400, 800, own_kb)) == (1, None)
    assert gauge.parse_usage(spent(1_500_000, 250_000, own_kb + 100_000)) == (
        1750,
        own_kb + 100_000,
    )
    assert gauge.parse_usage(spent(0, 0, own_kb)) == (0, None)
