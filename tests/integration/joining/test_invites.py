"""The invites of a member, from the side of those who knock at its door."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from octaskly.config.defaults import HANDSHAKES_MAX
from octaskly.core.model.ids import Address, Moment, NodeId
from octaskly.core.model.keyring_state import REVOKED_MAX
from octaskly.core.model.nodes import NodeInfo
from octaskly.errors import ConfigError, PairingFailed, TooManyInvites
from octaskly.joining.conversation import Conversation, connect_first, serve_connections
from octaskly.joining.greeting import (
    CLOCK_SKEW_MS_MAX,
    GREETING_BYTES,
    Greeting,
    RefusalReason,
)
from octaskly.joining.invites import FAILURES_MAX, OPEN_INVITES_MAX, InviteServer
from octaskly.joining.join_by_code import JoinClient, JoinTarget, resolve_target
from octaskly.joining.key_exchange import (
    DIGIT_COUNT,
    SHARE_BYTES,
    InviteCode,
    KeyExchange,
)
from octaskly.mesh.links.handshake_limits import LOCAL_HANDSHAKES_MAX
from octaskly.system.clock import SystemClock
from octaskly.system.listening_sockets import bind_port, port_of
from octaskly.system.log import configure
from octaskly.trust import NodeKey
from octaskly.trust.mesh_secret import GENERATIONS_MAX, RETIRED_MAX, MeshSecret
from tests.support.agents import WAIT_S_MAX

KEYRING = MeshSecret((bytes(20),)).to_text()


@dataclass
class Clock:
    """The system's clock, put forward by a test."""

    ahead_s: float = 0.0
    _system: SystemClock = field(default_factory=SystemClock)

    def now(self) -> Moment:
        now = self._system.now()
        return Moment(
            now.mono_s + self.ahead_s, now.wall_ms + round(self.ahead_s * 1000)
        )

    def draw(self) -> float:
        return self._system.draw()


@dataclass
class Door:
    """A member's invites, and what it takes to knock."""

    invites: InviteServer
    clock: Clock
    place: JoinTarget | None = None
    keyring: str = KEYRING
    failure: ConfigError | None = None

    def give(self) -> str:
        """Return what machines get, as a secret file that can be unusable."""
        if self.failure is not None:
            raise self.failure
        return self.keyring

    async def invite(self, ttl_s: int = 300) -> InviteCode:
        opened = await self.invites.open_invite(ttl_s)
        async for place in resolve_target(opened.endpoints[0]):
            self.place = place
        return InviteCode.parse(opened.code)

    async def join(self, code: InviteCode, clock: Clock | None = None) -> str:
        """Join with a code; return the keyring."""
        assert self.place is not None
        key = NodeKey.generate().public_bytes()
        joiner = JoinClient("bay", key, clock or self.clock, lambda _: None)
        return (await joiner.join_by_code(code, found(self.place))).secret_text

    async def knock(self, slot: int) -> tuple[Conversation, RefusalReason]:
        """Say hello for a slot; return the connection and the answer."""
        assert self.place is not None
        conversation = await connect_first(self.place.addresses)
        wall_ms = self.clock.now().wall_ms
        key = NodeKey.generate().public_bytes()
        hello = Greeting(name="eve", key=key, wall_ms=wall_ms, slot_or_port=slot)
        await conversation.send(hello.pack())
        said = await conversation.receive(GREETING_BYTES)
        return conversation, Greeting.unpack(said).refusal


async def found(*places: JoinTarget) -> AsyncIterator[JoinTarget]:
    """Yield members in the order in which they are heard of."""
    for place in places:
        yield place


@asynccontextmanager
async def door() -> AsyncIterator[Door]:
    clock = Clock()
    node = NodeInfo(
        id=NodeId("a" * 16),
        boot="0" * 16,
        name="ash",
        slots=1,
        version="0",
        peer_port=7878,
        lan_port=3443,
        addresses=("127.0.0.1",),
    )
    invites = InviteServer(
        node=node,
        node_key=NodeKey.generate().public_bytes(),
        mesh_id="0" * 16,
        secret_text=lambda: ash.give(),  # noqa: PLW0108  there is none yet
        addresses=["127.0.0.1"],
        interfaces=["lo"],
        clock=clock,
        log=configure("json", "error", {}),
    )
    async with asyncio.TaskGroup() as tasks:
        invites.start(tasks)
        ash = Door(invites, clock)
        yield ash
        await invites.close()


async def test_three_invites_may_be_open() -> None:
    """A fourth is refused, until one of them is over."""
    async with door() as ash:
        for _ in range(OPEN_INVITES_MAX):
            await ash.invite()

        with pytest.raises(TooManyInvites):
            await ash.invite()

        ash.clock.ahead_s += 301
        await ash.invite()


async def test_an_invite_expires() -> None:
    """A code that somebody finds on the screen an hour later opens nothing."""
    async with door() as ash:
        code = await ash.invite(ttl_s=60)
        await ash.invite(ttl_s=300)
        ash.clock.ahead_s += 61

        with pytest.raises(PairingFailed) as failed:
            await ash.join(code)

        assert str(failed.value.__cause__) == "the invite has expired"


