"""Tasks of another user than the agent: what they are, and what they cannot do.

One agent as the system unit starts it (see `as_unit`) runs all tasks here. Each thing
that a task tries is a test of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from octaskly.runner import tree
from octaskly.trust import make
from tests.agents import Agent, ending, finished, submit
from tests.integration import as_unit

AGENT_UID, TASK_UID = as_unit.AGENT[1], as_unit.TASKS[1]
SECRET = "mesh.key"
PYTHON = f"{sys.executable} -I -S -c"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="making users needs root"),
    pytest.mark.skipif(
        subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
        reason="mounting over /etc/passwd needs a mount namespace",
    ),
]


@contextmanager
def agent_with_task_user(*extra: str) -> Iterator[Agent]:
    """Run an agent of a user of its own, whose tasks are another's."""
    folder = Path(tempfile.mkdtemp(prefix="octaskly-", dir="/tmp"))
    folder.chmod(0o711)  # Not pytest's own, through which nobody else may pass.
    state = folder / "state"
    runtime = folder / "run"
    make(state / SECRET)
    for place in (state, state / SECRET, runtime):
        place.mkdir(exist_ok=True) if place == runtime else None
        os.chown(place, AGENT_UID, AGENT_UID)
    (folder / "home").mkdir()
    os.chown(folder / "home", TASK_UID, TASK_UID)
    arguments = [
        *("--interface", "lo", "--state-dir", str(state), "--name", "two"),
        *("--secret-file", str(state / SECRET), "--task-user", as_unit.TASKS[0]),
        *("--api-port", "0", "--peer-port", "0", "--lan-port", "0", "--slots", "2"),
        *extra,
    ]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "SSH_AUTH_SOCK": "/x"}
    environ.pop("OCTASKLY_TASK_USER", None)
    with (state / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private"),
                *(sys.executable, as_unit.__file__, str(folder), *arguments),
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environ,
        )
    agent = Agent(process, state, time.perf_counter())
    with ending(agent):
        agent.ready()
        yield agent
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """Run one for all tests of this module."""
    with agent_with_task_user() as started:
        yield started


def run(agent: Agent, command: str, **more: object) -> dict[str, Any]:
    """Run a command to its end."""
    return finished(agent, submit(agent, command, **more))


def printed(agent: Agent, command: str, **more: object) -> str:
    """Return what a command prints that goes well."""
    task = run(agent, command, **more)
    assert task["exit_code"] == 0, task
    return str(task["stdout"])


def launchers(agent: Agent) -> list[int]:
    """Return the processes that run tasks."""
    found = tree.children_of(agent.process.pid)
    words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found}
    return [pid for pid, line in words.items() if b"launcher.py" in line]


# -- who they are --------------------------------------------------------------------


def test_a_task_is_its_user_and_nobody_else(agent: Agent) -> None:
    """One uid, one gid, no other group, and no capability left of the agent's two."""
    status = printed(
        agent, "grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs):' /proc/self/status"
    )
    found = dict(re.findall(r"^(\w+):[ \t]*(.*?)[ \t]*$", status, re.MULTILINE))

    assert found == {
        "Uid": "\t".join([str(TASK_UID)] * 4),
        "Gid": "\t".join([str(TASK_UID)] * 4),
        "Groups": "",
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), "0" * 16),
        "CapBnd": "00000000000000c0",  # Worth nothing without new privileges.
        "NoNewPrivs": "1",
    }


def test_a_task_has_the_environment_of_its_user(agent: Agent) -> None:
    """Its home and name; nothing that leads to the agent's sockets and folders."""
    lines = printed(agent, "env").splitlines()
    found = dict(line.split("=", 1) for line in lines)

    assert found["HOME"] == str(agent.state.parent / "home")
    assert found["USER"] == found["LOGNAME"] == as_unit.TASKS[0]
    assert found["SHELL"] == "/bin/sh"
    assert not [n for n in found if n.startswith(("XDG_", "SSH_", "SUDO_"))]


def test_a_task_has_three_descriptors(agent: Agent) -> None:
    """Nothing of the agent's or the launcher's is inherited."""
    assert printed(agent, "echo /proc/self/fd/*").split() == [
        f"/proc/self/fd/{number}"
        for number in range(4)  # The last one reads them.
    ]


# -- what works all the same -----------------------------------------------------------


def test_outputs_that_nobody_else_may_read_are_captured(agent: Agent) -> None:
    """They are opened with the rights of the task that made them."""
    task = run(
        agent,
        "umask 077; mkdir -p private; echo mine >private/file",
        outputs=["private/file"],
    )

    assert [(o["path"], o["bytes"]) for o in task["outputs"]] == [("private/file", 5)]
