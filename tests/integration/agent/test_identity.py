"""Real agents with a state folder that was copied or restored from a backup."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.agents import (
    TASKS,
    Agent,
    ending,
    finished,
    running,
    start,
    submit,
    until,
    until_nodes,
)


def copy_of(state: Path, name: str) -> Path:
    """Copy the state folder of a running agent, as a backup does."""
    others = shutil.ignore_patterns("log.*", "agent.json", "*.sock")
    copied = shutil.copytree(state, state.parent / name, ignore=others)
    (copied / "log.db").touch(mode=0o600)
    with (
        contextlib.closing(sqlite3.connect(state / "log.db")) as original,
        contextlib.closing(sqlite3.connect(copied / "log.db")) as copy,
    ):
        original.backup(copy)
    return copied


def names(agent: Agent) -> set[str]:
    """Return the names of the ready nodes of the mesh."""
    _, body = agent.call("GET", "/api/v1/nodes")
    return {node["name"] for node in body["nodes"] if node["state"] == "ready"}


def test_a_copied_state_folder_becomes_a_node_of_its_own(tmp_path: Path) -> None:
    """F18: the mesh keeps the first, and the copy logs the reason."""
    with running(tmp_path, "ana", "ben") as (ana, ben):
        until_nodes(ana, 2)
        copy_of(ben.state, "copy")
        copy = start(tmp_path, "copy")
        with ending(copy):
            until_nodes(ana, 3)
            renewals = copy.log().count("node id renewed")
            ids = {a.ready()["node_id"] for a in (ana, ben, copy)}
            task = finished(copy, submit(copy, "echo on"))

    assert renewals == 1, copy.log()
    assert len(ids) == 3
    assert task["stdout"] == "on\n"
    assert "node id renewed" not in ben.log()


def test_a_lone_dispatcher_and_its_copy_find_each_other(tmp_path: Path) -> None:
    """No other node could inform the copy: mDNS brings them together."""
    with running(tmp_path, "ana") as (ana,):
        finished(ana, submit(ana, "true"))
        copy_of(ana.state, "copy")
        copy = start(tmp_path, "copy")
        with ending(copy):
            until_nodes(ana, 2)
            assert ana.ready()["node_id"] != copy.ready()["node_id"]

    assert "node id renewed" in copy.log()


def entries(state: Path) -> dict[tuple[int, int], Any]:
    """Return the log of a stopped agent by stream and sequence number."""
    with contextlib.closing(sqlite3.connect(state / "log.db")) as db:
        rows = db.execute("SELECT stream, seq, hlc, body FROM facts")
        return {(stream, seq): (hlc, body) for stream, seq, hlc, body in rows}


def test_a_restored_backup_loses_nothing_and_resumes_no_stream(
    tmp_path: Path,
) -> None:
    """F18: no position in the log has two contents, and final states stay final."""
    with running(tmp_path, "ana", "ben") as agents:
        until_nodes(agents[0], 2)
        restored, other = in_order(agents)
        before = finished(other, submit(other, "echo before"))
        backup = copy_of(restored.state, "backup")
        between = [finished(other, submit(other, f"echo {n}")) for n in range(20)]
        restored.stop()
        until_nodes(other, 1)
        shutil.rmtree(restored.state)
        backup.rename(restored.state)
        with again(tmp_path, restored) as back:
            until_nodes(other, 2)
            after = finished(back, submit(back, "echo after"))
            for task in (before, *between, after):
                shown = finished(back, task["id"])
                assert (shown["status"], shown["stdout"], shown["attempt"]) == (
                    "completed",
                    task["stdout"],
                    task["attempt"],
                )
            _, page = other.call("GET", TASKS)
            assert page["total"] == 22

    mine, theirs = entries(restored.state), entries(other.state)
    shared = mine.keys() & theirs.keys()
    assert len({stream for stream, _ in shared}) > 1
    assert all(mine[place] == theirs[place] for place in shared)


def in_order(agents: list[Agent]) -> tuple[Agent, Agent]:
    """Return the dispatcher first."""
    _, body = agents[0].call("GET", "/api/v1/nodes")
    dispatcher_name = next(
        n["name"] for n in body["nodes"] if n["role"] == "dispatcher"
    )
    first, second = sorted(
        agents, key=lambda agent: agent.state.name != dispatcher_name
    )
    return first, second


@contextlib.contextmanager
def again(folder: Path, stopped: Agent) -> Iterator[Agent]:
    """Run an agent on the folder of a stopped one."""
    agent = start(folder, stopped.state.name)
    with ending(agent):
        until(agent.description, "the agent is ready")
        yield agent
