"""Invites of a member: each admits one machine, or one visitor, that has its code."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_field
from typing import Final

from msgspec.structs import replace

from octaskly.config.defaults import PAIRING_PORT
from octaskly.config.units import host_and_port
from octaskly.core.effects import LogLine
from octaskly.core.model.nodes import NodeInfo
from octaskly.errors import PairingFailed, TooManyInvites
from octaskly.joining.conversation import Conversation, serve_connections
from octaskly.joining.greeting import GREETING_BYTES, Greeting, RefusalReason
from octaskly.joining.key_exchange import (
    NO_PROOF,
    PROOF_BYTES,
    SHARE_BYTES,
    SLOT_MAX,
    VISITOR_SLOT_MAX,
    VISITOR_SLOT_MIN,
    InviteCode,
    KeyExchange,
    is_proof_valid,
    seal_secret,
)
from octaskly.mesh.discovery.mdns_scan import advertise_pairing
from octaskly.ports.join_service import IssuedInvite, VisitorInvite
from octaskly.ports.store import Clock
from octaskly.system.listening_sockets import bind_port, port_of
from octaskly.system.log import Logger, LogThrottle, log_line
from octaskly.trust.node_key import visitor_id_of

OPEN_INVITES_MAX: Final = 3  #: for members
VISITOR_INVITES_MAX: Final = 200  #: the same for visitors
LISTED_MAX: Final = 256  #: visitors' invites that are listed
LONG_TTL_S: Final = 3600  #: a code that is valid for longer is not typed by a person
FAILURES_MAX: Final = 10  #: within an hour; then all open invites are revoked
FAILURE_WINDOW_S: Final = 3600.0
CLOSED_SLOTS_MAX: Final = 32  #: closed slots whose reason is remembered


@dataclass(frozen=True, slots=True)
class _OpenInvite:
    """An invite whose code has not been tried yet."""

    code: InviteCode
    exchange: KeyExchange
    expires_s: float
    stay_s: int = 0  #: of a visitor
    invited_by: str = ""  #: subject


class InviteServer:
    """All invites of this node, with a listener while one is open.

    Args:
        node: This node as the mesh knows it.
        node_key: Its public key.
        mesh_id: Public name of the mesh.
        secret_text: Returns the secret file that an admitted machine receives.
        grant_visit: Returns what an admitted visitor receives, by its key, the
            seconds that it may stay, and who invited it.
        addresses: IP addresses to listen on.
        interfaces: Names of the interfaces to advertise on; empty for the default.
        clock: For the expiry of invites.
        log: Logs admitted and refused machines.
    """

    def __init__(
        self,
        *,
        node: NodeInfo,
        node_key: bytes,
        mesh_id: str,
        secret_text: Callable[[], str],
        grant_visit: Callable[[bytes, int, str], str],
        addresses: Sequence[str],
        interfaces: Sequence[str],
        clock: Clock,
        log: Logger,
    ) -> None:
        self._node, self._node_key, self._mesh_id = node, node_key, mesh_id
        self._secret_text, self._grant_visit = secret_text, grant_visit
        self._listed: dict[int, VisitorInvite] = {}
        self._addresses, self._interfaces = tuple(addresses), tuple(interfaces)
        self._clock, self._log = clock, log
        self._refusals = LogThrottle(lambda note: log_line(log, note))
        self._open: dict[int, _OpenInvite] = {}
        self._closed: dict[int, RefusalReason] = {}
        self._failures: deque[float] = deque(maxlen=FAILURES_MAX)
        self._conversations: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._listener_task: asyncio.Task[None] | None = None
        self._is_closing = False
        self._port = 0

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Set the task group, which owns the listener; required for invites."""
        self._group = tasks

    async def open_invite(
        self, ttl_s: int, visitor_stay_s: int | None = None, *, invited_by: str = ""
    ) -> IssuedInvite:
        """Open an invite; raises as `JoinService.open_invite`."""
        if self._is_closing and self._listener_task is not None:
            # Wait until the port is free: a different port would surprise people.
            await asyncio.wait([self._listener_task])
        self._expire_invites()
        is_visit = visitor_stay_s is not None
        self._check_open_count(is_visit=is_visit)
        self._ensure_listening()
        if not is_visit:
            self._failures.clear()  # A person has asked for a new invite.
        taken = self._open.keys() | self._closed.keys()
        slots = range(VISITOR_SLOT_MIN, VISITOR_SLOT_MAX + 1)
        slots = slots if is_visit else range(1, SLOT_MAX + 1)
        slot = secrets.choice([n for n in slots if n not in taken])
        code = InviteCode.generate(slot, is_long=ttl_s > LONG_TTL_S)
        now = self._clock.now()
        self._open[slot] = _OpenInvite(
            code,
            KeyExchange.for_member(code),
            now.mono_s + ttl_s,
            visitor_stay_s or 0,
            invited_by,
        )
        self._changed.set()
        self._log.info("invite opened", slot=slot, port=self._port, valid_s=ttl_s)
        expires_ms = now.wall_ms + ttl_s * 1000
        if is_visit:
            self._list_invite(VisitorInvite(slot=slot, expires_ms=expires_ms))
        return IssuedInvite(
            code=code.formatted(),
            expires_ms=expires_ms,
            endpoints=tuple(
                host_and_port(host, self._port)
                for host in self._node.addresses
                if "%" not in host  # A scope has no meaning on the other machine.
            ),
        )

    def _check_open_count(self, *, is_visit: bool) -> None:
        """Raise TooManyInvites if as many are open as may be."""
        alike = [o for o in self._open.values() if o.code.is_for_visitor is is_visit]
        most = VISITOR_INVITES_MAX if is_visit else OPEN_INVITES_MAX
        if len(alike) >= most:
            wait_s = min(one.expires_s for one in alike) - self._clock.now().mono_s
            raise TooManyInvites(
                f"{most} invites are open",
                hint=f"use one of them, or wait {wait_s:.0f} s until one expires",
            )

    def list_visitor_invites(self) -> list[VisitorInvite]:
        """Return the latest invites for visitors, with the visitors who came."""
        self._expire_invites()
        return list(self._listed.values())

    def revoke_invite(self, slot: int) -> None:
        """End an open invite for a visitor; one that is not open stays as it is."""
        if slot >= VISITOR_SLOT_MIN:
            self._invalidate_invite(slot, RefusalReason.EXPIRED, "revoked")

    def _list_invite(self, invite: VisitorInvite) -> None:
        self._listed.pop(invite.slot, None)
        self._listed[invite.slot] = invite
        if len(self._listed) > LISTED_MAX:
            del self._listed[next(iter(self._listed))]

    async def close(self) -> None:
        """Revoke all invites, stop listening and end all conversations."""
        self._group = None
        if self._listener_task is not None:
            if not self._is_closing:  # Otherwise it ends by itself.
                self._listener_task.cancel()
            await asyncio.wait([self._listener_task])
        for conversation in self._conversations:
            conversation.cancel()
        self._refusals.close()

    def set_addresses(self, addresses: Sequence[str]) -> None:
        """Use these addresses of this machine for invites from now on."""
        self._node = replace(self._node, addresses=tuple(addresses))
        if self._interfaces:
            self._addresses = self._node.addresses

    # --- listening -----------------------------------------------------------------

    def _ensure_listening(self) -> None:
        if self._listener_task is not None and not self._listener_task.done():
            return
        assert self._group is not None, "call start before open_invite"
        sockets = bind_port(
            "--pairing-port",
            requested=None,
            default=PAIRING_PORT,
            addresses=self._addresses,
        )
        self._port = port_of(sockets)
        self._is_closing = False
        accepting = self._accept_while_open(sockets, self._group)
        self._listener_task = self._group.create_task(accepting)

    async def _accept_while_open(
        self, sockets: list[socket.socket], handlers: asyncio.TaskGroup
    ) -> None:
        """Accept connections until no invite is open.

        A conversation may outlive that, as its invite ends in the middle of it. It has
        a timeout of its own, and no client can keep the port open.
        """
        serving = serve_connections(sockets, self._handle_connection, handlers)
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(serving), tasks.create_task(self._advertise())]
            while self._open:
                await self._wait_for_change()
                self._expire_invites()
            self._is_closing = True
            for task in work:
                task.cancel()

    async def _advertise(self) -> None:
        """Advertise the pairing port over mDNS until cancelled."""
        node = replace(self._node, peer_port=self._port)
        async with advertise_pairing(
            node, mesh_id=self._mesh_id, interfaces=self._interfaces
        ) as is_heard:
            if not is_heard:
                self._log.warning(
                    "invite not advertised",
                    hint="octaskly join --at HOST CODE    on the other machine",
                )
            await asyncio.Event().wait()

    async def _wait_for_change(self) -> None:
        """Wait until an invite expires or the invites change."""
        ends = [one.expires_s for one in self._open.values()]
        wait_s = min(ends) - self._clock.now().mono_s if ends else None
        try:
            async with asyncio.timeout(wait_s):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    # --- one machine ---------------------------------------------------------------

    async def _handle_connection(self, conversation: Conversation) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        try:
            await self._run_handshake(conversation)
        finally:
            self._conversations.discard(task)

    async def _run_handshake(self, conversation: Conversation) -> None:
        """Run the member's side of one pairing.

        Raises:
            OSError: The connection is lost.
            PairingFailed: The other side broke the protocol.
        """
        hello = await conversation.receive(GREETING_BYTES)
        welcome = self._greeting().pack()
        try:
            joiner = Greeting.unpack(hello)
        except PairingFailed:
            await conversation.send(welcome)  # A newer machine reads our version.
            raise
        self._expire_invites()
        if joiner.slot_or_port not in self._open:
            self._record_failure(conversation.host, "no such invite")
            refusal = self._closed.get(joiner.slot_or_port, RefusalReason.NO_SLOT)
            await conversation.send(self._greeting(refusal).pack())
            return
        await conversation.send(welcome)
        share = await conversation.receive(SHARE_BYTES)
        run = self._start_run(joiner.slot_or_port)
        if run is None:
            return  # Another machine has used the invite in the meantime.
        if await self._send_secret(conversation, run, share, hello, welcome):
            kind = "visitor" if run.code.is_for_visitor else "machine"
            self._log.info(
                f"{kind} admitted",
                name=joiner.name,
                node_id=joiner.node_id,
                address=conversation.host,
            )

    def _start_run(self, slot: int) -> _OpenInvite | None:
        """Return an open invite for one exchange, None if it is not open any more.

        A short code is valid for one try. A long one cannot be guessed, so that a try
        without it has no effect on who has it.
        """
        run = self._open.get(slot)
        if run is not None and run.code.is_long:
            return replace_field(run, exchange=KeyExchange.for_member(run.code))
        return self._invalidate_invite(slot, RefusalReason.USED, "used")

    def _sealed_text(self, run: _OpenInvite, joiner_key: bytes) -> str | None:
        """Return what an admitted machine gets; None if another one came first."""
        if not run.code.is_for_visitor:
            return self._secret_text()
        slot = run.code.slot
        is_first = self._invalidate_invite(slot, RefusalReason.USED, "used") is not None
        if not (is_first or not run.code.is_long):
            return None
        if (listed := self._listed.get(slot)) is not None:
            self._list_invite(
                replace_field(listed, state="used", node=visitor_id_of(joiner_key))
            )
        return self._grant_visit(joiner_key, run.stay_s, run.invited_by)

    async def _send_secret(
        self,
        conversation: Conversation,
        run: _OpenInvite,
        share: bytes,
        hello: bytes,
        welcome: bytes,
    ) -> bool:
        """Send the secret to a joiner that proves the code; return True if it did."""
        reason, exchange = "connection lost", run.exchange
        try:
            # Send the share before any computation with the code, because its duration
            # would leak information about the code.
            await conversation.send(exchange.share)
            keys = exchange.derive_keys(share, hello, welcome)
            proof = await conversation.receive(PROOF_BYTES)
            if not is_proof_valid(proof, keys.joiner_proof()):
                reason = "wrong code"
                await conversation.send(NO_PROOF)
                return False
            reason = "the secret file cannot be used"
            text = self._sealed_text(run, Greeting.unpack(hello).key)
            if text is None:
                reason = ""
                await conversation.send(NO_PROOF)
                return False
            sealed = seal_secret(keys, text)
            reason = "connection lost"
            await conversation.send(keys.member_proof() + sealed)
            reason = ""
        finally:
            if reason:
                self._record_failure(conversation.host, reason)
        return True

    def _greeting(self, refusal: RefusalReason = RefusalReason.NONE) -> Greeting:
        return Greeting(
            name=self._node.name,
            key=self._node_key,
            wall_ms=self._clock.now().wall_ms,
            slot_or_port=self._node.peer_port,
            refusal=refusal,
        )

    # --- ends of invites -----------------------------------------------------------

    def _expire_invites(self) -> None:
        now_s = self._clock.now().mono_s
        for slot, one in tuple(self._open.items()):
            if one.expires_s <= now_s:
                self._invalidate_invite(slot, RefusalReason.EXPIRED, "expired")

    def _invalidate_invite(
        self, slot: int, reason: RefusalReason, state: str
    ) -> _OpenInvite | None:
        """End an invite; return it if it was open."""
        run = self._open.pop(slot, None)
        if run is not None and (listed := self._listed.get(slot)) is not None:
            self._listed[slot] = replace_field(listed, state=state)
        if run is not None:
            self._closed[slot] = reason
            if len(self._closed) > CLOSED_SLOTS_MAX:
                del self._closed[next(iter(self._closed))]
            self._changed.set()
        return run

    def _record_failure(self, host: str, reason: str) -> None:
        """Record a failure; `FAILURES_MAX` within an hour revoke all short codes."""
        now_s = self._clock.now().mono_s
        self._failures.append(now_s)
        fields = (("address", host), ("reason", reason))
        self._refusals.take(LogLine("warning", "machine refused", fields))
        short = [slot for slot, run in self._open.items() if not run.code.is_long]
        is_full = len(self._failures) == FAILURES_MAX
        if short and is_full and now_s - self._failures[0] < FAILURE_WINDOW_S:
            for slot in short:
                self._invalidate_invite(slot, RefusalReason.USED, "revoked")
            self._log.warning(
                "all invites with short codes revoked",
                cause=f"{FAILURES_MAX} failures within an hour",
                hint="octaskly invite    creates a new one",
            )
