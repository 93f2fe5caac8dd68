"""Requests to a node that is not dispatcher, over real mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import ssl
import tarfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from octaskly.api import HttpTimeouts
from octaskly.api.http import node_client, open_long_polls, sse
from octaskly.api.http.slow_clients import WRITE_BUFFER_BYTES
from octaskly.config.settings import LimitOptions
from octaskly.core.model.ids import AttemptId, StreamId
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, OutputFile
from octaskly.files.captured_tree import CapturedTree
from octaskly.files.manifest import content_digest
from octaskly.ports.tokens import Principal
from octaskly.system.tls_transport import TlsTransport
from octaskly.trust import mesh_secret as secrets_of
from octaskly.trust.node_key import NodeKey
from octaskly.trust.tls import MeshTls
from tests.integration.api.test_streams import Open, connect, serve_stream
from tests.support import abandoned
from tests.support.agents import WAIT_S_MAX
from tests.support.api_mesh import PATIENT, SECRET, ApiMesh, Member, stranger_context
from tests.support.api_node import (
    ADMIN,
    CLIENT,
    KNOWN,
    VIEWER,
    Answer,
    HurriedClock,
    ask,
    assert_hardened,
    assert_problem,
    assert_standard_headers,
    exchange,
    unread,
    until,
)

TASKS = "/api/v1/tasks"
BRIEF = replace(PATIENT, dispatcher_wait_s=1.0)  #: without a dispatcher


@pytest.fixture
async def front(api_mesh: ApiMesh) -> Member:
    return await api_mesh.member("front")


@pytest.fixture
async def back(api_mesh: ApiMesh, front: Member) -> Member:
    member = await api_mesh.member("back")
    front.follow(member)
    return member


async def test_handshakes_of_one_address_are_bounded_by_the_setting(
    api_mesh: ApiMesh,
) -> None:
    """A client that connects to the LAN port and sends nothing gets no more places."""
    bounds = LimitOptions(lan_handshakes_per_address=2)
    member = await api_mesh.member("bay", limits=bounds)
    place = ("127.0.0.1", member.lan_port)
    (first, one), (second, two), (third, three) = [
        await asyncio.open_connection(*place) for _ in range(3)
    ]

    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(WAIT_S_MAX):
            assert await third.read() == b""

    assert not first.at_eof()
    assert not second.at_eof()
    for writer in (one, two, three):
        writer.transport.abort()


async def test_strangers_without_a_handshake_are_bounded(
    api_mesh: ApiMesh,
) -> None:
    """Each would cost memory before its authentication; other clients still connect."""
    bounds = LimitOptions(
        handshake_s=int(4 * WAIT_S_MAX)
    )  # None is given up meanwhile.
    front = await api_mesh.member("front", limits=bounds)
    address = ("127.0.0.1", front.lan_port)
    silent = [await asyncio.open_connection(*address) for _ in range(70)]

    await until(lambda: sum(reader.at_eof() for reader, _ in silent) >= 6)
    reader, writer = await asyncio.open_connection(
        *address, ssl=stranger_context(), local_addr=("127.0.0.2", 0)
    )
    writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    first = await reader.readline()

    assert first == b"HTTP/1.1 200 OK\r\n"
    assert sum(stream.at_eof() for stream, _ in silent) == 6
    for each in (writer, *(end for _, end in silent)):
        each.transport.abort()


@pytest.mark.parametrize("ending", sorted({*abandoned.ENDINGS} - {"no certificate"}))
async def test_an_abandoned_handshake_leaves_nothing_in_memory(
    api_mesh: ApiMesh, ending: str
) -> None:
    """Its TLS state is freed at once, not by a later collection of cycles."""
    front = await api_mesh.member("front")
    with abandoned.without_collection():
        for _ in range(4):
            await abandoned.abandon("127.0.0.1", front.lan_port, ending)
        await until(lambda: not abandoned.tls_object_count())


async def test_many_silent_addresses_do_not_lock_out_nodes(
    api_mesh: ApiMesh,
) -> None:
    """One machine has many IPv6 addresses; the longest wait makes room."""
    bounds = LimitOptions(handshake_s=int(4 * WAIT_S_MAX), lan_handshakes_max=4)
    front = await api_mesh.member("front", limits=bounds)
    place = ("127.0.0.1", front.lan_port)
    silent = [
        await asyncio.open_connection(*place, local_addr=(f"127.0.1.{i}", 0))
        for i in (3, 3, 1, 2)
    ]

    async with asyncio.timeout(WAIT_S_MAX):
        _, writer = await asyncio.open_connection(
            *place, ssl=stranger_context(), local_addr=("127.0.1.9", 0)
        )
        with contextlib.suppress(ConnectionError):
            assert await silent[0][0].read() == b""

    assert not any(silent[i][0].at_eof() for i in (1, 2, 3))
    for each in (writer, *(end for _, end in silent)):
        each.transport.abort()


async def test_a_flood_of_handshakes_leaves_time_for_each(api_mesh: ApiMesh) -> None:
    """Once half of the places are taken, an address gets one at a time."""
    bounds = LimitOptions(handshake_s=int(4 * WAIT_S_MAX), lan_handshakes_max=4)
    front = await api_mesh.member("front", limits=bounds)
    place = ("127.0.0.1", front.lan_port)
    silent = [
        await asyncio.open_connection(*place, local_addr=(f"127.0.1.{i}", 0))
        for i in (1, 1, 2, 2)
    ]

    async with asyncio.timeout(WAIT_S_MAX):
        with contextlib.suppress(ConnectionError):
            assert await silent[3][0].read() == b""

    assert not any(silent[i][0].at_eof() for i in (0, 1, 2))
    for _, writer in silent:
        writer.transport.abort()


async def test_strangers_leave_connections_for_nodes(
    api_mesh: ApiMesh,
) -> None:
    """Strangers share a quarter of the connections; the oldest idle one is closed."""
    front = await api_mesh.member("front", limits=LimitOptions(connections_max=16))
    async with _Visitors(front) as visitors:
        far = [
            await visitors.status(stranger_context(), f"127.0.0.{i}")
            for i in range(2, 7)
        ]
        near = await visitors.status(_member_context(), "127.0.0.2")
        await visitors.until_closed(0)

        assert far == [b"200"] * 5
        assert near == b"200"
        assert [visitors.is_closed(i) for i in range(6)] == [True] + [False] * 5


async def test_connections_of_one_lan_address_are_bounded(
    api_mesh: ApiMesh,
) -> None:
    """One more closes its oldest; members and other addresses keep theirs."""
    bounds = LimitOptions(connections_per_address=2)
    front = await api_mesh.member("front", limits=bounds, clock=HurriedClock())
    async with _Visitors(front) as visitors:
        for tls, host in (
            (stranger_context(), "127.0.0.3"),
            (_member_context(), "127.0.0.2"),
            (stranger_context(), "127.0.0.2"),
            (stranger_context(), "127.0.0.2"),
            (stranger_context(), "127.0.0.2"),
        ):
            assert await visitors.status(tls, host) == b"200"
        await visitors.until_closed(2)

        closed = [visitors.is_closed(i) for i in range(5)]
        assert closed == [False, False, True, False, False]
    await until(lambda: not front.api.server.connection_count)


async def test_forwarded_requests_of_a_subject_count_as_its_connections(
    api_mesh: ApiMesh,
) -> None:
    """A client cannot take all connections of a dispatcher by way of other nodes."""
    names = ("front", "other", "back")
    bounds = LimitOptions(connections_per_subject=2)
    front, other, back = [await api_mesh.member(name, limits=bounds) for name in names]
    back.become_dispatcher()
    for each in (front, other):
        each.follow(back)
    task = await back.api.submit()
    poll = f"{TASKS}/{task}?wait=60"
    async with asyncio.TaskGroup() as group:
        polls = [
            group.create_task(each.api.ask("GET", poll, headers=CLIENT))
            for each in (front, other)
        ]
        await until(lambda: len(back.api.server._long_polls._limits) == 2)
        refused = await front.api.ask("GET", TASKS, headers=CLIENT)
        served = await front.api.ask("GET", TASKS, headers=VIEWER)
        for poll_task in polls:
            poll_task.cancel()

    assert_problem(refused, 429, "Too many connections")
    assert "bo may have 2 connections" in refused.json["hint"]
    assert served.status == 200


def _member_context() -> ssl.SSLContext:
    """Return the context of another member."""
    return MeshTls(SECRET, NodeKey.generate()).lan_client_context()


class _Visitors(contextlib.AsyncExitStack):
    """Clients that keep their connections to a member."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        self._port = member.lan_port
        self._readers: list[asyncio.StreamReader] = []
        self._writers: list[asyncio.StreamWriter] = []  #: closed if not referenced

    async def status(self, tls: ssl.SSLContext, host: str) -> bytes:
        """Connect from an address, send a request, and return the status."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=tls, local_addr=(host, 0)
        )
        self._writers.append(writer)
        self.callback(writer.transport.abort)
        self._readers.append(reader)
        writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        status = (await reader.readline()).split()[1]
        await reader.readuntil(b"}")
        return status

    async def until_closed(self, number: int) -> None:
        """Wait until the server has closed a connection, counted from 0."""
        async with asyncio.timeout(WAIT_S_MAX):
            with contextlib.suppress(ConnectionError):
                await self._readers[number].read()

    def is_closed(self, number: int) -> bool:
        """Return True if the server has closed a connection."""
        reader = self._readers[number]
        return reader.at_eof() or reader.exception() is not None


async def test_a_connection_to_another_node_has_keepalive(
    api_mesh: ApiMesh, front: Member, back: Member
) -> None:
    """A removed address sends no reset, and a request would hang.

    Fault case F29 shows that it ends.
    """
    answer = await front.api.ask("GET", TASKS, headers=CLIENT)

    assert answer.status == 200
    (connection,) = api_mesh.tuned
    assert connection.type == socket.SOCK_STREAM


async def test_a_task_reaches_the_dispatcher_with_its_submitter(
    front: Member, back: Member
) -> None:
    """The first node authenticates; the dispatcher learns the caller."""
    headers = CLIENT | {"Idempotency-Key": "k", "X-Request-ID": "r1"}

    answer = await front.api.ask("POST", TASKS, headers=headers, body={"command": "a"})

    assert answer.status == 201
    assert_standard_headers(answer)
    assert answer.headers["x-request-id"] == "r1"
    assert answer.headers["octaskly-dispatcher"] == "back"
    assert answer.headers["octaskly-replicas"] == "1"
    principal = Principal(subject="bo", role="client", node=front.gateway.node_id)
    assert back.gateway.submissions == [(principal, "k")]
    assert front.gateway.records == {}
    assert back.api.served[0].request_id == "r1"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", TASKS, 200),
        ("GET", f"{TASKS}?limit=5&status=queued", 200),
        ("GET", f"{TASKS}/task-001", 200),
        ("HEAD", f"{TASKS}/task-001", 200),
        ("GET", f"{TASKS}/unknown", 404),
        ("GET", f"{TASKS}/a%2Fb", 400),
        ("GET", f"{TASKS}/%2e%2e", 400),
        ("GET", "/api/v1/stats", 200),
        ("GET", "/api/v1/nodes", 200),
        ("GET", "/api/v1/nodes/back", 200),
        ("GET", "/api/v1/nodes/nobody", 404),
        ("DELETE", f"{TASKS}/task-001", 200),
    ],
)
async def test_a_forwarded_answer_is_the_direct_one(
    front: Member, back: Member, method: str, path: str, status: int
) -> None:
    """Body and headers are the same at every node."""
    await back.api.submit()

    forwarded = await front.api.ask(method, path, headers=ADMIN)
    direct = await back.api.ask(method, path, headers=ADMIN)

    def lasting(answer: Answer) -> dict[str, str]:
        varying = ("date", "x-request-id", "x-response-time-ms")
        return {k: v for k, v in answer.headers.items() if k not in varying}

    assert forwarded.status == direct.status == status
    assert forwarded.body == direct.body
    assert lasting(forwarded) == lasting(direct)


async def test_durability_is_forwarded_to_the_dispatcher(
    front: Member, back: Member
) -> None:
    """It alone knows of copies.

    It gets parameter and field, and its refusal is returned. Its own setting counts, so
    the first node must not decide.
    """
    asked = [
        (f"{TASKS}?durability=strict", {"command": "true"}),
        (TASKS, {"command": "true", "durability": "strict"}),
    ]

    for path, body in asked:
        refused = await front.api.ask("POST", path, headers=CLIENT, body=body)
        back.gateway.keep_copies("front")
        accepted = await front.api.ask("POST", path, headers=CLIENT, body=body)
        back.gateway.keep_copies()

        assert_problem(refused, 503, "No standby keeps a copy")
        assert refused.headers["retry-after"] == "1"
        assert (accepted.status, accepted.json["replicas"]) == (201, 2)
        assert accepted.headers["octaskly-epoch"] == f"1/{back.gateway.node_id}"


async def test_a_task_that_others_may_know_is_no_404_at_any_node(
    front: Member, back: Member
) -> None:
    """G7 through a forwarding node: the dispatcher's answer is forwarded at once."""
    back.gateway.is_complete = False

    answer = await front.api.ask("GET", f"{TASKS}/unknown", headers=CLIENT)

    assert_problem(answer, 503, "The log is not complete yet")
    assert answer.headers["retry-after"] == "1"


