"""Joining a mesh: real agents and commands on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from octaskly.trust import create_secret_file, load_secret
from tests.support import agents
from tests.support.agents import (
    WAIT_S_MAX,
    Agent,
    ending,
    finished,
    launch,
    submit,
    until,
    until_nodes,
)


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
    """Open an invite; return its code and its address."""
    done = cli(agent, "invite", "--json")
    assert done.returncode == 0, done.stderr
    opened = json.loads(done.stdout)
    return opened["code"], opened["places"][0]


class Asking:
    """A command at a terminal, by default `octaskly join` without a code."""

    def __init__(self, agent: Agent, *words: str) -> None:
        self._terminal, inside = pty.openpty()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "octaskly", "--state-dir", str(agent.state)),
                *(words or ("join",)),
            ],
            stdin=inside,
            stdout=inside,
            stderr=inside,
        )
        os.close(inside)
        self._said = ""

    def expect(self, pattern: str, *, within_s: float = WAIT_S_MAX) -> str:
        """Return the match once it is on the screen."""
        deadline = time.perf_counter() + within_s
        while time.perf_counter() < deadline:
            if match := re.search(pattern, self._said):
                return match[0]
            if select.select([self._terminal], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # It has ended.
                    self._said += os.read(self._terminal, 4096).decode()
        raise AssertionError(f"not on the screen: {pattern}\n{self._said}")

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def end(self) -> int:
        """Return its exit code."""
        code = self._process.wait(WAIT_S_MAX)
        os.close(self._terminal)
        return code


def newcomer(folder: Path, name: str, *, has_secret: bool = False) -> Agent:
    """Start an agent that is in no mesh yet, or in one of its own."""
    secret = folder / f"{name}.key"
    if has_secret:
        create_secret_file(secret)
    return launch(folder / name, secret, "--name", name)


def is_listening(place: str) -> bool:
    host, _, port = place.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
        return True
    return False


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A mesh of one node, which machines join in the tests of a module."""
    agent = agents.start(tmp_path_factory.mktemp("mesh"), "ash")
    with ending(agent):
        until_nodes(agent, 1)
        yield agent


@pytest.fixture(scope="module")
def outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A machine that never joins a mesh."""
    agent = newcomer(tmp_path_factory.mktemp("out"), "out")
    with ending(agent):
        agent.ready()
        yield agent


@dataclass(frozen=True)
class Joined:
    """A machine that joined with a code, and its output."""

    agent: Agent
    code: str
    place: str  #: where the invite was answered
    said: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def joined(member: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    agent = newcomer(tmp_path_factory.mktemp("in"), "bay")
    with ending(agent):
        agent.ready()
        code, place = invite(member)
        yield Joined(agent, code, place, cli(agent, "join", code))


def names(agent: Agent) -> set[str]:
    status, body = agent.call("GET", "/api/v1/nodes")
    assert status == 200, body
    return {node["name"] for node in body["nodes"] if node["state"] == "ready"}


def secret_of(agent: Agent) -> Path:
    """Return the path of an agent's mesh secret."""
    return agent.state.parent / f"{agent.state.name}.key"


def mesh_secret(member: Agent) -> Path:
    return member.state.parent / "mesh.key"


def test_a_machine_without_a_mesh_joins_with_a_code(
    member: Agent, joined: Joined
) -> None:
    """The usual way: three commands, and no file is copied."""
    assert joined.said.returncode == 0, joined.said.stderr
    assert "joined the mesh of ash as bay" in joined.said.stderr
    assert {"ash", "bay"} <= names(member) & names(joined.agent)
    task = submit(joined.agent, "echo hello", requires={"node": "bay"})
    assert finished(joined.agent, task)["stdout"] == "hello\n"
    noted = cli(member, "audit", "--json").stdout
    assert "POST /api/v1/invites" in noted
    assert joined.code not in noted
    secret = secret_of(joined.agent)
    assert load_secret(secret) == load_secret(mesh_secret(member))
    assert secret.stat().st_mode & 0o777 == 0o600


def test_no_log_has_the_code_and_the_listener_ends_with_the_invite(
    member: Agent, joined: Joined
) -> None:
    """A log must not contain a key to the mesh, and nothing listens needlessly."""
    until(lambda: not is_listening(joined.place), "the listener is closed")
    logs = member.log() + joined.agent.log()
    _, half, other = joined.code.split("-")
    assert half + other not in logs
    assert joined.code not in logs


def test_with_two_inviting_meshes_the_code_decides(
    member: Agent, outsider: Agent, tmp_path: Path
) -> None:
    """The first one found has no such invite, and is skipped."""
    elm, bay = agents.start(tmp_path, "elm"), newcomer(tmp_path, "bay")
    with ending(elm, bay):
        until_nodes(elm, 1)
        bay.ready()
        other, place = invite(member)
        opened = invite(elm)[0], invite(elm)[0]
        code = next(one for one in opened if slot(one) != slot(other))

        said = cli(bay, "join", code)
        cli(outsider, "join", "--at", place, wrong(other))  # The listener ends again.

        assert said.returncode == 0, said.stderr
        assert "joined the mesh of elm as bay" in said.stderr
        assert names(bay) == {"elm", "bay"}


def slot(code: str) -> str:
    return code.partition("-")[0]


