"""What an attempt used: its first process, and those that this one waited for."""

from __future__ import annotations

import struct
from typing import Final

_USED: Final = struct.Struct("@5l")  #: two times in seconds and microseconds, and KiB
BYTES: Final = _USED.size  #: of a `struct rusage` that are read
SLACK_KB = 1024  #: the kernel counts memory in pieces, so two readings may differ
UNKNOWN_KB = 1 << 62

Used = tuple[int, int | None]
"""Milliseconds of processor time; KiB that one process had resident, if known."""


class Gauge:
    """Reads what the kernel says of a process at its end.

    Every process begins as a copy of the launcher, whose peak the kernel takes for
    its own. So a peak that is not above the launcher's is not known.
    """

    def __init__(self) -> None:
        self._floor_kb = 0

    def read(self, usage: bytes) -> Used:
        """Return what was used, as `wait4` said."""
        user_s, user_us, system_s, system_us, peak_kb = _USED.unpack(usage)
        cpu_ms = round((user_s + system_s) * 1000 + (user_us + system_us) / 1000)
        if peak_kb > self._floor_kb:  # Rarely: the floor is found with few tasks.
            self._floor_kb = own_peak_kb() + SLACK_KB
        return cpu_ms, peak_kb if peak_kb > self._floor_kb else None


def own_peak_kb() -> int:
    """Return the most that this process had resident, since it was executed."""
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123 - cheaper than a Path
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1])
    return UNKNOWN_KB
