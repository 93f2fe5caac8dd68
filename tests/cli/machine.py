"""A machine of namespaces that systemd boots, as PID 1: the real one, not a stand-in.

It has the files of this machine under `/etc` and `/var`, but what is written there is
gone with it. Root has a user manager there, as after a login. Needs root, systemd,
overlayfs and a cgroup v2 tree; its network has loopback alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parent.parent.parent
T = TypeVar("T")
MANAGER = "/lib/systemd/systemd"
BOOT_S_MAX = 60.0
POLL_S = 0.02

#: Runs as PID 1 before systemd. $1: name of its cgroup.
BOOT = """
set -e
mount --make-rprivate /
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$1"
echo $$ > "/sys/fs/cgroup/$1/cgroup.procs"
umount /sys/fs/cgroup
mount -t tmpfs none /run
layers=/run/layers
for folder in etc var opt; do
    mkdir -p $layers/$folder $layers/$folder.work
    mount -t overlay overlay /$folder \\
        -o lowerdir=/$folder,upperdir=$layers/$folder,workdir=$layers/$folder.work
done
rm -rf /etc/systemd/system/* /etc/systemd/user/*
ln -s /dev/null /etc/systemd/system/tmp.mount
printf '[Unit]\\nDefaultDependencies=no\\n' > /etc/systemd/system/quiet.target
ip link set lo up
exec env -i PATH="$PATH" container=test unshare --cgroup sh -c '
    mount -t cgroup2 none /sys/fs/cgroup
    exec /lib/systemd/systemd --system --unit=quiet.target --log-target=null'
"""

#: Gives root a home of its own, and a user manager as after a login.
USER_MANAGER = """
sed -i "s|^root:\\(.*\\):[^:]*:\\([^:]*\\)$|root:\\1:$HOME:\\2|" /etc/passwd
systemctl start systemd-journald.service dbus.service systemd-logind.service
loginctl enable-linger root
"""


def missing() -> str | None:
    """Return the reason why no machine can be made here, or None."""
    if os.geteuid() != 0:
        return "namespaces need root"
    needed = ("unshare", "nsenter", "ip", "systemctl", "loginctl", "dbus-daemon")
    for program in (*needed, MANAGER):
        if shutil.which(program) is None:
            return f"{program} is missing"
    return None


@dataclass
class Machine:
    """A booted machine; `home` is root's there."""

    init: int  #: PID of its systemd, seen from here
    home: Path

    def words(self, *words: str, **environ: str) -> list[str]:
        """Return the words that run a command there."""
        own = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": "/run/user/0",
            "USER": "root",
            "NO_COLOR": "1",
            **environ,
        }
        flags = ["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"]
        settings = [f"{key}={value}" for key, value in own.items()]
        return [
            *("nsenter", "--target", str(self.init), *flags),
            *("--wd=/", "env", "-i", *settings, *words),
        ]

    def run(
        self, *words: str, stdin: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end."""
        return subprocess.run(
            self.words(*words, **environ),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def octaskly(
        self, *words: str, stdin: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `octaskly ...` there."""
        return self.run(*OCTASKLY, *words, stdin=stdin, **environ)

    def read(self, path: str) -> str | None:
        """Return the content of a file there."""
        done = self.run("cat", path)
        return done.stdout if done.returncode == 0 else None


OCTASKLY = [str(Path(sys.executable).parent / "octaskly")]


@contextmanager
def booted(
    prefix: Sequence[str] = (), *, has_manager: bool = True
) -> Iterator[Machine]:
    """Boot a machine for the length of the block.

    Args:
        prefix: What runs a command in a network namespace; by default it has its own.
        has_manager: Whether root has a user manager.
    """
    cgroup = f"octaskly-test-{os.getpid()}-{time.monotonic_ns()}"
    flags = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc"]
    flags += [] if prefix else ["--net"]
    with tempfile.TemporaryDirectory(prefix="okm-") as folder:
        process = subprocess.Popen(
            [
                *prefix,
                "unshare",
                *flags,
                "--kill-child",
                "sh",
                "-c",
                BOOT,
                "sh",
                cgroup,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            machine = Machine(_child(process), Path(folder))
            _until(
                lambda: (
                    "running" in machine.run("systemctl", "is-system-running").stdout
                ),
                "systemd has booted",
            )
            if has_manager:
                done = machine.run("sh", "-ec", USER_MANAGER)
                assert done.returncode == 0, done.stderr
                asked = ("systemctl", "--user", "is-system-running")
                _until(
                    lambda: "running" in machine.run(*asked).stdout,
                    "root has a user manager",
                )
            yield machine
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            _remove_cgroup(cgroup)


def _child(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def look() -> int | None:
        assert process.poll() is None, process.stdout and process.stdout.read()
        words = children.read_text().split()
        return int(words[0]) if words else None

    return _until(look, "the namespaces are there") or 0


def _until(look: Callable[[], T], what: str) -> T:
    deadline_s = time.monotonic() + BOOT_S_MAX
    while time.monotonic() < deadline_s:
        if answer := look():
            return answer
        time.sleep(POLL_S)
    raise AssertionError(f"not within {BOOT_S_MAX} s: {what}")


def _remove_cgroup(name: str) -> None:
    """Remove the machine's remaining cgroups, which are empty now."""
    script = (
        "umount -R /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 none /sys/fs/cgroup &&"
        f"find /sys/fs/cgroup/{name} -depth -type d -delete"
    )
    words = ["unshare", "--mount", "sh", "-c", script]
    deadline_s = time.monotonic() + BOOT_S_MAX
    while subprocess.run(words, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline_s, f"cgroup {name} stays busy"
        time.sleep(POLL_S)
