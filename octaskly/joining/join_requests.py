"""Machines that want in without a code: a member meets them, and people compare words.

The member listens for nothing: it looks for such machines and dials them, and only
when somebody at it asks for that.
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
from octaskly.mesh.discovery.scan import FoundNode, scan_pairing_beacons
from octaskly.ports import Clock, WaitingMachine
from octaskly.system.log import Logger

DISCOVERY_S: Final = 1.0
HANDSHAKE_S: Final = 3.0  #: for each of the machines that want in
WAITING_MAX: Final = 16  #: at a time
WAITING_PER_ADDRESS_MAX: Final = 4
WAITING_S_MAX: Final = 300.0  #: so long people may take


@dataclass(frozen=True, slots=True)
class _WaitingConnection:
    """A machine that waits to be approved."""

    request: WaitingMachine
    conversation: Conversation
    keys: PairingKeys
    expires_s: float

    @property
    def host(self) -> str:
        """The address at which it was met."""
        return self.conversation.host


class WaitingMachines:
    """All machines that wait for this node's people.

    Args:
        node: This node as it is known in the mesh.
        node_key: Its public key.
        keyring: Returns what a machine gets that is let in.
        interfaces: Names that restrict where it looks.
        clock: For the ends of requests.
        log: Told who came in, and who was refused.
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
        self._waiting: dict[
            NodeId, _WaitingConnection
        ] = {}  #: those met first come first

    async def discover_machines(self) -> list[WaitingMachine]:
        """Look who wants in, and return all that wait, by name."""
        self._drop_expired()
        found = await scan_pairing_beacons(
            DISCOVERY_S, self._interfaces, of_members=False
        )
        return await self.contact_machines(found)

    async def contact_machines(
        self, found: Sequence[FoundNode]
    ) -> list[WaitingMachine]:
        """Meet those in sight that are new, and return all that wait, by name.

        Whoever makes up machines keeps no place from a real one: an address has but a
        few, of too many it is chance that chooses, and the oldest of the address that
        has most gives way.
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
                n for n, met in self._waiting.items() if hosts[met.host] == most
            )
            self._waiting.pop(oldest).conversation.close()
        waiting = (met.request for met in self._waiting.values())
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
                hint="octaskly requests    looks again; octaskly invite    needs none",
            )
        return chosen

    def _count_by_host(self) -> Counter[str]:
        """Return how many have been met at each address."""
        return Counter(met.host for met in self._waiting.values())

    async def approve_join(self, name: str, words: str) -> WaitingMachine:
        """Let a machine in whose words somebody has compared.

        Raises:
            NoSuchRequest: none of that name or node id shows these words.
        """
        return await self._send_secret(self._pop_waiting(name, words))

    async def refuse_join(self, name: str, words: str) -> WaitingMachine:
        """Send a machine away that shows other words; for new ones it asks anew.

        Raises:
            NoSuchRequest: none of that name or node id waits with these words.
        """
        met = self._pop_waiting(name, words)
        try:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(HANDSHAKE_S):
                    await met.conversation.send(NO_PROOF)
        finally:
            met.conversation.close()
        self._log_decision("machine refused", met.request)
        return met.request

    def _pop_waiting(self, name: str, words: str) -> _WaitingConnection:
        """Take a machine out of those that wait: its words are good for one answer."""
        self._drop_expired()
        for node, met in tuple(self._waiting.items()):
            request = met.request
            if name in (request.name, node) and request.fingerprint == words:
                return self._waiting.pop(node)
        raise JoinRequestNotFound(
            f"no machine called {name[:80]!r} waits and shows these words",
            hint="octaskly requests    shows those that wait",
        )

    def close(self) -> None:
        """Hang up on all of them."""
        for met in self._waiting.values():
            met.conversation.close()
        self._waiting.clear()

    async def _contact_machine(self, found: FoundNode) -> None:
        """Meet a machine, if it is one of ours and answers in time."""
        with contextlib.suppress(OSError, PairingFailed):
            async with asyncio.timeout(HANDSHAKE_S):
                conversation = await connect_first(found.addresses)
                try:
                    met = await self._exchange_fingerprints(conversation)
                except BaseException:
                    conversation.close()
                    raise
            if met.request.node_id == found.node:
                self._waiting[found.node] = met
            else:
                conversation.close()

    async def _exchange_fingerprints(
        self, conversation: Conversation
    ) -> _WaitingConnection:
        """Lead the member's side up to the words; see `trust.comparison`."""
        now, half = self._clock.now(), KeyShare.generate()
        greeting = Greeting(
            name=self._node.name,
            key=self._node_key,
            wall_ms=now.wall_ms,
            slot_or_port=self._node.peer_port,
        ).pack()
        first = greeting + commitment(greeting, half.public())
        await conversation.send(first)
        second = await conversation.receive(GREETING_BYTES + KEY_SHARE_BYTES)
        joiner = Greeting.unpack(second[:GREETING_BYTES])
        await conversation.send(half.public())
        keys = half.derive_keys(second[GREETING_BYTES:], first, second, half.public())
        request = WaitingMachine(
            name=joiner.name,
            node_id=joiner.node_id,
            fingerprint=fingerprint(keys),
            address=conversation.host,
        )
        return _WaitingConnection(
            request, conversation, keys, now.mono_s + WAITING_S_MAX
        )

    async def _send_secret(self, met: _WaitingConnection) -> WaitingMachine:
        request = met.request
        try:
            sealed = seal_secret(met.keys, self._secret_text())
            async with asyncio.timeout(HANDSHAKE_S):
                await met.conversation.send(met.keys.member_proof() + sealed)
        except OSError:
            raise JoinRequestNotFound(
                f"{request.name} does not wait any more",
                hint=f"octaskly join    on {request.name}, once more",
            ) from None
        finally:
            met.conversation.close()
        self._log_decision("machine admitted", request)
        return request

    def _log_decision(self, what: str, request: WaitingMachine) -> None:
        self._log.info(
            what,
            name=request.name,
            node_id=request.node_id,
            address=request.address,
        )

    def _drop_expired(self) -> None:
        """Drop those that wait no longer."""
        now_s = self._clock.now().mono_s
        for node, met in tuple(self._waiting.items()):
            if met.expires_s <= now_s or met.conversation.is_closed_by_peer():
                met.conversation.close()
                del self._waiting[node]
