"""Switching permanently to the user that tasks run as.

Launchers and the task user's helper call this, after opening what only the agent may
open. They do not use `setpriv`: if a process already has the other user when it
executes Python, tasks of that user can trace it for some milliseconds, until Python
forbids it. A process that changes its user later cannot be traced at any time.
See docs/decisions/0020-launchers-become-the-task-user.md.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522

_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")


def switch_user(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Switch to the rights of a user; this cannot be undone.

    Afterwards the process has only the given groups and no capability. It gains no
    rights by executing a program. Other processes of this user cannot trace it.

    Raises:
        OSError: this process may not switch, or some rights are left.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # Without root, the agent's capabilities survive the change of user.
    _call(libc.prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _call(libc.capset, header, (ctypes.c_uint32 * 6)())
    _call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call(libc.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0)
    _verify(uid, gid, groups)


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    if function(*arguments) != 0:
        raise OSError(
            ctypes.get_errno(), f"cannot drop privileges: {function.__name__} failed"
        )


def _verify(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Check the result in /proc, because tasks would inherit any rights left."""
    wanted = {
        **dict.fromkeys(_CAPABILITIES, "0" * 16),
        "Uid": "\t".join([str(uid)] * 4),
        "Gid": "\t".join([str(gid)] * 4),
        "Groups": " ".join(map(str, sorted(groups))),
        "NoNewPrivs": "1",
    }
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    for name, value in wanted.items():
        if found.get(name, "").strip() != value:
            raise OSError(0, f"privileges are left: {name} is {found.get(name)!r}")
