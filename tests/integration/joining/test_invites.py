"""The invites of a member, as joining machines and strangers see them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

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
from octaskly.joining.invites import (
    FAILURES_MAX,
    LONG_TTL_S,
    OPEN_INVITES_MAX,
    InviteServer,
)
from octaskly.joining.join_by_code import (
    NEXT_MEMBER_S,
    JoinClient,
    JoinTarget,
    resolve_target,
)
from octaskly.joining.key_exchange import (
    DIGIT_COUNT,
    SHARE_BYTES,
    InviteCode,
    KeyExchange,
)
from octaskly.mesh.links.handshake_limits import LOCAL_HANDSHAKES_MAX
from octaskly.system.clock import SystemClock
from octaskly.system.listening_sockets import bind_port, port_of
from octaskly.system.log import Logger, configure
from octaskly.trust import NodeKey
from octaskly.trust.mesh_secret import GENERATIONS_MAX, RETIRED_MAX, MeshSecret
from octaskly.trust.tls import VisitGrant
from tests.support.agents import WAIT_S_MAX

KEYRING = MeshSecret((bytes(20),)).to_text()


@dataclass
class Clock:
    """The system's clock, which a test can advance."""

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
class Member:
    """A member's invites, and the settings of a joining machine."""

    invites: InviteServer
    clock: Clock
    place: JoinTarget | None = None
    keyring: str = KEYRING
    failure: ConfigError | None = None

    def give(self) -> str:
        """Return what admitted machines get, as a secret file that can be unusable."""
        if self.failure is not None:
            raise self.failure
        return self.keyring

    async def invite(self, ttl_s: int = 300, stay_s: int | None = None) -> InviteCode:
        opened = await self.invites.open_invite(ttl_s, stay_s, invited_by="ana")
        async for place in resolve_target(opened.endpoints[0]):
            self.place = place
        return InviteCode.parse(opened.code)

    async def join(self, code: InviteCode, clock: Clock | None = None) -> str:
        """Join with a code; return the keyring."""
        assert self.place is not None
        key = NodeKey.generate().public_bytes()
        joiner = JoinClient("bay", key, clock or self.clock, lambda _: None)
        return (await joiner.join_by_code(code, found(self.place))).secret_text

    async def greet(self, slot: int) -> tuple[Conversation, RefusalReason]:
        """Say hello for a slot; return the connection and the answer."""
        assert self.place is not None
        conversation = await connect_first(self.place.addresses)
        wall_ms = self.clock.now().wall_ms
        key = NodeKey.generate().public_bytes()
        hello = Greeting(name="eve", key=key, wall_ms=wall_ms, slot_or_port=slot)
        await conversation.send(hello.pack())
        said = await conversation.receive(GREETING_BYTES)
        return conversation, Greeting.unpack(said).refusal


