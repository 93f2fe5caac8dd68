"""Tasks of another user than the agent: what they are, and what they cannot do.

One agent as the system unit starts it (see `as_unit`) runs all tasks here. Each thing
that a task tries is a test of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from octaskly.runner.processes.proc_tree import children_of
from octaskly.trust import create_secret_file
from tests.support import as_unit, intruder
from tests.support.agents import Agent, ending, finished, soon_s, submit, until
from tests.support.pooling import launchers_of, processes_with, token
from tests.support.trees import send_tree

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
    """Run an agent with a user of its own, and another user for its tasks."""
    folder = Path(tempfile.mkdtemp(prefix="octaskly-", dir="/tmp"))
    folder.chmod(0o711)  # Not pytest's own, which is closed to other users.
    state = folder / "state"
    runtime = folder / "run"
    create_secret_file(state / SECRET)
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
    """Return the output of a successful command."""
    task = run(agent, command, **more)
    assert task["exit_code"] == 0, task
    return str(task["stdout"])


# -- identity ------------------------------------------------------------------------


def test_a_task_has_only_the_identity_of_its_user(agent: Agent) -> None:
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
        "CapBnd": "00000000000000c0",  # Useless without new privileges.
        "NoNewPrivs": "1",
    }


def test_a_task_has_the_environment_of_its_user(agent: Agent) -> None:
    """Its home and name; no path of the agent's sockets and folders."""
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


# -- features that still work ----------------------------------------------------------


def test_private_outputs_are_captured(agent: Agent) -> None:
    """They are opened with the rights of the task."""
    task = run(
        agent,
        "umask 077; mkdir -p private; echo mine >private/file",
        outputs=["private/file"],
    )

    assert [(o["path"], o["bytes"]) for o in task["outputs"]] == [("private/file", 5)]


def test_scratch_folders_with_locked_subfolders_are_removed(agent: Agent) -> None:
    """Their owner removes them, whatever their modes."""
    place = printed(
        agent,
        "pwd; mkdir -p a/b; touch a/b/c; chmod 000 a/b; chmod 500 a",
        workdir="scratch",
    ).strip()

    assert Path(place).parent == agent.state / "scratch"
    until(lambda: not Path(place).exists(), "the folder is gone")


def test_inputs_are_looked_up_with_the_rights_of_the_task(agent: Agent) -> None:
    """In the worker directory, also in a folder that is closed to the agent."""
    printed(agent, "umask 077; mkdir -p room; echo fine >room/input")
    assert printed(agent, "cat room/input", inputs=["room/input"]) == "fine\n"
    command = "cat room/input"
    assert printed(agent, command, inputs=["room/input"], workdir="scratch") == "fine\n"


def test_a_task_may_write_to_the_folder_above_an_output(agent: Agent) -> None:
    """It belongs to the tasks' user."""
    task = submit(agent, "echo x > a/b/c", outputs=["a/b/c"], workdir="scratch")

    assert finished(agent, task)["outputs_missing"] == []


def test_an_uploaded_file_is_a_copy_owned_by_the_task(agent: Agent) -> None:
    """Tasks cannot read the folder of the agent's own copy."""
    data = b"left" * 1000
    tree = send_tree(agent, {"given": data})
    command = "sha256sum given; stat -c '%a %h %u' given"
    printed_words = printed(agent, command, tree=tree, workdir="scratch").split()

    name = hashlib.sha256(data).hexdigest()
    assert printed_words == [name, "given", "644", "1", str(TASK_UID)]


def test_stdin_reaches_the_task(agent: Agent) -> None:
    """Through a file in memory that it can read."""
    assert printed(agent, "cat", stdin="hello") == "hello"


def test_long_output_is_kept(agent: Agent) -> None:
    """The launcher writes it into a file that the agent has opened."""
    task = run(agent, "head -c 3000000 /dev/zero; sleep 0.2")

    assert task["stdout_bytes"] == 3_000_000
    (kept,) = (agent.state / "transcripts").glob(f"{task['id']}.*")
    assert kept.stat().st_size > 3_000_000
    assert (kept.stat().st_uid, kept.stat().st_mode & 0o777) == (AGENT_UID, 0o600)


def test_a_late_task_is_killed_with_its_tree(agent: Agent) -> None:
    """By its launcher, which may signal it."""
    word = token()
    task = run(agent, f"setsid sleep {word} & sleep {word}", timeout=1)

    assert (task["exit_code"], processes_with(word)) == (124, {})


def test_a_cancelled_task_is_killed(agent: Agent) -> None:
    """The order goes through the launcher."""
    word = token()
    task = submit(agent, f"sleep {word}")
    until(lambda: processes_with(word), "it runs")
    status, _ = agent.call("DELETE", f"/api/v1/tasks/{task}?force=true")

    assert status == 200
    assert finished(agent, task)["status"] == "cancelled"
    until(lambda: not processes_with(word), "it is gone")


