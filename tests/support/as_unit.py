"""Becomes an agent with the system unit's users: its own user, and task users.

Usage: as_unit.py FOLDER ARGUMENT..., as root, in a mount namespace of its own (`unshare
--mount`). It adds two users to `/etc/passwd` in that namespace, and lets them read this
checkout and Python wherever those are. Nothing is visible outside.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent.parent
AGENT, TASKS = ("octaskly-t1", 64_410), ("octaskly-t2", 64_411)
CAPABILITIES = "-all,+setuid,+setgid"


def mount(*words: str | Path) -> None:
    """Mount something in this namespace."""
    subprocess.run(["mount", *map(str, words)], check=True)


def add_users(folder: Path) -> None:
    """Add the two users and their groups in this namespace."""
    for name, line in (
        ("passwd", "{0}:x:{1}:{1}::{2}:/bin/false"),
        ("group", "{0}:x:{1}:"),
    ):
        own = folder / name
        lines = [line.format(*user, folder / "home") for user in (AGENT, TASKS)]
        own.write_text(Path("/etc", name).read_text() + "\n".join(lines) + "\n")
        own.chmod(0o644)
        mount("--bind", own, Path("/etc", name))


def open_up(folder: Path, *wanted: Path) -> None:
    """Give all users access to folders inside private ones, and to nothing else."""
    for number, place in enumerate(wanted):
        private = [p for p in place.parents if not p.stat().st_mode & 0o001]
        if not private:
            continue
        kept = folder / f"kept-{number}"
        kept.mkdir()
        mount("--bind", place, kept)
        mount("-t", "tmpfs", "-o", "mode=755", "none", private[-1])
        place.mkdir(parents=True)
        mount("--bind", kept, place)


def main() -> None:
    """Prepare, then become that agent."""
    folder, *arguments = sys.argv[1:]
    add_users(Path(folder))
    open_up(Path(folder), Path(sys.base_prefix).resolve(), CHECKOUT)
    uid = str(AGENT[1])
    os.umask(0o077)
    os.execvp(  # noqa: S606 - no shell is wanted
        "setpriv",
        [
            *("setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"),
            *("--inh-caps", CAPABILITIES, "--ambient-caps", CAPABILITIES),
            *("--bounding-set", CAPABILITIES, "--no-new-privs"),
            *(sys.executable, "-m", "octaskly", "agent", *arguments),
        ],
    )


if __name__ == "__main__":
    main()