class Lines:
    """A log that remembers the events of warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def info(self, event: str, **_fields: object) -> None: ...

    def warning(self, event: str, **_fields: object) -> None:
        self.warnings.append(event)


def grant(stay_s: int, host: str) -> str:
    """Return what a visitor gets instead of the secret."""
    return VisitGrant(
        mesh="0" * 16,
        server_name="member",
        certificate=f"of a guest of {host}",
        node_roots="",
        https_roots="",
        ends_ms=1000 * stay_s,
    ).to_text()


async def found(*places: JoinTarget) -> AsyncIterator[JoinTarget]:
    """Yield members in the order of discovery."""
    for place in places:
        yield place


@asynccontextmanager
async def member(log: Logger | None = None) -> AsyncIterator[Member]:
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
        grant_visit=lambda _key, stay_s, host: grant(stay_s, host),
        addresses=["127.0.0.1"],
        interfaces=["lo"],
        clock=clock,
        log=log or configure("json", "error", {}),
    )
    async with asyncio.TaskGroup() as tasks:
        invites.start(tasks)
        ash = Member(invites, clock)
        yield ash
        await invites.close()


async def test_three_invites_may_be_open() -> None:
    """A fourth is refused, until one of them has expired."""
    async with member() as ash:
        for _ in range(OPEN_INVITES_MAX):
            await ash.invite()

        with pytest.raises(TooManyInvites):
            await ash.invite()

        ash.clock.ahead_s += 301
        await ash.invite()


async def test_an_invite_expires() -> None:
    """A code that is found on the screen an hour later opens nothing."""
    async with member() as ash:
        code = await ash.invite(ttl_s=60)
        await ash.invite(ttl_s=300)
        ash.clock.ahead_s += 61

        with pytest.raises(PairingFailed) as failed:
            await ash.join(code)

        assert str(failed.value.__cause__) == "the invite has expired"


async def test_an_invite_admits_one_machine() -> None:
    """The second one learns that it is used, and an unknown slot is refused."""
    async with member() as ash:
        code, _ = await ash.invite(), await ash.invite()

        assert await ash.join(code) == KEYRING

        with pytest.raises(PairingFailed) as used:
            await ash.join(code)
        assert "already tried" in str(used.value.__cause__)
        known = {code.slot, *ash.invites._open}
        free = next(slot for slot in range(1, 100) if slot not in known)
        with pytest.raises(PairingFailed) as unknown:
            await ash.join(InviteCode(free, "00000000"))
        assert "first number of the code" in str(unknown.value.__cause__)


async def test_a_wrong_clock_uses_up_no_code() -> None:
    """The joiner learns it before it sends anything derived from the code."""
    async with member() as ash:
        code = await ash.invite()

        with pytest.raises(PairingFailed, match="minutes apart"):
            await ash.join(code, Clock(ahead_s=CLOCK_SKEW_MS_MAX / 1000 + 60))

        assert await ash.join(code) == KEYRING


async def test_a_joiner_that_hangs_up_after_the_shares_burns_the_code() -> None:
    """It could otherwise come back and guess with what it has seen."""
    async with member() as ash:
        code, _ = await ash.invite(), await ash.invite()
        conversation, refusal = await ash.greet(code.slot)
        assert refusal is RefusalReason.NONE
        await conversation.send(
            KeyExchange.for_joiner(InviteCode(code.slot, "00000000")).share
        )
        await conversation.receive(SHARE_BYTES)
        conversation.close()

        with pytest.raises(PairingFailed, match="no longer accepts"):
            await ash.join(code)


async def test_a_hello_alone_burns_nothing() -> None:
    """A port scanner, or a machine of another version, burns no code."""
    async with member() as ash:
        code = await ash.invite()
        for _ in range(3):
            conversation, refusal = await ash.greet(code.slot)
            conversation.close()
            assert refusal is RefusalReason.NONE

        assert await ash.join(code) == KEYRING


async def test_no_client_keeps_the_listener_beyond_the_last_invite() -> None:
    """It could try for more codes, or hold the port, for as long as it likes."""
    with contextlib.ExitStack() as held:
        async with member() as ash:
            code = await ash.invite()
            conversation, _ = await ash.greet(code.slot)
            held.callback(conversation.close)
            assert await ash.join(code) == KEYRING
            assert ash.place is not None
            places = ash.place.addresses

            async with asyncio.timeout(WAIT_S_MAX):
                with contextlib.suppress(ConnectionRefusedError):
                    while True:  # Each comes before the one before is over.
                        held.callback((await connect_first(places)).close)
                        await asyncio.sleep(0.01)

            again = await ash.invite()
            assert ash.place.addresses == places
            assert await ash.join(again) == KEYRING


async def test_a_member_that_stops_ends_its_conversations() -> None:
    """Nobody who is silent keeps it from stopping."""
    async with member() as ash:
        code = await ash.invite()
        conversation, _ = await ash.greet(code.slot)
        assert await ash.join(code) == KEYRING

    with pytest.raises(ConnectionError):
        await conversation.receive(1)
    conversation.close()


async def test_of_simultaneous_guesses_one_is_accepted() -> None:
    """All have sent hello while the invite was open; the first guess burns it."""
    async with member() as ash:
        code, _ = await ash.invite(), await ash.invite()
        guess = InviteCode(
            code.slot, f"{(int(code.secret) + 1) % 10**DIGIT_COUNT:0{DIGIT_COUNT}}"
        )
        talks = [(await ash.greet(code.slot))[0] for _ in range(20)]

        async def guessed(conversation: Conversation) -> bool:
            try:
                await conversation.send(KeyExchange.for_joiner(guess).share)
                return len(await conversation.receive(SHARE_BYTES)) > 0
            except OSError:
                return False

        had = await asyncio.gather(*map(guessed, talks))
        assert sum(had) == 1
        with pytest.raises(PairingFailed, match="longer accepts that code"):
            await ash.join(code)
        for conversation in talks:
            conversation.close()


async def test_ten_failures_within_an_hour_burn_all_invites() -> None:
    """This stops a guesser of slots; a new command makes a new code."""
    async with member() as ash:
        code = await ash.invite()
        wrong = code.slot % 99 + 1
        for _ in range(FAILURES_MAX):
            conversation, refusal = await ash.greet(wrong)
            conversation.close()
            assert refusal is RefusalReason.NO_SLOT

        with pytest.raises(PairingFailed):
            await ash.join(code)
        assert await ash.join(await ash.invite()) == KEYRING


async def test_failures_of_others_do_not_end_a_long_code() -> None:
    """Its 128 bits cannot be guessed, and it must last for hours."""
    async with member() as ash:
        code = await ash.invite(LONG_TTL_S + 1, stay_s=600)
        digit = "0" if code.secret[-1] != "0" else "1"
        guess = InviteCode(code.slot, code.secret[:-1] + digit)

        for _ in range(2 * FAILURES_MAX):
            with pytest.raises(PairingFailed):
                await ash.join(guess)

        assert await ash.join(code) == grant(600, "ana")


async def test_failures_of_a_stranger_do_not_fill_the_log() -> None:
    """It may fail as often as it likes; here, no code is revoked."""
    log = Lines()
    async with member(cast("Logger", log)) as ash:
        code = await ash.invite(LONG_TTL_S + 1, stay_s=600)
        for _ in range(3 * FAILURES_MAX):
            conversation, _ = await ash.greet(code.slot % 99 + 1)
            conversation.close()

    assert "all invites with short codes revoked" not in log.warnings
    assert FAILURES_MAX <= log.warnings.count("machine refused") < 2 * FAILURES_MAX


@pytest.mark.parametrize("ttl_s", [300, LONG_TTL_S + 1])
async def test_the_code_of_a_visitor_admits_one_and_never_gives_the_secret(
    ttl_s: int,
) -> None:
    """Whoever joins with it says what it likes of itself."""
    async with member() as ash:
        code = await ash.invite(ttl_s, stay_s=600)

        talks = await asyncio.gather(
            *(ash.join(code) for _ in range(5)), return_exceptions=True
        )

        admitted = [each for each in talks if isinstance(each, str)]
        assert admitted == [grant(600, "ana")]


async def test_failures_are_forgotten_after_an_hour() -> None:
    """A mistyped slot now and then is no attack."""
    async with member() as ash:
        code = await ash.invite(ttl_s=3600 * 2)
        for _ in range(FAILURES_MAX):
            conversation, _ = await ash.greet(code.slot % 99 + 1)
            conversation.close()
            ash.clock.ahead_s += 400

        assert await ash.join(code) == KEYRING


async def test_another_service_at_the_address_is_reported() -> None:
    """`--at` with the wrong port, or with nothing listening."""
    async with member() as ash:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.close()
            ash.place = JoinTarget(None, (Address("127.0.0.1", 1),))
            with pytest.raises(PairingFailed) as refused:
                await ash.join(InviteCode(1, "00000000"))

    assert "no member has an open invite at 127.0.0.1 port 1" in str(refused.value)
    assert str(refused.value.__cause__) == "no program listens there"


async def test_several_inviting_members_are_tried_in_order_of_discovery() -> None:
    """The first may have another invite, or stay silent."""
    async with member() as ash, member() as elm:
        other = await ash.invite()
        # Another invite stays open, so that elm can be asked again. One of two has a
        # number other than that of ash's invite, which would be burnt otherwise.
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
        with pytest.raises(PairingFailed, match="no longer accepts that code"):
            await joiner.join_by_code(code, found(elm.place, ash.place, gone))


async def test_of_two_invites_with_one_number_the_code_finds_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guess burns the first; the second admits the machine."""
    monkeypatch.setattr("octaskly.joining.invites.SLOT_MAX", 1)
    async with member() as ash, member() as elm:
        other, code = await ash.invite(), await elm.invite()
        assert other.slot == code.slot
        assert ash.place is not None
        assert elm.place is not None
        joiner = JoinClient("bay", b"k" * 32, elm.clock, lambda _: None)

        admitted = await joiner.join_by_code(code, found(ash.place, elm.place))

        assert admitted.secret_text == KEYRING


