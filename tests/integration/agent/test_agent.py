"""Whole agents as processes on loopback: start, refusals, stop, restart."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.trust import create_secret_file
from tests.support.agents import (
    AS_OTHERS,
    READY_S_MAX,
    TASKS,
    UNFORKED,
    WAIT_S_MAX,
    Agent,
    ending,
    finished,
    launch,
    meshed,
    request,
    running,
    start,
    submit,
    until,
    until_nodes,
)

EXIT_CONFIG = 78


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent for tests that do not change it."""
    with running(tmp_path_factory.mktemp("agent"), "solo") as (agent,):
        yield agent


def test_an_agent_whose_log_refuses_all_writes_exits(tmp_path: Path) -> None:
    """Not with 78, so that systemd restarts it: it could accept nothing any more."""
    agent = start(tmp_path, "ana")
    with ending(agent):
        agent.ready()
        until(lambda: agent.call("GET", "/api/v1/stats")[0] == 200, "a dispatcher")
        agent.stop()
    with contextlib.closing(sqlite3.connect(next(agent.state.glob("*.db")))) as db, db:
        # No number is left for the next output, which SQLite accepts.
        db.execute("INSERT INTO outputs VALUES (9223372036854775807, x'6f', x'65')")
    agent = start(tmp_path, "ana")
    with ending(agent):
        agent.ready()
        submit(agent, "echo hello")

        assert agent.process.wait(WAIT_S_MAX) == 1, agent.log()
        assert "the writer stopped" in agent.log()


def test_an_agent_survives_a_shortage_of_descriptors(solo: Agent) -> None:
    """Any client that opens enough connections can cause it."""
    pid = solo.process.pid
    with contextlib.closing(solo.connection()) as kept:
        uptime_s = request(kept, "GET", "/health")[1]["uptime_seconds"]
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            # Load is sampled and addresses are looked up several times in between.
            until(
                lambda: (
                    request(kept, "GET", "/health")[1]["uptime_seconds"] > uptime_s + 6
                ),
                "time passes",
            )
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    task = finished(solo, submit(solo, "echo back"))
    assert task["stdout"] == "back\n"


def refusal(agent: Agent) -> str:
    """Return the error of an agent that refused to start."""
    assert agent.process.wait(READY_S_MAX) == EXIT_CONFIG, agent.log()
    return agent.log()


def test_a_state_folder_with_a_too_long_socket_path_is_refused(tmp_path: Path) -> None:
    """The error comes before anything is served."""
    agent = start(tmp_path / ("long" * 30), "solo")
    with ending(agent):
        assert "107 at most" in refusal(agent)


def test_the_error_for_an_unusable_folder_names_its_flag(tmp_path: Path) -> None:
    """For a wrong `--workdir` another `--state-dir` would be no help."""
    agent = start(tmp_path, "solo", "--workdir", "/proc/no")
    with ending(agent):
        assert "octaskly agent --workdir DIR uses another one" in refusal(agent)


def test_a_lone_node_runs_a_command(solo: Agent) -> None:
    """The first agent of a mesh is dispatcher and worker at once."""
    task = finished(solo, submit(solo, "echo out; echo err >&2; exit 3"))

    assert (task["status"], task["exit_code"]) == ("failed", 3)
    assert (task["stdout"], task["stderr"]) == ("out\n", "err\n")
    assert task["worker_id"] == "solo"


def test_tasks_create_files_with_the_user_s_umask(solo: Agent) -> None:
    """The agent's own files are private; files of tasks need not be."""
    before = os.umask(0o022)
    os.umask(before)
    task = finished(solo, submit(solo, "umask"))

    assert int(task["stdout"], 8) == before
    assert (solo.state / "log.db").stat().st_mode & 0o777 == 0o600


