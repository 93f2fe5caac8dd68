"""`octaskly leave`: the state that a node deletes, also after a crash in between.

Two scenarios run once, as each needs agents; each test checks a part of one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from octaskly.config.paths import Paths
from octaskly.joining.change_mesh import delete_mesh_state
from octaskly.trust import create_secret_file
from octaskly.trust.private_files import create_private
from octaskly.trust.secret_file import SecretUse
from tests.support.agents import (
    WAIT_S_MAX,
    Agent,
    ending,
    kill_agent,
    launch,
    running,
    start,
    submit,
    until,
)

LEAVE = "/api/v1/membership/leave"
OF_A_MESH = {"leaving", "log.db", "mesh.id", "node.key", "outputs", "files", "scratch"}


class Said(NamedTuple):
    """The exit code and output of a command."""

    code: int
    words: str


def octaskly(state: Path, *args: str) -> subprocess.Popen[str]:
    """Start a command about the agent of this state folder."""
    words = [sys.executable, "-m", "octaskly", "--state-dir", str(state), *args]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OCTASKLY_")}
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environ | {"OCTASKLY_SECRET_FILE": str(state.parent / "mesh.key")},
    )


def leave(state: Path, *args: str) -> Said:
    """Run `octaskly leave`, and wait for its end."""
    command = octaskly(state, "leave", "--yes", *args)
    _, words = command.communicate(timeout=60)
    return Said(command.returncode, words)


def kept(state: Path) -> set[str]:
    """Return the remaining mesh files of a state folder."""
    return {path.name for path in state.iterdir()} & OF_A_MESH


class Pair(NamedTuple):
    """Two agents of one user with one secret file; one leaves, then the other."""

    first: Said
    first_code: int
    first_kept: set[str]
    name_again: str  #: of the first one, when it comes back with a new node id
    secret_between: bool
    mistaken: Said  #: the folder of the one, the socket of the other
    refused: tuple[int, Any]
    answer: tuple[int, Any]
    second: dict[str, Any]
    second_code: int
    second_kept: set[str]
    secret_after: bool


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The results of two agents with a shared secret file."""
    folder = tmp_path_factory.mktemp("pair")
    secret = folder / "mesh.key"
    with running(folder, "ash", "birch", extra=("--drain", "0")) as (ash, birch):
        second = birch.ready()
        ash.ready()
        (ash.state / "files").mkdir(exist_ok=True)
        first = leave(ash.state)
        first_code, first_kept = ash.process.wait(WAIT_S_MAX), kept(ash.state)
        again = launch(ash.state, secret, "--name", "ash", "--drain", "0")
        with ending(again):
            again.ready()
            name_again = until(lambda: name_in_mesh(birch, again), "it is back")
            assert leave(ash.state).code == 0
        secret_between = secret.exists()
        (ash.state / "agent.json").write_text(json.dumps(second))
        mistaken = leave(ash.state)
        until(
            lambda: birch.call("GET", "/api/v1/stats")[0] == 200, "birch is dispatcher"
        )
        submit(birch, "sleep 600")
        refused = birch.call("POST", LEAVE, {})
        return Pair(
            first,
            first_code,
            first_kept,
            name_again,
            secret_between,
            mistaken,
            refused,
            birch.call("POST", LEAVE, {"force": True}),
            second,
            birch.process.wait(WAIT_S_MAX),
            kept(birch.state),
            secret.exists(),
        )


def test_an_agent_that_leaves_forgets_and_ends(pair: Pair) -> None:
    """A service does not restart it."""
    assert pair.first.code == 0, pair.first.words
    assert (pair.first_code, pair.first_kept) == (0, set())
    assert "✓ ash has left the mesh; its mesh data is deleted\n" in pair.first.words


def name_in_mesh(member: Agent, node: Agent) -> str | None:
    """Return the name of a node in the list of a member, None if it is not there."""
    page = member.call("GET", "/api/v1/nodes")[1]
    ids = {one["id"]: one["name"] for one in page.get("nodes", [])}
    return ids.get(node.ready()["node_id"])


def test_a_machine_that_left_gets_its_name_back(pair: Pair) -> None:
    """Under its new id; what the old one ran is of `ash (left)`."""
    assert pair.name_again == "ash"


