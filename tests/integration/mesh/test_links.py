"""Links between real nodes: TLS over loopback, strangers, duplicates, overflow."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import pytest
import trustme
from msgspec import msgpack, to_builtins
from msgspec.structs import replace

from octaskly.config.defaults import HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS
from octaskly.core.effects import LogLine
from octaskly.core.events import DialFailed, Event, PeerDown, PeerUp, Received
from octaskly.core.model.ids import NO_EPOCH, Address, NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import Hello, HelloOk, Leave, Message, Probe, Pull
from octaskly.mesh import wire
from octaskly.mesh.links import handshake_limits as strangers
from octaskly.mesh.links import link
from octaskly.mesh.links.duplicates import DUPLICATE, DUPLICATE_ID
from octaskly.mesh.links.handshake_limits import DIALS_AT_ONCE_MAX, LOCAL_HANDSHAKES_MAX
from octaskly.mesh.links.link import HANDSHAKE_TIMED_OUT, NOT_ACCEPTED, OVERFLOW
from octaskly.mesh.links.tcp import dialable_peer_address
from octaskly.mesh.links.transport import Transport
from octaskly.system.clock import SystemClock
from octaskly.trust import MeshSecret, MeshTls, NodeKey, generate_secret
from octaskly.trust.mesh_secret import generate_generation
from tests.support import abandoned
from tests.support.agents import WAIT_S_MAX
from tests.support.api_node import until

T = TypeVar("T")
SECRET = generate_secret()
WAIT_S = WAIT_S_MAX
LIMITS = Limits(hello_bytes=1 << 16, frame_bytes=1 << 20)


def bound_to_one_port(hosts: Sequence[str]) -> list[socket.socket]:
    """Return a socket at each address, all with the same free port."""
    for _ in range(100):
        port, sockets = 0, []
        with ExitStack() as unused:
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                listener = unused.enter_context(socket.socket(family))
                try:
                    listener.bind((host, port))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    break  # Another program has this port at another address.
                port = listener.getsockname()[1]
                sockets.append(listener)
            else:
                unused.pop_all()
                return sockets
    raise AssertionError("no port is free at all addresses")


@dataclass
class Party:
    """One node's transport, and all its events."""

    trust: MeshTls = field(default_factory=lambda: MeshTls(SECRET, NodeKey.generate()))
    hosts: tuple[str, ...] = ("127.0.0.1",)
    handshake_s: float = 2 * WAIT_S  #: a stall is no silence
    limits: Limits = LIMITS
    outbox_bytes: int | None = None
    boot: str = "boot"
    version: int = 1
    events: list[Event] = field(default_factory=list)
    notes: list[LogLine] = field(default_factory=list)
    duplicates: int = 0  #: reports that its id is taken
    uptime_s: float = 0.0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.id = self.trust.node_id
        self.sockets = bound_to_one_port(self.hosts)
        self.address = Address(self.hosts[0], self.sockets[0].getsockname()[1])
        self.transport = Transport(
            trust=self.trust,
            limits=self.limits,
            clock=SystemClock(),
            hello=self.hello,
            on_event=self.on_event,
            on_note=self.on_note,
            on_duplicate=self.on_duplicate,
            handshake_s=self.handshake_s,
            outbox_bytes=self.outbox_bytes,
        )

    def hello(self) -> Hello:
        info = NodeInfo(
            id=self.id,
            boot=self.boot,
            name="n",
            slots=1,
            version="1",
            peer_port=self.address.port,
            lan_port=1,
        )
        return Hello(
            version=self.version,
            version_min=self.version,
            node=info,
            epoch=NO_EPOCH,
            dispatcher=None,
            uptime_s=self.uptime_s,
        )

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        self.news.set()

    def on_note(self, note: LogLine) -> None:
        self.notes.append(note)
        self.news.set()

    def on_duplicate(self) -> None:
        self.duplicates += 1
        self.news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until an event makes the condition true."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.news.clear()
                await self.news.wait()

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def received(self) -> list[Message]:
        return [m for event in self.of(Received) for m in event.messages]

    @property
    def reasons(self) -> list[object]:
        return [dict(note.fields)["reason"] for note in self.notes]

    def is_linked(self, peer: NodeId) -> bool:
        """Return the core's view, and check that up and down alternate."""
        ups = [e for e in self.of(PeerUp) + self.of(PeerDown) if e.peer == peer]
        ups.sort(key=self.events.index)
        kinds = [type(event) for event in ups]
        assert kinds == ([PeerUp, PeerDown] * len(kinds))[: len(kinds)]
        return len(kinds) % 2 == 1


@asynccontextmanager
async def running(*parties: Party) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        for party in parties:
            await party.transport.start(tasks, party.sockets)
        try:
            yield
        finally:
            for party in parties:
                await party.transport.close()


