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
from octaskly.errors import NoSuchRequest, PairingFailed
from octaskly.joining.conversation import Conversation, call
from octaskly.joining.fingerprint import HALF_BYTES, Half, commitment, fingerprint
from octaskly.joining.greeting import GREETING_BYTES, Greeting
from octaskly.joining.key_exchange import NO_PROOF, Keys, seal
from octaskly.mesh.discovery.scan import Found, beacons
from octaskly.ports import Clock, Request
from octaskly.system.log import Logger

LOOK_S: Final = 1.0
MEET_S: Final = 3.0  #: for each of the machines that want in
MET_MAX: Final = 16  #: at a time
MET_PER_ADDRESS: Final = 4
KEPT_S: Final = 300.0  #: so long people may take


@dataclass(frozen=True, slots=True)
class _Met:
    """A machine that waits to be approved."""

    request: Request
    conversation: Conversation
    keys: Keys
    until_s: float

    @property
    def host(self) -> str:
        """The address at which it was met."""
        return self.conversation.host


class Requests:
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
        keyring: Callable[[], str],
        interfaces: Sequence[str],
        clock: Clock,
        log: Logger,
    ) -> None:
        self._node, self._node_key = node, node_key
        self._keyring = keyring
        self._interfaces = tuple(interfaces)
        self._clock, self._log = clock, log
        self._met: dict[NodeId, _Met] = {}  #: those met first come first

    async def look(self) -> list[Request]:
        """Look who wants in, and return all that wait, by name."""
        self._forget()
        found = await beacons(LOOK_S, self._interfaces, of_members=False)
        return await self.meet(found)

    async def meet(self, found: Sequence[Found]) -> list[Request]:
        """Meet those in sight that are new, and return all that wait, by name.

        Whoever makes up machines keeps no place from a real one: an address has but a
        few, of too many it is chance that chooses, and the oldest of the address that
        has most gives way.
        """
        newcomers = self._chosen([one for one in found if one.node not in self._met])
        async with asyncio.TaskGroup() as tasks:
            for one in newcomers:
                tasks.create_task(self._meet(one))
        while len(self._met) > MET_MAX:
            hosts = self._hosts()
            most = max(hosts.values())
            (oldest, *_) = (
                n for n, met in self._met.items() if hosts[met.host] == most
            )
            self._met.pop(oldest).conversation.close()
        waiting = (met.request for met in self._met.values())
        return sorted(waiting, key=lambda request: (request.name, request.node_id))

    def _chosen(self, newcomers: list[Found]) -> list[Found]:
        newcomers.sort(key=lambda _: self._clock.draw())
        hosts = self._hosts()
        chosen: list[Found] = []
        for one in newcomers:
            host = one.addresses[0].host
            hosts[host] += 1
            if hosts[host] <= MET_PER_ADDRESS and len(chosen) < MET_MAX:
                chosen.append(one)
        if left_out := len(newcomers) - len(chosen):
            self._log.warning(
                "more machines want in than are met at a time",
                left_out=left_out,
                hint="octaskly requests    looks again; octaskly invite    needs none",
            )
        return chosen

    def _hosts(self) -> Counter[str]:
        """Return how many have been met at each address."""
        return Counter(met.host for met in self._met.values())

    async def approve(self, name: str, words: str) -> Request:
        """Let a machine in whose words somebody has compared.

        Raises:
            NoSuchRequest: none of that name or node id shows these words.
        """
        return await self._let_in(self._taken(name, words))

    async def refuse(self, name: str, words: str) -> Request:
        """Send a machine away that shows other words; for new ones it asks anew.

        Raises:
            NoSuchRequest: none of that name or node id waits with these words.
        """
        met = self._taken(name, words)
        try:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(MEET_S):
                    await met.conversation.say(NO_PROOF)
        finally:
            met.conversation.close()
        self._say("machine refused", met.request)
        return met.request

    def _taken(self, name: str, words: str) -> _Met:
        """Take a machine out of those that wait: its words are good for one answer."""
        self._forget()
        for node, met in tuple(self._met.items()):
            request = met.request
            if name in (request.name, node) and request.fingerprint == words:
                return self._met.pop(node)
        raise NoSuchRequest(
            f"no machine called {name[:80]!r} waits and shows these words",
            hint="octaskly requests    shows those that wait",
        )

    def close(self) -> None:
        """Hang up on all of them."""
        for met in self._met.values():
            met.conversation.close()
        self._met.clear()

    async def _meet(self, found: Found) -> None:
        """Meet a machine, if it is one of ours and answers in time."""
        with contextlib.suppress(OSError, PairingFailed):
            async with asyncio.timeout(MEET_S):
                conversation = await call(found.addresses)
                try:
                    met = await self._compare(conversation)
                except BaseException:
                    conversation.close()
                    raise
            if met.request.node_id == found.node:
                self._met[found.node] = met
            else:
                conversation.close()

    async def _compare(self, conversation: Conversation) -> _Met:
        """Lead the member's side up to the words; see `trust.comparison`."""
        now, half = self._clock.now(), Half.fresh()
        greeting = Greeting(
            name=self._node.name,
            key=self._node_key,
            wall_ms=now.wall_ms,
            number=self._node.peer_port,
        ).pack()
        first = greeting + commitment(greeting, half.public())
        await conversation.say(first)
        second = await conversation.hear(GREETING_BYTES + HALF_BYTES)
        joiner = Greeting.unpack(second[:GREETING_BYTES])
        await conversation.say(half.public())
        keys = half.keys(second[GREETING_BYTES:], first, second, half.public())
        request = Request(
            name=joiner.name,
            node_id=joiner.node_id,
            fingerprint=fingerprint(keys),
            address=conversation.host,
        )
        return _Met(request, conversation, keys, now.mono_s + KEPT_S)

    async def _let_in(self, met: _Met) -> Request:
        request = met.request
        try:
            sealed = seal(met.keys, self._keyring())
            async with asyncio.timeout(MEET_S):
                await met.conversation.say(met.keys.member_proof() + sealed)
        except OSError:
            raise NoSuchRequest(
                f"{request.name} does not wait any more",
                hint=f"octaskly join    on {request.name}, once more",
            ) from None
        finally:
            met.conversation.close()
        self._say("machine let in", request)
        return request

    def _say(self, what: str, request: Request) -> None:
        self._log.info(
            what,
            name=request.name,
            node_id=request.node_id,
            address=request.address,
        )

    def _forget(self) -> None:
        """Drop those that wait no longer."""
        now_s = self._clock.now().mono_s
        for node, met in tuple(self._met.items()):
            if met.until_s <= now_s or met.conversation.is_over():
                met.conversation.close()
                del self._met[node]
