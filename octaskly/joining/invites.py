"""The invites of a member: while one is open, a listener lets one machine in by it."""

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
from octaskly.mesh.discovery.scan import advertise_pairing
from octaskly.ports import Clock, IssuedInvite
from octaskly.system.listeners import bind_port, port_of
from octaskly.system.load import process_on_port
from octaskly.system.log import Logger

OPEN_INVITES_MAX: Final = 3
FAILURES_MAX: Final = 10  #: within an hour; then all open invites are burnt
FAILURE_WINDOW_S: Final = 3600.0
CLOSED_SLOTS_MAX: Final = 32  #: slots of which it is known why they are closed


@dataclass(frozen=True, slots=True)
class _OpenInvite:
    """An invite that nobody has tried yet."""

    exchange: KeyExchange
    expires_s: float


class InviteServer:
    """All invites of this node.

    Args:
        node: This node as it is known in the mesh.
        node_key: Its public key.
        mesh_id: Public name of the mesh.
        keyring: Returns what a machine gets that is let in.
        addresses: IP addresses to listen on.
        interfaces: Names that restrict the beacon.
        clock: For the ends of invites.
        log: Told who came in, and who failed.
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
        self._conversations = 0
        self._changed = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._listener_task: asyncio.Task[None] | None = None
        self._is_closing = False
        self._port = 0

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Allow invites; the group owns the listener."""
        self._group = tasks

    async def open_invite(self, ttl_s: int) -> IssuedInvite:
        """Open an invite; raises as `JoinService.open_invite`."""
        if self._is_closing and self._listener_task is not None:
            # Its port is about to be free; a next one would be a surprise.
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
        self._failures.clear()  # This is the fresh command.
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
                if "%" not in host  # The scope is ours, not the other machine's.
            ),
        )

    async def close(self) -> None:
        """Burn all invites and stop listening."""
        self._group = None
        if self._listener_task is not None:
            if not self._is_closing:  # Else that would be cut short.
                self._listener_task.cancel()
            await asyncio.wait([self._listener_task])

    # --- listening -----------------------------------------------------------------

    def _ensure_listening(self) -> None:
        if self._listener_task is not None and not self._listener_task.done():
            return
        assert self._group is not None, "invites come after the start"
        sockets = bind_port(
            "--pairing-port",
            requested=None,
            default=PAIRING_PORT,
            addresses=self._addresses,
            process_on=process_on_port,
        )
        self._port = port_of(sockets)
        self._is_closing = False
        self._listener_task = self._group.create_task(self._accept_while_open(sockets))

    async def _accept_while_open(self, sockets: list[socket.socket]) -> None:
        """Let machines in until no invite is open any more."""
        async with asyncio.TaskGroup() as tasks:
            work = [
                tasks.create_task(serve_connections(sockets, self._handle_connection)),
                tasks.create_task(self._advertise()),
            ]
            while self._open or self._conversations:
                await self._wait_for_change()
                self._expire_invites()
            self._is_closing = True
            for task in work:
                task.cancel()

    async def _advertise(self) -> None:
        """Say over mDNS where invites are answered, until cancelled."""
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
        """Wait until an invite expires or anything else happens."""
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
        self._conversations += 1
        try:
            await self._run_handshake(conversation)
        finally:
            self._conversations -= 1
            self._changed.set()

    async def _run_handshake(self, conversation: Conversation) -> None:
        """Lead one run, in the order that the protocol has.

        Raises:
            OSError: the connection is lost.
            PairingFailed: the other side breaks the rules.
        """
        hello = await conversation.receive(GREETING_BYTES)
        welcome = self._greeting().pack()
        try:
            asked = Greeting.unpack(hello)
        except PairingFailed:
            await conversation.send(welcome)  # It tells a newer machine our version.
            raise
        self._expire_invites()
        if asked.slot_or_port not in self._open:
            self._record_failure(conversation.host, "no such invite")
            refusal = self._closed.get(asked.slot_or_port, RefusalReason.NO_SLOT)
            await conversation.send(self._greeting(refusal).pack())
            return
        await conversation.send(welcome)
        share = await conversation.receive(SHARE_BYTES)
        run = self._invalidate_invite(asked.slot_or_port, RefusalReason.USED)
        if run is None:
            return  # Another machine was quicker.
        reason = "hung up"
        try:
            # Ours first: how long the rest takes would tell of the code.
            await conversation.send(run.exchange.share)
            keys = run.exchange.derive_keys(share, hello, welcome)
            proof = await conversation.receive(PROOF_BYTES)
            if not is_proof_valid(proof, keys.joiner_proof()):
                reason = "wrong code"
                await conversation.send(NO_PROOF)
                return
            reason = "the secret file cannot be used"
            sealed = seal_secret(keys, self._secret_text())
            reason = "hung up"
            await conversation.send(keys.member_proof() + sealed)
            reason = ""
        finally:
            if reason:
                self._record_failure(conversation.host, reason)
        self._log.info(
            "machine admitted",
            name=asked.name,
            node_id=asked.node_id,
            address=conversation.host,
        )

    def _greeting(self, refusal: RefusalReason = RefusalReason.NONE) -> Greeting:
        return Greeting(
            name=self._node.name,
            key=self._node_key,
            wall_ms=self._clock.now().wall_ms,
            slot_or_port=self._node.peer_port,
            refusal=refusal,
        )

    # --- what becomes of invites ---------------------------------------------------

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
        """Note a failure; too many within an hour burn all that is open."""
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
                hint="octaskly invite    makes a new one",
            )