async def meet(a: Party, b: Party) -> None:
    a.transport.dial(b.id, [b.address])
    await a.until(lambda: a.is_linked(b.id))
    await b.until(lambda: b.is_linked(a.id))


async def test_two_nodes_connect_and_exchange_messages_both_ways() -> None:
    """One dial is enough; each knows the other's id and address."""
    a, b = Party(), Party()
    async with running(a, b):
        await meet(a, b)
        a.transport.send(b.id, [Pull(()), Probe(b.id, 1.0)])
        b.transport.send(a.id, [Pull(())])
        await b.until(lambda: len(b.received) == 2)
        await a.until(lambda: len(a.received) == 1)

    (up,) = b.of(PeerUp)
    assert (up.peer, up.address, up.peer_hello.node.id) == (a.id, a.address, a.id)
    assert a.of(PeerUp)[0].address == b.address
    assert b.received == [Pull(()), Probe(b.id, 1.0)]


async def test_messages_of_one_turn_arrive_together_and_in_order() -> None:
    """Sends are batched, so that a thousand small ones are not a thousand frames."""
    a, b = Party(), Party()
    sent: list[Message] = [Probe(b.id, float(i)) for i in range(1000)]
    async with running(a, b):
        await meet(a, b)
        for message in sent:
            a.transport.send(b.id, [message])
        await b.until(lambda: len(b.received) == 1000)

    assert b.received == sent
    assert len(b.of(Received)) < 20


async def test_large_messages_arrive_complete() -> None:
    """Frames up to the limit pass, several in a row, beyond TCP's buffers."""
    a, b = Party(), Party()
    async with running(a, b):
        await meet(a, b)
        vector = tuple((1, 2**60 + i) for i in range(30_000))
        sent: list[Message] = [Pull(vector), Pull(vector)]  # type: ignore[arg-type]
        a.transport.send(b.id, sent)
        await b.until(lambda: len(b.received) == 2)
        a.transport.send(b.id, [Leave("x" * 2_000_000)])
        await a.until(lambda: a.notes)

    assert b.received == sent
    assert a.notes[0].event == "message not sent"


async def test_both_sides_get_the_reason_of_a_closed_link() -> None:
    """The reason of one side reaches the other."""
    a, b = Party(), Party()
    async with running(a, b):
        await meet(a, b)
        a.transport.disconnect(b.id, "attached")
        await b.until(lambda: b.of(PeerDown))

    assert [down.reason for down in a.of(PeerDown)] == ["attached"]
    assert [down.reason for down in b.of(PeerDown)] == ["attached"]


async def test_a_stopping_node_announces_it() -> None:
    """Its peers need not suspect anything."""
    a, b = Party(), Party()
    async with running(a, b):
        await meet(a, b)
        await b.transport.close()
        await a.until(lambda: a.of(PeerDown))

    assert a.of(PeerDown)[0].reason == "stopping"


async def test_messages_sent_right_before_a_disconnect_still_arrive() -> None:
    """A redirect after the end of the link is useless."""
    a, b = Party(), Party()
    async with running(a, b):
        await meet(a, b)
        a.transport.send(b.id, [Pull(())])
        a.transport.disconnect(b.id, "attached")
        await b.until(lambda: b.of(PeerDown))

    assert [type(event) for event in b.events] == [PeerUp, Received, PeerDown]


async def test_a_peer_with_an_unnoticed_link_loss_reconnects_at_once() -> None:
    """A new boot of the same node replaces a link that only looks alive."""
    a = Party()
    key = MeshTls(SECRET, NodeKey.generate())
    old, new = Party(trust=key), Party(trust=key, boot="second")
    async with running(a, old, new):
        await meet(a, old)
        new.transport.dial(a.id, [a.address])
        await new.until(lambda: new.is_linked(a.id))
        await a.until(lambda: len(a.of(PeerUp)) == 2)
        assert a.is_linked(key.node_id)

    assert [u.peer_hello.node.boot for u in a.of(PeerUp)] == ["boot", "second"]


@pytest.mark.parametrize("attempt", range(5))
async def test_nodes_that_dial_each_other_at_once_keep_one_link(attempt: int) -> None:
    """In every timing both agree on one, and it works both ways."""
    a, b = Party(), Party()
    async with running(a, b):
        for _ in range(3):
            a.transport.dial(b.id, [b.address])
            b.transport.dial(a.id, [a.address])
        await a.until(lambda: a.is_linked(b.id))
        await b.until(lambda: b.is_linked(a.id))
        a.transport.send(b.id, [Pull(())])
        b.transport.send(a.id, [Pull(())])
        await a.until(lambda: a.received)
        await b.until(lambda: b.received)
        assert len(a.transport._links) == len(b.transport._links) == 1

    assert len(a.of(PeerUp)) == len(b.of(PeerUp)) == 1
    assert not a.of(DialFailed)
    assert not b.of(DialFailed)
    assert not a.notes
    assert not b.notes