def test_a_secret_file_stays_while_another_agent_uses_it(pair: Pair) -> None:
    """The output says so, with its path."""
    assert pair.secret_between
    assert "another agent of this machine uses the secret /" in pair.first.words


def test_the_last_agent_that_leaves_deletes_the_secret(pair: Pair) -> None:
    """By the API alone: the command may end earlier."""
    answered, body = pair.answer
    assert (answered, body["node_id"]) == (202, pair.second["node_id"])
    assert (pair.second_code, pair.second_kept) == (0, set())
    assert not pair.secret_after


def test_unique_tasks_are_not_lost_by_mistake(pair: Pair) -> None:
    """Only an explicit flag loses them."""
    status, body = pair.refused
    assert (status, body["error"]) == (409, "Tasks may be lost")
    assert "1 wait or run, and no standby keeps copies" in body["hint"]


def test_an_agent_with_another_state_folder_is_not_affected(pair: Pair) -> None:
    """A stale description names a socket that another agent uses now."""
    assert pair.mistaken.code != 0
    assert "its socket belongs to birch" in pair.mistaken.words


class Mishaps(NamedTuple):
    """A command is killed, then its agent; the next one is killed before any."""

    mute: Said  #: while the agent runs and its socket is not found
    pid: int
    before: dict[str, Any]
    after: dict[str, Any]
    log: str
    is_same_secret: bool
    alone: Said
    alone_kept: set[str]
    nothing: Said


@pytest.fixture(scope="module")
def mishaps(tmp_path_factory: pytest.TempPathFactory) -> Mishaps:
    """The results of an agent and a command that died."""
    folder = tmp_path_factory.mktemp("mishaps")
    cedar, secret = start(folder, "cedar", "--drain", "60"), folder / "mesh.key"
    try:
        before, old = cedar.ready(), secret.read_bytes()
        description = cedar.state / "agent.json"
        description.rename(folder / "aside")
        mute = leave(cedar.state)
        (folder / "aside").rename(description)
        submit(cedar, "sleep 600")
        command = octaskly(cedar.state, "leave", "--yes", "--force")
        until((cedar.state / "leaving").exists, "it has started")
        command.kill()
        command.communicate()
    finally:
        kill_agent(cedar)
    again = launch(cedar.state, secret, "--name", "cedar")
    with ending(again):
        after = again.ready()
        is_same = secret.exists() and secret.read_bytes() == old
        kill_agent(again)
        alone = leave(cedar.state)
        return Mishaps(
            mute,
            cedar.process.pid,
            before,
            after,
            again.log(),
            is_same,
            alone,
            kept(cedar.state),
            leave(cedar.state),
        )


def test_the_node_forgets_after_a_crash_in_between(mishaps: Mishaps) -> None:
    """The command, then the draining agent: its next start does the rest."""
    assert "left the mesh" in mishaps.log
    assert mishaps.after["node_id"] != mishaps.before["node_id"]
    assert mishaps.after["mesh"] != mishaps.before["mesh"]
    assert not mishaps.is_same_secret


def test_a_folder_in_use_is_not_changed(mishaps: Mishaps) -> None:
    """An unreachable agent may still write there."""
    assert mishaps.mute.code != 0
    assert f"is in use by process {mishaps.pid}" in mishaps.mute.words


def test_without_an_agent_the_command_forgets(mishaps: Mishaps) -> None:
    """Once; a repetition says that nothing is left."""
    assert mishaps.alone.code == 0, mishaps.alone.words
    assert mishaps.alone_kept == set()
    assert mishaps.nothing.code != 0
    assert "has no data of a mesh" in mishaps.nothing.words


def test_the_secret_of_a_stopped_agent_stays(tmp_path: Path) -> None:
    """It does not run, but its folder is there, and belongs to the same mesh."""
    secret = tmp_path / "mesh.key"
    create_secret_file(secret)
    for name, mesh in (("ash", "a"), ("birch", "a"), ("cedar", "c")):
        (tmp_path / name).mkdir()
        create_private(tmp_path / name / "mesh.id", mesh.encode())

    stays = [
        delete_mesh_state(
            Paths(state=state, workdir=state, secret=secret, runtime=state),
            SecretUse(secret),
        )
        for state in (tmp_path / "ash", tmp_path / "birch")
    ]

    assert stays == [True, False]
    assert not secret.exists()
