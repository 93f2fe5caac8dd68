"""Connections of local users, tasks and strangers do not keep others from the mesh.

Finding S2 of the attack on 0.1.0: half-sent requests on the dispatcher's loopback port
stopped the forwarding of all other nodes.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from octaskly.config.defaults import CONNECTIONS_PER_ADDRESS
from tests.support.agents import (
    TASKS,
    WAIT_S_MAX,
    Agent,
    memory_mb,
    meshed,
    replicas,
    request,
    reset_peak,
    roles_of,
    running,
    submit,
    until,
    until_nodes,
)

NOBODY = 65_534
FORWARDED = 8  #: requests at the same time
HALF_SENT = 540  #: more than all connections that an agent serves by default

#: Opens half-sent requests, reports their number, and holds them until it is ended.
HOLD = """
import contextlib, signal, socket, sys
port, count = map(int, sys.argv[1:])
held = []
for _ in range(count):
    one = socket.create_connection(("127.0.0.1", port))
    with contextlib.suppress(OSError):
        one.sendall(b"GET /health HTTP/1.1\\r\\nHost: localh")
    held.append(one)
print(len(held), flush=True)
signal.pause()
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user needs root")


@dataclass(frozen=True)
class Attacker:
    """A program of another user that runs."""

    process: subprocess.Popen[str]
    first_line: str  #: of its output


@contextlib.contextmanager
def other_user(program: str, *words: object) -> Iterator[Attacker]:
    """Run a Python program as user nobody, after the first line of its output."""
    with subprocess.Popen(
        [os.path.realpath(sys.executable), "-I", "-c", program, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    ) as attacker:
        assert attacker.stdout is not None
        try:
            yield Attacker(attacker, attacker.stdout.readline())
        finally:
            attacker.kill()


def port_of(agent: Agent, name: str = "api_url") -> int:
    return int(agent.ready()[name].rpartition(":")[2])


def new_token(agent: Agent, role: str, subject: str) -> str:
    status, made = agent.call("POST", "/api/v1/tokens", {"role": role, "name": subject})
    assert status == 201, made
    return str(made["token"])


def forwarded(agent: Agent) -> set[int]:
    """Return the statuses of submissions that a node forwards at the same time.

    So many need new connections to the dispatcher.
    """
    with ThreadPoolExecutor(FORWARDED) as threads:
        return set(
            threads.map(
                lambda _: agent.call("POST", TASKS, {"command": "true"})[0],
                range(FORWARDED),
            )
        )


def ask_over_loopback(agent: Agent, token: str) -> tuple[int, Any]:
    """Submit with a token, on a new connection to the loopback port."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", port_of(agent), timeout=WAIT_S_MAX
    )
    with contextlib.closing(connection):
        return request(connection, "POST", TASKS, {"command": "true"}, token)


@as_root
def test_half_sent_requests_of_a_local_user_stop_nobody(tmp_path: Path) -> None:
    """Other nodes forward, and local users and clients submit, while they are held."""
    with meshed(tmp_path, "ana", "ben", extra=("--header-timeout", "1h")) as (
        dispatcher,
        other,
    ):
        token = new_token(dispatcher, "client", "bo")
        with other_user(HOLD, port_of(dispatcher), HALF_SENT) as attacker:
            assert int(attacker.first_line) == HALF_SENT

            assert forwarded(other) == {201}
            assert dispatcher.call("POST", TASKS, {"command": "true"})[0] == 201
            assert ask_over_loopback(dispatcher, token)[0] == 201


def test_half_sent_requests_of_a_task_stop_no_other_node(tmp_path: Path) -> None:
    """The task runs as the agent's own user, which has no other task user here."""
    with meshed(tmp_path, "ana", "ben", extra=("--header-timeout", "1h")) as (
        dispatcher,
        other,
    ):
        program, held = tmp_path / "hold.py", tmp_path / "held"
        program.write_text(HOLD)
        hold = f"{sys.executable} {program} {port_of(dispatcher)} {HALF_SENT}"
        submit(
            dispatcher,
            f"exec {hold} > {held}",
            requires={"node": dispatcher.state.name},
        )
        until(lambda: held.exists() and held.read_text(), "the task holds them")

        assert forwarded(other) == {201}
        assert dispatcher.call("POST", TASKS, {"command": "true"})[0] == 201


def test_a_dispatcher_that_cannot_serve_other_nodes_hands_over(tmp_path: Path) -> None:
    """Without a free descriptor it accepts no connection, but heartbeats go on."""
    with meshed(tmp_path, "ana", "ben") as (dispatcher, other):
        until(lambda: replicas(other) == 2, "there is a standby")
        pid = dispatcher.process.pid
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, hard))  # Keeps open ones.

        until(
            lambda: roles_of(other).get(other.state.name) == "dispatcher",
            "the other node is dispatcher",
        )
        assert other.call("POST", TASKS, {"command": "true"})[0] == 201
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