async def test_many_nodes_that_start_at_once_form_a_full_mesh() -> None:
    """One link for each pair, though every node dials every other."""
    parties = [Party() for _ in range(6)]
    async with running(*parties):
        for a in parties:
            for b in parties:
                if a is not b:
                    a.transport.dial(b.id, [b.address])
        for a in parties:
            for b in parties:
                if a is not b:
                    await a.until(partial(a.is_linked, b.id))
        assert all(len(a.transport._links) == 5 for a in parties)

    assert all(len(a.of(PeerUp)) == 5 for a in parties)


async def test_addresses_are_tried_in_order_until_one_answers() -> None:
    """A machine may advertise addresses that are unreachable from here."""
    a, b = Party(), Party()
    wrong = [Address("127.0.0.1", 1), Address("not an ip", 5), Address("127.0.0.1", 0)]
    async with running(a, b):
        a.transport.dial(b.id, [*wrong, Address("127.0.0.1", 70_000), b.address])
        await a.until(lambda: a.is_linked(b.id))

    assert not a.of(DialFailed)


async def test_a_silent_address_delays_no_dial_to_another() -> None:
    """Anybody can advertise: a hundred adverts may name one silent machine."""
    a, dialler = Party(), Party(handshake_s=60.0)
    turns, released = dialler.transport._dial_limiter, asyncio.Event()

    async def silent() -> None:
        async with turns.limit_dial("10.0.0.9"):
            await released.wait()

    async with running(a, dialler):
        dials = [asyncio.create_task(silent()) for _ in range(4 * DIALS_AT_ONCE_MAX)]
        await asyncio.sleep(0)
        await meet(dialler, a)
        released.set()
        await asyncio.gather(*dials)


async def test_a_dial_without_a_node_id_connects_to_any_node() -> None:
    """`--join` knows an address only."""
    a, b = Party(), Party()
    async with running(a, b):
        a.transport.dial(None, [b.address])
        await a.until(lambda: a.is_linked(b.id))


async def test_a_dial_that_reaches_another_node_fails_but_keeps_the_link() -> None:
    """Addresses move between machines; any member is welcome."""
    a, b = Party(), Party()
    wanted = NodeKey.generate().node_id
    async with running(a, b):
        a.transport.dial(wanted, [b.address])
        await a.until(lambda: a.of(DialFailed))
        assert a.is_linked(b.id)

    assert a.of(DialFailed) == [DialFailed(wanted, (b.address,), was_refused=False)]


async def test_a_refused_dial_is_reported_as_no_listener() -> None:
    """A dead process is known at once, unlike a silent machine."""
    a = Party()
    closed = Address("127.0.0.1", 1)
    async with running(a):
        a.transport.dial(None, [closed, closed])
        await a.until(lambda: a.of(DialFailed))

    assert a.of(DialFailed) == [DialFailed(None, (closed, closed), was_refused=True)]


async def test_links_work_over_ipv6() -> None:
    """The address that the peer learns can be dialled."""
    try:
        a, b = Party(hosts=("::1",)), Party(hosts=("::1", "127.0.0.1"))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with running(a, b):
        await meet(a, b)

    assert b.of(PeerUp)[0].address == a.address


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (("10.0.0.5", 4000), Address("10.0.0.5", 4000)),
        (("::ffff:10.0.0.5", 4000, 0, 0), Address("10.0.0.5", 4000)),
        (("fd00::5", 4000, 0, 0), Address("fd00::5", 4000)),
        (("fe80::5", 4000, 0, 1), Address("fe80::5%lo", 4000)),
        (("fe80::5%lo", 4000, 0, 1), Address("fe80::5%lo", 4000)),
        (("fe80::5", 4000, 0, 999_999), Address("fe80::5", 4000)),
    ],
)
def test_the_address_of_a_peer_can_be_dialled_from_here(
    name: tuple[str, int, int, int], address: Address
) -> None:
    """A link-local address needs its interface."""
    assert dialable_peer_address(name) == address


async def test_a_node_that_dials_itself_makes_no_link() -> None:
    """Its own advert or seed may have its address."""
    a = Party()
    async with running(a):
        a.transport.dial(None, [a.address])
        await a.until(lambda: a.of(DialFailed))

    assert [type(event) for event in a.events] == [DialFailed]
    assert not a.notes


@pytest.mark.parametrize("is_dialler_older", [True, False])
async def test_a_node_that_meets_its_copy_keeps_its_id_only_if_it_is_older(
    is_dialler_older: bool,
) -> None:
    """A copied folder gives two nodes with one id; exactly one gives it up."""
    a = Party(uptime_s=5.0)
    clone = Party(
        trust=a.trust, boot="other", uptime_s=9.0 if is_dialler_older else 1.0
    )
    younger, older = (a, clone) if is_dialler_older else (clone, a)
    async with running(a, clone):
        clone.transport.dial(None, [a.address])
        await clone.until(lambda: clone.of(DialFailed))
        await younger.until(lambda: younger.duplicates)

    assert not a.events
    assert not older.duplicates


