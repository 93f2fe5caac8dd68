"""Invites of a member: each open invite admits one machine that knows its code."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from octaskly.config.defaults import PAIRING_PORT
from octaskly.config.units import host_and_port
from octaskly.core.model.nodes import NodeInfo
from octaskly.errors import PairingFailed, TooManyInvites
from octaskly.joining.conversation import Conversation, serve_connections
from octaskly.joining.greeting import GREETING_BYTES, Greeting, RefusalReason
from octaskly.joining.key_exchange import (
    NO_PROOF,
    PROOF_BYTES,
    SHARE_BYTES,
    SLOT_MAX,
    InviteCode,
    KeyExchange,
    is_proof_valid,
    seal_secret,
)
from octaskly.mesh.discovery.mdns_scan import advertise_pairing
from octaskly.ports import Clock, IssuedInvite
from octaskly.system.listening_sockets import bind_port, port_of
from octaskly.system.log import Logger

OPEN_INVITES_MAX: Final = 3
FAILURES_MAX: Final = 10  #: within an hour; then all open invites are revoked
FAILURE_WINDOW_S: Final = 3600.0
CLOSED_SLOTS_MAX: Final = 32  #: closed slots whose reason is remembered


@dataclass(frozen=True, slots=True)
class _OpenInvite:
    """An invite whose code has not been tried yet."""

    exchange: KeyExchange
    expires_s: float


class InviteServer:
    """All invites of this node, with a listener while one is open.

    Args:
        node: This node as the mesh knows it.
        node_key: Its public key.
        mesh_id: Public name of the mesh.
        secret_text: Returns the secret file that an admitted machine receives.
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
        addresses: Sequence[str],
        interfaces: Sequence[str],
        clock: Clock,
        log: Logger,
    ) -> None:
        self._node, self._node_key, self._mesh_id = node, node_key, mesh_id
        self._secret_text = secret_text
        self._addresses, self._interfaces = tuple(addresses), tuple(interfaces)
        self._clock, self._log = clock, log
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

    async def open_invite(self, ttl_s: int) -> IssuedInvite:
        """Open an invite; raises as `JoinService.open_invite`."""
        if self._is_closing and self._listener_task is not None:
            # Wait until the port is free: a different port would surprise people.
            await asyncio.wait([self._listener_task])
        self._expire_invites()
        if len(self._open) >= OPEN_INVITES_MAX:
            soonest_s = min(one.expires_s for one in self._open.values())
            wait_s = soonest_s - self._clock.now().mono_s
            raise TooManyInvites(
                f"{OPEN_INVITES_MAX} invites are open",
                hint=f"use one of them, or wait {wait_s:.0f} s until one expires",
            )
        self._ensure_listening()
        self._failures.clear()  # A person has asked for a new invite.
        taken = self._open.keys() | self._closed.keys()
        slot = secrets.choice([n for n in range(1, SLOT_MAX + 1) if n not in taken])
        code, now = InviteCode.generate(slot), self._clock.now()
        self._open[slot] = _OpenInvite(KeyExchange.for_member(code), now.mono_s + ttl_s)
        self._changed.set()
        self._log.info("invite opened", slot=slot, port=self._port, valid_s=ttl_s)
        return IssuedInvite(
            code=code.formatted(),
            expires_ms=now.wall_ms + ttl_s * 1000,
            endpoints=tuple(
                host_and_port(host, self._port)
                for host in self._node.addresses
                if "%" not in host  # A scope has no meaning on the other machine.
            ),
        )

    async def close(self) -> None:
        """Revoke all invites, stop listening and end all conversations."""
        self._group = None
        if self._listener_task is not None:
            if not self._is_closing:  # Otherwise it ends by itself.
                self._listener_task.cancel()
            await asyncio.wait([self._listener_task])
        for conversation in self._conversations:
            conversation.cancel()

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
        run = self._invalidate_invite(joiner.slot_or_port, RefusalReason.USED)
        if run is None:
            return  # Another machine has used the invite in the meantime.
        if await self._send_secret(conversation, run.exchange, share, hello, welcome):
            self._log.info(
                "machine admitted",
                name=joiner.name,
                node_id=joiner.node_id,
                address=conversation.host,
            )

    async def _send_secret(
        self,
        conversation: Conversation,
        exchange: KeyExchange,
        share: bytes,
        hello: bytes,
        welcome: bytes,
    ) -> bool:
        """Send the secret to a joiner that proves the code; return True if it did."""
        reason = "connection lost"
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
            sealed = seal_secret(keys, self._secret_text())
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
                self._invalidate_invite(slot, RefusalReason.EXPIRED)

    def _invalidate_invite(
        self, slot: int, reason: RefusalReason
    ) -> _OpenInvite | None:
        """End an invite; return it if it was open."""
        run = self._open.pop(slot, None)
        if run is not None:
            self._closed[slot] = reason
            if len(self._closed) > CLOSED_SLOTS_MAX:
                del self._closed[next(iter(self._closed))]
            self._changed.set()
        return run

    def _record_failure(self, host: str, reason: str) -> None:
        """Record a failure; `FAILURES_MAX` within an hour revoke all open invites."""
        now_s = self._clock.now().mono_s
        self._failures.append(now_s)
        self._log.warning("machine refused", address=host, reason=reason)
        is_full = len(self._failures) == FAILURES_MAX
        if is_full and now_s - self._failures[0] < FAILURE_WINDOW_S:
            for slot in tuple(self._open):
                self._invalidate_invite(slot, RefusalReason.USED)
            self._log.warning(
                "all invites revoked",
                cause=f"{FAILURES_MAX} failures within an hour",
                hint="octaskly invite    creates a new one",
            )
