"""Whole agents as processes on loopback: starting, refusing, stopping, coming back."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sqlite3
from pathlib import Path

import pytest

from tests.agents import (
    TASKS,
    Agent,
    ending,
    finished,
    launch,
    request,
    running,
    start,
    submit,
    until,
    until_nodes,
)

EXIT_CONFIG = 78


def test_an_agent_that_can_keep_nothing_any_more_ends(tmp_path: Path) -> None:
    """Not 78, so that systemd starts it again: it would accept nothing for ever."""
    agent = start(tmp_path, "ana")
    with ending(agent):
        agent.ready()
        until(lambda: agent.call("GET", "/api/v1/stats")[0] == 200, "a dispatcher")
        agent.stop()
    with contextlib.closing(sqlite3.connect(next(agent.state.glob("*.db")))) as db, db:
        # No number is left for the next output, which is no error of SQLite.
        db.execute("INSERT INTO outputs VALUES (9223372036854775807, x'6f', x'65')")
    agent = start(tmp_path, "ana")
    with ending(agent):
        agent.ready()
        submit(agent, "echo hello")

        assert agent.process.wait(20) == 1, agent.log()
        assert "the writer stopped" in agent.log()


def test_an_agent_without_a_descriptor_to_spare_lives_on(tmp_path: Path) -> None:
    """Whoever opens connections enough takes the descriptors, but not the agent."""
    with running(tmp_path, "ana") as (agent,):
        pid = agent.process.pid
        with contextlib.closing(agent.connection()) as kept:
            began = request(kept, "GET", "/health")[1]["uptime_seconds"]
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
            # Load is sampled and addresses are looked up several times in between.
            until(
                lambda: (
                    request(kept, "GET", "/health")[1]["uptime_seconds"] > began + 6
                ),
                "time passes",
            )
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

        task = finished(agent, submit(agent, "echo back"))
        assert task["stdout"] == "back\n"


def refusal(agent: Agent) -> str:
    """Return what an agent said that refused to start."""
    assert agent.process.wait(20) == EXIT_CONFIG, agent.log()
    return agent.log()


def test_a_state_folder_whose_socket_no_kernel_takes_is_refused(tmp_path: Path) -> None:
    """A path that is too long is said before anything is served."""
    agent = start(tmp_path / ("long" * 30), "solo")
    with ending(agent):
        assert "107 at most" in refusal(agent)


def test_a_node_alone_runs_a_command(tmp_path: Path) -> None:
    """The first agent of a mesh is dispatcher and worker at once."""
    with running(tmp_path, "solo") as (agent,):
        task = finished(agent, submit(agent, "echo out; echo err >&2; exit 3"))

        assert (task["status"], task["exit_code"]) == ("failed", 3)
        assert (task["stdout"], task["stderr"]) == ("out\n", "err\n")
        assert task["worker_id"] == "solo"


def test_tasks_make_files_as_the_user_of_the_agent_would(tmp_path: Path) -> None:
    """The agent's own files are private; what a task writes is not the agent's."""
    with running(tmp_path, "solo") as (agent,):
        before = os.umask(0o022)
        os.umask(before)
        task = finished(agent, submit(agent, "umask"))

        assert int(task["stdout"], 8) == before
        assert (tmp_path / "solo" / "log.db").stat().st_mode & 0o777 == 0o600


def test_a_task_is_refused_with_the_reason_why_nothing_is_written(
    tmp_path: Path,
) -> None:
    """A database that was deleted under the agent is not called a full disk."""
    with running(tmp_path, "solo") as (agent,):
        finished(agent, submit(agent, "true"))
        (tmp_path / "solo" / "log.db").unlink()

        status, answer = agent.call("POST", TASKS, {"command": "true"})

        assert status == 507
        assert "log.db is gone" in answer["hint"]


def test_a_second_agent_on_one_state_folder_is_refused(tmp_path: Path) -> None:
    """B35: the error names the folder and says how to run two agents."""
    with running(tmp_path, "solo") as (agent,):
        agent.ready()
        second = launch(tmp_path / "solo", tmp_path / "mesh.key")
        said = refusal(second)

        assert str(tmp_path / "solo") in said
        assert "--name" in said
        assert agent.call("GET", "/health")[0] == 200


def test_a_port_that_was_asked_for_and_is_taken_is_refused(tmp_path: Path) -> None:
    """B35: the error names port and holder; nothing else is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(start(tmp_path, "solo", "--api-port", str(port)))

    assert f"port {port} is taken by" in said
    assert f"pid {os.getpid()}" in said


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """A world-readable secret is named with the command that mends it."""
    with running(tmp_path, "solo") as (agent,):
        agent.ready()
    (tmp_path / "mesh.key").chmod(0o644)

    said = refusal(start(tmp_path, "solo"))

    assert f"chmod 600 {tmp_path}/mesh.key" in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"not a database at all\n" * 400, "not a database"), ("newer", "newer")],
)
def test_a_database_that_cannot_be_used_is_left_alone(
    tmp_path: Path, content: bytes | str, expected: str
) -> None:
    """B34: corrupt or newer: exit 78, a hint, and not a byte is changed."""
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