async def test_a_copy_of_a_connected_peer_is_refused_with_the_reason() -> None:
    """F18: the first keeps its link, and nothing of the second reaches the core."""
    a = Party()
    key = MeshTls(SECRET, NodeKey.generate())
    first, copy = Party(trust=key), Party(trust=key, boot="other")
    async with running(a, first, copy):
        await meet(a, first)
        first.transport.send(a.id, [Pull(())])
        await a.until(lambda: a.received)
        copy.transport.dial(a.id, [a.address])
        await copy.until(lambda: copy.duplicates)
        assert a.is_linked(key.node_id)

    assert [up.peer_hello.node.boot for up in a.of(PeerUp)] == ["boot"]
    assert a.reasons == [DUPLICATE_ID]
    assert not first.duplicates


async def test_a_node_of_another_mesh_is_refused_and_logged_once() -> None:
    """No link, no core event but a failed dial, one line in the dialler's log."""
    a = Party()
    foreign = Party(trust=MeshTls(generate_secret(), NodeKey.generate()))
    async with running(a, foreign):
        foreign.transport.dial(None, [a.address])
        await foreign.until(lambda: len(foreign.of(DialFailed)) == 1)
        foreign.transport.dial(None, [a.address])
        await foreign.until(lambda: len(foreign.of(DialFailed)) == 2)

    assert foreign.reasons == ["peer is not of our mesh"]
    assert not a.events


def renewed(secret: MeshSecret) -> MeshSecret:
    """Return the secret with a second generation in force."""
    return secret.with_new_generation(
        generate_generation(), 1, revoked=None
    ).with_newest_in_force(2)


@pytest.mark.parametrize("is_newer_dialling", [True, False])
async def test_a_node_with_an_ended_generation_is_refused(
    *, is_newer_dialling: bool
) -> None:
    """F31, F33: its secret file predates a rotation, and the dialler logs it."""
    newest = renewed(SECRET).with_newest_only(3)
    older, newer = Party(), Party(trust=MeshTls(newest, NodeKey.generate()))
    dialler, other = (newer, older) if is_newer_dialling else (older, newer)
    async with running(older, newer):
        dialler.transport.dial(None, [other.address])
        await dialler.until(lambda: dialler.of(DialFailed))
        await dialler.until(lambda: dialler.reasons)

    assert dialler.reasons == ["peer is not of our mesh"]
    assert not other.events
    assert not dialler.of(PeerUp)


@pytest.mark.parametrize("is_newer_dialling", [True, False])
async def test_a_node_with_the_previous_generation_is_accepted(
    *, is_newer_dialling: bool
) -> None:
    """F33: it was away during the rotation, and learns the new one over the link."""
    older, newer = Party(), Party(trust=MeshTls(renewed(SECRET), NodeKey.generate()))
    dialler, other = (newer, older) if is_newer_dialling else (older, newer)
    async with running(older, newer):
        dialler.transport.dial(None, [other.address])
        await dialler.until(lambda: dialler.of(PeerUp))
        await other.until(lambda: other.of(PeerUp))

    assert not dialler.of(DialFailed)


async def test_a_link_outlives_the_renewal_of_the_secret() -> None:
    """F33: new connections use the new generation; existing ones stay."""
    a, b = Party(), Party()
    newest = renewed(SECRET).with_newest_only(3)
    async with running(a, b):
        await meet(a, b)
        for party in (a, b):
            party.trust.adopt(await asyncio.to_thread(party.trust.prepare, newest))
        a.transport.send(b.id, [Pull(())])
        await b.until(lambda: b.received)
        late = Party(trust=MeshTls(newest, NodeKey.generate()))
        async with running(late):
            late.transport.dial(None, [a.address])
            await late.until(lambda: late.of(PeerUp))
            assert a.is_linked(b.id)


async def test_a_node_whose_secret_ends_before_its_hello_is_refused() -> None:
    """Its generation ended between the TLS handshake and HELLO."""
    slow = Party()
    newest = renewed(SECRET).with_newest_only(3)
    a = Party(trust=MeshTls(renewed(SECRET), NodeKey.generate()))
    async with running(a, slow):
        reader, writer = await asyncio.open_connection(
            a.address.host,
            a.address.port,
            ssl=slow.trust.client_contexts()[0],
            server_hostname=slow.trust.server_name,
        )
        await reader.readexactly(1)  # Its HELLO: TLS is done there, too.
        a.trust.use_secret(newest)
        writer.write(wire.encode([slow.hello()]) + wire.encode([HelloOk()]))
        await a.until(lambda: a.reasons)
        writer.close()

    assert a.reasons == ["the secret of this link is over"]
    assert not a.of(PeerUp)