async def test_a_slow_member_is_given_its_time_after_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its code would be burnt, and the other member blamed."""
    monkeypatch.setattr("octaskly.joining.invites.SLOT_MAX", 1)
    async with member() as ash, member() as elm:
        await ash.invite()
        code = await elm.invite()
        assert ash.place is not None
        assert elm.place is not None
        joiner = JoinClient("bay", b"k" * 32, elm.clock, lambda _: None)

        send = elm.invites._send_secret

        async def send_slowly(*what: Any) -> bool:
            await asyncio.sleep(NEXT_MEMBER_S + 0.1)
            return await send(*what)

        monkeypatch.setattr(elm.invites, "_send_secret", send_slowly)
        admitted = await joiner.join_by_code(code, found(ash.place, elm.place))

        assert admitted.secret_text == KEYRING


async def test_silent_members_delay_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any machine may advertise invites over mDNS, and then stay silent."""
    monkeypatch.setattr("octaskly.joining.join_by_code.GREETING_S", 3600.0)
    async with member() as ash:
        code = await ash.invite()
        assert ash.place is not None
        joiner = JoinClient("bay", b"k" * 32, ash.clock, lambda _: None)
        with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
            mute = JoinTarget(None, (Address("127.0.0.1", silent.getsockname()[1]),))
            admitted = await joiner.join_by_code(code, found(*[mute] * 7, ash.place))

    assert admitted.secret_text == KEYRING


