"""F34: an agent disconnects peers that send invalid data, and others are unaffected."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from octaskly.core.log.facts import Entry, TaskCancelled
from octaskly.core.model.ids import NO_EPOCH, Epoch, NodeId, StreamId, TaskId
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import (
    Entries,
    Heartbeat,
    Hello,
    HelloOk,
    Leave,
    Message,
    Pull,
)
from octaskly.mesh import wire
from octaskly.mesh.links.handshake_limits import REFUSED_S, VIOLATION_REASON
from octaskly.trust import MeshTls, NodeKey, load_secret
from tests.integration.agent.test_identity import in_order
from tests.mesh.databases import vector
from tests.support.agents import (
    Agent,
    finished,
    running,
    soon_s,
    submit,
    until_nodes,
)
from tests.support.frames import length_prefixed

GROWTH_KB_MAX = 64 << 10
STREAM = StreamId(77)
GAP = tuple(Entry(STREAM, n, 1, TaskCancelled(TaskId("t"), "x")) for n in (1, 3))


class Member:
    """A member with a certificate of the mesh that sends anything."""

    def __init__(self, folder: Path, port: int) -> None:
        self.trust = MeshTls(load_secret(folder / "mesh.key"), NodeKey.generate())
        self._place = ("127.0.0.1", port)
        self.node_id = self.trust.node_id

    @contextlib.contextmanager
    def linked(self) -> Iterator[ssl.SSLSocket]:
        """Connect, and complete the handshake."""
        decoder = wire.Decoder(Limits())
        heard: list[Message] = []
        context = self.trust.client_contexts()[0]
        with (
            socket.create_connection(self._place, timeout=10) as plain,
            context.wrap_socket(plain) as tls,
        ):
            tls.sendall(wire.encode([self._hello(), HelloOk()]))
            while HelloOk() not in heard:
                heard += decoder.receive_data(tls.recv(65536))
            yield tls

    def say(self, *frames: bytes, is_greeting: bool = True) -> str:
        """Connect, send frames, and return the reason why the agent closed the link."""
        decoder = wire.Decoder(Limits())
        heard: list[Message] = []
        context = self.trust.client_contexts()[0]
        with (
            socket.create_connection(self._place, timeout=10) as plain,
            context.wrap_socket(plain) as tls,
            contextlib.suppress(ConnectionError),
        ):
            if is_greeting:
                tls.sendall(wire.encode([self._hello(), HelloOk()]))
                while HelloOk() not in heard:
                    heard += decoder.receive_data(tls.recv(65536))
            for frame in frames:
                tls.sendall(frame)
            while not any(isinstance(message, Leave) for message in heard):
                data = tls.recv(65536)
                if not data:
                    break
                heard += decoder.receive_data(data)
                if not frames and any(isinstance(m, Hello) for m in heard):
                    break  # It was accepted, and nothing more will come.
        return next((m.reason for m in heard if isinstance(m, Leave)), "")

    def _hello(self) -> Hello:
        info = NodeInfo(
            id=self.node_id,
            boot="boot",
            name="liar",
            slots=0,
            version="0",
            peer_port=1,
            lan_port=1,
            electable=False,
        )
        return Hello(node=info, epoch=NO_EPOCH, dispatcher=None)

    def far(self) -> bytes:
        """Return a heartbeat with an impossibly high term."""
        return wire.encode([Heartbeat(Epoch(1 << 40, self.node_id), 0.0)])


@contextlib.contextmanager
def strangers(port: int) -> Iterator[None]:
    """Keep connections open that send nothing, junk, or TLS byte by byte."""
    greetings = (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01", b"\xff" * 4096, b"GET / H")
    with contextlib.ExitStack() as stack:
        for greeting in greetings * 8:
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            with contextlib.suppress(ConnectionError):
                one.sendall(greeting)
        yield


HALF = (
    ("api_url", b"GET /health HTTP/1.1\r\nHost: l"),
    ("lan_url", b"\x16\x03\x01"),
    ("peer_port", b"\x16\x03\x01"),
)
"""Each port of an agent, and the beginning of what a client sends there."""
CLOSED_S_MAX = soon_s(12.0)


def port_of(agent: Agent, url: str = "api_url") -> int:
    """Return the number of a port of an agent."""
    return int(str(agent.ready()[url]).rpartition(":")[2])


@contextlib.contextmanager
def half_open(agent: Agent, count: int) -> Iterator[list[socket.socket]]:
    """Keep connections open on each port whose first message is never complete."""
    with contextlib.ExitStack() as stack:
        half = []
        for where, greeting in HALF:
            place = ("127.0.0.1", port_of(agent, where))
            for _ in range(count):
                connection = stack.enter_context(socket.create_connection(place))
                with contextlib.suppress(ConnectionError):
                    connection.sendall(greeting)
                half.append(connection)
        yield half


def peak_kb(agent: Agent) -> int:
    """Return the peak memory of an agent."""
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def test_invalid_data_costs_the_agent_little_and_others_nothing(tmp_path: Path) -> None:
    """From strangers and members; each bad member is logged once."""
    with running(tmp_path, "ana", "ben") as agents:
        until_nodes(agents[0], 2)
        ana, ben = in_order(agents)
        finished(ana, submit(ana, "true"))
        before_kb = peak_kb(ana)
        port = ana.ready()["peer_port"]
        flood = b"\xdd\x00\x00\x00\x10" + (
            b"\xdd\x00\x03\xff\xf0" + b"\x91\x00" * 262128
        )
        lies: dict[str, Callable[[Member], bytes]] = {
            "announced": lambda _: b"\xff\xff\xff\xff",
            "truncated": lambda _: length_prefixed(
                (flood * 16)[: Limits().frame_bytes - 8]
            ),
            "Expected `str`": lambda _: length_prefixed(b"\x91\x92\x14\x91\x05"),
            "Expected `array`": lambda _: length_prefixed(b"\x91\x80"),
            "term": Member.far,
            "gap": lambda _: wire.encode(
                [Entries(GAP, ((STREAM, Epoch(1, NodeId("x"))),), False, ())]
            ),
            "Expected `int` >= 0": lambda _: wire.encode([Pull(((STREAM, -1),))]),
        }
        with strangers(port):
            for word, lie in lies.items():
                member = Member(tmp_path, port)
                began_s = time.perf_counter()
                assert word in member.say(lie(member)), word
                for _ in range(3):
                    is_refused = member.say(is_greeting=False) == VIOLATION_REASON
                    # A machine that stalls for as long as that lasts shows nothing.
                    assert is_refused or time.perf_counter() - began_s > REFUSED_S
            assert "before HELLO_OK" in Member(tmp_path, port).say(
                wire.encode([Pull(())]), is_greeting=False
            )
            tasks = [finished(ben, submit(ben, f"echo {n}")) for n in range(5)]
        log = ana.log()
        _, stats = ana.call("GET", "/api/v1/stats")

        assert [task["stdout"] for task in tasks] == [f"{n}\n" for n in range(5)]
        for word in ("announced", "term", "gap", "int"):
            assert len(re.findall(f"link to peer refused .*{word}", log)) == 1, log
        counts = {"frame": 6, "term": 1, "gap": 1}
        assert stats["mesh"]["refused"] == counts
        assert STREAM not in vector(ana.state)
        assert peak_kb(ana) - before_kb < GROWTH_KB_MAX


def test_half_open_connections_are_closed(tmp_path: Path) -> None:
    """All 200 of each port, whatever they wait for."""
    with running(tmp_path, "solo") as (solo,):
        until_nodes(solo, 1)
        begin_s = time.perf_counter()
        with half_open(solo, 200) as connections:
            for connection in connections:
                _until_closed(connection)
        assert time.perf_counter() - begin_s < CLOSED_S_MAX


def _until_closed(connection: socket.socket) -> None:
    connection.settimeout(CLOSED_S_MAX)
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