@pytest.mark.parametrize(
    ("refusal_s", "reason"), [(60.0, NOT_ACCEPTED), (0.0, HANDSHAKE_TIMED_OUT)]
)
async def test_a_rejected_certificate_is_reported_as_a_wrong_secret(
    monkeypatch: pytest.MonkeyPatch, refusal_s: float, reason: str
) -> None:
    """With TLS 1.3 the dialler learns it only from the end of the connection.

    A busy peer also ends it after its timeout: that is no wrong secret.
    """
    monkeypatch.setattr(link, "REJECTION_S", refusal_s)
    a = Party()
    lenient = Party(trust=MeshTls(generate_secret(), NodeKey.generate()))
    context = lenient.trust.client_contexts()[0]
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=a.trust.node_ca_pem())
    async with running(a, lenient):
        lenient.transport.dial(None, [a.address])
        await lenient.until(lambda: lenient.of(DialFailed))

    assert lenient.reasons == [reason]
    assert a.reasons == ["peer is not of our mesh"]
    assert not a.events


async def test_a_peer_of_the_next_version_uses_this_version() -> None:
    """F39: fields and messages that this version does not know are ignored."""
    a, raw = Party(), Raw()
    next_hello = replace(raw.hello(a.hello()), version=2, version_min=1)
    unknown = (42, "what", 7)
    said = (
        next_frame(next_hello),
        next_frame(HelloOk(), unknown),
        next_frame(unknown, Pull(()), unknown),
        next_frame(Probe(a.id, 1.0)),
    )
    async with running(a):
        reader, writer = await asyncio.open_connection(
            *a.address, ssl=raw.trust.client_contexts()[0], server_hostname=""
        )
        writer.write(b"".join(said))
        await a.until(lambda: len(a.received) == 2)
        a.transport.send(raw.trust.node_id, [Pull(())])
        decoder = wire.Decoder(LIMITS)
        heard: list[Message] = []
        while len(heard) < 3:
            heard += decoder.receive_data(await reader.read(65536))
        writer.close()

    assert a.received == [Pull(()), Probe(a.id, 1.0)]
    assert heard == [a.hello(), HelloOk(), Pull(())]
    assert a.of(PeerUp)[0].peer_hello == next_hello
    assert not a.notes


async def test_an_unknown_message_of_a_peer_of_this_version_is_refused() -> None:
    """B39: unknown data closes the link, unless the peer's version may have it."""
    a, raw = Party(), Raw()
    first = wire.encode([raw.hello(a.hello()), HelloOk()])
    async with running(a):
        await _in_two(a, raw, first, next_frame((42,)))

    assert "Invalid value 42" in a.of(PeerDown)[0].reason


def next_frame(*messages: Message | tuple[object, ...]) -> bytes:
    """Return a frame of a later version, whose messages all have one more field."""
    body = msgpack.encode([[*to_builtins(message), "new"] for message in messages])
    return len(body).to_bytes(4, "big") + body


async def test_a_peer_of_another_protocol_version_is_refused_with_a_reason() -> None:
    """The log names both versions, once however often they meet."""
    a, b = Party(), Party(version=9)
    async with running(a, b):
        for dials in (1, 2):
            b.transport.dial(a.id, [a.address])
            await b.until(lambda dials=dials: len(b.of(DialFailed)) == dials)  # type: ignore[misc]
        await a.until(lambda: a.notes)

    assert len(a.notes) == len(b.notes) == 1
    assert "speaks versions 9 to 9" in str(a.reasons[0])
    assert not a.events


# Strangers


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the bytes that reach the frame decoder."""
    seen: list[int] = []
    take = wire.Decoder.add_data

    def feed(self: wire.Decoder, data: bytes) -> None:
        seen.append(len(data))
        take(self, data)

    monkeypatch.setattr(wire.Decoder, "add_data", feed)
    return seen


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01",
        b"",
        b"\x00" * 5000,
        wire.encode([HelloOk()]),
    ],
    ids=["http", "half a TLS hello", "silence", "zeros", "frames without TLS"],
)
async def test_a_stranger_is_disconnected_and_nothing_of_it_is_parsed(
    greeting: bytes, spy: list[int]
) -> None:
    """Plain HTTP and junk at once, silence after the handshake timeout."""
    a = Party(handshake_s=0.5)
    async with running(a):
        reader, writer = await asyncio.open_connection(*a.address)
        writer.write(greeting)
        async with asyncio.timeout(WAIT_S):
            with suppress(ConnectionError):
                while await reader.read(1000):
                    pass
        writer.close()

    assert not spy
    assert not a.events


@pytest.mark.parametrize("kind", ["self-signed", "no certificate"])
async def test_a_stranger_with_tls_is_disconnected_and_nothing_of_it_is_parsed(
    kind: str, spy: list[int]
) -> None:
    """The decoder runs only after a certificate of the mesh."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if kind == "self-signed":
        trustme.CA().issue_cert("node.test").configure_cert(context)
    a = Party()
    async with running(a):
        await _say(a, context, wire.encode([a.hello()]))

    assert not spy
    assert not a.events