def test_a_paused_node_freezes_its_tasks(agent: Agent) -> None:
    """The launcher stops and continues them."""
    task = submit(agent, "n=0; while :; do n=$((n+1)); echo $n >count; done")
    count = agent.state / "work" / "count"
    until(lambda: count.exists() and count.read_text(), "it counts")
    for _ in range(5):  # Some of them wait for the disk.
        assert agent.call("POST", "/api/v1/nodes/two/pause")[0] == 200
        try:
            until(lambda: _is_still(count), "it stands still")
        finally:
            assert agent.call("POST", "/api/v1/nodes/two/unpause")[0] == 200
        until(lambda: not _is_still(count), "it goes on")

    agent.call("DELETE", f"/api/v1/tasks/{task}?force=true")
    assert finished(agent, task)["status"] == "cancelled"


def _is_still(count: Path) -> bool:
    before = count.stat().st_mtime_ns
    time.sleep(0.1)
    return count.stat().st_mtime_ns == before


def test_processes_that_a_task_leaves_behind_are_ended(agent: Agent) -> None:
    """A session of its own, no parent and an empty environment do not hide it."""
    word = token()
    left = f"setsid env -i sh -c '(sleep {word} &) ; sleep {word}'"
    printed(agent, f"{left} >/dev/null 2>&1 & sleep 0.1")

    until(lambda: not processes_with(word), "nothing is left")


# -- forbidden actions -----------------------------------------------------------------

INTRUDER = Path(intruder.__file__)


def refused(agent: Agent, name: str, pid: int = 0, target: object = "-") -> str:
    """Let a task try something; return the error that stopped it."""
    words = f"{sys.executable} -I -S {INTRUDER} '{name}' {pid} '{target}'"
    task = run(agent, words)
    assert task["exit_code"] == 1, f"{name} {pid} {target}: {task}"
    return str(task["stdout"]).strip()


def test_the_intruder_succeeds_at_allowed_actions(agent: Agent) -> None:
    """So a refusal is not an error of the intruder."""
    printed(agent, f"{sys.executable} -I -S {INTRUDER} make 0 mine")
    printed(agent, f"{sys.executable} -I -S {INTRUDER} read 0 mine")
    printed(agent, f"sleep 9 & {sys.executable} -I -S {INTRUDER} trace $! -")
    printed(agent, f"{sys.executable} -I -S {INTRUDER} setuid 0 {TASK_UID}")


@pytest.mark.parametrize(
    "place",
    [SECRET, "node.key", "log.db", "log.db-wal", "log.db.lock", "agent.json"],
)
def test_a_task_cannot_read_files_of_the_agent(agent: Agent, place: str) -> None:
    """Secret, key, log, description: each by its name."""
    assert (agent.state / place).exists()

    assert refused(agent, "read", target=agent.state / place) == "EACCES"


@pytest.mark.parametrize("place", [".", "outputs", "transcripts"])
def test_a_task_cannot_list_folders_of_the_agent(agent: Agent, place: str) -> None:
    """Nor learn about tasks of others."""
    printed(agent, "head -c 400000 /dev/zero; sleep 0.1")  # So that there is one.

    assert refused(agent, "list", target=agent.state / place) == "EACCES"


def test_nothing_in_the_state_folder_is_open_to_tasks(agent: Agent) -> None:
    """Except their own folders."""
    printed(agent, "echo kept >kept; head -c 400000 /dev/zero", outputs=["kept"])
    theirs = {agent.state / "work", agent.state / "scratch"}
    found = [place for place in agent.state.iterdir() if place not in theirs]

    assert len(found) > 5
    assert [p for p in found if p.stat().st_mode & 0o077 and p.name != "log.txt"] == []


@pytest.mark.parametrize("file", ["environ", "mem", "maps", "fd/3"])
def test_a_task_cannot_inspect_the_agent(agent: Agent, file: str) -> None:
    """Its memory, environment and open files."""
    target = f"/proc/{agent.process.pid}/{file}"

    assert refused(agent, "read", target=target) in ("EACCES", "EPERM")


@pytest.mark.parametrize("file", ["environ", "mem", "maps", "fd/3"])
def test_a_task_cannot_inspect_its_launcher(agent: Agent, file: str) -> None:
    """Though it has the same user: the launcher talks to the agent."""
    printed(agent, "true")

    for pid in launchers_of(agent.process.pid):
        assert refused(agent, "read", target=f"/proc/{pid}/{file}") == "EACCES"


