"""The joiner's side of a pairing: from a code to the keyring of a mesh.

`octaskly join` runs this in its own short life, with an agent or without; whatever
fails, nothing has been changed on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from octaskly.config.defaults import PAIRING_PORT
from octaskly.config.paths import Paths
from octaskly.config.units import host_and_port
from octaskly.config.value_types import Peer, Unusable
from octaskly.core.model.ids import Address
from octaskly.errors import ConfigError, OctasklyError, PairingFailed, TrustError
from octaskly.joining.conversation import EXCHANGE_S, Conversation, call
from octaskly.joining.greeting import GREETING_BYTES, Greeting, Refusal, Refused
from octaskly.joining.key_exchange import (
    PROOF_BYTES,
    SEALED_BYTES,
    SHARE_BYTES,
    Code,
    Exchange,
    is_proof,
    unseal,
)
from octaskly.joining.state_folder import take_over
from octaskly.mesh.discovery.scan import members_that_invite
from octaskly.ports import Clock
from octaskly.trust import Keyring, MeshSecret
from octaskly.trust.mesh_secret import parse

LOOK_S: Final = 5.0  #: for a member with an open invite
GREETING_S: Final = 3.0  #: for its first answer; others may invite, too
ASKED_AT_ONCE: Final = 8  #: members; who is silent keeps none of the others waiting
SHOWN_MAX: Final = 3  #: members that may try one code, each with one guess
OTHERS_S: Final = 1.0  #: for another with that number, once one did not accept it
MESH_CHARS: Final = 4  #: of a mesh's id, enough for people who compare
_NEW_CODE: Final = "octaskly invite    on a member makes a new code"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member may let this machine in."""

    mesh: str | None  #: None: it is known by its address alone
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What a machine has that was let in."""

    keyring: str = field(repr=False)
    member: str  #: name of the node that let it in
    seed: str  #: where that is dialled, as `HOST:PORT`


@dataclass(frozen=True, slots=True)
class _Greetings:
    """What both sides said before they showed anything of the code."""

    hello: bytes
    welcome: bytes
    member: Greeting


class _Talk(NamedTuple):
    """A conversation with a member that has an invite of the code's number."""

    conversation: Conversation
    greetings: _Greetings


class _Failure(NamedTuple):
    """Why a member lets this machine not in, and how much that tells."""

    error: OctasklyError
    weight: int


_OF_NOBODY, _OF_SILENCE, _OF_ANOTHER, _OF_THE_CODE, _OF_THE_LOOK = range(5)