#: Sends headers with many long fields; prints on how many connections it was cut off.
LONG_HEADERS = """
import socket, sys
port, count = map(int, sys.argv[1:])
fields = b"".join(b"X-%d: " % n + b"a" * 8000 + b"\\r\\n" for n in range(120))
closed = 0
for _ in range(count):
    one = socket.create_connection(("127.0.0.1", port))
    one.settimeout(5)
    try:
        one.sendall(b"GET /health HTTP/1.1\\r\\nHost: localhost\\r\\n" + fields)
        closed += one.recv(1) == b""
    except TimeoutError:
        break
    except OSError:
        closed += 1
print(closed, flush=True)
"""
LONG_HEADER_COUNT = 60  #: fewer than one user may have
LONG_HEADERS_MB_MAX = 50


@as_root
def test_long_headers_of_a_local_user_take_little_memory(tmp_path: Path) -> None:
    """Each field and their number are bounded, and so is their sum."""
    with running(tmp_path, "ana", extra=("--header-timeout", "1h")) as (agent,):
        until_nodes(agent, 1)
        begin_mb = memory_mb(agent, "VmRSS")
        reset_peak(agent)
        with other_user(LONG_HEADERS, port_of(agent), LONG_HEADER_COUNT) as closed:
            assert int(closed.first_line) == LONG_HEADER_COUNT
        assert memory_mb(agent, "VmHWM") - begin_mb < LONG_HEADERS_MB_MAX


#: Opens connections, sends nothing, reports their number, and holds them.
HOLD_SILENT = HOLD.replace(
    'one.sendall(b"GET /health HTTP/1.1\\r\\nHost: localh")', "pass"
)


@as_root
def test_silent_handshakes_of_a_local_user_stop_nobody_else(tmp_path: Path) -> None:
    """The agent asks its own LAN port, and hands over if that does not answer."""
    with running(tmp_path, "ana", extra=("--handshake-timeout", "1h")) as (agent,):
        until_nodes(agent, 1)
        port = port_of(agent, "lan_url")
        with other_user(HOLD_SILENT, port, HALF_SENT) as opened:
            assert int(opened.first_line) == HALF_SENT
            insecure = ssl.create_default_context()
            insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
            client = http.client.HTTPSConnection("127.0.0.1", port, context=insecure)
            with contextlib.closing(client):
                assert request(client, "GET", "/health")[0] == 200


#: Sends a header one byte at a time; prints the answer, or nothing if it is cut off.
TRICKLE = """
import socket, sys, time
one = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
one.settimeout(0.05)
received = b""
header = b"GET /health HTTP/1.1\\r\\nHost: localhost\\r\\nX: " + b"a" * 4000
for byte in header:
    try:
        one.send(bytes([byte]))
        received = one.recv(4096)
        break
    except TimeoutError:
        pass
    except OSError:
        break
print(received.decode())
"""


@as_root
def test_a_header_sent_one_byte_at_a_time_is_cut_off(tmp_path: Path) -> None:
    """Its deadline counts from the connection, whatever arrives meanwhile."""
    with running(tmp_path, "ana", extra=("--header-timeout", "1s")) as (agent,):
        with other_user(TRICKLE, port_of(agent)) as attacker:
            assert attacker.first_line == "\n"
        assert agent.call("GET", "/health")[0] == 200