async def test_local_routes_are_not_forwarded(front: Member, back: Member) -> None:
    """Each node answers for its own health."""
    back.gateway.failure = "broken"

    health = await front.api.ask("GET", "/health")

    assert health.status == 200
    assert back.api.served == []


async def test_a_token_whose_revocation_only_the_dispatcher_knows_is_refused(
    front: Member, back: Member
) -> None:
    """A forwarding node that has not learnt it yet names the token."""
    assert (await front.api.ask("GET", TASKS, headers=KNOWN)).status == 200
    back.gateway.tokens.revoked.add("an-id")

    assert_problem(await front.api.ask("GET", TASKS, headers=KNOWN), 401)
    assert (await front.api.ask("GET", TASKS, headers=CLIENT)).status == 200


async def test_a_large_batch_and_a_large_list_are_forwarded(
    front: Member, back: Member
) -> None:
    """Bodies above one buffer, in both directions."""
    body = [{"command": f"echo {n} {'x' * 500}"} for n in range(1000)]

    created = await front.api.ask("POST", TASKS, headers=ADMIN, body=body)
    listed = await front.api.ask("GET", f"{TASKS}?limit=1000", headers=ADMIN)

    assert (len(created.json), len(listed.json["tasks"])) == (1000, 1000)
    assert listed.json["tasks"][999]["command"] == body[999]["command"]


