"""Machines get into a mesh: real agents and commands on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.trust import load, make
from tests import agents
from tests.agents import Agent, ending, finished, launch, submit, until, until_nodes


def cli(agent: Agent, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command against an agent."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OCTASKLY_")}
    return subprocess.run(
        [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state), *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        input=stdin,
        env=environ,
    )


def invite(agent: Agent) -> tuple[str, str]:
    """Open an invite; return its code, and where it is answered."""
    done = cli(agent, "invite", "--json")
    assert done.returncode == 0, done.stderr
    opened = json.loads(done.stdout)
    return opened["code"], opened["places"][0]


def newcomer(folder: Path, name: str, *, has_secret: bool = False) -> Agent:
    """Start an agent that is in no mesh yet, or in one of its own."""
    secret = folder / f"{name}.key"
    if has_secret:
        make(secret)
    return launch(folder / name, secret, "--name", name)


def is_listening(place: str) -> bool:
    host, _, port = place.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
        return True
    return False


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Agent]:
    agent = agents.start(tmp_path / "mesh", "ash")
    with ending(agent):
        until_nodes(agent, 1)
        yield agent


def names(agent: Agent) -> set[str]:
    status, body = agent.call("GET", "/api/v1/nodes")
    assert status == 200, body
    return {node["name"] for node in body["nodes"] if node["state"] == "ready"}


def test_a_machine_without_a_mesh_joins_with_a_code(
    member: Agent, tmp_path: Path
) -> None:
    """The main road: three commands, and no file is copied."""
    joiner = newcomer(tmp_path, "bay")
    with ending(joiner):
        joiner.ready()
        code, _ = invite(member)

        joined = cli(joiner, "join", code)

        assert joined.returncode == 0, joined.stderr
        assert "joined the mesh of ash as bay" in joined.stderr
        assert names(member) == names(joiner) == {"ash", "bay"}
        task = submit(joiner, "echo hello", requires={"node": "bay"})
        assert finished(joiner, task)["stdout"] == "hello\n"
        secret = tmp_path / "bay.key"
        assert load(secret) == load(tmp_path / "mesh" / "mesh.key")
        assert secret.stat().st_mode & 0o777 == 0o600


def test_a_wrong_code_burns_the_invite_and_changes_nothing(
    member: Agent, tmp_path: Path
) -> None:
    """One guess; the right code comes too late."""
    joiner = newcomer(tmp_path, "bay")
    with ending(joiner):
        joiner.ready()
        code, place = invite(member)
        _, _ = invite(member)  # It keeps the listener there.
        wrong = code[:-1] + ("1" if code[-1] == "0" else "0")

        refused = cli(joiner, "join", "--at", place, wrong)
        late = cli(joiner, "join", "--at", place, code)

        assert (refused.returncode, late.returncode) == (1, 1)
        assert "ash does not accept the code" in refused.stderr
        assert "tried before" in late.stderr
        assert "hint: octaskly invite" in refused.stderr
        assert not (tmp_path / "bay.key").exists()
        assert names(member) == {"ash"}


def test_a_mesh_of_its_own_with_tasks_is_left_by_force_alone(
    member: Agent, tmp_path: Path
) -> None:
    """What is left is named, kept aside, and never seen in the new mesh."""
    joiner = newcomer(tmp_path, "bay", has_secret=True)
    with ending(joiner):
        until_nodes(joiner, 1)
        own = joiner.ready()["mesh"]
        old = submit(joiner, "echo old")
        finished(joiner, old)
        code, place = invite(member)

        kept = cli(joiner, "join", "--at", place, code)
        moved = cli(joiner, "join", "--force", "--at", place, "-", stdin=f"{code}\n")

        assert kept.returncode == 1
        assert "1 tasks" in kept.stderr
        assert moved.returncode == 0, moved.stderr
        assert names(member) == {"ash", "bay"}
        status, _ = joiner.call("GET", f"{agents.TASKS}/{old}")
        assert status == 404
        left = joiner.state / f"left-{own}"
        assert {"log.db", "mesh.key"} <= {path.name for path in left.iterdir()}
        assert str(left) in joiner.log()


def test_a_mesh_of_its_own_without_anything_is_replaced_unasked(
    member: Agent, tmp_path: Path
) -> None:
    """Two machines that each started alone need one command more, no clean-up."""
    joiner = newcomer(tmp_path, "bay", has_secret=True)
    with ending(joiner):
        until_nodes(joiner, 1)
        code, place = invite(member)

        joined = cli(joiner, "join", "--at", place, code)

        assert joined.returncode == 0, joined.stderr
        assert names(member) == {"ash", "bay"}


def test_where_no_agent_runs_the_secret_is_written(
    member: Agent, tmp_path: Path
) -> None:
    """And the command says what to start."""
    code, place = invite(member)
    home = tmp_path / "home"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OCTASKLY_")}
    environ |= {f"XDG_{name}_HOME": str(home / name) for name in ("STATE", "CONFIG")}
    environ |= {"XDG_RUNTIME_DIR": str(home), "HOME": str(home)}

    done = subprocess.run(
        [sys.executable, "-m", "octaskly", "join", "--at", place, code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environ,
    )

    assert done.returncode == 0, done.stderr
    assert "next: octaskly agent --join 127.0.0.1" in done.stderr
    secret = home / "CONFIG" / "octaskly" / "mesh.key"
    assert load(secret) == load(tmp_path / "mesh" / "mesh.key")


def test_no_log_has_the_code_and_the_listener_goes_with_the_invite(
    member: Agent, tmp_path: Path
) -> None:
    """Nobody reads in a log what opens the mesh; nothing listens without need."""
    joiner = newcomer(tmp_path, "bay")
    with ending(joiner):
        joiner.ready()
        code, place = invite(member)
        assert cli(joiner, "join", "--at", place, code).returncode == 0

        until(lambda: not is_listening(place), "the listener is closed")
        logs = member.log() + joiner.log()
        _, half, other = code.split("-")
        assert half + other not in logs
        assert code not in logs
