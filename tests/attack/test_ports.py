"""S1: a local user who takes the API port gets no token of anybody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Callable
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

import octaskly
from octaskly.client import listener_check
from octaskly.errors import OctasklyError
from octaskly.trust import create_secret_file
from tests.support.agents import Agent, ending, launch, request, until
from tests.support.port_thief import THIEF_UID, thief

pytestmark = [
    pytest.mark.netns,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("network"),
]

ADDRESSES = ["127.0.0.1", "::1", "0.0.0.0"]


def start_agent(folder: Path, name: str = "solo", *extra: str) -> Agent:
    """Start an agent on the default ports, as on a machine of its own."""
    create_secret_file(folder / "mesh.key")
    return launch(folder / name, folder / "mesh.key", "--name", name, *extra, ports=())


def mint(agent: Agent, role: str = "admin") -> str:
    status, minted = agent.call("POST", "/api/v1/tokens", {"role": role})
    assert status == 201, minted
    return str(minted["token"])


def url_of(address: str) -> str:
    """Return the URL that programs use, where a user has bound this address."""
    return "http://[::1]:3000" if address == "::1" else "http://127.0.0.1:3000"


def ask_with_client(url: str, token: str) -> str:
    try:
        with octaskly.Client(url, token=token, retry_timeout_s=0) as mesh:
            mesh.nodes()
    except OctasklyError as error:
        return f"{error}\n{error.hint}"
    return "answered"


def ask_with_async_client(url: str, token: str) -> str:
    async def ask() -> str:
        try:
            async with octaskly.AsyncClient(
                url, token=token, retry_timeout_s=0
            ) as mesh:
                await mesh.nodes()
        except OctasklyError as error:
            return f"{error}\n{error.hint}"
        return "answered"

    return asyncio.run(ask())


def ask_with_executor(url: str, token: str) -> str:
    try:
        with octaskly.Executor(url=url, token=token) as pool:
            pool.submit(abs, 1).result(60)
    except Exception as error:  # noqa: BLE001 - also wrapped by the executor
        return str(error)
    return "answered"


def ask_with_cli(url: str, token: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "octaskly", "--url", url, "nodes"],
        env={**os.environ, "OCTASKLY_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stderr if done.returncode else "answered"


CLIENTS: dict[str, Callable[[str, str], str]] = {
    "Client": ask_with_client,
    "AsyncClient": ask_with_async_client,
    "Executor": ask_with_executor,
    "CLI": ask_with_cli,
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("client", CLIENTS)
def test_clients_send_no_token_to_a_port_of_another_user(
    tmp_path: Path, client: str, address: str
) -> None:
    """The attacker took the port while no agent ran; the error names the user."""
    with thief(tmp_path, address) as attacker:
        until(attacker.has_port, "the port is taken")

        said = CLIENTS[client](url_of(address), "secret.token.value")

        assert b"secret.token.value" not in attacker.heard()
    assert "port 3000 of this machine belongs to user 64420" in said
    assert "no token was sent" in said


def test_clients_trust_the_user_of_the_system_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It owns `/run/octaskly`, which only root can create."""
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    os.chown(run_folder, THIEF_UID, -1)
    monkeypatch.setattr(listener_check, "RUN_FOLDER", run_folder)
    with thief(tmp_path, "127.0.0.1") as service:
        until(service.has_port, "the port is taken")

        ask_with_client("http://127.0.0.1:3000", "token.of.client")
        ask_with_async_client("http://127.0.0.1:3000", "token.of.async.client")

        assert b"Bearer token.of.client\r\n" in service.heard()
        assert b"Bearer token.of.async.client\r\n" in service.heard()


def test_clients_check_no_listener_where_they_send_no_token(tmp_path: Path) -> None:
    """`/health` is for everybody, and a firewall may lead a port elsewhere."""
    with thief(tmp_path, "127.0.0.1") as attacker:
        until(attacker.has_port, "the port is taken")
        ask_with_client("http://127.0.0.1:3000", "")

        assert b"GET /api/v1/nodes" in attacker.heard()