async def test_rights_are_checked_at_the_first_node(
    front: Member, back: Member
) -> None:
    """A forbidden request is not forwarded."""
    answer = await front.api.ask("POST", TASKS, headers=VIEWER, body={"command": "a"})

    assert_problem(answer, 403, "Insufficient permissions")
    assert back.api.served == []


async def test_a_stated_principal_without_certificate_is_ignored(back: Member) -> None:
    """Only nodes may send this header."""
    headers = {"Octaskly-Principal": "admin ana", "Octaskly-Hop": "x"}

    answer = await ask(
        back.lan_port, "GET", TASKS, headers=headers, tls=stranger_context()
    )

    assert_problem(answer, 401, "Missing or invalid authentication token")


async def test_a_stated_principal_does_not_raise_the_rights_of_a_token(
    back: Member,
) -> None:
    """A viewer stays a viewer, whatever the header says."""
    headers = VIEWER | {"Octaskly-Principal": "admin ana"}

    answer = await ask(
        back.lan_port,
        "POST",
        TASKS,
        headers=headers,
        body={"command": "a"},
        tls=stranger_context(),
    )

    assert_problem(answer, 403, "Insufficient permissions")


async def test_a_client_s_stated_principal_is_not_forwarded(
    front: Member, back: Member
) -> None:
    """The first node states the caller that it has authenticated."""
    headers = CLIENT | {"Octaskly-Principal": "admin root", "Octaskly-Hop": "x"}

    answer = await front.api.ask("POST", TASKS, headers=headers, body={"command": "a"})

    assert answer.status == 201
    assert back.gateway.submissions[0][0].subject == "bo"


async def test_a_peer_relays_to_a_dispatcher_out_of_reach(
    api_mesh: ApiMesh, front: Member, back: Member
) -> None:
    """The dispatcher gets the principal that the first node has authenticated."""
    far = await api_mesh.member("far")
    far.reach_through(front, back)

    answer = await far.api.ask("POST", TASKS, headers=CLIENT, body={"command": "a"})
    listed = await far.api.ask("GET", TASKS, headers=VIEWER)

    assert (answer.status, listed.status) == (201, 200)
    assert answer.headers["octaskly-dispatcher"] == "back"
    assert back.gateway.submissions[0][0].subject == "bo"
    assert not front.gateway.submissions


async def test_a_dispatcher_out_of_reach_cannot_say_that_a_task_does_not_exist(
    api_mesh: ApiMesh, front: Member, back: Member
) -> None:
    """It may never have heard the node that accepted it."""
    far = await api_mesh.member("far")
    far.reach_through(front, back)

    near = await front.api.ask("GET", f"{TASKS}/task-7-none", headers=VIEWER)
    answer = await far.api.ask("GET", f"{TASKS}/task-7-none", headers=VIEWER)
    node = await far.api.ask("GET", "/api/v1/nodes/none", headers=VIEWER)

    assert_problem(near, 404, "Task not found")
    assert_problem(answer, 503, "The log is not complete yet")
    assert_problem(node, 404, "Worker not found")


async def test_a_relay_without_a_dispatcher_does_not_relay_further(
    api_mesh: ApiMesh, front: Member, back: Member
) -> None:
    """Otherwise a request could go round between nodes that name each other."""
    far = await api_mesh.member("far", BRIEF)
    far.reach_through(front, back)
    front.reach_through(far, back)

    answer = await far.api.ask("POST", TASKS, headers=CLIENT, body={"command": "a"})

    assert_problem(answer, 503, "No dispatcher is elected")
    assert not back.gateway.submissions


async def test_only_a_node_can_ask_for_a_relay(front: Member, back: Member) -> None:
    """From a client, the header has no effect."""
    headers = CLIENT | {"Octaskly-Relay": "1"}

    answer = await front.api.ask("POST", TASKS, headers=headers, body={"command": "a"})

    assert answer.status == 201
    assert back.gateway.submissions[0][0].subject == "bo"


async def test_a_certificate_alone_has_no_rights(front: Member, back: Member) -> None:
    """Any client on a member's loopback would otherwise be an admin."""
    answer = await ask(
        back.lan_port, "GET", TASKS, tls=front.trust.lan_client_context()
    )

    assert_problem(answer, 401, "Missing or invalid authentication token")


async def test_a_node_keeps_no_connection_from_before_a_new_secret(
    api_mesh: ApiMesh, front: Member
) -> None:
    """Its client may not have a certificate of the remaining secret."""
    back = await api_mesh.member("back", replace(PATIENT, old_certificate_grace_s=0.01))
    tls = front.trust.lan_client_context()
    reader, writer = await asyncio.open_connection("127.0.0.1", back.lan_port, ssl=tls)
    request = (
        b"GET /api/v1/tasks HTTP/1.1\r\nHost: x\r\nOctaskly-Principal: admin a\r\n"
    )
    writer.write(request + b"\r\n")
    assert b" 200 " in await reader.readline()

    back.api.server.close_connections_of((), is_settled=True)

    async with asyncio.timeout(WAIT_S_MAX):
        await reader.read()
    writer.close()


