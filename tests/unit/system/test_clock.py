"""The clock of an agent continues during a suspend."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLEPT_S = 100_000
ASK = (
    "import time; from octaskly.system.clock import SystemClock; "
    "print(SystemClock().now().mono_s - time.monotonic())"
)
#: A time namespace in which the machine has been suspended for so long.
SLEPT = ("unshare", "--time", "--fork", "--boottime", str(SLEPT_S))


@pytest.mark.skipif(
    subprocess.run([*SLEPT, "true"], check=False, capture_output=True).returncode != 0,
    reason="a time namespace needs root and a kernel that has them",
)
def test_suspended_time_counts() -> None:
    """A resumed dispatcher would otherwise keep its role."""
    done = subprocess.run(
        [*SLEPT, sys.executable, "-c", ASK], check=True, capture_output=True, text=True
    )

    assert float(done.stdout) > SLEPT_S - 1