def wrong(code: str) -> str:
    return code[:-1] + ("1" if code[-1] == "0" else "0")


def test_a_wrong_code_burns_the_invite_and_changes_nothing(
    member: Agent, outsider: Agent
) -> None:
    """One guess; the right code comes too late."""
    code, place = invite(member)
    other, _ = invite(member)  # It keeps the listener open.

    refused = cli(outsider, "join", "--at", place, wrong(code))
    late = cli(outsider, "join", "--at", place, code)
    cli(outsider, "join", "--at", place, wrong(other))  # And it ends again.

    assert (refused.returncode, late.returncode) == (1, 1)
    assert "ash does not accept the code" in refused.stderr
    assert "already tried" in late.stderr
    assert "hint: octaskly invite" in refused.stderr
    assert not secret_of(outsider).exists()
    assert "out" not in names(member)


def test_a_mesh_of_its_own_with_tasks_is_left_only_by_force(
    member: Agent, tmp_path: Path
) -> None:
    """The lost tasks are named, kept aside, and never seen in the new mesh."""
    joiner = newcomer(tmp_path, "cay", has_secret=True)
    with ending(joiner):
        until_nodes(joiner, 1)
        own = joiner.ready()["mesh"]
        old = submit(joiner, "echo old")
        finished(joiner, old)
        code, place = invite(member)

        kept = cli(joiner, "join", "--at", place, code)
        moved = cli(joiner, "join", "--force", "--at", place, "-", stdin=f"{code}\n")

        assert kept.returncode == 1
        assert "1 task" in kept.stderr
        assert moved.returncode == 0, moved.stderr
        assert {"ash", "cay"} <= names(member)
        status, _ = joiner.call("GET", f"{agents.TASKS}/{old}")
        assert status == 404
        left = joiner.state / f"left-{own}"
        assert {"log.db", "mesh.key"} <= {path.name for path in left.iterdir()}
        assert str(left) in joiner.log()


def test_an_empty_mesh_of_its_own_is_replaced_without_a_question(
    member: Agent, tmp_path: Path
) -> None:
    """Two machines that each started alone need one more command, no clean-up."""
    joiner = newcomer(tmp_path, "dan", has_secret=True)
    with ending(joiner):
        until_nodes(joiner, 1)
        code, place = invite(member)

        done = cli(joiner, "join", "--at", place, code)

        assert done.returncode == 0, done.stderr
        assert {"ash", "dan"} <= names(member)


def test_without_an_agent_the_secret_is_written(member: Agent, tmp_path: Path) -> None:
    """And the command names the next step."""
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
    assert load_secret(secret) == load_secret(mesh_secret(member))


def waiting(agent: Agent, name: str) -> str:
    """Return the words of a waiting machine, as a member shows them."""

    def look() -> str | None:
        listed = json.loads(cli(agent, "requests", "--json").stdout)["requests"]
        words = [one["fingerprint"] for one in listed if one["name"] == name]
        return words[-1] if words else None

    return str(until(look, "a machine that waits"))


def test_a_machine_joins_without_a_code_by_comparing_words(
    member: Agent, tmp_path: Path
) -> None:
    """Both sides show the same three words, and both ask for confirmation."""
    joiner = newcomer(tmp_path, "eve")
    with ending(joiner):
        joiner.ready()
        asking = Asking(joiner)
        asking.expect("on a member: octaskly approve eve")

        words = waiting(member, "eve")
        asking.expect(f"    {words}")
        others = cli(member, "approve", "eve", "--words", "otter-otter-otter")
        approved = cli(member, "approve", "eve", "--words", words)
        asking.type("y\n")
        asking.expect("joined the mesh of ash as eve")

        assert asking.end() == 0
        assert others.returncode == 1
        assert "does not show the words" in others.stderr
        assert approved.returncode == 0, approved.stderr
        assert {"ash", "eve"} <= names(member)


def test_a_machine_with_rejected_words_does_not_join(
    member: Agent, outsider: Agent
) -> None:
    """Even if the member's side has approved already."""
    asking = Asking(outsider)
    asking.expect("on a member: octaskly approve out")
    words = waiting(member, "out")
    assert cli(member, "approve", "out", "--words", words).returncode == 0

    asking.expect("same words")
    asking.type("n\n")

    asking.expect("the words differ")
    assert asking.end() == 1
    assert not secret_of(outsider).exists()


def test_a_refused_machine_ends_at_once(member: Agent, outsider: Agent) -> None:
    """Its user could otherwise accept words that the other side rejected."""
    asking = Asking(outsider)
    asking.expect("on a member: octaskly approve out")
    words = waiting(member, "out")
    asking.expect("same words")

    refusing = Asking(member, "approve", "out")
    refusing.expect("Does out show the same words")
    refusing.type("n\n")

    asking.expect("ash refused, because the words differ")
    assert (refusing.end(), asking.end()) == (1, 1)
    late = cli(member, "approve", "out", "--words", words)
    assert "no machine called 'out' is waiting to join" in late.stderr


def test_words_are_compared_by_people_only(member: Agent) -> None:
    """A script that answers yes compares nothing."""
    asked = cli(member, "join", stdin="y\n")
    approved = cli(member, "approve", "bay", stdin="y\n")

    assert (asked.returncode, approved.returncode) == (2, 1)
    assert "there is no terminal" in asked.stderr