async def test_a_token_is_enough_on_the_lan(back: Member) -> None:
    """People have no certificates."""
    answer = await ask(
        back.lan_port,
        "GET",
        TASKS,
        headers=ADMIN | {"Host": f"127.0.0.1:{back.lan_port}"},
        tls=stranger_context(),
    )

    assert answer.status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("back:3443", 200),
        ("BACK.local", 200),
        ("127.0.0.1", 200),
        ("192.168.7.7", 403),
        ("front:3443", 403),
        ("evil.com", 403),
    ],
)
async def test_the_lan_listener_accepts_its_own_names(
    back: Member, host: str, status: int
) -> None:
    """The node's name, with and without .local, and the dialled address."""
    answer = await ask(
        back.lan_port, "GET", "/health", headers={"Host": host}, tls=stranger_context()
    )

    assert answer.status == status


async def test_certificate_of_another_mesh_is_refused(back: Member) -> None:
    """By TLS, before a byte of HTTP is read."""
    foreign = MeshTls(secrets_of.generate_secret(), NodeKey.generate())
    context = foreign.lan_client_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):
        await ask(back.lan_port, "GET", "/health", tls=context)

    assert back.api.served == []


async def test_a_second_hop_is_refused(api_mesh: ApiMesh) -> None:
    """Two nodes with outdated views would forward in a circle."""
    front, back = [await api_mesh.member(name, BRIEF) for name in ("front", "back")]
    front.follow(back)
    back.follow(front)

    answer = await front.api.ask("POST", TASKS, headers=ADMIN, body={"command": "a"})

    assert_problem(answer, 503, "No dispatcher is elected")
    assert answer.headers["retry-after"] == "1"
    assert "octaskly-refused" not in answer.headers
    assert front.api.served[-1].status == 503
    assert all(served.status == 503 for served in back.api.served)
    assert back.gateway.submissions == front.gateway.submissions == []


async def test_a_request_is_held_until_a_dispatcher_is_elected(
    front: Member, back: Member
) -> None:
    """A client does not notice a short election."""
    front.gateway.elect(None)
    asyncio.get_running_loop().call_later(0.3, front.follow, back)

    answer = await front.api.ask("POST", TASKS, headers=ADMIN, body={"command": "a"})

    assert answer.status == 201
    assert len(back.gateway.records) == 1


async def test_without_a_dispatcher_the_answer_is_503(api_mesh: ApiMesh) -> None:
    """After the hold, with Retry-After."""
    front = await api_mesh.member("front", BRIEF)
    front.gateway.elect(None)
    began_s = asyncio.get_running_loop().time()

    answer = await front.api.ask("GET", TASKS, headers=ADMIN)

    assert_problem(answer, 503, "No dispatcher is elected")
    assert answer.headers["retry-after"] == "1"
    assert asyncio.get_running_loop().time() - began_s > 0.9


async def test_a_node_that_left_the_mesh_says_so(api_mesh: ApiMesh) -> None:
    """It will never have a dispatcher, so a retry is useless."""
    front = await api_mesh.member("front", BRIEF)
    front.gateway.elect(None)
    front.gateway.left = "this node was revoked"

    answer = await front.api.ask("GET", TASKS, headers=ADMIN)
    stream = await front.api.ask("GET", f"{TASKS}/task-1/logs", headers=ADMIN)

    assert_problem(answer, 503, "This node is no longer in the mesh")
    assert_problem(stream, 503, "This node is no longer in the mesh")
    assert answer.json["hint"] == "this node was revoked"
    assert "retry-after" not in answer.headers


async def test_a_request_to_an_unreachable_dispatcher_is_retried(
    front: Member, back: Member
) -> None:
    """A refused connection carried nothing, so a POST moves to the next dispatcher."""
    await back.api.server.close()
    asyncio.get_running_loop().call_later(0.3, front.become_dispatcher, 2)

    answer = await front.api.ask("POST", TASKS, headers=ADMIN, body={"command": "a"})

    assert answer.status == 201
    assert len(front.gateway.records) == 1


async def test_the_second_address_is_tried(front: Member, back: Member) -> None:
    """A node may have several; one of them may be unreachable."""
    urls = ["https://127.0.0.1:1", back.lan_url]
    front.gateway.elect(front.gateway.view_of(back.gateway.node_id, lan_urls=urls))

    answer = await front.api.ask("GET", TASKS, headers=ADMIN)

    assert answer.status == 200


async def test_an_unreachable_address_is_tried_once(
    front: Member, back: Member
) -> None:
    """Each request would otherwise wait for it, as long as a cable is out."""
    tried: list[object] = []
    listener = await asyncio.start_server(lambda *ends: tried.append(ends), "127.0.0.1")
    dead_port = listener.sockets[0].getsockname()[1]
    listener.close()
    urls = [f"https://127.0.0.1:{dead_port}", back.lan_url]
    front.gateway.elect(front.gateway.view_of(back.gateway.node_id, lan_urls=urls))
    first = await front.api.ask("GET", TASKS, headers=ADMIN)

    def noted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tried.append(writer)
        writer.close()

    async with await asyncio.start_server(noted, "127.0.0.1", dead_port):
        later = await front.api.ask("GET", TASKS, headers=ADMIN)

    assert (first.status, later.status) == (200, 200)
    assert not tried


async def test_a_request_moves_on_from_a_deposed_dispatcher(
    front: Member, back: Member
) -> None:
    """It refuses without acting, and the first node uses the new dispatcher."""
    back.gateway.held.clear()
    loop = asyncio.get_running_loop()

    def hand_over() -> None:
        back.follow(front, term=2)
        back.gateway.held.set()
        loop.call_later(0.2, front.become_dispatcher, 2)

    async with asyncio.TaskGroup() as group:
        posted = group.create_task(
            front.api.ask("POST", TASKS, headers=ADMIN, body={"command": "a"})
        )
        await until(lambda: back.gateway.submissions)
        hand_over()

    assert posted.result().status == 201
    assert len(front.gateway.records) == 1
    assert back.gateway.records == {}


async def test_a_node_that_loses_the_role_during_a_request_forwards_it(
    front: Member, back: Member
) -> None:
    """The node that was asked stops being dispatcher while it works on it."""
    front.become_dispatcher()
    front.gateway.held.clear()
    async with asyncio.TaskGroup() as group:
        posted = group.create_task(
            front.api.ask("POST", TASKS, headers=ADMIN, body={"command": "a"})
        )
        await until(lambda: front.gateway.submissions)
        front.follow(back, term=2)
        front.gateway.held.set()

    assert posted.result().status == 201
    assert len(back.gateway.records) == 1


@pytest.mark.slow
async def test_a_long_poll_of_a_deposed_dispatcher_has_time_to_find_the_next(
    api_mesh: ApiMesh,
) -> None:
    """The time while this node was dispatcher itself does not count."""
    front = await api_mesh.member("front", BRIEF)
    front.become_dispatcher()
    made = await front.api.ask("POST", TASKS, headers=ADMIN, body={"command": "a"})
    path = f"{TASKS}/{made.json['id']}"
    loop = asyncio.get_running_loop()
    loop.call_later(0.9 * BRIEF.dispatcher_wait_s, front.gateway.elect, None)
    loop.call_later(1.3 * BRIEF.dispatcher_wait_s, front.become_dispatcher, 2)

    answer = await front.api.ask("GET", f"{path}?wait=2", headers=ADMIN)

    assert (answer.status, answer.json["status"]) == (200, "queued")


