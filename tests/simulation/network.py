"""Links that keep order, lose all frames behind a cut, and break late.

A cut is silent, as a pulled cable is: frames sent into it are lost, and each end
notices by itself, seconds later. The end of a process resets its links at once. TCP is
below, so a loss is a broken link, and order holds within a link, not between links.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from octaskly.core.dispatcher.reconciliation import CATCH_UP_S
from octaskly.core.events import DialFailed, PeerDown, PeerUp, Received
from octaskly.core.model.ids import Address, NodeId
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import Assign, AssignRanges, Message
from octaskly.mesh.links.transport import HANDSHAKE_S
from octaskly.mesh.wire import Decoder, encode
from tests.simulation.cores import TLS_MS

if TYPE_CHECKING:
    from tests.simulation.world import World

Pair = tuple[NodeId, NodeId]
REPEATED = 4  #: batches of an earlier link that arrive once more
ORDERS = (Assign, AssignRanges)


@dataclass
class Link:
    """One connected pair; each end learns of its closing separately."""

    serial: int
    ends: set[NodeId] = field(default_factory=set)  #: ends that take it for open
    notified: set[NodeId] = field(
        default_factory=set
    )  #: ends that know of the connection
    is_broken: bool = False  #: no frame gets through any more
    deaf: NodeId | None = None  #: ends that no frame reaches any more
    next_s: dict[NodeId, float] = field(default_factory=dict)


class Network:
    """Reachability between nodes, and the messages under way."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._links: dict[Pair, Link] = {}
        self._dialling: set[Pair] = set()
        self._unaccepted: dict[Pair, Callable[[], None]] = {}
        """Callbacks that end a dial which a stopped process has not accepted yet."""
        self._cuts: set[Pair] = set()
        self._apart_s: dict[NodeId, float] = {}
        """When nodes were last cut off from some other node."""
        self._late_s: dict[NodeId, float] = {}
        """When a node was last heard later than a new dispatcher waits."""
        self._heard: dict[Pair, deque[tuple[Message, ...]]] = {}
        self._serial = 0
        self.delay_ms = (0.2, 4.0)
        #: extra delay of these nodes
        self.slow_ms: dict[NodeId, tuple[float, float]] = {}
        self.repeats = 0.0  #: share of new links that repeat what was last said
        self.has_multicast = True
        self.is_encoding = True
        self.messages = 0
        self.in_vain = 0  #: handshakes of two nodes that had met meanwhile

    # Faults

    def cut(self, a: NodeId, b: NodeId) -> None:
        """Let no frame through between two nodes."""
        pair = _pair(a, b)
        if pair in self._cuts:
            return
        self._cuts.add(pair)
        self.note_apart(a, b)
        link = self._links.get(pair)
        if link is not None and not link.is_broken:
            link.is_broken = True
            for end in sorted(link.ends):
                delay_s = self._world.random.uniform(1.5, 5.0)
                self._drop_later(link, end, _other(pair, end), "timed out", delay_s)

    def mute(self, a: NodeId, b: NodeId) -> None:
        """Let no frame through from one node to another, nor new links either way.

        Frames in the other direction arrive until TCP gives up for want of
        acknowledgements.
        """
        link = self._links.get(_pair(a, b))
        if link is None or link.is_broken or self.is_cut(a, b):
            return
        self._cuts.add(_pair(a, b))
        self.note_apart(a, b)
        link.deaf = b
        for end in sorted(link.ends):
            delay_s = self._world.random.uniform(1.5, 5.0)
            self._drop_later(link, end, _other((a, b), end), "timed out", delay_s)

    def reset(self, a: NodeId, b: NodeId) -> None:
        """Break a link: frames under way are lost, and both ends soon learn of it."""
        link = self._links.get(_pair(a, b))
        if link is None or link.is_broken or self.is_cut(a, b):
            return
        link.is_broken = True
        self.note_apart(a, b)
        for end in sorted(link.ends):
            self._drop_later(link, end, _other((a, b), end), "reset", self._delay_s())

    def heal(self, a: NodeId, b: NodeId) -> None:
        """Let messages through again; a link that was cut stays broken."""
        if self.is_cut(a, b):
            self._cuts.discard(_pair(a, b))
            self.note_apart(a, b)

    def heal_all(self) -> None:
        """Repair every cut."""
        for pair in self._cuts:
            self.note_apart(*pair)
        self._cuts.clear()
        self.slow_ms.clear()

    def split(self, groups: list[list[NodeId]]) -> None:
        """Cut every pair of nodes in different groups."""
        for index, group in enumerate(groups):
            for other in groups[index + 1 :]:
                for a in group:
                    for b in other:
                        self.cut(a, b)

    def is_cut(self, a: NodeId, b: NodeId) -> bool:
        """Return True if no frame gets through."""
        return _pair(a, b) in self._cuts

    def note_apart(self, *nodes: NodeId) -> None:
        """Note that nodes are cut off from another one now."""
        self._apart_s.update(dict.fromkeys(nodes, self._world.time_s))

    def was_apart(self, node: NodeId, since_s: float) -> bool:
        """Return True if a node was cut off from another one since that time."""
        is_apart = any(node in pair for pair in self._cuts)
        return is_apart or self._apart_s.get(node, -math.inf) >= since_s

    def was_late(self, node: NodeId, since_s: float) -> bool:
        """Return True if others waited for what a node said since that time."""
        return self._late_s.get(node, -math.inf) >= since_s

    def is_up(self, a: NodeId, b: NodeId) -> bool:
        """Return True if both ends of a link know of it and can talk."""
        link = self._links.get(_pair(a, b))
        if link is None or link.is_broken or link.deaf:
            return False
        return link.ends == link.notified == {a, b}

    def link_count(self) -> int:
        """Return the number of open links."""
        return sum(len(link.ends) == 2 for link in self._links.values())

    def on_process_end(self, node: NodeId) -> None:
        """Reset the links of an ended process, as the kernel does."""
        for pair in [pair for pair in self._links if node in pair]:
            link = self._links[pair]
            other = _other(pair, node)
            link.ends.discard(node)
            self._forget(pair, link)
            if not link.is_broken:
                link.is_broken = True
                self._drop_later(link, other, node, "eof", self._delay_s())
        self._dialling = {pair for pair in self._dialling if pair[0] != node}
        self._unaccepted = {
            p: end for p, end in self._unaccepted.items() if p[0] != node
        }
        for give_up in [
            end for pair, end in self._unaccepted.items() if pair[1] == node
        ]:
            self._world.at(self._delay_s(), give_up)

    @property
    def is_prompt(self) -> bool:
        """Return True if no message is under way that a slow machine sent."""
        usual_s = self._world.time_s + self.delay_ms[1] / 1000 + 0.01
        dues = (
            due_s for link in self._links.values() for due_s in link.next_s.values()
        )
        return max(dues, default=0.0) <= usual_s

    # Effects

    def send(self, sender: NodeId, peer: NodeId, messages: tuple[Message, ...]) -> None:
        """Send messages, in order."""
        link = self._links.get(_pair(sender, peer))
        if link is None or link.is_broken or sender not in link.ends:
            return
        self.messages += len(messages)
        self._carry(link, sender, peer, messages)

    def _carry(
        self, link: Link, sender: NodeId, peer: NodeId, messages: tuple[Message, ...]
    ) -> None:
        """Deliver messages to the other end, through the codec in some worlds."""
        data = encode(messages) if self.is_encoding else None

        def arrive() -> None:
            receiver = self._world.machines[peer]
            if link.is_broken or link.deaf == peer or peer not in link.ends:
                return
            got = messages
            if data is not None:
                got = tuple(Decoder(Limits()).receive_data(data))
            if self.repeats:
                last = self._heard.setdefault((sender, peer), deque(maxlen=REPEATED))
                # No dispatcher gives an order again that it has heard the end of, and
                # a worker forgets an attempt with the acknowledgement of its end.
                last.append(tuple(m for m in messages if not isinstance(m, ORDERS)))
            self._world.promises.on_arrival(got)
            draw = self._world.random.random()
            self._world.feed(receiver, Received(sender, got, draw))

        self._in_order(link, peer, arrive)

    def dial(
        self, dialler: NodeId, node: NodeId | None, addresses: tuple[Address, ...]
    ) -> None:
        """Dial a node, as the effect says."""
        target = node if node is not None else self._node_at(addresses)
        key = (dialler, target or NodeId(""))
        if key in self._dialling:
            return
        if target is not None:
            link = self._links.get(_pair(dialler, target))
            if link is not None and dialler in link.ends:
                return
        self._dialling.add(key)
        life = self._world.machines[dialler].life
        self._world.at(
            self._delay_s(), lambda: self._reach_listener(key, node, addresses, life)
        )

    def _reach_listener(
        self,
        key: Pair,
        node: NodeId | None,
        addresses: tuple[Address, ...],
        life: int,
    ) -> None:
        """Reach the other machine's listener, or its kernel if the process is gone."""
        dialler, target = key
        machine = self._world.machines[dialler]
        other = self._world.machines.get(target)

        def fail(*, was_refused: bool) -> None:
            self._dialling.discard(key)
            if machine.life == life:
                event = DialFailed(node, addresses, was_refused)
                self._world.feed(machine, event)

        if machine.life != life:
            self._dialling.discard(key)
        elif not addresses:
            # As in the transport: no address was free of refusal.
            fail(was_refused=True)
        elif other is None or machine.is_paused or self.is_cut(dialler, target):
            wait_s = self._world.random.uniform(0.3, 2.0)
            self._world.at(wait_s, lambda: fail(was_refused=False))
        elif other.node is None:
            fail(was_refused=True)
        elif other.is_paused:
            again = partial(self._reach_listener, key, node, addresses, life)
            self._await_accept(key, again, partial(fail, was_refused=False))
        elif not self._world.may_meet(dialler, target):
            fail(was_refused=False)
        else:
            turns = [dialler, target, dialler, target] if self._world.cores else []
            self._work(
                turns,
                self._world.time_s + HANDSHAKE_S,
                lambda: self._shake_hands(dialler, target, key),
                lambda: fail(was_refused=False),
            )

    def _await_accept(
        self, key: Pair, again: Callable[[], None], fail: Callable[[], None]
    ) -> None:
        """Accept the connection in the kernel; the process then shakes hands."""

        def end(then: Callable[[], None]) -> None:
            if self._unaccepted.get(key) is give_up:
                del self._unaccepted[key]
                then()

        give_up = partial(end, fail)
        self._unaccepted[key] = give_up
        self._world.at(HANDSHAKE_S, give_up)
        self._world.machines[key[1]].held.append(partial(end, again))

    def _work(
        self,
        turns: list[NodeId],
        until_s: float,
        done: Callable[[], None],
        fail: Callable[[], None],
    ) -> None:
        """Let both ends do the work of TLS, which fails if it takes too long."""
        world = self._world
        if world.time_s > until_s:
            fail()
        elif not turns or world.cores is None:
            done()
        else:
            rest = turns[1:]
            world.cores.work(
                turns[0], TLS_MS, lambda: self._work(rest, until_s, done, fail)
            )

    def disconnect(self, node: NodeId, peer: NodeId, reason: str) -> None:
        """Close one end; the other end receives the reason if it can."""
        pair = _pair(node, peer)
        link = self._links.get(pair)
        if link is None or node not in link.ends:
            return
        link.ends.discard(node)
        # The shell reports every end of a link, also the ends that it caused.
        machine = self._world.machines[node]
        self._world.later(
            machine, 0.0, lambda: self._world.feed(machine, PeerDown(peer, "closed"))
        )
        if link.is_broken:
            self._forget(pair, link)
            return

        def leave() -> None:
            self._drop(link, peer, node, reason)

        self._in_order(link, peer, leave)

    # Links

    def _shake_hands(self, a: NodeId, b: NodeId, key: Pair) -> None:
        """Both ends send HELLO, and a moment later the link is up on both."""
        world = self._world
        one, two = world.machines[a], world.machines[b]
        lives = (one.life, two.life)
        assert one.node is not None
        assert two.node is not None
        hello_a = one.node.hello(world.now(one))
        hello_b: list[object] = []

        def answer() -> None:
            if two.node is not None and two.life == lives[1]:
                hello_b.append(two.node.hello(world.now(two)))

        def connect() -> None:
            self._dialling.discard(key)
            if (one.life, two.life) != lives or not hello_b or self.is_cut(a, b):
                if one.life == lives[0]:
                    failed = DialFailed(b, (two.address,), was_refused=False)
                    world.feed(one, failed)
                return
            pair = _pair(a, b)
            old = self._links.get(pair)
            if old is not None and old.ends and not (old.is_broken or old.deaf):
                self.in_vain += 1
                return
            if old is not None:
                for end in sorted(old.ends):
                    self._drop(old, end, _other(pair, end), "replaced")
            self._serial += 1
            link = Link(self._serial, {a, b})
            self._links[pair] = link
            said = hello_b[0]
            draw_a, draw_b = world.random.random(), world.random.random()
            up_a = PeerUp(b, hello_a, said, two.address, draw_a)  # type: ignore[arg-type]
            up_b = PeerUp(a, said, hello_a, one.address, draw_b)  # type: ignore[arg-type]
            self._in_order(link, a, lambda: self._up(link, a, up_a))
            self._in_order(link, b, lambda: self._up(link, b, up_b))

        world.at(self._delay_s(), answer)
        world.at(2 * self._delay_s() + 0.005, connect)

    def _up(self, link: Link, end: NodeId, event: PeerUp) -> None:
        if end not in link.ends:
            return
        link.notified.add(end)
        if not self._world.may_stay(end, event.peer):
            self.disconnect(end, event.peer, "its secret is over")
            return
        self._world.feed(self._world.machines[end], event)
        is_repeating = self.repeats and self._world.random.random() < self.repeats
        # These frames come first: TLS lets no old frame through later, and otherwise
        # the worker's last message would be an old report of running tasks.
        if is_repeating and event.peer not in link.notified:
            for messages in tuple(self._heard.get((event.peer, end), ())):
                self._carry(link, event.peer, end, messages)

    def _drop_later(
        self, link: Link, end: NodeId, peer: NodeId, reason: str, delay_s: float
    ) -> None:
        self._world.at(delay_s, lambda: self._drop(link, end, peer, reason))

    def _drop(self, link: Link, end: NodeId, peer: NodeId, reason: str) -> None:
        """Notify one end that the link is over."""
        if end not in link.ends:
            return
        link.ends.discard(end)
        link.is_broken = True
        self._forget(_pair(end, peer), link)
        machine = self._world.machines[end]
        draw = self._world.random.random()
        self._world.feed(machine, PeerDown(peer, reason, draw))

    def _forget(self, pair: Pair, link: Link) -> None:
        if self._links.get(pair) is link and not link.ends:
            del self._links[pair]

    def _in_order(self, link: Link, receiver: NodeId, action: object) -> None:
        """Act at one end, after all messages that were sent there before."""
        world = self._world
        delay_s = self._delay_s()
        for end in sorted(link.ends) if self.slow_ms else ():
            delay_s += world.random.uniform(*self.slow_ms.get(end, (0.0, 0.0))) / 1000
        due_s = max(world.time_s + delay_s, link.next_s.get(receiver, 0.0))
        if due_s > world.time_s + CATCH_UP_S:
            self._late_s.update(dict.fromkeys(link.ends - {receiver}, world.time_s))
        link.next_s[receiver] = due_s + 1e-6
        world.at(due_s - world.time_s, action)  # type: ignore[arg-type]

    def _delay_s(self) -> float:
        least_ms, most_ms = self.delay_ms
        # As `uniform`, without a call of it for each message.
        return (least_ms + (most_ms - least_ms) * self._world.random.random()) / 1000

    def _node_at(self, addresses: tuple[Address, ...]) -> NodeId | None:
        for machine in self._world.machines.values():
            if machine.address in addresses:
                return machine.id
        return None


def _pair(a: NodeId, b: NodeId) -> Pair:
    return (a, b) if a < b else (b, a)


def _other(pair: Pair, end: NodeId) -> NodeId:
    return pair[1] if pair[0] == end else pair[0]
