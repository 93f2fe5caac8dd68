"""Joiner's side of a pairing with an invite code.

`octaskly join` runs this in its own process, whether an agent runs or not. If it fails,
nothing has been changed on this machine.
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
from octaskly.joining.change_mesh import replace_mesh_secret
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
from octaskly.mesh.discovery.mdns_scan import scan_inviting_members
from octaskly.ports.store import Clock
from octaskly.trust import MeshSecret, SecretFile
from octaskly.trust.mesh_secret import parse_secret
from octaskly.trust.tls import VisitGrant, parse_visit_grant

DISCOVERY_S: Final = 5.0  #: time to find members with an open invite
GREETING_S: Final = 3.0  #: timeout for a member's greeting; others may invite, too
CONCURRENT_DIALS_MAX: Final = 8  #: so that a silent member does not delay the others
CODE_TRIES_MAX: Final = 3  #: members that may receive a proof of one code
NEXT_MEMBER_S: Final = 1.0  #: to wait for another member after one rejects the code
MESH_ID_SHOWN_CHARS: Final = 4  #: digits of a mesh id that are shown to people
_NEW_CODE: Final = "octaskly invite    on a member creates a new code"


@dataclass(frozen=True, slots=True)
class JoinTarget:
    """A member that may have an open invite."""

    mesh: str | None  #: None: only the address is known
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinGrant:
    """The result of a successful pairing."""

    secret_text: str = field(repr=False)  #: the secret file, or a visitor's grant
    member: str  #: name of the node that admitted this machine
    seed: str  #: peer address of that node, as `HOST:PORT`


@dataclass(frozen=True, slots=True)
class _Greetings:
    """The greetings of both sides, which the key exchange authenticates."""

    hello: bytes
    welcome: bytes
    member: Greeting


class _OpenConversation(NamedTuple):
    """A connection to a member with an open invite for the code's slot."""

    conversation: Conversation
    greetings: _Greetings


class _Failure(NamedTuple):
    """Failure of a pairing with one member; the most specific failure is reported."""

    error: OctasklyError
    specificity: int


_NO_MEMBER, _NO_REPLY, _OTHER_INVITE, _CODE_REJECTED, _DISCOVERY_FAILED = range(5)