@pytest.mark.parametrize("ending", abandoned.ENDINGS)
async def test_an_abandoned_handshake_leaves_nothing_in_memory(ending: str) -> None:
    """Its TLS state is freed at once, not by a later collection of cycles."""
    a = Party(hosts=("127.0.0.1",))
    async with running(a):
        with abandoned.without_collection():
            for _ in range(4):
                await abandoned.abandon(*a.address, ending)
            await until(lambda: not abandoned.tls_object_count())


async def _say(party: Party, context: ssl.SSLContext, data: bytes) -> bytes:
    """Send bytes over TLS and return all answers until the end."""
    answer = b""
    async with asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection(
            *party.address, ssl=context, server_hostname=""
        )
        with suppress(OSError):
            writer.write(data)
            while chunk := await reader.read(65536):
                answer += chunk
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return answer


async def test_pending_handshakes_of_one_address_are_bounded() -> None:
    """A ninth silent connection is closed at once; other addresses still connect."""
    a = Party(handshake_s=30.0, hosts=("127.0.0.1",))
    b = Party()
    async with running(a, b):
        silent = [
            await asyncio.open_connection(*a.address, local_addr=("127.0.1.1", 0))
            for _ in range(HANDSHAKES_PER_ADDRESS + 3)
        ]
        async with asyncio.timeout(WAIT_S):
            endings = [await reader.read() for reader, _ in silent[-3:]]
        assert endings == [b""] * 3
        assert len(a.transport._handshake_limiter) == HANDSHAKES_PER_ADDRESS
        a.transport.dial(b.id, [b.address])
        await b.until(lambda: b.is_linked(a.id))
        for _, writer in silent:
            writer.close()


async def test_many_agents_of_one_machine_are_all_accepted_at_once() -> None:
    """A hundred may start there in a moment; none has to dial a second time."""
    a = Party()
    others = [Party() for _ in range(40)]
    async with running(a, *others):
        for other in others:
            other.transport.dial(a.id, [a.address])
        await a.until(lambda: len(a.of(PeerUp)) == len(others))

    assert not any(other.of(DialFailed) for other in others)


async def test_strangers_of_this_machine_are_bounded_separately() -> None:
    """They may be many, within a limit, and take no place of other addresses."""
    a = Party(handshake_s=30.0)
    async with running(a):
        silent = [
            await asyncio.open_connection(*a.address)
            for _ in range(LOCAL_HANDSHAKES_MAX + 1)
        ]
        async with asyncio.timeout(WAIT_S):
            assert await silent[-1][0].read() == b""
        reader, writer = await asyncio.open_connection(
            *a.address,
            ssl=Raw().trust.client_contexts()[0],
            server_hostname="",
            local_addr=("127.0.1.1", 0),
        )
        await reader.readexactly(4)  # A HELLO starts: it was accepted.
        for _, connection in (*silent, (reader, writer)):
            connection.close()


async def test_a_member_in_its_hello_takes_no_place_of_a_stranger() -> None:
    """Its certificate is proof enough."""
    a, raw = Party(handshake_s=30.0), Raw()
    async with running(a):
        members = [
            await asyncio.open_connection(
                *a.address,
                ssl=raw.trust.client_contexts()[0],
                server_hostname="",
                local_addr=("127.0.1.1", 0),
            )
            for _ in range(HANDSHAKES_PER_ADDRESS + 1)
        ]
        for reader, _ in members:
            await reader.readexactly(4)  # The HELLO of this node: TLS is done.
        assert not len(a.transport._handshake_limiter)
        for _, writer in members:
            writer.close()


async def test_all_pending_handshakes_are_bounded() -> None:
    """Many silent machines cost a known number of descriptors.

    The longest wait makes room, from the address with the most.
    """
    a = Party(handshake_s=30.0)
    async with running(a):
        silent = []
        for i in range(HANDSHAKES_MAX + 8):
            # Of half of the places, four each; of the others, one each.
            host = i // 4 if i < HANDSHAKES_MAX // 2 else i
            local = (f"127.0.1.{host + 1}", 0)
            silent.append(await asyncio.open_connection(*a.address, local_addr=local))
        async with asyncio.timeout(WAIT_S):
            endings = [await reader.read() for reader, _ in silent[: 8 * 4 : 4]]
        assert endings == [b""] * 8
        assert len(a.transport._handshake_limiter) == HANDSHAKES_MAX
        for _, writer in silent:
            writer.close()