async def test_an_invite_lets_one_machine_in() -> None:
    """The second one is told that it is used, and a stranger's slot that it is none."""
    async with door() as ash:
        code, _ = await ash.invite(), await ash.invite()

        assert await ash.join(code) == KEYRING

        with pytest.raises(PairingFailed) as used:
            await ash.join(code)
        assert "tried before" in str(used.value.__cause__)
        known = {code.slot, *ash.invites._open}
        free = next(slot for slot in range(1, 100) if slot not in known)
        with pytest.raises(PairingFailed) as unknown:
            await ash.join(InviteCode(free, "00000000"))
        assert "first number of the code" in str(unknown.value.__cause__)


async def test_a_clock_that_is_wrong_costs_no_code() -> None:
    """The joiner is told before it says anything that the code follows from."""
    async with door() as ash:
        code = await ash.invite()

        with pytest.raises(PairingFailed, match="minutes apart"):
            await ash.join(code, Clock(ahead_s=CLOCK_SKEW_MS_MAX / 1000 + 60))

        assert await ash.join(code) == KEYRING


async def test_who_hangs_up_after_the_shares_has_burnt_the_code() -> None:
    """Else he could come back and guess with what he has seen."""
    async with door() as ash:
        code, _ = await ash.invite(), await ash.invite()
        conversation, refusal = await ash.knock(code.slot)
        assert refusal is RefusalReason.NONE
        await conversation.send(
            KeyExchange.for_joiner(InviteCode(code.slot, "00000000")).share
        )
        await conversation.receive(SHARE_BYTES)
        conversation.close()

        with pytest.raises(PairingFailed, match="any more"):
            await ash.join(code)


async def test_who_only_says_hello_burns_nothing() -> None:
    """A scanner of ports, or a machine of another version, costs nobody a code."""
    async with door() as ash:
        code = await ash.invite()
        for _ in range(3):
            conversation, refusal = await ash.knock(code.slot)
            conversation.close()
            assert refusal is RefusalReason.NONE

        assert await ash.join(code) == KEYRING


async def test_of_guesses_at_the_same_moment_one_is_had() -> None:
    """All have said hello while the invite was open; whoever is quickest burns it."""
    async with door() as ash:
        code = await ash.invite()
        guess = InviteCode(
            code.slot, f"{(int(code.digits) + 1) % 10**DIGIT_COUNT:0{DIGIT_COUNT}}"
        )
        talks = [(await ash.knock(code.slot))[0] for _ in range(20)]

        async def guessed(conversation: Conversation) -> bool:
            try:
                await conversation.send(KeyExchange.for_joiner(guess).share)
                return len(await conversation.receive(SHARE_BYTES)) > 0
            except OSError:
                return False

        had = await asyncio.gather(*map(guessed, talks))
        assert sum(had) == 1
        with pytest.raises(PairingFailed, match="take that code any more"):
            await ash.join(code)
        for conversation in talks:
            conversation.close()


async def test_ten_failures_within_an_hour_burn_all_invites() -> None:
    """Whoever tries slots is stopped; a fresh command makes a fresh code."""
    async with door() as ash:
        code = await ash.invite()
        wrong = code.slot % 99 + 1
        for _ in range(FAILURES_MAX):
            conversation, refusal = await ash.knock(wrong)
            conversation.close()
            assert refusal is RefusalReason.NO_SLOT

        with pytest.raises(PairingFailed):
            await ash.join(code)
        assert await ash.join(await ash.invite()) == KEYRING


async def test_failures_of_an_hour_ago_are_forgotten() -> None:
    """A mistyped slot now and then is no attack."""
    async with door() as ash:
        code = await ash.invite(ttl_s=3600 * 2)
        for _ in range(FAILURES_MAX):
            conversation, _ = await ash.knock(code.slot % 99 + 1)
            conversation.close()
            ash.clock.ahead_s += 400

        assert await ash.join(code) == KEYRING


async def test_what_answers_elsewhere_is_named() -> None:
    """`--at` with the wrong port, or where nothing is any more."""
    async with door() as ash:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.close()
            ash.place = JoinTarget(None, (Address("127.0.0.1", 1),))
            with pytest.raises(PairingFailed) as refused:
                await ash.join(InviteCode(1, "00000000"))

    assert "no member has an open invite at 127.0.0.1 port 1" in str(refused.value)
    assert str(refused.value.__cause__) == "no program listens there"