class JoinClient:
    """The joiner's side of a pairing with an invite code.

    Args:
        name: Name of this node.
        key: Its public key.
        clock: The members compare it with theirs.
        report: Called with lines about the progress.
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
        """Pair with the member that has issued this code.

        Several members may have open invites. All are greeted concurrently, and the
        proof of the code goes to the first one with an open invite for its slot. If
        that member rejects the code, another member may have an invite with the same
        slot, so the next ones are tried, up to `CODE_TRIES_MAX`.

        Raises:
            PairingFailed: No member accepted the code.
        """
        replies: asyncio.Queue[_OpenConversation | _Failure | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            contacts = tasks.create_task(self._contact_members(code, targets, replies))
            outcome = await self._first_grant(code, replies)
            contacts.cancel()
        while not replies.empty():
            if isinstance(reply := replies.get_nowait(), _OpenConversation):
                reply.conversation.close()
        if isinstance(outcome, OctasklyError):
            raise outcome
        return outcome

    async def _contact_members(
        self,
        code: InviteCode,
        targets: AsyncIterable[JoinTarget],
        replies: asyncio.Queue[_OpenConversation | _Failure | None],
    ) -> None:
        """Greet members concurrently as they are found; queue each reply, then None."""
        limit = asyncio.Semaphore(CONCURRENT_DIALS_MAX)

        async def contact(target: JoinTarget) -> None:
            try:
                replies.put_nowait(await self._contact_member(code, target))
            finally:
                limit.release()

        async with asyncio.TaskGroup() as tasks:
            try:
                async for target in targets:
                    await limit.acquire()
                    tasks.create_task(contact(target))
            except OctasklyError as error:
                replies.put_nowait(_Failure(error, _DISCOVERY_FAILED))
        replies.put_nowait(None)

    async def _contact_member(
        self, code: InviteCode, target: JoinTarget
    ) -> _OpenConversation | _Failure:
        """Greet a member; return the connection if it has an invite for the slot."""
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
        replies: asyncio.Queue[_OpenConversation | _Failure | None],
    ) -> JoinGrant | OctasklyError:
        """Return the grant of the first member that accepts the code, or an error.

        Of several errors, the most specific one is returned.
        """
        failures = [_Failure(no_open_invite_error(), _NO_MEMBER)]
        tries = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                while (
                    tries < CODE_TRIES_MAX
                    and (reply := await replies.get()) is not None
                ):
                    if isinstance(reply, _Failure):
                        failures.append(reply)
                        continue
                    limit.reschedule(None)  # `EXCHANGE_S` bounds the exchange.
                    with contextlib.closing(reply.conversation):
                        try:
                            return await self._prove_code(reply, code)
                        except PairingFailed as error:
                            failures.append(_Failure(error, _CODE_REJECTED))
                    tries += 1
                    limit.reschedule(asyncio.get_running_loop().time() + NEXT_MEMBER_S)
        return max(failures, key=lambda failure: failure.specificity).error

    async def _exchange_greetings(
        self, conversation: Conversation, code: InviteCode, target: JoinTarget
    ) -> _Greetings:
        """Exchange greetings; ours contains only the slot of the code."""
        hello = self._greeting(code.slot).pack()
        async with asyncio.timeout(GREETING_S):
            await conversation.send(hello)
            welcome = await conversation.receive(GREETING_BYTES)
        member = Greeting.unpack(welcome)
        member.require_compatible(self._clock.now().wall_ms)
        suffix = "" if target.mesh is None else " by mDNS"
        self._report(f"found {member.name} at {conversation.host}{suffix}")
        return _Greetings(hello, welcome, member)

    async def _prove_code(
        self, opened: _OpenConversation, code: InviteCode
    ) -> JoinGrant:
        """Prove the code to each other, and receive the mesh secret."""
        conversation, greetings = opened
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
        secret_text = unseal_secret(keys, sealed)
        mesh = _received_mesh(secret_text, code)[:MESH_ID_SHOWN_CHARS]
        self._report(f"both sides proved that they know the code (mesh {mesh})")
        return JoinGrant(
            secret_text=secret_text,
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
    """Yield the members of other meshes that advertise an open invite.

    Raises:
        PairingFailed: All members that were found are of this mesh.
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
    """Yield the target for `HOST` or `HOST:PORT`.

    Raises:
        ConfigError: The text is neither.
        PairingFailed: The host name cannot be resolved.
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
            f"the host name {host!r} cannot be resolved",
            cause=error.strerror,
            hint="octaskly invite    on a member shows its addresses",
        ) from error
    yield JoinTarget(None, tuple(Address(str(entry[4][0]), port) for entry in found))


def save_mesh_secret(paths: Paths, secret_text: str) -> Path | None:
    """Write the mesh secret for the next start; return the folder of the old one.

    Raises:
        PairingFailed: The text is not a mesh secret.
        ConfigError: The secret cannot be written.
    """
    secret = parse_received_secret(secret_text)
    has_one = os.path.lexists(paths.secret)
    old = SecretFile(paths.secret, paths.state).load() if has_one else None
    return replace_mesh_secret(paths, secret, old)


def parse_received_secret(secret_text: str) -> MeshSecret:
    """Parse the mesh secret that a member sent.

    Raises:
        PairingFailed: The text is not a mesh secret.
    """
    try:
        return parse_secret(secret_text)
    except TrustError as error:
        raise PairingFailed(
            "the member sent an invalid mesh secret", cause=error.message
        ) from None


def parse_received_grant(text: str) -> VisitGrant:
    """Parse what a member sent to a visitor.

    Raises:
        PairingFailed: It is malformed.
    """
    try:
        return parse_visit_grant(text)
    except TrustError as error:
        raise PairingFailed("the member sent an invalid grant of a visit") from error


def _received_mesh(text: str, code: InviteCode) -> str:
    if code.is_for_visitor:
        return parse_received_grant(text).mesh
    return parse_received_secret(text).mesh_id


def no_open_invite_error() -> PairingFailed:
    """Return the error for a search that found no open invite."""
    return PairingFailed(
        "no visible member has an open invite",
        cause="there is none, it has expired or was already tried, or multicast "
        "is blocked",
        hint=f"{_NEW_CODE}\n"
        "octaskly join --at HOST CODE    if multicast is blocked\n"
        "octaskly doctor    shows whether it is",
    )


def _unreachable_error(target: JoinTarget, error: OSError) -> PairingFailed:
    address = target.addresses[0]
    is_refused = isinstance(error, ConnectionRefusedError)
    return PairingFailed(
        f"no member has an open invite at {address.host} port {address.port}",
        cause="no program listens there" if is_refused else "nothing answers there",
        hint="octaskly invite    on a member shows where it listens, "
        "while an invite is open",
    )


def _not_inviting_error(host: str) -> PairingFailed:
    return PairingFailed(
        f"the program that answers at {host} is not a member with an open invite",
        hint="octaskly invite    on a member shows where it listens",
    )


def _wrong_code_error(member: str) -> PairingFailed:
    return PairingFailed(
        f"{member} does not accept the code",
        cause="a digit is wrong, or another machine impersonates the member; the "
        "code is no longer valid",
        hint=_NEW_CODE,
    )


def _connection_lost_error(member: str) -> PairingFailed:
    return PairingFailed(
        f"the connection to {member} was lost",
        cause="another machine may have used the code at the same time; it is no "
        "longer valid",
        hint=_NEW_CODE,
    )