#: Connects from many addresses of this machine and sends nothing.
FLOOD = """
import socket, sys, time
port, count, addresses, per_s = map(int, sys.argv[1:])
held = []
began_s = time.monotonic()
for number in range(count):
    one = socket.socket()
    one.bind((f"127.0.1.{1 + number % addresses}", 0))
    one.connect(("127.0.0.1", port))
    held.append(one)
    if len(held) > 400:
        held.pop(0).close()
    if number == 400:
        print("begun", flush=True)
    time.sleep(max(0, began_s + number / per_s - time.monotonic()))
print("ended", flush=True)
"""
FLOOD_ADDRESSES = 150
FLOOD_RATE = 100_000 // 60  #: a second
IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
FLOOD_CONNECTIONS = 100_000 if IS_SOAK else 2000


@as_root
@pytest.mark.parametrize("listener", ["api_url", "lan_url"])
def test_connections_from_150_addresses_stop_nobody(
    tmp_path: Path, listener: str
) -> None:
    """Nodes, local users and clients with a token are served during the flood.

    In `make soak` it lasts a minute, and they are served again and again.
    """
    with meshed(tmp_path, "ana", "ben") as (dispatcher, other):
        token = new_token(dispatcher, "client", "bo")
        port = port_of(dispatcher, listener)
        words = (port, FLOOD_CONNECTIONS, FLOOD_ADDRESSES, FLOOD_RATE)
        with other_user(FLOOD, *words) as attacker:
            assert attacker.first_line == "begun\n"
            while True:
                assert forwarded(other) == {201}
                assert dispatcher.call("POST", TASKS, {"command": "true"})[0] == 201
                assert ask_over_loopback(dispatcher, token)[0] == 201
                if not IS_SOAK or attacker.process.poll() is not None:
                    break


def test_a_token_in_a_query_string_is_refused_and_not_logged(tmp_path: Path) -> None:
    """Addresses end up in histories and logs, so no token is taken from there."""
    with running(tmp_path, "ana", extra=("--log-level", "debug")) as (agent,):
        until_nodes(agent, 1)
        token = new_token(agent, "client", "bo")
        for name in ("token", "access_token"):
            connection = http.client.HTTPConnection("127.0.0.1", port_of(agent))
            with contextlib.closing(connection):
                status, body = request(connection, "GET", f"{TASKS}?{name}={token}")

            assert status == 401
            assert "Authorization: Bearer" in body["hint"]
        _, entries = agent.call("GET", "/api/v1/audit")

        assert token not in agent.log()
        assert token not in str(entries)


#: Half-sends requests from many loopback addresses; prints how many stay open.
FROM_MANY = """
import select, socket, sys, time
port, count, most = map(int, sys.argv[1:])
held = []
for number in range(count):
    one = socket.socket()
    one.bind((f"127.0.1.{1 + number % 150}", 0))
    one.connect(("127.0.0.1", port))
    one.sendall(b"GET /health HTTP/1.1\\r\\nHost: localh")
    held.append(one)
give_up_s = time.monotonic() + 20
while len(held) > most and time.monotonic() < give_up_s:
    closed, _, _ = select.select(held, [], [], 1)
    held = [one for one in held if one not in closed]
print(len(held), flush=True)
"""


@as_root
def test_addresses_that_a_local_user_chooses_give_no_more_connections(
    tmp_path: Path,
) -> None:
    """At the loopback port, sixteen million addresses are one user."""
    with running(tmp_path, "ana", extra=("--header-timeout", "1h")) as (agent,):
        until_nodes(agent, 1)
        words = (port_of(agent), 2 * CONNECTIONS_PER_ADDRESS, CONNECTIONS_PER_ADDRESS)
        with other_user(FROM_MANY, *words) as attacker:
            assert int(attacker.first_line) <= CONNECTIONS_PER_ADDRESS