async def test_where_several_invite_all_are_asked_as_they_are_heard_of() -> None:
    """The first that answers may have an invite, and not this one; or say nothing."""
    async with door() as ash, door() as elm:
        other = await ash.invite()
        # Another stays open, so that elm can be asked again. One of two has a number
        # that is not that of the invite of ash, which would burn it.
        opened = await elm.invite(), await elm.invite()
        code = next(one for one in opened if one.slot != other.slot)
        assert ash.place is not None
        assert elm.place is not None
        joiner = JoinClient("bay", b"k" * 32, elm.clock, lambda _: None)
        with socket.create_server(("127.0.0.1", 0)) as hung_up:
            hung_up.close()
            gone = JoinTarget(None, (Address("127.0.0.1", 1),))
            places = found(gone, ash.place, elm.place)
            admitted = await joiner.join_by_code(code, places)

        assert admitted.secret_text == KEYRING
        with pytest.raises(PairingFailed, match="does not take that code any more"):
            await joiner.join_by_code(code, found(elm.place, ash.place, gone))


async def test_of_two_invites_with_one_number_the_code_finds_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first is burnt by the guess; the second lets the machine in."""
    monkeypatch.setattr("octaskly.joining.invites.SLOT_MAX", 1)
    async with door() as ash, door() as elm:
        other, code = await ash.invite(), await elm.invite()
        assert other.slot == code.slot
        assert ash.place is not None
        assert elm.place is not None
        joiner = JoinClient("bay", b"k" * 32, elm.clock, lambda _: None)

        admitted = await joiner.join_by_code(code, found(ash.place, elm.place))

        assert admitted.secret_text == KEYRING


async def test_members_that_are_silent_keep_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any machine may say over mDNS that it invites, and then say nothing."""
    monkeypatch.setattr("octaskly.joining.join_by_code.GREETING_S", 3600.0)
    async with door() as ash:
        code = await ash.invite()
        assert ash.place is not None
        joiner = JoinClient("bay", b"k" * 32, ash.clock, lambda _: None)
        with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
            mute = JoinTarget(None, (Address("127.0.0.1", silent.getsockname()[1]),))
            admitted = await joiner.join_by_code(code, found(*[mute] * 7, ash.place))

    assert admitted.secret_text == KEYRING


async def test_no_address_holds_all_places() -> None:
    """Who connects and says nothing is cut off, and others get in meanwhile."""
    (listener,) = bind_port(
        "--port",
        requested=0,
        default=0,
        addresses=["127.0.0.1"],
        process_on=lambda _: None,
    )
    port = port_of([listener])
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def welcome(conversation: Conversation) -> None:
        await heard.put(await conversation.receive(1))

    async with asyncio.TaskGroup() as tasks, asyncio.timeout(WAIT_S_MAX):
        listening = tasks.create_task(serve_connections([listener], welcome))
        place = (Address("127.0.0.1", port),)
        silent = [await connect_first(place) for _ in range(LOCAL_HANDSHAKES_MAX)]
        surplus = await connect_first(place)
        with pytest.raises(ConnectionResetError):  # It is hung up on.
            await surplus.receive(1)
        await silent[0].send(b"x")
        assert await heard.get() == b"x"
        late = await connect_first(place)
        await late.send(b"y")
        assert await heard.get() == b"y"
        listening.cancel()
        for conversation in (*silent, surplus, late):
            conversation.close()


async def test_silent_addresses_without_number_keep_no_machine_out() -> None:
    """One machine has as many as it likes, by IPv6; who waits longest makes room."""
    async with door() as ash:
        code = await ash.invite()
        assert ash.place is not None
        there = ash.place.addresses[0]
        silent = []
        for i in range(HANDSHAKES_MAX):
            local = (f"127.0.1.{i + 1}", 0)
            silent.append(await asyncio.open_connection(*there, local_addr=local))
        reader, writer = await asyncio.open_connection(
            *there, local_addr=("127.0.2.1", 0)
        )
        now_ms = ash.clock.now().wall_ms
        hello = Greeting(
            name="bay", key=bytes(32), wall_ms=now_ms, slot_or_port=code.slot
        )
        writer.write(hello.pack())

        said = Greeting.unpack(await reader.readexactly(GREETING_BYTES))

        assert said.refusal is RefusalReason.NONE
        for _, other in [*silent, (reader, writer)]:
            other.close()


async def test_a_secret_file_that_cannot_be_read_ends_one_pairing_alone() -> None:
    """Not the agent: the next machine may come when somebody has mended it."""
    async with door() as ash:
        ash.failure = ConfigError("it can be read by others")
        with pytest.raises(PairingFailed):
            await ash.join(await ash.invite())
        ash.failure = None

        assert await ash.join(await ash.invite()) == KEYRING


async def test_the_longest_keyring_passes() -> None:
    """A mesh that has revoked many nodes still takes machines in."""
    async with door() as ash:
        names = (f"{number:016}" for number in range(REVOKED_MAX))
        ash.keyring = MeshSecret(
            (bytes(20),) * GENERATIONS_MAX,
            first_number=900_000_000,
            mesh_id="0" * 16,
            has_next=True,
            is_urgent=True,
            phase_since_ms=10**15 - 1,
            revocations=tuple((NodeId(name), 900_000_000) for name in names),
            retired=((900_000_000, "0" * 16),) * RETIRED_MAX,
        ).to_text()

        assert await ash.join(await ash.invite()) == ash.keyring