async def test_a_flood_of_handshakes_leaves_time_for_each() -> None:
    """Once half of the places are taken, an address gets one at a time.

    A member that has connected before is exempt: it may be back after a power cut.
    """
    a, raw = Party(handshake_s=30.0), Raw()
    member = partial(
        asyncio.open_connection,
        *a.address,
        ssl=raw.trust.client_contexts()[0],
        server_hostname=raw.trust.server_name,
        local_addr=("127.0.2.1", 0),
    )
    async with running(a), AsyncExitStack() as stack:
        _, before = await member()
        stack.callback(before.close)
        before.write(wire.encode([raw.hello(a.hello()), HelloOk()]))
        await a.until(lambda: a.of(PeerUp))
        for i in range(HANDSHAKES_MAX // 2):
            local = (f"127.0.1.{i // 8 + 1}", 0)
            _, writer = await asyncio.open_connection(*a.address, local_addr=local)
            stack.callback(writer.close)
        limiter = a.transport._handshake_limiter
        await until(lambda: len(limiter) == HANDSHAKES_MAX // 2)

        readers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(
                *a.address, local_addr=("127.0.3.1", 0)
            )
            stack.callback(writer.close)
            readers.append(reader)
        async with asyncio.timeout(WAIT_S):
            assert [await reader.read() for reader in readers[1:]] == [b"", b""]
        assert not readers[0].at_eof()
        for _ in range(3):
            reader, writer = await member()
            stack.callback(writer.close)
            assert await reader.readexactly(1)  # Its HELLO.


async def test_many_silent_addresses_lock_out_no_peer() -> None:
    """One machine has many IPv6 addresses, and could take all places."""
    a, raw = Party(handshake_s=30.0), Raw()
    async with running(a):
        silent = []
        for i in range(HANDSHAKES_MAX):
            host = i // 8 if i < HANDSHAKES_MAX // 2 else i
            local = (f"127.0.1.{host + 1}", 0)
            silent.append(await asyncio.open_connection(*a.address, local_addr=local))
        async with asyncio.timeout(WAIT_S):
            reader, writer = await asyncio.open_connection(
                *a.address,
                local_addr=("127.0.2.1", 0),
                ssl=raw.trust.client_contexts()[0],
                server_hostname=raw.trust.server_name,
            )
            assert await reader.readexactly(1)  # Its HELLO.
        for _, other in [*silent, (reader, writer)]:
            other.close()


# Members that misbehave


class Raw:
    """A member that sends anything."""

    def __init__(self) -> None:
        self.trust = MeshTls(SECRET, NodeKey.generate())

    def hello(self, template: Hello) -> Hello:
        return replace(template, node=replace(template.node, id=self.trust.node_id))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xff\xff\xff", "announced"),
        ((1 << 17).to_bytes(4, "big"), "announced"),
        (wire.encode([HelloOk()]), "HelloOk came before"),
        (wire.encode([Pull(())]), "Pull came before"),
        (b"\x00\x00\x00\x01\x80", "got `object`"),
        (b"\x00\x00\x06\x00" + b"\x91" * 1536, "truncated"),
        (b"\x00\x00\x00\x05\x91\x92\x4d\x90\x90", "trailing"),
    ],
    ids=[
        "4 GiB frame",
        "large hello",
        "ok first",
        "pull first",
        "map",
        "deep",
        "extra",
    ],
)
async def test_a_member_that_breaks_the_protocol_is_disconnected_with_the_reason(
    data: bytes, reason: str
) -> None:
    """The reason reaches the peer and the log; no event reaches the core."""
    a, raw = Party(), Raw()
    async with running(a):
        answer = await _say(a, raw.trust.client_contexts()[0], data)
        await a.until(lambda: a.notes)

    said = wire.Decoder(LIMITS).receive_data(answer)
    assert [type(message) for message in said] == [Hello, Leave]
    assert reason in str(a.reasons[0])
    assert not a.events


async def test_the_duration_of_a_handshake_is_reported() -> None:
    """The core needs it to compare the clocks in both HELLOs."""
    a, raw = Party(), Raw()
    async with running(a):
        reader, writer = await asyncio.open_connection(
            a.address.host, a.address.port, ssl=raw.trust.client_contexts()[0]
        )
        await reader.readexactly(1)
        await asyncio.sleep(0.1)
        writer.write(wire.encode([raw.hello(a.hello())]) + wire.encode([HelloOk()]))
        await a.until(lambda: a.of(PeerUp))
        writer.close()

    assert a.of(PeerUp)[0].handshake_ms >= 100