def test_a_node_that_sees_a_mesh_waits_for_its_secret(tmp_path: Path) -> None:
    """It serves health, refuses all else with a hint, and joins with the file."""
    with running(tmp_path, "ana") as (member,):
        member.ready()
        secret = tmp_path / "elsewhere" / "mesh.key"
        newcomer = launch(tmp_path / "ben", secret, "--name", "ben")
        with ending(newcomer):
            until(lambda: "unpaired" in newcomer.log(), "the newcomer says unpaired")
            assert not secret.exists()
            secret.parent.mkdir(exist_ok=True)
            secret.touch(mode=0o600)
            secret.write_bytes((tmp_path / "mesh.key").read_bytes())

            until_nodes(member, 2)


def test_a_dispatcher_that_is_killed_and_restarted_has_every_task(
    tmp_path: Path,
) -> None:
    """What was answered with 201 survives SIGKILL, results as well."""
    agent = start(tmp_path, "solo", "--slots", "1")
    with ending(agent):
        done = submit(agent, "echo kept")
        finished(agent, done)
        waiting = [submit(agent, "sleep 30; echo never", timeout=40)]
        waiting += [submit(agent, f"echo {n}") for n in range(20)]
        agent.process.send_signal(signal.SIGKILL)
        agent.process.wait()
    again = start(tmp_path, "solo", "--slots", "4")
    with ending(again):
        assert finished(again, done)["stdout"] == "kept\n"
        for n, task_id in enumerate(waiting[1:]):
            assert finished(again, task_id)["stdout"] == f"{n}\n"
        _, task = again.call("GET", f"{TASKS}/{waiting[0]}")

        assert task["status"] in ("running", "queued")
        assert task["attempt"] in (1, 2)


def test_a_stopped_agent_lets_its_tasks_end(tmp_path: Path) -> None:
    """SIGTERM drains: the running command ends, and its result is kept."""
    agent = start(tmp_path, "solo")
    with ending(agent):
        task_id = submit(agent, f"touch {tmp_path}/on; sleep 1; echo drained")
        # What has not begun is handed back, and runs at the next start.
        until((tmp_path / "on").exists, "the task runs")
        agent.process.terminate()

        assert agent.process.wait(20) == 0, agent.log()
    again = start(tmp_path, "solo")
    with ending(again):
        task = finished(again, task_id)

        assert (task["status"], task["stdout"]) == ("completed", "drained\n")
        assert task["attempt"] == 1


def test_a_dispatcher_hands_over_without_a_failed_request(tmp_path: Path) -> None:
    """SIGTERM under load: another node reigns, and each task ends once."""
    with (
        running(tmp_path, "ana", "ben", "cy") as agents,
        contextlib.ExitStack() as closing,
    ):
        until_nodes(agents[0], 3)
        _, body = agents[0].call("GET", "/api/v1/nodes")
        reigning = next(n["name"] for n in body["nodes"] if n["role"] == "dispatcher")
        by_name = {agent.state.name: agent for agent in agents}
        old = by_name.pop(reigning)
        front = next(iter(by_name.values()))
        connection = closing.enter_context(contextlib.closing(front.connection()))
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
        assert old.process.wait(30) == 0, old.log()


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    """Its attempts run again elsewhere, as attempt 2."""
    with running(tmp_path, "ana", "ben", extra=("--slots", "2")) as agents:
        until_nodes(agents[0], 2)
        _, body = agents[0].call("GET", "/api/v1/nodes")
        roles = {n["name"]: n["role"] for n in body["nodes"]}
        by_name = {agent.state.name: agent for agent in agents}
        dispatcher = by_name[next(n for n, r in roles.items() if r == "dispatcher")]
        worker = by_name[next(n for n, r in roles.items() if r != "dispatcher")]
        ids = [submit(dispatcher, "sleep 2; echo $OCTASKLY_ATTEMPT") for _ in range(4)]

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
        ended = {task_id: finished(dispatcher, task_id) for task_id in ids}

        assert {task["status"] for task in ended.values()} == {"completed"}
        assert all(ended[task_id]["stdout"] == "2\n" for task_id in lost)


def test_outputs_come_back_over_one_connection(tmp_path: Path) -> None:
    """A download leaves the connection open for the next request."""
    with running(tmp_path, "solo") as (agent,):
        command = "printf '\\0\\377' > a.bin; mkdir -p d; echo b > d/b.txt"
        outputs = ["a.bin", "d/b.txt", "missing"]
        task = finished(agent, submit(agent, command, outputs=outputs))
        assert [(o["path"], o["bytes"]) for o in task["outputs"]] == [
            ("a.bin", 2),
            ("d/b.txt", 2),
            ("missing", None),
        ]
        with contextlib.closing(agent.connection()) as connection:
            got = []
            for path in ("a.bin", "d/b.txt", "missing"):
                connection.request("GET", f"{TASKS}/{task['id']}/outputs/{path}")
                reply = connection.getresponse()
                got.append((reply.status, reply.read()))

        assert got[:2] == [(200, b"\0\xff"), (200, b"b\n")]
        assert got[2][0] == 404