async def test_one_address_cannot_hold_all_places() -> None:
    """A silent connection is closed, and other addresses connect meanwhile."""
    (listener,) = bind_port(
        "--port",
        requested=0,
        default=0,
        addresses=["127.0.0.1"],
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
        with pytest.raises(ConnectionResetError):  # The member closes it.
            await surplus.receive(1)
        await silent[0].send(b"x")
        assert await heard.get() == b"x"
        late = await connect_first(place)
        await late.send(b"y")
        assert await heard.get() == b"y"
        listening.cancel()
        for conversation in (*silent, surplus, late):
            conversation.close()


async def test_many_silent_addresses_lock_out_no_machine() -> None:
    """One machine has many IPv6 addresses; the longest wait makes room."""
    async with member() as ash:
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


async def test_an_unreadable_secret_file_ends_one_pairing_only() -> None:
    """The agent goes on: the next machine may join after a repair."""
    async with member() as ash:
        ash.failure = ConfigError("it can be read by others")
        with pytest.raises(PairingFailed):
            await ash.join(await ash.invite())
        ash.failure = None

        assert await ash.join(await ash.invite()) == KEYRING


async def test_the_longest_keyring_is_sent() -> None:
    """A mesh that has revoked many nodes still admits machines."""
    async with member() as ash:
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