async def _crash_after_request(
    front: Member, back: Member, headers: dict[str, str], method: str = "POST"
) -> Answer:
    """Send a request; the dispatcher dies with it, then the first node takes over."""

    async def swallow(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asyncio.get_running_loop().call_later(0.1, front.become_dispatcher, 2)
        writer.transport.abort()

    context = back.trust.lan_server_contexts([], ["127.0.0.1"])("127.0.0.1")
    dying = await asyncio.start_server(swallow, "127.0.0.1", 0, ssl=context)
    async with dying:
        port = dying.sockets[0].getsockname()[1]
        view = front.gateway.view_of(
            back.gateway.node_id, lan_urls=[f"https://127.0.0.1:{port}"]
        )
        front.gateway.elect(view)
        body = {"command": "a"} if method == "POST" else None
        path = TASKS if method == "POST" else f"{TASKS}?limit=1"
        return await front.api.ask(method, path, headers=headers, body=body)


async def test_a_task_that_may_have_arrived_is_not_sent_twice(
    front: Member, back: Member
) -> None:
    """The 503 says so; the client decides."""
    answer = await _crash_after_request(front, back, ADMIN)

    assert_problem(answer, 503)
    assert "Idempotency-Key" in answer.json["hint"]
    assert front.gateway.records == {}


async def test_a_task_with_a_key_is_sent_again(front: Member, back: Member) -> None:
    """The key makes the repetition idempotent."""
    headers = ADMIN | {"Idempotency-Key": "k"}

    answer = await _crash_after_request(front, back, headers)

    assert answer.status == 201
    assert len(front.gateway.records) == 1


async def test_a_submission_waits_no_longer_than_the_hold(api_mesh: ApiMesh) -> None:
    """However often its dispatcher breaks off late, and is tried again.

    A long poll has the whole hold anew each time, because it is meant to last.
    """
    front = await api_mesh.member("front", replace(PATIENT, dispatcher_wait_s=0.05))
    back = await api_mesh.member("back")
    asked: list[bytes] = []

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split()[0])
        await asyncio.sleep(0.1)
        if asked.count(b"GET") == 3:
            front.become_dispatcher(2)
        writer.transport.abort()

    context = back.trust.lan_server_contexts([], ["127.0.0.1"])("127.0.0.1")
    server = await asyncio.start_server(stall, "127.0.0.1", 0, ssl=context)
    async with server, asyncio.timeout(WAIT_S_MAX):
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        front.gateway.elect(front.gateway.view_of(back.gateway.node_id, lan_urls=[url]))
        headers = ADMIN | {"Idempotency-Key": "k"}
        refused = await front.api.ask(
            "POST", TASKS, headers=headers, body={"command": "a"}
        )
        read = await front.api.ask("GET", f"{TASKS}?limit=1", headers=ADMIN)

    assert_problem(refused, 503, "No dispatcher is elected")
    assert read.status == 200
    assert (asked.count(b"POST"), asked.count(b"GET") >= 3) == (1, True)


async def test_a_read_is_retried(front: Member, back: Member) -> None:
    """A GET changes nothing."""
    answer = await _crash_after_request(front, back, ADMIN, "GET")

    assert answer.status == 200


async def test_a_cancel_that_is_repeated_here_is_audited_here(
    front: Member, back: Member
) -> None:
    """The dispatcher died in the middle of its answer, and this node followed it."""
    front.become_dispatcher()
    task = await front.api.submit()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        front.become_dispatcher(2)
        writer.transport.abort()

    context = back.trust.lan_server_contexts([], ["127.0.0.1"])("127.0.0.1")
    dying = await asyncio.start_server(half, "127.0.0.1", 0, ssl=context)
    async with dying:
        url = f"https://127.0.0.1:{dying.sockets[0].getsockname()[1]}"
        front.gateway.elect(front.gateway.view_of(back.gateway.node_id, lan_urls=[url]))
        answer = await front.api.ask("DELETE", f"{TASKS}/{task}", headers=ADMIN)
    await front.api.server.auditor.flush()

    assert (answer.status, answer.json["status"]) == (200, "cancelled")
    assert ("DELETE", task) in [
        (deed.action.partition(" ")[0], deed.target)
        for deed in front.gateway.audit.deeds
    ]