def test_a_crash_of_an_agent_leaves_no_secret_on_a_disk(tmp_path: Path) -> None:
    """It writes no core file; tasks may, within the limits of their agent."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        agent = start(tmp_path, "solo", prefix=UNFORKED)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    with ending(agent):
        task = finished(agent, submit(agent, "grep core /proc/self/limits"))
        own = resource.prlimit(agent.process.pid, resource.RLIMIT_CORE)

    shown = "unlimited" if before[1] == resource.RLIM_INFINITY else str(before[1])
    assert own == (0, before[1])
    assert task["stdout"].split()[4:6] == [shown, shown]


def test_a_refusal_names_the_reason_why_nothing_is_written(
    tmp_path: Path,
) -> None:
    """A database that was deleted under the agent is not reported as a full disk."""
    with running(tmp_path, "solo") as (agent,):
        finished(agent, submit(agent, "true"))
        (tmp_path / "solo" / "log.db").unlink()

        status, answer = agent.call("POST", TASKS, {"command": "true"})

        assert status == 507
        assert "log.db is gone" in answer["hint"]


def test_a_second_agent_on_one_state_folder_is_refused(solo: Agent) -> None:
    """B35: the error names the folder and says how to run two agents."""
    solo.ready()

    said = refusal(launch(solo.state, solo.state.parent / "mesh.key"))

    assert str(solo.state) in said
    assert "--name" in said
    assert solo.call("GET", "/health")[0] == 200


def test_a_second_agent_is_refused_before_it_creates_a_secret(
    solo: Agent, tmp_path: Path
) -> None:
    """An unused secret could later look like that of a mesh."""
    solo.ready()

    said = refusal(launch(solo.state, tmp_path / "new" / "mesh.key"))

    assert f"{solo.state / 'log.db'} is in use by process {solo.process.pid}" in said
    assert not [*tmp_path.iterdir()]


def test_a_requested_port_in_use_is_refused(tmp_path: Path) -> None:
    """B35: the error names port and holder; nothing else is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(start(tmp_path, "solo", "--api-port", str(port)))

    assert f"port {port} is taken by" in said
    assert f"pid {os.getpid()}" in said


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """The error has the command that corrects the mode."""
    secret = tmp_path / "mesh.key"
    create_secret_file(secret)
    secret.chmod(0o644)

    said = refusal(launch(tmp_path / "solo", secret))

    assert f"chmod 600 {tmp_path}/mesh.key" in said


@pytest.mark.parametrize("how", ["flag", "variable", "place"])
def test_an_unreadable_secret_is_refused(tmp_path: Path, how: str) -> None:
    """From every source: 78, so that systemd does not restart it for ever."""
    secret = tmp_path / "octaskly" / "mesh.key"
    create_secret_file(secret)
    before = secret.read_bytes()
    secret.chmod(0o200)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OCTASKLY_")}
    environ["XDG_CONFIG_HOME"] = str(tmp_path)
    words = [*AS_OTHERS, sys.executable, "-m", "octaskly", "agent"]
    words += ["--interface", "lo", "--state-dir", str(tmp_path / "solo")]
    if how == "flag":
        words += ["--secret-file", str(secret)]
    if how == "variable":
        environ["OCTASKLY_SECRET_FILE"] = str(secret)

    done = subprocess.run(
        words, check=False, env=environ, capture_output=True, timeout=READY_S_MAX
    )

    assert done.returncode == EXIT_CONFIG, done.stderr
    assert f"cannot read {secret}" in done.stderr.decode()
    secret.chmod(0o600)
    assert secret.read_bytes() == before


@pytest.mark.parametrize("is_before", [True, False])
def test_an_unreadable_state_folder_is_refused(
    tmp_path: Path, *, is_before: bool
) -> None:
    """Like any other folder, from every source: it is not a usage error."""
    folder = tmp_path / "private"
    folder.mkdir(mode=0o000)
    place, agent = ["--state-dir", str(folder)], ["agent", "--interface", "lo"]
    words = [*place, *agent] if is_before else [*agent, *place]

    done = subprocess.run(
        [*AS_OTHERS, sys.executable, "-m", "octaskly", *words],
        check=False,
        capture_output=True,
        timeout=READY_S_MAX,
    )

    assert done.returncode == EXIT_CONFIG, done.stderr
    assert f"the folder {folder} is not writable" in done.stderr.decode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"not a database at all\n" * 400, "not a database"), ("newer", "newer")],
)
def test_an_unusable_database_is_not_changed(
    tmp_path: Path, content: bytes | str, expected: str
) -> None:
    """B34: corrupt or newer: exit 78, a hint, and no byte is changed."""
    path = tmp_path / "solo" / "log.db"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("pragma user_version = 9999")
            connection.execute("create table kept (x)")
            connection.commit()
    before = path.read_bytes()

    said = refusal(start(tmp_path, "solo"))

    assert expected in said
    assert "octaskly db reset" in said
    assert path.read_bytes() == before