async def test_a_member_that_pretends_to_be_another_is_refused() -> None:
    """The id in HELLO must be that of the certificate."""
    a, b, raw = Party(), Party(), Raw()
    async with running(a, b):
        await _say(a, raw.trust.client_contexts()[0], wire.encode([b.hello()]))
        await a.until(lambda: a.notes)

    assert "that of another node" in str(a.reasons[0])
    assert not a.events


async def test_a_connected_member_that_breaks_the_protocol_is_disconnected() -> None:
    """Its earlier messages still count."""
    a, raw = Party(), Raw()
    data = (
        wire.encode([raw.hello(a.hello()), HelloOk(), Pull(())])
        + b"\x00\x00\x00\x01\x80"
    )
    first = wire.encode([raw.hello(a.hello()), HelloOk(), Pull(())])
    async with running(a):
        await _in_two(a, raw, first, data[len(first) :])

    kinds = [type(event) for event in a.events]
    assert kinds == [PeerUp, Received, PeerDown]
    assert a.of(PeerDown)[0].reason.startswith("protocol: ")


async def test_a_member_that_broke_the_protocol_is_refused_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B39: its next connection gets the reason and is not read; other peers connect."""
    monkeypatch.setattr(strangers, "REFUSED_S", 2 * WAIT_S)
    a, raw, other = Party(), Raw(), Raw()
    good = wire.encode([raw.hello(a.hello()), HelloOk()])
    async with running(a):
        await _say(a, raw.trust.client_contexts()[0], b"\xff\xff\xff\xff")
        answer = await _say(a, raw.trust.client_contexts()[0], good)
        assert wire.Decoder(LIMITS).receive_data(answer) == [
            Leave(strangers.VIOLATION_REASON)
        ]
        assert not a.events
        await _in_two(
            a, other, wire.encode([other.hello(a.hello()), HelloOk()]), b"\xff" * 4
        )

    assert {event.peer for event in a.of(PeerUp)} == {other.trust.node_id}


async def _in_two(a: Party, raw: Raw, first: bytes, second: bytes) -> None:
    before = len(a.of(PeerDown))
    reader, writer = await asyncio.open_connection(
        *a.address, ssl=raw.trust.client_contexts()[0], server_hostname=""
    )
    writer.write(first)
    await a.until(lambda: a.is_linked(raw.trust.node_id))
    writer.write(second)
    await a.until(lambda: len(a.of(PeerDown)) > before)
    with suppress(OSError):
        while await reader.read(1000):
            pass
    writer.close()


async def test_a_slow_member_that_sends_single_bytes_is_understood() -> None:
    """Frames may be split anywhere, in the handshake and after it."""
    a, raw = Party(), Raw()
    data = wire.encode([raw.hello(a.hello())]) + wire.encode([HelloOk(), Pull(())])
    async with running(a):
        _, writer = await asyncio.open_connection(
            *a.address, ssl=raw.trust.client_contexts()[0], server_hostname=""
        )
        for i in range(len(data)):
            writer.write(data[i : i + 1])
            await writer.drain()
        await a.until(lambda: a.received)
        writer.transport.abort()

    assert a.received == [Pull(())]


async def test_a_member_that_never_reads_loses_its_link() -> None:
    """The outbox is bounded, so our memory is, too."""
    a, raw = Party(outbox_bytes=1 << 20), Raw()
    ballast = Pull(tuple((1, 2**60 + i) for i in range(40_000)))  # type: ignore[misc]
    async with running(a):
        _, writer = await asyncio.open_connection(
            *a.address,
            ssl=raw.trust.client_contexts()[0],
            server_hostname="",
            limit=1024,
        )
        writer.write(wire.encode([raw.hello(a.hello()), HelloOk()]))
        await a.until(lambda: a.is_linked(raw.trust.node_id))
        async with asyncio.timeout(WAIT_S):
            while a.is_linked(raw.trust.node_id):
                a.transport.send(raw.trust.node_id, [ballast])
                await asyncio.sleep(0)
        writer.transport.abort()

    assert a.of(PeerDown)[0].reason == OVERFLOW
    assert OVERFLOW in a.reasons


async def test_peers_above_the_bound_are_refused() -> None:
    """A mesh has a largest size; later peers get the reason."""
    a = Party(limits=dataclasses.replace(LIMITS, peers=1))
    b, c = Party(), Party()
    async with running(a, b, c):
        await meet(b, a)
        c.transport.dial(a.id, [a.address])
        await c.until(lambda: c.of(DialFailed))

    assert c.reasons == ["too many peers"]


async def test_sending_to_an_absent_peer_does_nothing() -> None:
    """The link may have ended a moment ago; `PeerDown` will follow."""
    a = Party()
    async with running(a):
        a.transport.send(NodeId("nobody"), [Pull(())])
        a.transport.disconnect(NodeId("nobody"), DUPLICATE)

    assert not a.events
