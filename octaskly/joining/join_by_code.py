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
from octaskly.config.value_types import HostAndPort, InvalidValue
from octaskly.core.model.ids import Address
from octaskly.errors import ConfigError, OctasklyError, PairingFailed, TrustError
from octaskly.joining.conversation import EXCHANGE_S, Conversation, connect_first
from octaskly.joining.greeting import (
    GREETING_BYTES,
    Greeting,
    PairingRefused,
    RefusalReason,
)
from octaskly.joining.key_exchange import (
    PROOF_BYTES,
    SEALED_BYTES,
    SHARE_BYTES,
    InviteCode,
    KeyExchange,
    is_proof_valid,
    unseal_secret,
)
from octaskly.joining.state_folder import replace_mesh_secret
from octaskly.mesh.discovery.scan import scan_inviting_members
from octaskly.ports import Clock
from octaskly.trust import MeshSecret, SecretFile
from octaskly.trust.mesh_secret import parse_secret

DISCOVERY_S: Final = 5.0  #: for a member with an open invite
GREETING_S: Final = 3.0  #: for its first answer; others may invite, too
CONCURRENT_DIALS_MAX: Final = (
    8  #: members; who is silent keeps none of the others waiting
)
CODE_TRIES_MAX: Final = 3  #: members that may try one code, each with one guess
NEXT_MEMBER_S: Final = 1.0  #: for another with that number, once one did not accept it
MESH_ID_SHOWN_CHARS: Final = 4  #: of a mesh's id, enough for people who compare
_NEW_CODE: Final = "octaskly invite    on a member makes a new code"


@dataclass(frozen=True, slots=True)
class JoinTarget:
    """Where a member may let this machine in."""

    mesh: str | None  #: None: it is known by its address alone
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinGrant:
    """What a machine has that was let in."""

    secret_text: str = field(repr=False)
    member: str  #: name of the node that let it in
    seed: str  #: where that is dialled, as `HOST:PORT`


@dataclass(frozen=True, slots=True)
class _Greetings:
    """What both sides said before they showed anything of the code."""

    hello: bytes
    welcome: bytes
    member: Greeting


class _OpenConversation(NamedTuple):
    """A conversation with a member that has an invite of the code's number."""

    conversation: Conversation
    greetings: _Greetings


class _Failure(NamedTuple):
    """Why a member lets this machine not in, and how much that tells."""

    error: OctasklyError
    specificity: int


_NO_MEMBER, _NO_REPLY, _OTHER_INVITE, _CODE_REJECTED, _DISCOVERY_FAILED = range(5)


