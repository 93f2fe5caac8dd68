"""Becoming the user that tasks run as, for good.

Used by the processes that the agent starts for tasks, as soon as they have opened what
only the agent may open. They do it themselves rather than through `setpriv`: who is
another user when Python is executed can be traced by tasks of that user, until Python
says otherwise some milliseconds later. Who changes its user in mid-life cannot, not
for a moment. See docs/decisions/0020-launchers-become-the-task-user.md.
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
    """Take the rights of a user, and of nobody else; there is no way back.

    No group but those given, no capability, no new rights by executing a program,
    and no other process of this user can read, trace or take over this one.

    Raises:
        OSError: this process may not do that, or it did not work.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # Capabilities of an agent that is not root outlive the change of its user.
    _call(libc.prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _call(libc.capset, header, (ctypes.c_uint32 * 6)())
    _call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call(libc.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0)
    _verify(uid, gid, groups)


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"cannot give up rights: {function.__name__}")


def _verify(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Believe the kernel alone: what is left would be every task's."""
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
            raise OSError(0, f"rights are left: {name} is {found.get(name)!r}")