def test_a_task_cannot_connect_to_the_socket(agent: Agent) -> None:
    """It would make the task an administrator of the mesh."""
    place = agent.ready()["socket"]

    assert refused(agent, "connect", target=place) == "EACCES"


def test_a_task_cannot_use_the_api_without_a_token(agent: Agent) -> None:
    """Loopback gives no rights."""
    code = (
        "import urllib.request as r, urllib.error as e\n"
        f"try: r.urlopen('{agent.ready()['api_url']}/api/v1/tasks')\n"
        "except e.HTTPError as error: print(error.code)"
    )

    assert printed(agent, f'{PYTHON} "{code}"') == "401\n"


@pytest.mark.parametrize("number", [0, 9, 15])
def test_a_task_cannot_signal_the_agent(agent: Agent, number: int) -> None:
    """Not even to learn whether it runs."""
    assert refused(agent, "signal", agent.process.pid, number) == "EPERM"


def test_a_task_cannot_stop_the_agent(agent: Agent) -> None:
    """SIGSTOP would remove the node from the mesh."""
    assert refused(agent, "stop", agent.process.pid) == "EPERM"


@pytest.mark.parametrize("name", ["trace", "descriptors", "limit"])
def test_a_task_cannot_take_over_the_agent(agent: Agent, name: str) -> None:
    """By ptrace, by its descriptors, by its limits."""
    assert refused(agent, name, agent.process.pid) == "EPERM"


@pytest.mark.parametrize("name", ["trace", "descriptors"])
def test_a_task_cannot_take_over_a_launcher(agent: Agent, name: str) -> None:
    """With its connection to the agent it could forge results of others."""
    printed(agent, "true")

    for pid in launchers_of(agent.process.pid):
        assert refused(agent, name, pid) == "EPERM"


def test_the_file_helper_does_not_end_with_a_launcher(agent: Agent) -> None:
    """It is a child of the agent and has the tasks' user, but is no task's process."""
    printed(agent, "touch kept", outputs=["kept"])
    helpers = _helpers_of(agent.process.pid)
    assert len(helpers) == 1
    word = token()
    task = submit(agent, f"test -e once && echo again || (touch once; sleep {word})")
    until(lambda: processes_with(word), "it runs")
    for pid in launchers_of(agent.process.pid):
        os.kill(pid, signal.SIGKILL)

    assert finished(agent, task)["stdout"] == "again\n"
    assert _helpers_of(agent.process.pid) == helpers


def _helpers_of(pid: int) -> list[int]:
    lines = {
        child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children_of(pid)
    }
    return [child for child, line in lines.items() if b"task_user_helper.py" in line]


@pytest.mark.parametrize("name", ["setuid", "setgid", "setgroups"])
@pytest.mark.parametrize("target", [0, AGENT_UID])
def test_a_task_cannot_become_another_user(
    agent: Agent, name: str, target: int
) -> None:
    """Neither root nor the agent."""
    assert refused(agent, name, target=target) == "EPERM"


@pytest.mark.parametrize("owner", [0, AGENT_UID])
def test_a_setuid_program_gives_a_task_nothing(agent: Agent, owner: int) -> None:
    """Whatever its owner."""
    program = agent.state.parent / f"id-{owner}"
    shutil.copy("/usr/bin/id", program)
    os.chown(program, owner, owner)
    program.chmod(0o6755)

    assert printed(agent, f"{program} -u; {program} -g").split() == [str(TASK_UID)] * 2


def test_a_task_cannot_use_setpriv_to_be_root(agent: Agent) -> None:
    """The agent's capabilities are gone before the first task."""
    assert run(agent, "setpriv --reuid 0 --clear-groups id -u")["exit_code"] != 0


@pytest.mark.parametrize("place", ["planted", "outputs/planted", "transcripts/planted"])
def test_a_task_cannot_create_files_in_the_agent_s_folders(
    agent: Agent, place: str
) -> None:
    """So it can neither fill that folder nor plant anything there."""
    assert refused(agent, "make", target=agent.state / place) == "EACCES"


@pytest.mark.parametrize("name", ["remove", "rename", "link"])
def test_a_task_cannot_change_the_secret(agent: Agent, name: str) -> None:
    """Neither delete nor rename it."""
    error = refused(agent, name, target=agent.state / SECRET)

    assert error in ("EACCES", "EPERM")


def test_a_task_cannot_replace_its_folders_by_links(agent: Agent) -> None:
    """They are in a folder of the agent."""
    for place in ("work", "scratch"):
        assert refused(agent, "rename", target=agent.state / place) == "EACCES"