class JoinClient:
    """This machine, as it asks for a way in.

    Args:
        name: Of this node.
        key: Its public key.
        clock: What the other side compares its own with.
        tell: Takes lines on how it goes.
    """

    def __init__(
        self, name: str, key: bytes, clock: Clock, report: Callable[[str], None]
    ) -> None:
        self._name, self._key = name, key
        self._clock = clock
        self._report = report

    async def join_by_code(
        self, code: InviteCode, targets: AsyncIterable[JoinTarget]
    ) -> JoinGrant:
        """Return the keyring that the member has which showed this code.

        Others may invite, too, so all are asked at once as they come, and what the code
        is for is shown to the first that has its number. If that was not the one, since
        two have the same number, the next few may be.

        Raises:
            PairingFailed: no member took it, or it is not the right one.
        """
        talks: asyncio.Queue[_OpenConversation | _Failure | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(self._contact_members(code, targets, talks))
            outcome = await self._first_grant(code, talks)
            asking.cancel()
        while not talks.empty():
            if isinstance(talk := talks.get_nowait(), _OpenConversation):
                talk.conversation.close()
        if isinstance(outcome, OctasklyError):
            raise outcome
        return outcome

    async def _contact_members(
        self,
        code: InviteCode,
        targets: AsyncIterable[JoinTarget],
        talks: asyncio.Queue[_OpenConversation | _Failure | None],
    ) -> None:
        """Ask members as they come, some at a time; tell each answer, then None."""
        room = asyncio.Semaphore(CONCURRENT_DIALS_MAX)

        async def ask(place: JoinTarget) -> None:
            try:
                talks.put_nowait(await self._contact_member(code, place))
            finally:
                room.release()

        async with asyncio.TaskGroup() as tasks:
            try:
                async for place in targets:
                    await room.acquire()
                    tasks.create_task(ask(place))
            except OctasklyError as error:
                talks.put_nowait(_Failure(error, _DISCOVERY_FAILED))
        talks.put_nowait(None)

    async def _contact_member(
        self, code: InviteCode, target: JoinTarget
    ) -> _OpenConversation | _Failure:
        """Return a conversation with a member that has an invite of this number."""
        try:
            conversation = await connect_first(target.addresses)
        except OSError as error:
            return _Failure(_unreachable_error(target, error), _NO_REPLY)
        try:
            return _OpenConversation(
                conversation, await self._exchange_greetings(conversation, code, target)
            )
        except OSError:
            conversation.close()
            return _Failure(_not_inviting_error(conversation.host), _NO_REPLY)
        except PairingFailed as error:
            conversation.close()
            is_other = (
                isinstance(error, PairingRefused)
                and error.reason is RefusalReason.NO_SLOT
            )
            return _Failure(error, _OTHER_INVITE if is_other else _CODE_REJECTED)
        except BaseException:
            conversation.close()
            raise

    async def _first_grant(
        self,
        code: InviteCode,
        talks: asyncio.Queue[_OpenConversation | _Failure | None],
    ) -> JoinGrant | OctasklyError:
        """Return what the first member gives that accepts the code, or why none does.

        Of several failures the most telling: what a member says of this very code.
        """
        failures = [_Failure(no_open_invite_error(), _NO_MEMBER)]
        shown = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                while (
                    shown < CODE_TRIES_MAX and (talk := await talks.get()) is not None
                ):
                    if isinstance(talk, _Failure):
                        failures.append(talk)
                        continue
                    with contextlib.closing(talk.conversation):
                        try:
                            return await self._prove_code(talk, code)
                        except PairingFailed as error:
                            failures.append(_Failure(error, _CODE_REJECTED))
                    shown += 1
                    limit.reschedule(asyncio.get_running_loop().time() + NEXT_MEMBER_S)
        return max(failures, key=lambda failure: failure.specificity).error

    async def _exchange_greetings(
        self, conversation: Conversation, code: InviteCode, target: JoinTarget
    ) -> _Greetings:
        """Say hello; nothing of the code but its first number is in that."""
        hello = self._greeting(code.slot).pack()
        async with asyncio.timeout(GREETING_S):
            await conversation.send(hello)
            welcome = await conversation.receive(GREETING_BYTES)
        member = Greeting.unpack(welcome)
        member.require_compatible(self._clock.now().wall_ms)
        way = "" if target.mesh is None else " by mDNS"
        self._report(f"found {member.name} at {conversation.host}{way}")
        return _Greetings(hello, welcome, member)

    async def _prove_code(self, talk: _OpenConversation, code: InviteCode) -> JoinGrant:
        """Show that both know the code, and take the keyring."""
        conversation, greetings = talk
        exchange, member = KeyExchange.for_joiner(code), greetings.member
        try:
            async with asyncio.timeout(EXCHANGE_S):
                await conversation.send(exchange.share)
                share = await conversation.receive(SHARE_BYTES)
                keys = exchange.derive_keys(share, greetings.hello, greetings.welcome)
                await conversation.send(keys.joiner_proof())
                proof = await conversation.receive(PROOF_BYTES)
                if not is_proof_valid(proof, keys.member_proof()):
                    raise _wrong_code_error(member.name)
                sealed = await conversation.receive(SEALED_BYTES)
        except OSError as error:
            raise _connection_lost_error(member.name) from error
        keyring = unseal_secret(keys, sealed)
        mesh = parse_received_secret(keyring).mesh_id[:MESH_ID_SHOWN_CHARS]
        self._report(f"both sides proved that they know the code (mesh {mesh})")
        return JoinGrant(
            secret_text=keyring,
            member=member.name,
            seed=host_and_port(conversation.host, member.slot_or_port),
        )

    def _greeting(self, slot: int) -> Greeting:
        now_ms = self._clock.now().wall_ms
        return Greeting(
            name=self._name, key=self._key, wall_ms=now_ms, slot_or_port=slot
        )


async def discover_targets(
    interfaces: Sequence[str], own_mesh: str | None
) -> AsyncGenerator[JoinTarget]:
    """Yield the members in sight that have an open invite, of any other mesh.

    Raises:
        PairingFailed: all that are in sight are of this mesh.
    """
    meshes: set[str | None] = set()
    members = scan_inviting_members(DISCOVERY_S, interfaces)
    async with contextlib.aclosing(members):
        async for one in members:
            meshes.add(one.mesh)
            if one.mesh != own_mesh:
                yield JoinTarget(one.mesh, one.addresses)
    if meshes == {own_mesh}:
        raise PairingFailed(
            f"this machine is in the mesh {own_mesh} already",
            hint="octaskly nodes    shows its members",
        )


async def resolve_target(text: str) -> AsyncGenerator[JoinTarget]:
    """Yield where `HOST` or `HOST:PORT` says that a member invites.

    Raises:
        ConfigError: it is neither.
        PairingFailed: nothing has that name.
    """
    try:
        host, port = HostAndPort(PAIRING_PORT).parse_text(text)
    except InvalidValue as error:
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
    yield JoinTarget(None, tuple(Address(str(entry[4][0]), port) for entry in found))


def save_mesh_secret(paths: Paths, secret_text: str) -> Path | None:
    """Write the secret of the mesh for the next start; return where the old one went.

    Raises:
        PairingFailed: what the member sent is no keyring.
        ConfigError: it cannot be written.
    """
    secret = parse_received_secret(secret_text)
    has_one = os.path.lexists(paths.secret)
    old = SecretFile(paths.secret, paths.state).load() if has_one else None
    return replace_mesh_secret(paths, secret, old)


def parse_received_secret(secret_text: str) -> MeshSecret:
    """Return what a member sent.

    Raises:
        PairingFailed: it is no keyring.
    """
    try:
        return parse_secret(secret_text)
    except TrustError as error:
        raise PairingFailed(
            "what the member sent is no keyring", cause=str(error)
        ) from None


def no_open_invite_error() -> PairingFailed:
    """Return that nobody lets machines in."""
    return PairingFailed(
        "no member in sight has an open invite",
        cause="none was opened, or it has expired or was tried before, "
        "or multicast is blocked",
        hint=f"{_NEW_CODE}\n"
        "octaskly join --at HOST CODE    where multicast is blocked\n"
        "octaskly doctor    says whether it is",
    )


def _unreachable_error(place: JoinTarget, error: OSError) -> PairingFailed:
    where = place.addresses[0]
    is_refused = isinstance(error, ConnectionRefusedError)
    return PairingFailed(
        f"no member lets anybody in at {where.host} port {where.port}",
        cause="nothing listens there" if is_refused else "nobody answers there",
        hint="octaskly invite    on a member shows where it listens, "
        "while an invite is open",
    )


def _not_inviting_error(host: str) -> PairingFailed:
    return PairingFailed(
        f"what answers at {host} is no member with an open invite",
        hint="octaskly invite    on a member shows where it listens",
    )


def _wrong_code_error(member: str) -> PairingFailed:
    return PairingFailed(
        f"{member} does not accept the code",
        cause="a digit is wrong, or somebody else answered in its name; "
        "the code is burnt",
        hint=_NEW_CODE,
    )


def _connection_lost_error(member: str) -> PairingFailed:
    return PairingFailed(
        f"the connection to {member} was lost",
        cause="another machine may have used the code at the same time; it is burnt",
        hint=_NEW_CODE,
    )
