"""S1 under systemd: its sockets outlive the agent, so nobody else gets the port."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from octaskly.trust import create_secret_file
from tests.attack.conftest import leave_out
from tests.support import as_systemd
from tests.support.agents import Agent, ending, finished, launch, request, submit, until
from tests.support.port_thief import BOUND, thief

pytestmark = [
    pytest.mark.netns,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("network"),
]

ACTIVATE = "systemd-socket-activate"
INHERITED = "for f in /proc/self/fd/*; do readlink $f; done; env"
"""Shows a task what it has of the agent."""


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """The sockets that systemd makes of octaskly.socket, owned by root."""
    with (
        socket.create_server(("127.0.0.1", 3000)) as four,
        socket.create_server(("::1", 3000), family=socket.AF_INET6) as six,
    ):
        yield [four, six]


def start_with(folder: Path, sockets: list[socket.socket], *extra: str) -> Agent:
    """Start an agent as the service unit does, with the sockets of its socket unit."""
    create_secret_file(folder / "mesh.key")
    numbers = [each.fileno() for each in sockets]
    prefix = (sys.executable, as_systemd.__file__, ",".join(map(str, numbers)))
    return launch(
        folder / "solo",
        folder / "mesh.key",
        *extra,
        ports=(),
        prefix=prefix,
        descriptors=numbers,
    )


def health(host: str = "127.0.0.1") -> int:
    """Return the status of `/health` on the port."""
    with contextlib.closing(HTTPConnection(host, 3000, timeout=60)) as connection:
        return request(connection, "GET", "/health")[0]


def test_nobody_gets_the_port_while_the_agent_restarts(
    tmp_path: Path, sockets: list[socket.socket]
) -> None:
    """Not even after a kill; a connection that was made meanwhile is served later."""
    with thief(tmp_path, "127.0.0.1", "::1") as attacker:
        agent = start_with(tmp_path, sockets)
        with ending(agent):
            until(lambda: agent.ready()["api_url"], "the agent serves")
            answers = [health(), health("::1")]
            until(attacker.has_tried, "somebody tries to take the port")
            agent.process.kill()
            agent.process.wait()
        with contextlib.closing(HTTPConnection("localhost", 3000)) as waiting:
            waiting.connect()
            again = start_with(tmp_path, sockets)
            with ending(again):
                described = again.ready()
                answers += [request(waiting, "GET", "/health")[0], health("::1")]

        assert answers == [200] * 4
        assert described["api_url"] == "http://localhost:3000"
        assert BOUND not in attacker.heard()


def test_a_task_gets_nothing_of_the_sockets(
    tmp_path: Path, sockets: list[socket.socket]
) -> None:
    """Neither the descriptors, which would let it accept connections, nor variables."""
    agent = start_with(tmp_path, sockets)
    with ending(agent):
        task = finished(agent, submit(agent, INHERITED))

    assert task["status"] == "completed"
    assert "LISTEN_" not in task["stdout"]
    assert "socket:" not in task["stdout"]


def test_an_address_that_systemd_left_out_is_taken_too(
    tmp_path: Path, sockets: list[socket.socket]
) -> None:
    """`localhost` is both addresses, so another user must hold neither."""
    sockets.pop().close()
    agent = start_with(tmp_path, sockets)
    with ending(agent):
        agent.ready()
        answers = [health(), health("::1")]

    assert answers == [200, 200]


def test_an_address_that_another_user_took_closes_the_port(
    tmp_path: Path, sockets: list[socket.socket]
) -> None:
    """Programs that try `::1` first would send their token to that user."""
    sockets.pop().close()
    with thief(tmp_path, "::1") as attacker:
        until(attacker.has_port, "the port is taken")
        agent = start_with(tmp_path, sockets)
        with ending(agent):
            described = agent.ready()

    assert described["api_url"] is None
    assert "user 64420" in described["api_port_taken"]["holder"]


def activated(folder: Path, *listen: str, flags: tuple[str, ...] = ()) -> Agent:
    """Start an agent under systemd's own program for socket activation."""
    if shutil.which(ACTIVATE) is None:
        leave_out(f"needs {ACTIVATE}")
    create_secret_file(folder / "mesh.key")
    kept = ("PYTHONPATH", "CONFIGURATION_DIRECTORY")
    return launch(
        folder / "solo",
        folder / "mesh.key",
        *flags,
        ports=(),
        prefix=(
            ACTIVATE,
            *(f"--listen={each}" for each in listen),
            *(f"--setenv={name}" for name in kept if name in os.environ),
        ),
    )


def knock(port: int = 3000) -> None:
    """Connect, which makes systemd start the service."""

    def connect() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("::1", port)):
            return True
        return False

    until(connect, "systemd listens")


def test_an_agent_serves_the_sockets_of_systemd(tmp_path: Path) -> None:
    """As systemd passes them; the port of the socket unit is the port of the agent."""
    agent = activated(tmp_path, "127.0.0.1:3200", "[::1]:3200")
    with ending(agent):
        knock(3200)
        described = agent.ready()

    assert described["api_url"] == "http://localhost:3200"


@pytest.mark.parametrize(
    ("listen", "flags", "error"),
    [
        (
            ("127.0.0.1:3200", "[::1]:3200"),
            ("--api-port", "3300"),
            "systemd holds port 3200 for this agent, but --api-port is 3300",
        ),
        (
            ("127.0.0.1:3200", "[::1]:3300"),
            (),
            "systemd holds port 3200 and 3300 for this agent, but one is needed",
        ),
        (
            ("[::]:3200",),
            (),
            "systemd passes .*'::', 3200.*, but .* plain HTTP is for loopback only",
        ),
    ],
    ids=["two-places", "two-ports", "for-the-lan"],
)
def test_sockets_that_contradict_the_settings_end_the_agent(
    tmp_path: Path, listen: tuple[str, ...], flags: tuple[str, ...], error: str
) -> None:
    """The port is set in one place, and plain HTTP never leaves the machine."""
    agent = activated(tmp_path, *listen, flags=flags)
    with ending(agent):
        knock(int(listen[-1].rpartition(":")[2]))
        code = agent.process.wait(60)

    assert code == 78
    assert re.search(f"error: {error}\n", agent.log())
    assert "octaskly.socket" in agent.log()
