"""Network namespaces: the `ip` command, their processes, and bounded waits."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NETNS = Path("/run/netns")
END_S = 45.0  #: seconds until killed processes are gone
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_SLAVE, MS_REC, MNT_DETACH = 1 << 19, 1 << 14, 2


def missing() -> str | None:
    """Return the reason why no lab can be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command ip is missing: apt install iproute2"
    probe = f"okt{os.getpid():x}"
    made = subprocess.run(
        ["ip", "netns", "add", probe], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        return f"no network namespace can be made: {made.stderr.strip()}"
    ip(f"netns del {probe}")
    return None


def ip(*commands: str, netns: str | None = None) -> None:
    """Run `ip` commands in order, in a namespace; a failure shows the output."""
    place = [] if netns is None else ["-n", netns]
    done = subprocess.run(
        ["ip", *place, "-batch", "-"],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}in: {commands}"


def have_carrier(netns: str, kind: str = "veth") -> bool:
    """Return True if each cable of a namespace has a carrier; packets are lost before.

    The kernel notices the other end late, on a busy machine up to a second after the
    command that plugged it in.
    """
    done = subprocess.run(
        ["ip", "-n", netns, "-json", "link", "show", "type", kind],
        capture_output=True,
        text=True,
        check=True,
    )
    return all(cable["operstate"] == "UP" for cable in json.loads(done.stdout))


def wait_until(
    what: str, is_true: Callable[[], T], *, within_s: float, every_s: float = 0.05
) -> T:
    """Return the first true answer, or fail with `what`."""
    deadline_s = time.monotonic() + within_s
    while True:
        answer = is_true()
        if answer:
            return answer
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what}"
        time.sleep(every_s)


def pids_in(netns: str) -> list[int]:
    """Return the processes in a namespace, orphans and daemons too."""
    done = subprocess.run(
        ["ip", "netns", "pids", netns], capture_output=True, text=True, check=False
    )
    return [int(word) for word in done.stdout.split() if int(word) != os.getpid()]


def end_all_in(netns: str) -> None:
    """Kill every process in a namespace, also those that start meanwhile."""

    def is_empty() -> bool:
        pids = pids_in(netns)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_until(f"{netns} is empty", is_empty, within_s=END_S)


def isolate() -> None:
    """Give this process a network of its own with only a loopback."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    ip("link set lo up")


def enter(netns: str) -> None:
    """Move only the calling thread into a namespace."""
    with (NETNS / netns).open() as namespace:
        set_namespace(namespace.fileno())


def enter_as_command(netns: str) -> None:
    """Move this process into a namespace with its own `/sys`, as `ip netns exec` does.

    Source: `netns_switch` of iproute2.
    """
    enter(netns)
    libc = ctypes.CDLL(None, use_errno=True)
    _require(libc.unshare(CLONE_NEWNS) == 0, "unshare")
    is_private = libc.mount(b"", b"/", b"none", MS_SLAVE | MS_REC, None) == 0
    _require(is_private, "mount /")
    _require(libc.umount2(b"/sys", MNT_DETACH) == 0, "umount /sys")
    has_own = libc.mount(netns.encode(), b"/sys", b"sysfs", 0, None) == 0
    _require(has_own, "mount /sys")


def _require(is_done: bool, call: str) -> None:
    if not is_done:
        raise OSError(ctypes.get_errno(), call)


def set_namespace(descriptor: int) -> None:
    """Move the calling thread into the network namespace of an open file."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
