"""Member's side of a pairing without a code: join requests that people approve.

The member does not listen. It scans for waiting machines and dials them, and only when
a person asks for that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from octaskly.core.model.ids import NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.errors import JoinRequestNotFound, PairingFailed
from octaskly.joining.conversation import Conversation, connect_first
from octaskly.joining.fingerprint import (
    KEY_SHARE_BYTES,
    KeyShare,
    commitment,
    fingerprint,
)
from octaskly.joining.greeting import GREETING_BYTES, Greeting
from octaskly.joining.key_exchange import NO_PROOF, PairingKeys, seal_secret
from octaskly.mesh.discovery.mdns_scan import FoundNode, scan_waiting_machines
from octaskly.ports.join_service import WaitingMachine
from octaskly.ports.store import Clock
from octaskly.system.log import Logger

DISCOVERY_S: Final = 1.0
HANDSHAKE_S: Final = 3.0  #: timeout per waiting machine
WAITING_MAX: Final = 16  #: connections kept at a time
WAITING_PER_ADDRESS_MAX: Final = 4
WAITING_S_MAX: Final = 300.0  #: time for people to compare and approve


@dataclass(frozen=True, slots=True)
class _WaitingConnection:
    """A connection to a machine that waits for approval."""

    request: WaitingMachine
    conversation: Conversation
    keys: PairingKeys
    expires_s: float

    @property
    def host(self) -> str:
        """The address of the machine."""
        return self.conversation.host


class WaitingMachines:
    """All machines that wait for approval on this node.

    Args:
        node: This node as the mesh knows it.
        node_key: Its public key.
        secret_text: Returns the secret file that an admitted machine receives.
        interfaces: Names of the interfaces to scan; empty for the default choice.
        clock: For the expiry of requests.
        log: Logs admitted and refused machines.
    """

    def __init__(
        self,
        *,
        node: NodeInfo,
        node_key: bytes,
        secret_text: Callable[[], str],
        interfaces: Sequence[str],
        clock: Clock,
        log: Logger,
    ) -> None:
        self._node, self._node_key = node, node_key
        self._secret_text = secret_text
        self._interfaces = tuple(interfaces)
        self._clock, self._log = clock, log
        self._waiting: dict[NodeId, _WaitingConnection] = {}  #: oldest first

    async def discover_machines(self) -> list[WaitingMachine]:
        """Scan for waiting machines and dial new ones; return all, sorted by name."""
        self._drop_expired()
        found = await scan_waiting_machines(DISCOVERY_S, self._interfaces)
        return await self.contact_machines(found)

    async def contact_machines(
        self, found: Sequence[FoundNode]
    ) -> list[WaitingMachine]:
        """Dial the new machines; return all that wait, sorted by name.

        Forged requests must not displace real ones. The number of requests per address
        is bounded. If too many machines are new, a random choice is dialled. Above
        `WAITING_MAX` requests, the oldest one of the address with the most is closed.
        """
        newcomers = self._select_newcomers(
            [one for one in found if one.node not in self._waiting]
        )
        async with asyncio.TaskGroup() as tasks:
            for one in newcomers:
                tasks.create_task(self._contact_machine(one))
        while len(self._waiting) > WAITING_MAX:
            hosts = self._count_by_host()
            most = max(hosts.values())
            (oldest, *_) = (
                n for n, one in self._waiting.items() if hosts[one.host] == most
            )
            self._waiting.pop(oldest).conversation.close()
        waiting = (one.request for one in self._waiting.values())
        return sorted(waiting, key=lambda request: (request.name, request.node_id))

    def _select_newcomers(self, newcomers: list[FoundNode]) -> list[FoundNode]:
        newcomers.sort(key=lambda _: self._clock.draw())
        hosts = self._count_by_host()
        chosen: list[FoundNode] = []
        for one in newcomers:
            host = one.addresses[0].host
            hosts[host] += 1
            if hosts[host] <= WAITING_PER_ADDRESS_MAX and len(chosen) < WAITING_MAX:
                chosen.append(one)
        if left_out := len(newcomers) - len(chosen):
            self._log.warning(
                "too many join requests",
                left_out=left_out,
                hint="octaskly requests    scans again\n"
                "octaskly invite    creates a code, which needs no scan",
            )
        return chosen

    def _count_by_host(self) -> Counter[str]:
        """Return the number of waiting machines per address."""
        return Counter(one.host for one in self._waiting.values())

    async def approve_join(self, name: str, words: str) -> WaitingMachine:
        """Send the mesh secret to a machine after people have compared the words.

        Raises:
            JoinRequestNotFound: No machine with this name or node id has these words,
                or it is no longer waiting.
        """
        return await self._send_secret(self._pop_waiting(name, words))

    async def refuse_join(self, name: str, words: str) -> WaitingMachine:
        """Refuse a machine that shows other words; a new request has new words.

        Raises:
            JoinRequestNotFound: No machine with this name or node id has these words.
        """
        waiting = self._pop_waiting(name, words)
        try:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(HANDSHAKE_S):
                    await waiting.conversation.send(NO_PROOF)
        finally:
            waiting.conversation.close()
        self._log_decision("machine refused", waiting.request)
        return waiting.request

    def _pop_waiting(self, name: str, words: str) -> _WaitingConnection:
        """Remove and return a waiting machine: its words are valid for one decision."""
        self._drop_expired()
        for node, waiting in tuple(self._waiting.items()):
            request = waiting.request
            if name in (request.name, node) and request.fingerprint == words:
                return self._waiting.pop(node)
        raise JoinRequestNotFound(
            f"no machine called {name[:80]!r} is waiting with these words",
            hint="octaskly requests    shows the machines that are waiting",
        )

    def close(self) -> None:
        """Close all connections."""
        for waiting in self._waiting.values():
            waiting.conversation.close()
        self._waiting.clear()

    async def _contact_machine(self, found: FoundNode) -> None:
        """Dial a machine, and keep it if the handshake succeeds in time."""
        with contextlib.suppress(OSError, PairingFailed):
            async with asyncio.timeout(HANDSHAKE_S):
                conversation = await connect_first(found.addresses)
                try:
                    waiting = await self._exchange_fingerprints(conversation)
                except BaseException:
                    conversation.close()
                    raise
            if waiting.request.node_id == found.node:
                self._waiting[found.node] = waiting
            else:
                conversation.close()

    async def _exchange_fingerprints(
        self, conversation: Conversation
    ) -> _WaitingConnection:
        """Run the member's side up to the words; see `joining.fingerprint`."""
        now, share = self._clock.now(), KeyShare.generate()
        greeting = Greeting(
            name=self._node.name,
            key=self._node_key,
            wall_ms=now.wall_ms,
            slot_or_port=self._node.peer_port,
        ).pack()
        first = greeting + commitment(greeting, share.public())
        await conversation.send(first)
        second = await conversation.receive(GREETING_BYTES + KEY_SHARE_BYTES)
        joiner = Greeting.unpack(second[:GREETING_BYTES])
        await conversation.send(share.public())
        theirs = second[GREETING_BYTES:]
        keys = share.derive_keys(theirs, first, second, share.public())
        request = WaitingMachine(
            name=joiner.name,
            node_id=joiner.node_id,
            fingerprint=fingerprint(keys),
            address=conversation.host,
        )
        return _WaitingConnection(
            request, conversation, keys, now.mono_s + WAITING_S_MAX
        )

    async def _send_secret(self, waiting: _WaitingConnection) -> WaitingMachine:
        request = waiting.request
        try:
            sealed = seal_secret(waiting.keys, self._secret_text())
            async with asyncio.timeout(HANDSHAKE_S):
                await waiting.conversation.send(waiting.keys.member_proof() + sealed)
        except OSError:
            raise JoinRequestNotFound(
                f"{request.name} is no longer waiting",
                hint=f"octaskly join    on {request.name} tries again",
            ) from None
        finally:
            waiting.conversation.close()
        self._log_decision("machine admitted", request)
        return request

    def _log_decision(self, event: str, request: WaitingMachine) -> None:
        self._log.info(
            event,
            name=request.name,
            node_id=request.node_id,
            address=request.address,
        )

    def _drop_expired(self) -> None:
        """Remove machines whose time is over or that have disconnected."""
        now_s = self._clock.now().mono_s
        for node, waiting in tuple(self._waiting.items()):
            if waiting.expires_s <= now_s or waiting.conversation.is_closed_by_peer():
                waiting.conversation.close()
                del self._waiting[node]
