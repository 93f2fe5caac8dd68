"""What the machine allows at most: spawning, and flushing to disk."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE / ".build"


def spawn_limit(command: str = "true", *, count: int = 1000, runs: int = 3) -> float:
    """Return R: captured `sh -c command` per second, in C, two processes."""
    program = BUILD / "limit"
    BUILD.mkdir(exist_ok=True)
    source = HERE / "limit.c"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", "-O2", "-o", program, source], check=True)
    rates = []
    for _ in range(runs):
        done = subprocess.run(
            [program, command, str(count), "2"],
            check=True,
            capture_output=True,
            text=True,
        )
        rates.append(float(done.stdout))
    return statistics.median(rates)


def spawn_ms(*, count: int = 200) -> float:
    """Return the median milliseconds of one captured `sh -c true`, one at a time."""
    program = BUILD / "limit"
    done = subprocess.run(
        [program, "true", str(count), "1"], check=True, capture_output=True, text=True
    )
    return 1000 / float(done.stdout)


def fsync_ms(folder: Path | None = None, *, count: int = 200) -> float:
    """Return the median milliseconds of a 4 KiB append and its flush."""
    samples = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(count):
            began = time.perf_counter()
            os.write(file.fileno(), b"x" * 4096)
            os.fdatasync(file.fileno())
            samples.append(time.perf_counter() - began)
    return statistics.median(samples) * 1000