def test_a_link_as_output_is_not_followed(agent: Agent) -> None:
    """Not to the secret, in any form of link."""
    secret = agent.state / SECRET
    task = run(
        agent,
        f"ln -sf {secret} link; ln -sfn {agent.state} folder; mkfifo -m 666 pipe",
        outputs=["link", f"folder/{SECRET}", "pipe"],
    )

    assert [output["bytes"] for output in task["outputs"]] == [None, None, None]


def test_a_path_that_is_swapped_during_a_read_exposes_nothing(agent: Agent) -> None:
    """Its reader has only the rights of the task."""
    swap = (
        f"mkdir real; echo x >real/{SECRET}; for n in $(seq 60); do ln -sfn real d;"
        f" ln -sfn {agent.state} d; rm d; cp -r real d; rm -r d; done"
    )
    printed(
        agent, f"rm -rf swap; mkdir swap; (cd swap; {swap}) >/dev/null 2>&1 & sleep 0"
    )
    tasks = [
        run(
            agent,
            f"cd swap && {{ {swap}; }} >/dev/null 2>&1",
            outputs=[f"swap/d/{SECRET}"],
        )
        for _ in range(2)
    ]

    assert {task["outputs"][0]["bytes"] for task in tasks} <= {None, 2}


def test_a_link_in_a_scratch_folder_is_removed_and_not_followed(agent: Agent) -> None:
    """Its target stays."""
    place = printed(
        agent, f"pwd; ln -s {agent.state} state; ln -s /etc etc", workdir="scratch"
    ).strip()
    until(lambda: not Path(place).exists(), "the folder is gone")

    assert (agent.state / SECRET).exists()
    assert Path("/etc/passwd").exists()


def test_a_scratch_folder_that_became_a_link_is_removed_and_not_followed(
    agent: Agent,
) -> None:
    """A task may give its folder's name to something else."""
    place = printed(
        agent, f"pwd; mv $PWD $PWD-x; ln -s {agent.state} $PWD", workdir="scratch"
    ).strip()
    until(lambda: not os.path.lexists(place), "the link is gone")

    assert (agent.state / SECRET).exists()


# -- actions against each other, and their limits --------------------------------------


def test_a_task_that_kills_its_launcher_loses_its_own_attempt(agent: Agent) -> None:
    """It is retried, and fails in the end; the next task runs as usual."""
    word = token()
    task = run(
        agent, f"(setsid env -i sleep {word} &); sleep 0.1; kill -9 $PPID; sleep 9"
    )

    assert (task["status"], task["reason"]) == ("failed", "poison")
    assert printed(agent, "echo fine") == "fine\n"
    until(lambda: not processes_with(word), "what it left is gone")


def test_a_task_that_kills_all_of_its_user_ends_no_agent(agent: Agent) -> None:
    """All launchers and file helpers die; all of them are restarted."""
    run(agent, "kill -9 -1")

    assert printed(agent, "echo fine >fine; cat fine", outputs=["fine"]) == "fine\n"


def test_a_launcher_that_a_task_stops_is_continued(agent: Agent) -> None:
    """The agent notices, though it may not signal it itself: time limits hold."""
    task = run(agent, "kill -STOP $PPID; sleep 60", timeout=1)

    assert (task["exit_code"], task["duration_ms"] < 30_000) == (124, True)


def test_trees_end_with_their_agent() -> None:
    """Their launchers notice, and may kill them: within a second."""
    word = token()
    with agent_with_task_user() as agent:
        submit(agent, f"setsid env -i sleep {word} & sleep {word}")
        until(lambda: len(processes_with(word)) >= 2, "it runs")
        agent.process.kill()
        agent.process.wait()
        until(lambda: not processes_with(word), "all are gone", deadline_s=soon_s(1.5))


# -- folders of clients ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "is_read_only", "reason"),
    [
        (0o777, False, None),
        (0o755, True, None),
        (0o755, False, "who may not write to it"),
        (0o700, True, "who may not enter FOLDER"),
    ],
)
def test_a_folder_is_checked_with_the_rights_of_the_task(
    agent: Agent, mode: int, is_read_only: bool, reason: str | None
) -> None:
    """The agent may enter more, but it says nothing about what tasks cannot see."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        content = b"by root\n"
        (Path(folder) / "mark").write_bytes(content)
        Path(folder).chmod(mode)
        same = {
            "name": "mark",
            "sha256": hashlib.sha256(content).hexdigest(),
            "read_only": is_read_only,
        }

        task = run(agent, "pwd", cwd=folder, same_folder=same)

    if reason is None:
        assert task["stdout"] == f"{folder}\n", task
        return
    why = f"permission denied: on two, tasks run as {as_unit.TASKS[0]}, {reason}"
    assert (task["status"], task["reason"]) == ("failed", "inputs")
    assert task["detail"] == f"the folder {folder} ({why})".replace("FOLDER", folder)
