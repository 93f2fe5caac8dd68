"""Samples how busy this machine is: the only module that knows psutil."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import psutil

from octaskly.core.model.nodes import GPUS_MAX, LoadSample

MEMORY_PRESSURE_FILE = Path("/proc/pressure/memory")
NVIDIA_GPUS_FOLDER = Path("/proc/driver/nvidia/gpus")
DEV = Path("/dev")
_FULL_AVG10 = re.compile(r"full avg10=(\d+\.\d+) ")


class LoadSampler:
    """Takes samples; each covers the time since the one before."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        # This begins the first interval: psutil's first answer is always zero.
        psutil.cpu_percent(interval=None)

    def sample(self) -> LoadSample:
        """Return the present load; costs well under a millisecond."""
        memory = psutil.virtual_memory()
        return LoadSample(
            cpu_percent=float(psutil.cpu_percent(interval=None)),
            load1=float(psutil.getloadavg()[0]),
            memory_used_mb=int((memory.total - memory.available) >> 20),
            process_mb=int(self._process.memory_info().rss >> 20),
            stalled_percent=memory_stalled_percent(_read(MEMORY_PRESSURE_FILE)),
        )


def memory_stalled_percent(pressure: str) -> float:
    """Return how much of 10 s nothing went on for lack of memory, 0.0 if unknown.

    Args:
        pressure: As in `/proc/pressure/memory`.
    """
    for line in pressure.splitlines():
        if match := _FULL_AVG10.match(line):
            return float(match[1])
    return 0.0


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # A kernel may be built without it.
        return ""


def memory_total_mb() -> int:
    """Return the memory of this machine."""
    return int(psutil.virtual_memory().total >> 20)


def list_gpus(proc: Path = NVIDIA_GPUS_FOLDER, dev: Path = DEV) -> tuple[str, ...]:
    """Return the GPUs of this machine as CUDA numbers them: those of NVIDIA's driver.

    Args:
        proc: Where the driver has a folder for each.
        dev: Where the devices are, if the driver has no folder.
    """
    try:
        count = sum(1 for _ in proc.iterdir())
    except OSError:
        count = sum(1 for file in dev.glob("nvidia[0-9]*"))
    return tuple(map(str, range(min(count, GPUS_MAX))))


def is_on_mains_power() -> bool:
    """Return whether this machine has no battery, or does not live on it."""
    battery = getattr(psutil, "sensors_battery", lambda: None)()
    return battery is None or bool(battery.power_plugged)


def process_on_port(port: int, *, kind: Literal["tcp", "udp"] = "tcp") -> str | None:
    """Return `name (pid N)` of the process that has a port, if readable."""
    state = psutil.CONN_LISTEN if kind == "tcp" else psutil.CONN_NONE
    try:
        for connection in psutil.net_connections(kind=kind):
            is_here = connection.laddr and connection.laddr.port == port
            if is_here and connection.status == state and connection.pid:
                process = psutil.Process(connection.pid)
                return f"{process.name()} (pid {connection.pid})"
    except psutil.Error:
        return None
    return None
