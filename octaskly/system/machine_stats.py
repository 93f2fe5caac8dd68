"""Load, GPUs, power and port owners of this machine; the only importer of psutil."""

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
    """Samples the load; each sample covers the time since the previous one.

    Args:
        folder: A folder on the disk whose room is sampled.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = psutil.Process()
        # This call starts the first interval: psutil's first result is always zero.
        psutil.cpu_percent(interval=None)

    def sample(self) -> LoadSample:
        """Return the current load; takes well under a millisecond."""
        memory = psutil.virtual_memory()
        return LoadSample(
            cpu_percent=float(psutil.cpu_percent(interval=None)),
            load1=float(psutil.getloadavg()[0]),
            memory_used_mb=int((memory.total - memory.available) >> 20),
            process_mb=int(self._process.memory_info().rss >> 20),
            stalled_percent=memory_stalled_percent(_read(MEMORY_PRESSURE_FILE)),
            disk_free_mb=psutil.disk_usage(str(self._folder)).free >> 20,
        )


def memory_stalled_percent(pressure: str) -> float:
    """Return the share of the last 10 s in which all processes waited for memory.

    The result is in percent, and 0.0 if it is unknown.

    Args:
        pressure: Content of `/proc/pressure/memory`.
    """
    for line in pressure.splitlines():
        if match := _FULL_AVG10.match(line):
            return float(match[1])
    return 0.0


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # Some kernels are built without pressure stall information.
        return ""


def memory_total_mb() -> int:
    """Return the total memory of this machine in MiB."""
    return int(psutil.virtual_memory().total >> 20)


def list_gpus(proc: Path = NVIDIA_GPUS_FOLDER, dev: Path = DEV) -> tuple[str, ...]:
    """Return the CUDA numbers of this machine's NVIDIA GPUs.

    Args:
        proc: The folder in which the driver has one folder per GPU.
        dev: The folder of the device files, used if `proc` does not exist.
    """
    try:
        count = sum(1 for _ in proc.iterdir())
    except OSError:
        count = sum(1 for file in dev.glob("nvidia[0-9]*"))
    return tuple(map(str, range(min(count, GPUS_MAX))))


def is_on_mains_power() -> bool:
    """Return True if this machine has no battery or is plugged in."""
    try:
        battery = getattr(psutil, "sensors_battery", lambda: None)()
    except OSError:  # Containers and small kernels lack /sys/class/power_supply.
        return True
    return battery is None or bool(battery.power_plugged)


def process_on_port(port: int, *, kind: Literal["tcp", "udp"] = "tcp") -> str | None:
    """Return `name (pid N)` of the process that uses a port, or None if unknown."""
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