def test_a_database_that_another_program_writes_is_not_changed(tmp_path: Path) -> None:
    """B34: exit 78 with the reason; without that program the agent starts."""
    agent = start(tmp_path, "solo")
    with ending(agent):
        task = submit(agent, "echo kept")
        finished(agent, task)
    path = agent.state / "log.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        said = refusal(start(tmp_path, "solo"))

    assert "locked by another program" in said
    agent = start(tmp_path, "solo")
    with ending(agent):
        assert finished(agent, task)["stdout"] == "kept\n"


def test_a_node_that_sees_a_mesh_waits_for_its_secret(
    solo: Agent, tmp_path: Path
) -> None:
    """It serves health, refuses all else with a hint, and joins with the file."""
    until_nodes(solo, 1)
    secret = tmp_path / "elsewhere" / "mesh.key"
    newcomer = launch(tmp_path / "ben", secret, "--name", "ben")
    with ending(newcomer):
        until(lambda: "unpaired" in newcomer.log(), "the newcomer says unpaired")
        assert not secret.exists()
        secret.parent.mkdir(exist_ok=True)
        secret.touch(mode=0o600)
        secret.write_bytes((solo.state.parent / "mesh.key").read_bytes())

        until_nodes(solo, 2)


def test_a_node_that_sees_a_mesh_may_create_its_own(
    solo: Agent, tmp_path: Path
) -> None:
    """Only with a flag; at its next start, the flag changes nothing."""
    until_nodes(solo, 1)
    secret = tmp_path / "elsewhere" / "mesh.key"
    words = ("--name", "ben", "--new-mesh")
    first = launch(tmp_path / "ben", secret, *words)
    with ending(first):
        until_nodes(first, 1)
        made = secret.read_bytes()
    again = launch(tmp_path / "ben", secret, *words)
    with ending(again):
        until_nodes(again, 1)

    assert made != (solo.state.parent / "mesh.key").read_bytes()
    assert secret.read_bytes() == made
    assert "no new mesh" in again.log()


def test_a_killed_and_restarted_dispatcher_has_every_task(
    tmp_path: Path,
) -> None:
    """Tasks answered with 201 survive SIGKILL, and so do results."""
    agent = start(tmp_path, "solo", "--slots", "1")
    with ending(agent):
        done = submit(agent, "echo kept")
        finished(agent, done)
        gate = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
        cut_off = submit(agent, f"{gate}; echo $OCTASKLY_ATTEMPT")
        waiting = [submit(agent, f"echo {n}") for n in range(20)]
        agent.process.send_signal(signal.SIGKILL)
        agent.process.wait()
    again = start(tmp_path, "solo", "--slots", "4")
    with ending(again):
        assert finished(again, done)["stdout"] == "kept\n"
        for n, task_id in enumerate(waiting):
            assert finished(again, task_id)["stdout"] == f"{n}\n"
        (tmp_path / "go").touch()
        assert finished(again, cut_off)["stdout"] in ("1\n", "2\n")


def test_a_stopped_agent_lets_its_tasks_end(tmp_path: Path) -> None:
    """SIGTERM drains: the running command ends, and its result is kept."""
    agent = start(tmp_path, "solo")
    with ending(agent):
        task_id = submit(agent, f"touch {tmp_path}/on; sleep 1; echo drained")
        # Queued attempts are returned, and run at the next start.
        until((tmp_path / "on").exists, "the task runs")
        agent.process.terminate()

        assert agent.process.wait(WAIT_S_MAX) == 0, agent.log()
    again = start(tmp_path, "solo")
    with ending(again):
        task = finished(again, task_id)

        assert (task["status"], task["stdout"]) == ("completed", "drained\n")
        assert task["attempt"] == 1


