"""User account of tasks, if it is not the agent's, and its environment."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from octaskly.config.defaults import SOCKET_GROUP
from octaskly.errors import ConfigError

SHELL = "/bin/sh"
NO_SHELLS = ("", "/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false")
CAP_SETGID, CAP_SETUID = 6, 7

#: Variables about the agent's user, or about its systemd unit.
DROPPED_VARIABLES = (
    *("DBUS_SESSION_BUS_ADDRESS", "GNUPGHOME", "ICEAUTHORITY", "INVOCATION_ID"),
    *("JOURNAL_STREAM", "KRB5CCNAME", "MAIL", "SYSTEMD_EXEC_PID", "XAUTHORITY"),
    *("STATE_DIRECTORY", "CACHE_DIRECTORY", "LOGS_DIRECTORY", "RUNTIME_DIRECTORY"),
    "CONFIGURATION_DIRECTORY",
)
DROPPED_PREFIXES = ("MEMORY_PRESSURE_", "SSH_", "SUDO_", "XDG_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()  #: supplementary groups, for example for GPUs
    home: str
    login_shell: str

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of another user, adapted to this user."""
        kept = {
            name: value
            for name, value in environ.items()
            if name not in DROPPED_VARIABLES and not name.startswith(DROPPED_PREFIXES)
        }
        own = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}
        return {**kept, **own, "SHELL": self.login_shell}


class InheritedSettings(NamedTuple):
    """Process settings for tasks, as they were before the agent changed its own."""

    umask: int = 0o022  #: the agent itself uses a private umask
    core_bytes: int | None = None  #: core file limit; -1: unlimited. For the agent: 0


DEFAULT_INHERITED: Final = InheritedSettings()


def resolve_account(name: str | None) -> Account | None:
    """Return the account of tasks, or None if they run as the agent's user.

    Args:
        name: Name of the user from the settings, or None.

    Raises:
        ConfigError: The user does not exist, would not protect the agent from tasks, or
            this process may not change to it.
    """
    if name is None:
        return None
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError) as error:
        raise _task_user_error(
            name,
            "there is no such user",
            hint=f"sudo useradd --system {name}; for octaskly-task: systemd-sysusers",
        ) from error
    if entry.pw_uid == os.geteuid() == 0:
        return None  # The user named root explicitly, so this is no accident.
    groups = set(os.getgrouplist(name, entry.pw_gid))
    _check_unprivileged(name, entry.pw_uid, groups)
    shell = SHELL if entry.pw_shell in NO_SHELLS else entry.pw_shell
    return Account(
        name=name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=tuple(sorted(groups - {entry.pw_gid})),
        home=entry.pw_dir,
        login_shell=shell,
    )


def _check_unprivileged(name: str, uid: int, groups: set[int]) -> None:
    if uid == 0:
        raise _task_user_error(name, "tasks would have all rights on this machine")
    if uid == os.geteuid():
        raise _task_user_error(
            name, "it is the agent's own user, whose secrets tasks would see"
        )
    if power := groups & _privileged_groups():
        shown = ", ".join(sorted(map(_group_name, power)))
        raise _task_user_error(
            name, f"its group {shown} has rights that tasks must not have"
        )
    if not may_change_users():
        raise _task_user_error(
            name,
            "this agent may not change users",
            hint="run it with systemd/octaskly.service or as root;"
            " without --task-user, tasks run as the agent's user",
        )


def may_change_users() -> bool:
    """Return True if this process has the capabilities to change its user."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line[7:], 16) for line in lines if line.startswith("CapEff:"))
    return all(held >> capability & 1 for capability in (CAP_SETGID, CAP_SETUID))


def _privileged_groups() -> set[int]:
    """Return the groups of root, of the agent, and of users of the local socket."""
    groups = {0, os.getegid()}
    with suppress(KeyError):
        groups.add(grp.getgrnam(SOCKET_GROUP).gr_gid)
    return groups


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _task_user_error(name: str, why: str, *, hint: str | None = None) -> ConfigError:
    usual = "octaskly agent --task-user NAME, a user for tasks and nothing else"
    return ConfigError(
        f"--task-user {name}: {why}", hint=hint or usual, field="--task-user"
    )
