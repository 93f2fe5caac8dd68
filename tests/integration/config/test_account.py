"""The user account of tasks, and its checks at the start."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.config.defaults import EXIT_CONFIG
from octaskly.config.task_account import Account, resolve_account
from octaskly.errors import ConfigError

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root may try what other users may"
)
NOBODY = "nobody"
OTHER = "daemon"  #: each Debian has both


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that all users may traverse, unlike pytest's own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


def refusal_for(user: str, name: str, *, group: str = NOBODY) -> str:
    """Return why an agent of `user` may not run tasks as `name`, and the hint."""
    uid, gid = pwd.getpwnam(user).pw_uid, pwd.getpwnam(group).pw_gid
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            resolve_account(name)
        except ConfigError as error:
            os.write(writer, f"{error.message}|{error.hint}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


def test_an_account_matches_the_user_database() -> None:
    """Its shell works, since commands use it."""
    entry = pwd.getpwnam(NOBODY)
    account = resolve_account(NOBODY)

    assert account is not None
    assert (account.uid, account.gid) == (entry.pw_uid, entry.pw_gid)
    assert (account.home, account.login_shell) == (entry.pw_dir, "/bin/sh")


def test_without_a_name_tasks_run_as_the_agent_s_user() -> None:
    """The default."""
    assert resolve_account(None) is None


def test_an_unknown_user_is_refused() -> None:
    """With the command that creates it."""
    with pytest.raises(ConfigError, match=r"nobdy: there is no such user") as refused:
        resolve_account("nobdy")

    assert "useradd --system nobdy" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("user", "name", "why"),
    [
        (NOBODY, "root", "tasks would have all rights on this machine"),
        (NOBODY, NOBODY, "it is the agent's own user, whose secrets tasks would see"),
        (NOBODY, OTHER, "this agent may not change users"),
    ],
)
def test_a_user_without_protection_or_permission_is_refused(
    user: str, name: str, why: str
) -> None:
    """An agent that is not root names its user and the fix."""
    said, _, hint = refusal_for(user, name).partition("|")

    assert said == f"--task-user {name}: {why}"
    assert "--task-user" in hint


def test_a_user_in_the_group_of_the_agent_is_refused() -> None:
    """It could use everything of that group, such as the socket."""
    said = refusal_for(NOBODY, OTHER, group=OTHER)

    assert f"its group {OTHER} has rights that tasks must not have" in said


def test_an_environment_becomes_that_of_the_user() -> None:
    """Variables with paths of the agent's user are omitted."""
    account = Account(name="x", uid=7, gid=7, home="/h", login_shell="/bin/sh")
    given = {"PATH": "/bin", "LANG": "C", "HOME": "/root", "XDG_RUNTIME_DIR": "/run/0"}
    foreign = {"SUDO_USER": "a", "SSH_AUTH_SOCK": "b", "STATE_DIRECTORY": "c"}

    assert account.environment(given | foreign) == {
        "PATH": "/bin",
        "LANG": "C",
        "HOME": "/h",
        "SHELL": "/bin/sh",
        "USER": "x",
        "LOGNAME": "x",
    }


def start(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start an agent that ends at once."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "octaskly", "agent", "--interface", "lo"),
            *("--state-dir", str(state), "--secret-file", str(state / "mesh.key")),
            *("--api-port", "0", "--peer-port", "0", "--lan-port", "0", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_agent_with_an_unknown_task_user_does_not_start(folder: Path) -> None:
    """Exit code 78: systemd does not restart it."""
    done = start(folder / "state", "--task-user", "nobdy")

    assert done.returncode == EXIT_CONFIG
    assert "error: --task-user nobdy: there is no such user" in done.stderr
    assert "hint: sudo useradd --system nobdy" in done.stderr


@pytest.mark.parametrize("flag", ["--state-dir", "--workdir"])
def test_a_folder_that_tasks_cannot_reach_is_named(folder: Path, flag: str) -> None:
    """Before a task fails because of it."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    is_state = flag == "--state-dir"
    state = closed if is_state else folder
    more = () if is_state else ("--workdir", str(closed / "work"))
    done = start(state / "state", "--task-user", NOBODY, *more)

    assert done.returncode == EXIT_CONFIG
    place = closed / "state" / "work" if is_state else closed / "work"
    assert f"tasks run as {NOBODY}, who cannot write in {place}" in done.stderr
    assert f"hint: octaskly agent {flag} DIR" in done.stderr