@pytest.mark.slow
async def test_a_poll_on_a_silent_dispatcher_moves_on(
    front: Member, back: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped machine closes nothing; the change of dispatcher ends the wait.

    It ends at once, without the grace for requests that cannot be repeated.
    """
    monkeypatch.setattr(open_long_polls, "_DEPOSED_GRACE_S", 3600.0)

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    context = back.trust.lan_server_contexts([], ["127.0.0.1"])("127.0.0.1")
    silent = await asyncio.start_server(ignore, "127.0.0.1", 0, ssl=context)
    port = silent.sockets[0].getsockname()[1]
    front.become_dispatcher()
    task = await front.api.submit()
    view = front.gateway.view_of(
        back.gateway.node_id, lan_urls=[f"https://127.0.0.1:{port}"]
    )
    front.gateway.elect(view)
    asyncio.get_running_loop().call_later(0.2, front.become_dispatcher, 2)

    answer = await front.api.ask("GET", f"{TASKS}/{task}?wait=1", headers=ADMIN)
    silent.close()

    assert (answer.status, answer.json["status"]) == (200, "queued")


# --- outputs -----------------------------------------------------------------------


async def _finished(
    member: Member,
    path: str,
    size: int | None,
    node: str,
    *,
    file_count: int | None = None,
) -> str:
    body = {"command": "x", "outputs": [path]}
    created = await member.api.ask("POST", TASKS, headers=ADMIN, body=body)
    task: str = created.json["id"]
    member.gateway.start(task, node)
    outcome = Outcome(
        state=AttemptState.OK,
        reason=EndReason.EXIT,
        exit_code=0,
        outputs=(OutputFile(path, size, file_count),),
    )
    member.gateway.finish(task, outcome)
    return task


@pytest.fixture
def data() -> bytes:
    return bytes(range(256)) * 4096  # 1 MiB, more than one buffer


@pytest.mark.parametrize("file", ["ä b.bin", "a\nb%0A?#"])
async def test_an_output_of_another_worker_passes_two_nodes(
    api_mesh: ApiMesh,
    front: Member,
    back: Member,
    data: bytes,
    tmp_path: Path,
    file: str,
) -> None:
    """Client, first node, dispatcher, worker: exact bytes, as an attachment."""
    worker = await api_mesh.member("worker")
    worker.follow(back)
    name = f"out/{file}"
    task = await _finished(back, name, len(data), worker.gateway.node_id)
    (tmp_path / file).write_bytes(data)
    worker.gateway.files[task, name] = tmp_path / file  # type: ignore[index]
    back.gateway.lan_urls[worker.gateway.node_id] = (worker.lan_url,)

    url = f"{TASKS}/{task}/outputs/out/{quote(file)}"
    answer = await front.api.ask("GET", url, headers=VIEWER)
    again = await worker.api.ask("GET", url, headers=VIEWER)

    assert answer.status == 200
    assert answer.body == again.body == data
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-length"] == str(len(data))
    assert_hardened(answer)
    assert answer.headers["content-disposition"] == (
        f"attachment; filename*=UTF-8''{quote(file)}"
    )
    assert answer.headers["x-request-id"]


async def test_an_own_output_is_sent_whole_or_in_part(
    back: Member, data: bytes, tmp_path: Path
) -> None:
    """A range resumes a download; one beyond the end is 416 as JSON."""
    task = await _finished(back, "r.bin", len(data), back.gateway.node_id)
    (tmp_path / "r.bin").write_bytes(data)
    back.gateway.files[task, "r.bin"] = tmp_path / "r.bin"  # type: ignore[index]
    url = f"{TASKS}/{task}/outputs/r.bin"

    whole = await back.api.ask("GET", url, headers=VIEWER)
    head = await back.api.ask("HEAD", url, headers=VIEWER)
    part = await back.api.ask("GET", url, headers=VIEWER | {"Range": "bytes=10-19"})
    end = await back.api.ask("GET", url, headers=VIEWER | {"Range": "bytes=-9"})

    assert whole.body == data
    assert (head.status, head.headers["content-length"]) == (200, str(len(data)))
    assert (part.status, part.body) == (206, data[10:20])
    assert (end.status, end.body) == (206, data[-9:])


@pytest.mark.parametrize(
    ("data", "asked"),
    [(b"the whole", n) for n in ("bytes=9-", "bytes=9-12", "bytes=-0", "Bytes=-00")]
    + [(b"", n) for n in ("bytes=0-", "bytes=0-9", "bytes=-0")],
)
async def test_an_empty_range_of_an_output_is_refused(
    back: Member, tmp_path: Path, data: bytes, asked: str
) -> None:
    """RFC 9110 section 14.1.2: beyond the end, or the last zero bytes; 416 as JSON."""
    task = await _finished(back, "a.txt", len(data), back.gateway.node_id)
    (tmp_path / "a.txt").write_bytes(data)
    back.gateway.files[task, "a.txt"] = tmp_path / "a.txt"  # type: ignore[index]

    answer = await back.api.ask(
        "GET", f"{TASKS}/{task}/outputs/a.txt", headers=VIEWER | {"Range": asked}
    )

    assert_problem(answer, 416)
    assert answer.headers["content-range"] == f"bytes */{len(data)}"


async def test_a_range_of_a_changed_file_is_answered_with_the_whole(
    api_mesh: ApiMesh, front: Member, back: Member, data: bytes, tmp_path: Path
) -> None:
    """RFC 9110 section 13.1.5: `If-Range` compares with the first answer."""
    worker = await api_mesh.member("worker")
    worker.follow(back)
    task = await _finished(back, "r.bin", len(data), worker.gateway.node_id)
    (tmp_path / "r.bin").write_bytes(data)
    worker.gateway.files[task, "r.bin"] = tmp_path / "r.bin"  # type: ignore[index]
    back.gateway.lan_urls[worker.gateway.node_id] = (worker.lan_url,)
    url = f"{TASKS}/{task}/outputs/r.bin"

    async def status(if_range: str, asked: str = "bytes=10-19") -> int:
        headers = VIEWER | {"Range": asked, "If-Range": if_range}
        answer = await front.api.ask("GET", url, headers=headers)
        assert answer.body == (data[10:20] if answer.status == 206 else data)
        return answer.status

    shown = (await front.api.ask("GET", url, headers=VIEWER)).headers

    # Any copy of the file has this etag, so another node may send the rest.
    assert shown["etag"] == f'"{content_digest(data)}"'
    assert await status(shown["etag"]) == 206
    assert await status(shown["last-modified"]) == 206
    assert await status('"another"') == 200
    assert await status(f"W/{shown['etag']}") == 200
    assert await status("Thu, 01 Jan 2099 00:00:00 GMT") == 200
    assert await status('"another"', f"bytes={len(data)}-") == 200


async def test_the_last_bytes_of_an_empty_output_are_the_whole(
    back: Member, tmp_path: Path
) -> None:
    """RFC 9110 section 14.1.2: the range is valid, but cannot be sent as a part."""
    task = await _finished(back, "a.txt", 0, back.gateway.node_id)
    (tmp_path / "a.txt").touch()
    back.gateway.files[task, "a.txt"] = tmp_path / "a.txt"  # type: ignore[index]

    answer = await back.api.ask(
        "GET", f"{TASKS}/{task}/outputs/a.txt", headers=VIEWER | {"Range": "bytes=-1"}
    )

    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == "0"


async def test_an_unread_download_is_aborted(api_mesh: ApiMesh, tmp_path: Path) -> None:
    """Also while the kernel sends the file, and no buffer of ours is full."""
    back = await api_mesh.member("back", HttpTimeouts(stall_s=0.5, shutdown_s=1))
    with (tmp_path / "big").open("wb") as file:
        file.truncate(64 << 20)
    task = await _finished(back, "big", 64 << 20, back.gateway.node_id)
    back.gateway.files[task, "big"] = tmp_path / "big"  # type: ignore[index]
    back.become_dispatcher()
    asked = f"GET {TASKS}/{task}/outputs/big HTTP/1.1\r\nHost: localhost\r\n"
    asked += "".join(f"{name}: {value}\r\n" for name, value in VIEWER.items())

    async with unread(back.api, f"{asked}\r\n".encode()):
        await until(lambda: not back.api.server.connection_count)


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("GET", "pages=1-2"),
        ("GET", "bytes=0-1,4-5"),
        ("GET", "bytes=5-2"),
        ("GET", "bytes"),
        ("HEAD", "bytes=1-2"),
    ],
)
async def test_an_unsupported_range_is_ignored(
    back: Member, tmp_path: Path, method: str, asked: str
) -> None:
    """RFC 9110 section 14.2: units must be, several ranges and bad ones may be."""
    task = await _finished(back, "a.txt", 9, back.gateway.node_id)
    (tmp_path / "a.txt").write_bytes(b"the whole")
    back.gateway.files[task, "a.txt"] = tmp_path / "a.txt"  # type: ignore[index]

    answer = await back.api.ask(
        method, f"{TASKS}/{task}/outputs/a.txt", headers=VIEWER | {"Range": asked}
    )

    assert answer.status == 200
    assert answer.headers["content-length"] == "9"
    assert answer.body == (b"the whole" if method == "GET" else b"")


async def test_a_neighbour_with_suffix_gz_is_another_output(
    back: Member, tmp_path: Path
) -> None:
    """It is never sent in place of the requested one, whatever the client accepts."""
    task = await _finished(back, "a.txt", 5, back.gateway.node_id)
    (tmp_path / "a.txt").write_bytes(b"plain")
    (tmp_path / "a.txt.gz").write_bytes(b"other")
    back.gateway.files[task, "a.txt"] = tmp_path / "a.txt"  # type: ignore[index]

    answer = await back.api.ask(
        "GET",
        f"{TASKS}/{task}/outputs/a.txt",
        headers=VIEWER | {"Accept-Encoding": "gzip", "If-None-Match": "*"},
    )

    assert answer.body == b"plain"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("none.txt", 404),
        ("%2e%2e/secret", 400),
        ("../../../etc/passwd", 400),
        ("a%00b", 400),
        ("%2Fetc/passwd", 400),
        ("//etc/passwd", 400),
    ],
)
async def test_an_unknown_output_is_not_found(
    back: Member, path: str, status: int
) -> None:
    """404, or 400 for a path outside the folder."""
    task = await _finished(back, "r.txt", 1, back.gateway.node_id)

    answer = await back.api.ask("GET", f"{TASKS}/{task}/outputs/{path}", headers=ADMIN)

    assert_problem(answer, status)


async def test_an_output_of_a_lost_worker_is_503(back: Member) -> None:
    """Known as lost, or found to be."""
    task = await _finished(back, "r.txt", 1, "node-z")

    unknown = await back.api.ask("GET", f"{TASKS}/{task}/outputs/r.txt", headers=ADMIN)
    back.gateway.lan_urls["node-z"] = ("https://127.0.0.1:1",)  # type: ignore[index]
    refused = await back.api.ask("GET", f"{TASKS}/{task}/outputs/r.txt", headers=ADMIN)

    assert_problem(unknown, 503)
    assert_problem(refused, 503)


@pytest.fixture
async def folder_task(
    api_mesh: ApiMesh, back: Member, tmp_path: Path
) -> tuple[Member, str]:
    """A worker, and a task that left a folder there."""
    worker = await api_mesh.member("worker")
    worker.follow(back)
    task = await _finished(back, "build", 600_004, worker.gateway.node_id, file_count=2)
    for name, content in (("app", b"\0" * 600_000), ("sub/x", b"text")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        path = f"build/{name}"
        worker.gateway.files[task, path] = tmp_path / name  # type: ignore[index]
    back.gateway.lan_urls[worker.gateway.node_id] = (worker.lan_url,)
    return worker, task


async def test_all_outputs_pass_two_nodes_as_a_tar(
    front: Member, folder_task: tuple[Member, str]
) -> None:
    """Client, first node, dispatcher, worker; each part of it is the same bytes."""
    worker, task = folder_task
    url = f"{TASKS}/{task}/outputs.tar"

    whole = await front.api.ask("GET", url, headers=VIEWER)
    own = await worker.api.ask("GET", url, headers=VIEWER)
    head = await front.api.ask("HEAD", url, headers=VIEWER)
    etag = whole.headers["etag"]
    size = len(whole.body)

    assert whole.status == own.status == head.status == 200
    assert whole.body == own.body
    assert whole.headers["content-type"] == "application/x-tar"
    assert head.headers["content-length"] == str(size)
    assert whole.headers["content-disposition"] == (
        f"attachment; filename*=UTF-8''{task}-outputs.tar"
    )
    assert_hardened(whole)
    with tarfile.open(fileobj=io.BytesIO(whole.body)) as tar:
        assert [(m.name, m.size) for m in tar] == [
            ("build/app", 600_000),
            ("build/sub/x", 4),
        ]
    for asked, start, end in (
        ("bytes=1000-", 1000, size),
        ("bytes=513-700000", 513, min(700_001, size)),
        ("bytes=-1025", size - 1025, size),
    ):
        part = await front.api.ask(
            "GET", url, headers=VIEWER | {"Range": asked, "If-Range": etag}
        )
        assert (part.status, part.body) == (206, whole.body[start:end])
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    changed = await front.api.ask(
        "GET", url, headers=VIEWER | {"Range": "bytes=5-", "If-Range": '"other"'}
    )
    beyond = await front.api.ask(
        "GET", url, headers=VIEWER | {"Range": f"bytes={size}-"}
    )
    assert (changed.status, changed.body) == (200, whole.body)
    assert_problem(beyond, 416)


async def test_a_path_below_a_folder_is_downloaded(
    front: Member, folder_task: tuple[Member, str]
) -> None:
    """A folder itself is not a file."""
    _, task = folder_task
    url = f"{TASKS}/{task}/outputs/build"

    file = await front.api.ask("GET", f"{url}/sub/x", headers=VIEWER)
    folder = await front.api.ask("GET", f"{url}/sub", headers=VIEWER)
    none = await front.api.ask("GET", f"{url}/none", headers=VIEWER)

    assert (file.status, file.body) == (200, b"text")
    assert file.headers["content-disposition"].endswith("''x")
    assert_problem(folder, 404)
    assert "outputs.tar" in folder.json["hint"]
    assert_problem(none, 404)


async def test_a_task_that_left_no_output_has_no_tar(back: Member) -> None:
    """An empty archive would look like a success."""
    task = await _finished(back, "r.txt", None, back.gateway.node_id)

    answer = await back.api.ask("GET", f"{TASKS}/{task}/outputs.tar", headers=VIEWER)

    assert_problem(answer, 404)


async def test_a_tar_whose_file_is_gone_breaks_the_connection(
    folder_task: tuple[Member, str], tmp_path: Path
) -> None:
    """A client must not take a part for the whole."""
    worker, task = folder_task
    tree = await worker.gateway.captured_outputs(task, AttemptId(1, StreamId(1), 1, 1))
    (tmp_path / "app").write_bytes(b"short")

    async def stale(*_: object) -> CapturedTree:
        return tree

    worker.gateway.captured_outputs = stale  # type: ignore[assignment,method-assign]
    asked = f"GET {TASKS}/{task}/outputs.tar HTTP/1.1\r\nHost: localhost\r\n"
    asked += "".join(f"{name}: {value}\r\n" for name, value in VIEWER.items())

    received = await exchange(worker.api.port, f"{asked}\r\n".encode())

    head, _, body = received.partition(b"\r\n\r\n")
    assert f"Content-Length: {tree.tar.size_bytes}\r\n".encode() in head
    assert len(body) < tree.tar.size_bytes


@pytest.mark.parametrize("called", ["name", "id"])
async def test_an_order_to_a_node_arrives_with_its_caller(
    front: Member, back: Member, called: str
) -> None:
    """Any node forwards it to its target; `unpause` ends a drain, too."""
    node = back.gateway.node_id
    front.gateway.known_names[node] = "back"
    front.gateway.lan_urls[node] = (back.lan_url,)
    ref = "back" if called == "name" else node

    answers = [
        await front.api.ask("POST", f"/api/v1/nodes/{ref}/{order}", headers=ADMIN)
        for order in ("drain", "pause", "unpause", "resume", "resume")
    ]

    assert [answer.status for answer in answers] == [200] * 5
    states = [answer.json["state"] for answer in answers]
    assert states == ["draining", "paused", "ready", "ready", "ready"]
    assert back.gateway.steered[:2] == [("drain", "ana"), ("pause", "ana")]
    assert front.gateway.steered == []


async def test_an_order_to_an_unknown_or_lost_node_is_refused(
    front: Member, back: Member
) -> None:
    """Never a member, lost, or gone without notice."""
    node = back.gateway.node_id
    url = "/api/v1/nodes/{}/drain"
    never = await front.api.ask("POST", url.format("nobody"), headers=ADMIN)
    front.gateway.known_names[node] = "back"
    front.gateway.lan_urls[node] = ("https://127.0.0.1:1",)
    gone = await front.api.ask("POST", url.format("back"), headers=ADMIN)
    front.gateway.lost.add(node)
    lost = await front.api.ask("POST", url.format("back"), headers=ADMIN)

    assert_problem(never, 404, "Worker not found")
    assert_problem(gone, 503, "Worker not found")
    assert_problem(lost, 503, "Worker not found")
    assert back.gateway.steered == []


async def test_a_dispatcher_that_dies_during_an_answer_breaks_the_connection(
    front: Member, back: Member
) -> None:
    """A short body must never look complete."""

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 70000
        )
        await writer.drain()
        writer.transport.abort()

    context = back.trust.lan_server_contexts([], ["127.0.0.1"])("127.0.0.1")
    dying = await asyncio.start_server(half, "127.0.0.1", 0, ssl=context)
    async with dying:
        port = dying.sockets[0].getsockname()[1]
        view = front.gateway.view_of(
            back.gateway.node_id, lan_urls=[f"https://127.0.0.1:{port}"]
        )
        front.gateway.elect(view)
        lines = [f"GET {TASKS}/x HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"{k}: {v}" for k, v in ADMIN.items()]
        received = await exchange(
            front.api.port, "\r\n".join([*lines, "", ""]).encode()
        )

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"Content-Length: 1000000" in head
    assert len(body) < 1_000_000
    assert front.api.faults == []


@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_long_answer_passes_two_nodes_without_their_parsers(
    front: Member, back: Member, monkeypatch: pytest.MonkeyPatch, is_whole: bool
) -> None:
    """It is the same bytes; a part of it must never look complete."""
    monkeypatch.setattr(node_client, "LONG_BODY_BYTES", 1 << 18)
    relayed: list[int] = []
    relay_to = TlsTransport.relay_to

    async def note(self: TlsTransport, *args: Any, **options: Any) -> None:
        relayed.append(args[-1])
        await relay_to(self, *args, **options)

    monkeypatch.setattr(TlsTransport, "relay_to", note)
    long = os.urandom(1 << 21)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(long)}\r\n\r\n"
            writer.write(head.encode() + (long if is_whole else long[: 1 << 20]))
            await writer.drain()
        writer.close()

    context = back.trust.lan_server_contexts([], ["127.0.0.1"])("127.0.0.1")
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        view = front.gateway.view_of(
            back.gateway.node_id, lan_urls=[f"https://127.0.0.1:{port}"]
        )
        front.gateway.elect(view)
        lines = [f"GET {TASKS}/x HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"{k}: {v}" for k, v in ADMIN.items()]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", front.lan_port, ssl=front.trust.lan_probe_context()
        )
        writer.write("\r\n".join([*lines, "", ""]).encode())
        received = b""
        with suppress(OSError):
            while part := await reader.read(1 << 16):
                received += part
        writer.transport.abort()

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert f"Content-Length: {len(long)}".encode() in head
    assert body == (long if is_whole else long[: len(body)])
    assert is_whole or len(body) < len(long)
    assert len(relayed) == 1
    assert front.api.faults == []


async def test_a_stream_of_events_is_forwarded_without_delay(
    monkeypatch: pytest.MonkeyPatch, api_mesh: ApiMesh
) -> None:
    """Each event is sent on at once, with the id from which the client resumes."""
    goes_on = asyncio.Event()

    async def produce(stream: sse.EventStream) -> None:
        await stream.send(1, event_id="1")
        await goes_on.wait()
        await stream.send(2, event_id="2")

    serve_stream(monkeypatch, produce, is_local=False)
    front, back = await api_mesh.member("front"), await api_mesh.member("back")
    front.follow(back)
    reader, writer = await connect(front.api)

    await reader.readuntil(b"id: 1\ndata: 1\n\n")
    goes_on.set()
    rest = await reader.readuntil(b"0\r\n\r\n")

    assert b"id: 2\ndata: 2\n\n" in rest
    writer.close()


async def test_a_forwarded_stream_ends_with_the_epoch(
    monkeypatch: pytest.MonkeyPatch, api_mesh: ApiMesh
) -> None:
    """The first node ends it even if the old dispatcher still sends."""
    produce = Open()
    serve_stream(monkeypatch, produce, is_local=False)
    front, back = await api_mesh.member("front"), await api_mesh.member("back")
    front.follow(back)
    reader, writer = await connect(front.api)
    await until(lambda: produce.running)

    front.become_dispatcher(term=2)
    await reader.readuntil(b"0\r\n\r\n")

    await until(lambda: not produce.running)
    writer.close()


async def test_little_of_a_stream_is_buffered_for_a_tls_client(
    monkeypatch: pytest.MonkeyPatch, api_mesh: ApiMesh
) -> None:
    """By itself TLS buffers half a megabyte for each client that does not read."""
    most: list[int] = []

    async def produce(stream: sse.EventStream) -> None:
        transport = stream._request.http_request.transport
        assert isinstance(transport, asyncio.Transport)
        assert transport.get_extra_info("ssl_object") is not None
        most.append(transport.get_write_buffer_limits()[1])

    serve_stream(monkeypatch, produce, is_local=False)
    front, back = await api_mesh.member("front"), await api_mesh.member("back")
    front.follow(back)
    reader, writer = await connect(front.api)
    await reader.readuntil(b"0\r\n\r\n")

    assert most == [WRITE_BUFFER_BYTES]
    writer.close()