def test_a_dispatcher_hands_over_without_a_failed_request(tmp_path: Path) -> None:
    """SIGTERM under load: another node takes over, and each task ends once."""
    with (
        meshed(tmp_path, "ana", "ben", "cy") as (old, front, _),
        contextlib.closing(front.connection()) as connection,
    ):
        ids = []
        for n in range(200):
            if n == 50:
                old.process.terminate()
            status, task = request(connection, "POST", TASKS, {"command": f"echo {n}"})
            assert status == 201, (n, task, front.log(), old.log())
            ids.append(task["id"])

        assert len(set(ids)) == 200
        for n, task_id in enumerate(ids):
            assert finished(front, task_id)["stdout"] == f"{n}\n"
        assert old.process.wait(WAIT_S_MAX) == 0, old.log()


def test_a_killed_worker_loses_no_task(tmp_path: Path) -> None:
    """Its attempts run again elsewhere, as attempt 2."""
    two = ("--slots", "2")
    with meshed(tmp_path, "ana", "ben", extra=two) as (dispatcher, worker):
        gate = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
        command = f"{gate}; echo $OCTASKLY_ATTEMPT"
        ids = [submit(dispatcher, command) for _ in range(4)]

        def on_worker() -> list[str]:
            _, page = dispatcher.call("GET", TASKS)
            return [
                task["id"]
                for task in page["tasks"]
                if task["worker_id"] == worker.state.name
                and task["status"] == "running"
            ]

        lost = until(on_worker, "the worker runs some")
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()
        (tmp_path / "go").touch()
        ended = {task_id: finished(dispatcher, task_id) for task_id in ids}

        assert {task["status"] for task in ended.values()} == {"completed"}
        assert all(ended[task_id]["stdout"] == "2\n" for task_id in lost)


def test_outputs_are_fetched_over_one_connection(solo: Agent) -> None:
    """A download leaves the connection open for the next request."""
    command = "printf '\\0\\377' > a.bin; mkdir -p d; echo b > d/b.txt"
    outputs = ["a.bin", "d/b.txt", "missing"]
    task = finished(solo, submit(solo, command, outputs=outputs))
    assert [(o["path"], o["bytes"]) for o in task["outputs"]] == [
        ("a.bin", 2),
        ("d/b.txt", 2),
        ("missing", None),
    ]
    with contextlib.closing(solo.connection()) as connection:
        got = []
        for path in ("a.bin", "d/b.txt", "missing"):
            connection.request("GET", f"{TASKS}/{task['id']}/outputs/{path}")
            reply = connection.getresponse()
            got.append((reply.status, reply.read()))

    assert got[:2] == [(200, b"\0\xff"), (200, b"b\n")]
    assert got[2][0] == 404


def test_outputs_of_a_task_cancelled_while_it_ran_are_fetched(solo: Agent) -> None:
    """They may be most of what a long task was to make."""
    command = "printf partly > part.txt; touch part.ready; sleep 60"
    task = submit(solo, command, outputs=["part.txt"])
    until((solo.state / "work" / "part.ready").exists, "it runs")
    assert solo.call("DELETE", f"{TASKS}/{task}?force=true")[0] == 200

    def kept_bytes() -> list[int | None]:
        return [o["bytes"] for o in solo.call("GET", f"{TASKS}/{task}")[1]["outputs"]]

    until(lambda: kept_bytes() == [6], "its outputs are stored")
    with contextlib.closing(solo.connection()) as connection:
        connection.request("GET", f"{TASKS}/{task}/outputs/part.txt")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"partly")


def test_one_request_may_be_strict_in_a_mesh_that_is_not(solo: Agent) -> None:
    """A task that might be lost is refused, others are accepted with one copy."""
    before = solo.call("GET", TASKS)[1]["total"]
    task = {"command": "true"}
    strict = task | {"durability": "strict"}
    answers = [
        solo.call("POST", f"{TASKS}?durability=strict", task),
        solo.call("POST", TASKS, [task, strict]),
        solo.call("POST", TASKS, task),
    ]
    total = solo.call("GET", TASKS)[1]["total"]

    assert [status for status, _ in answers] == [503, 503, 201]
    assert answers[2][1]["replicas"] == total - before == 1