class Joiner:
    """This machine, as it asks for a way in.

    Args:
        name: Of this node.
        key: Its public key.
        clock: What the other side compares its own with.
        tell: Takes lines on how it goes.
    """

    def __init__(
        self, name: str, key: bytes, clock: Clock, tell: Callable[[str], None]
    ) -> None:
        self._name, self._key = name, key
        self._clock = clock
        self._tell = tell

    async def by_code(self, code: Code, places: AsyncIterable[Place]) -> Admitted:
        """Return the keyring that the member has which showed this code.

        Others may invite, too, so all are asked at once as they come, and what the code
        is for is shown to the first that has its number. If that was not the one, since
        two have the same number, the next few may be.

        Raises:
            PairingFailed: no member took it, or it is not the right one.
        """
        talks: asyncio.Queue[_Talk | _Failure | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(self._ask_all(code, places, talks))
            outcome = await self._outcome(code, talks)
            asking.cancel()
        while not talks.empty():
            if isinstance(talk := talks.get_nowait(), _Talk):
                talk.conversation.close()
        if isinstance(outcome, OctasklyError):
            raise outcome
        return outcome

    async def _ask_all(
        self,
        code: Code,
        places: AsyncIterable[Place],
        talks: asyncio.Queue[_Talk | _Failure | None],
    ) -> None:
        """Ask members as they come, some at a time; tell each answer, then None."""
        room = asyncio.Semaphore(ASKED_AT_ONCE)

        async def ask(place: Place) -> None:
            try:
                talks.put_nowait(await self._asked(code, place))
            finally:
                room.release()

        async with asyncio.TaskGroup() as tasks:
            try:
                async for place in places:
                    await room.acquire()
                    tasks.create_task(ask(place))
            except OctasklyError as error:
                talks.put_nowait(_Failure(error, _OF_THE_LOOK))
        talks.put_nowait(None)

    async def _asked(self, code: Code, place: Place) -> _Talk | _Failure:
        """Return a conversation with a member that has an invite of this number."""
        try:
            conversation = await call(place.addresses)
        except OSError as error:
            return _Failure(_unreachable(place, error), _OF_SILENCE)
        try:
            return _Talk(conversation, await self._greet(conversation, code, place))
        except OSError:
            conversation.close()
            return _Failure(_no_pairing(conversation.host), _OF_SILENCE)
        except PairingFailed as error:
            conversation.close()
            is_other = isinstance(error, Refused) and error.why is Refusal.NO_SLOT
            return _Failure(error, _OF_ANOTHER if is_other else _OF_THE_CODE)
        except BaseException:
            conversation.close()
            raise

    async def _outcome(
        self, code: Code, talks: asyncio.Queue[_Talk | _Failure | None]
    ) -> Admitted | OctasklyError:
        """Return what the first member gives that accepts the code, or why none does.

        Of several failures the most telling: what a member says of this very code.
        """
        failures = [_Failure(no_invite(), _OF_NOBODY)]
        shown = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                while shown < SHOWN_MAX and (talk := await talks.get()) is not None:
                    if isinstance(talk, _Failure):
                        failures.append(talk)
                        continue
                    with contextlib.closing(talk.conversation):
                        try:
                            return await self._proven(talk, code)
                        except PairingFailed as error:
                            failures.append(_Failure(error, _OF_THE_CODE))
                    shown += 1
                    limit.reschedule(asyncio.get_running_loop().time() + OTHERS_S)
        return max(failures, key=lambda failure: failure.weight).error

    async def _greet(
        self, conversation: Conversation, code: Code, place: Place
    ) -> _Greetings:
        """Say hello; nothing of the code but its first number is in that."""
        hello = self._greeting(code.slot).pack()
        async with asyncio.timeout(GREETING_S):
            await conversation.say(hello)
            welcome = await conversation.hear(GREETING_BYTES)
        member = Greeting.unpack(welcome)
        member.check(self._clock.now().wall_ms)
        way = "" if place.mesh is None else " by mDNS"
        self._tell(f"found {member.name} at {conversation.host}{way}")
        return _Greetings(hello, welcome, member)

    async def _proven(self, talk: _Talk, code: Code) -> Admitted:
        """Show that both know the code, and take the keyring."""
        conversation, greetings = talk
        exchange, member = Exchange.of_joiner(code), greetings.member
        try:
            async with asyncio.timeout(EXCHANGE_S):
                await conversation.say(exchange.share)
                share = await conversation.hear(SHARE_BYTES)
                keys = exchange.finish(share, greetings.hello, greetings.welcome)
                await conversation.say(keys.joiner_proof())
                proof = await conversation.hear(PROOF_BYTES)
                if not is_proof(proof, keys.member_proof()):
                    raise _wrong_code(member.name)
                sealed = await conversation.hear(SEALED_BYTES)
        except OSError as error:
            raise _lost(member.name) from error
        keyring = unseal(keys, sealed)
        mesh = parsed(keyring).mesh_id[:MESH_CHARS]
        self._tell(f"both sides proved that they know the code (mesh {mesh})")
        return Admitted(
            keyring=keyring,
            member=member.name,
            seed=host_and_port(conversation.host, member.number),
        )

    def _greeting(self, slot: int) -> Greeting:
        now_ms = self._clock.now().wall_ms
        return Greeting(name=self._name, key=self._key, wall_ms=now_ms, number=slot)


async def places_in_sight(
    interfaces: Sequence[str], own_mesh: str | None
) -> AsyncGenerator[Place]:
    """Yield the members in sight that have an open invite, of any other mesh.

    Raises:
        PairingFailed: all that are in sight are of this mesh.
    """
    meshes: set[str | None] = set()
    members = members_that_invite(LOOK_S, interfaces)
    async with contextlib.aclosing(members):
        async for one in members:
            meshes.add(one.mesh)
            if one.mesh != own_mesh:
                yield Place(one.mesh, one.addresses)
    if meshes == {own_mesh}:
        raise PairingFailed(
            f"this machine is in the mesh {own_mesh} already",
            hint="octaskly nodes    shows its members",
        )


async def place_at(text: str) -> AsyncGenerator[Place]:
    """Yield where `HOST` or `HOST:PORT` says that a member invites.

    Raises:
        ConfigError: it is neither.
        PairingFailed: nothing has that name.
    """
    try:
        host, port = Peer(PAIRING_PORT).of_text(text)
    except Unusable as error:
        raise ConfigError(
            f"--at {error}", hint="octaskly join --at 192.168.1.20 CODE"
        ) from None
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise PairingFailed(
            f"nothing is called {host!r}",
            cause=error.strerror,
            hint="octaskly invite    on a member shows its addresses",
        ) from error
    yield Place(None, tuple(Address(str(entry[4][0]), port) for entry in found))


def keep(paths: Paths, keyring: str) -> Path | None:
    """Write the secret of the mesh for the next start; return where the old one went.

    Raises:
        PairingFailed: what the member sent is no keyring.
        ConfigError: it cannot be written.
    """
    secret = parsed(keyring)
    has_one = os.path.lexists(paths.secret)
    old = Keyring(paths.secret, paths.state).load() if has_one else None
    return take_over(paths, secret, old)


def parsed(keyring: str) -> MeshSecret:
    """Return what a member sent.

    Raises:
        PairingFailed: it is no keyring.
    """
    try:
        return parse(keyring)
    except TrustError as error:
        raise PairingFailed(
            "what the member sent is no keyring", cause=str(error)
        ) from None


def no_invite() -> PairingFailed:
    """Return that nobody lets machines in."""
    return PairingFailed(
        "no member in sight has an open invite",
        cause="none was opened, or it has expired or was tried before, "
        "or multicast is blocked",
        hint=f"{_NEW_CODE}\n"
        "octaskly join --at HOST CODE    where multicast is blocked\n"
        "octaskly doctor    says whether it is",
    )


def _unreachable(place: Place, error: OSError) -> PairingFailed:
    where = place.addresses[0]
    is_refused = isinstance(error, ConnectionRefusedError)
    return PairingFailed(
        f"no member lets anybody in at {where.host} port {where.port}",
        cause="nothing listens there" if is_refused else "nobody answers there",
        hint="octaskly invite    on a member shows where it listens, "
        "while an invite is open",
    )


def _no_pairing(host: str) -> PairingFailed:
    return PairingFailed(
        f"what answers at {host} is no member with an open invite",
        hint="octaskly invite    on a member shows where it listens",
    )


def _wrong_code(member: str) -> PairingFailed:
    return PairingFailed(
        f"{member} does not accept the code",
        cause="a digit is wrong, or somebody else answered in its name; "
        "the code is burnt",
        hint=_NEW_CODE,
    )


def _lost(member: str) -> PairingFailed:
    return PairingFailed(
        f"the connection to {member} was lost",
        cause="another machine may have used the code at the same time; it is burnt",
        hint=_NEW_CODE,
    )