def health_of_lan() -> dict[str, Any]:
    """Return what `/health` says on the LAN port, whoever asks."""
    context = ssl._create_unverified_context()  # noqa: S323  nothing secret is sent
    with contextlib.closing(
        HTTPSConnection("127.0.0.1", 3443, context=context, timeout=30)
    ) as connection:
        status, body = request(connection, "GET", "/health")
    assert status == 200
    return dict(body)


def octaskly_here(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command against an agent of this test."""
    return subprocess.run(
        [sys.executable, "-m", "octaskly", "--state-dir", str(state), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_agent_takes_no_other_port_in_place_of_a_stolen_one(
    tmp_path: Path, address: str
) -> None:
    """The port is stolen during a restart, with a token that the agent accepts."""
    agent = start_agent(tmp_path)
    with ending(agent), thief(tmp_path, address) as attacker:
        token = mint(agent)
        agent.stop()
        until(attacker.has_port, "the port is taken")
        again = start_agent(tmp_path)
        with ending(again):
            described = again.ready()
            said = ask_with_client(url_of(address), token)
            local = octaskly_here(again.state, "nodes")

        assert token.encode() not in attacker.heard()
    assert described["api_url"] is None
    assert described["moved_ports"] == []
    assert " of user 64420 holds port 3000" in again.log()
    assert "no token was sent" in said
    assert local.returncode == 0


def test_a_stolen_port_is_reported_wherever_people_look(tmp_path: Path) -> None:
    """By the doctor, the settings, the dashboard's command, and on the LAN."""
    with thief(tmp_path, "127.0.0.1") as attacker:
        until(attacker.has_port, "the port is taken")
        before = octaskly_here(tmp_path / "solo", "doctor", "--interface", "lo")
        agent = start_agent(tmp_path)
        with ending(agent):
            agent.ready()
            health = health_of_lan()
            doctor = octaskly_here(agent.state, "doctor", "--interface", "lo")
            settings = octaskly_here(agent.state, "config")
            opened = octaskly_here(agent.state, "open", "--print")

    for done in (before, doctor):
        (line,) = (line for line in done.stdout.splitlines() if "✗ port: " in line)
        assert " of user 64420 holds port 3000" in line
        assert done.returncode == 1
    assert " of user 64420 holds port 3000" in settings.stderr
    assert health["warnings"] == [
        "the API is not on this machine's port 3000: another user holds it"
    ]
    assert opened.returncode == 1
    assert "this node has no port on this machine" in opened.stderr
    assert "octaskly open --lan" in opened.stderr


def test_an_agent_of_the_same_user_takes_the_next_port(tmp_path: Path) -> None:
    """Nobody gains by that: the token goes to a program of the same user."""
    first = start_agent(tmp_path, "ana")
    with ending(first):
        first.ready()
        second = start_agent(tmp_path, "ben")
        with ending(second):
            described = second.ready()
    assert described["api_url"] == "http://localhost:3001"
    assert re.search(r"port taken .* using=3001\n", second.log())


def test_a_stolen_port_behind_an_own_one_is_not_passed_over(tmp_path: Path) -> None:
    """Else the second agent of a user could be moved away from its usual port."""
    first = start_agent(tmp_path, "ana")
    with ending(first), thief(tmp_path, "127.0.0.1", port=3001) as attacker:
        first.ready()
        until(attacker.has_port, "the port is taken")
        second = start_agent(tmp_path, "ben")
        with ending(second):
            described = second.ready()

    assert described["api_url"] is None
    assert " of user 64420 holds port 3001" in second.log()


def test_a_requested_port_of_another_user_ends_the_agent(tmp_path: Path) -> None:
    """Exit code 78, so that systemd does not try again; the error names the holder."""
    with thief(tmp_path, "127.0.0.1", port=3100) as attacker:
        until(attacker.has_port, "the port is taken")
        agent = start_agent(tmp_path, "solo", "--api-port", "3100")
        with ending(agent):
            code = agent.process.wait(60)

    assert code == 78
    assert re.search(r"port 3100 is taken by .* of user 64420\n", agent.log())
    assert "hint: octaskly agent --api-port 0 takes any free port" in agent.log()
    assert not list((tmp_path / "solo").glob("*.key")), "it had not started"
