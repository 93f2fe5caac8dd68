"""Processors that all machines of a world share, as agents on one host do.

A step waits for a free core and occupies it for a while. Machines are therefore delayed
by each other, which no single machine's fault can cause.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from octaskly.core.events import DialFailed, Event, PeersDiscovered, PeerUp
from octaskly.core.model.ids import NodeId

if TYPE_CHECKING:
    from tests.simulation.world import World

TLS_MS = 2.0  #: one end's cost for each of its two TLS flights
MEET_MS = 1.0  #: cost of HELLO and of storing the peer
SEEN_MS = 0.1  #: adverts arrive in bursts
DIAL_MS = 1.0
STEP_MS = 0.5
SLICE_S = 0.005  #: time slice of a starting process


class Cores:
    """Schedules the machines that have work on the cores.

    Args:
        world: The world whose time passes.
        many: Number of machines that may step at the same time.
    """

    def __init__(self, world: World, many: int) -> None:
        self._world = world
        self._free = many
        self._turns: deque[NodeId] = deque()
        self._jobs: dict[NodeId, deque[tuple[float, Callable[[], None]]]] = {}

    def run(self, node: NodeId, event: Event, step: Callable[[], None]) -> None:
        """Let a machine take a step after its earlier work."""
        self.work(node, _cost_ms(event), step)

    def work(self, node: NodeId, cost_ms: float, step: Callable[[], None]) -> None:
        """Occupy a core for a machine's work of that cost."""
        jobs = self._jobs.setdefault(node, deque())
        jobs.append((cost_ms / 1000, step))
        if len(jobs) == 1:
            self._turns.append(node)
            self._serve()

    def boot(self, node: NodeId, cost_s: float, start: Callable[[], None]) -> None:
        """Start a process, which reads and compiles much before its first step."""
        jobs = self._jobs.setdefault(node, deque())
        jobs.extend([(SLICE_S, lambda: None)] * round(cost_s / SLICE_S))
        jobs.append((0.0, start))
        self._turns.append(node)
        self._serve()

    def _serve(self) -> None:
        while self._free and self._turns:
            self._free -= 1
            node = self._turns.popleft()
            cost_s, step = self._jobs[node][0]
            self._world.at(cost_s, partial(self._end, node, step))

    def _end(self, node: NodeId, step: Callable[[], None]) -> None:
        step()
        self._free += 1
        jobs = self._jobs[node]
        jobs.popleft()
        if jobs:
            self._turns.append(node)
        self._serve()


def _cost_ms(event: Event) -> float:
    match event:
        case PeerUp():
            return MEET_MS
        case DialFailed():
            return DIAL_MS
        case PeersDiscovered():
            return SEEN_MS
        case _:
            return STEP_MS
