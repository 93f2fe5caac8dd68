"""Clients that submit through every node, to measure how soon each accepts a task.

A node passes a request to the dispatcher, or to a relay if it cannot reach it.
"""

from __future__ import annotations

from octaskly.core.model.ids import NodeId
from octaskly.core.replies import Reply, TasksAccepted
from tests.simulation.machine import Machine
from tests.simulation.world import World

EVERY_S = 0.05  #: between two requests through one node


class FrontDoors:
    """Submits through each node all the time, and records the accepted requests."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: the nodes that passed on a request, by dispatcher and time
        self._passed: dict[tuple[NodeId, float], list[NodeId]] = {}
        #: times of each accepted request and of its answer, by node
        self._accepted: dict[NodeId, list[tuple[float, float]]] = {
            node: [] for node in world.machines
        }
        self._is_over = False
        world.clients.answer_watchers.append(self._on_answer)
        self._ask()

    def stop(self) -> None:
        """Submit nothing more."""
        self._is_over = True

    def wait_s(self, node: NodeId, since_s: float) -> float:
        """Return the time from `since_s` to the first answer to a later request."""
        answers = (at_s for asked_s, at_s in self._accepted[node] if asked_s >= since_s)
        return min(answers, default=float("inf")) - since_s

    def _ask(self) -> None:
        if self._is_over:
            return
        world, doors = self._world, dict[NodeId, list[NodeId]]()
        for machine in world.alive():
            dispatcher = self._dispatcher_of(machine)
            if dispatcher is not None:
                doors.setdefault(dispatcher, []).append(machine.id)
        for dispatcher, nodes in doors.items():
            self._passed[dispatcher, round(world.time_s, 6)] = nodes
            world.clients.submit(dispatcher)
        world.at(EVERY_S, self._ask)

    def _dispatcher_of(self, machine: Machine) -> NodeId | None:
        node = machine.node
        if node is None or machine.is_paused:
            return None
        if node.dispatcher is not None or node.relay is None:
            return node.dispatcher
        relay = self._world.machines[node.relay.node].node
        return None if relay is None else relay.dispatcher

    def _on_answer(self, machine: Machine, reply: Reply, waited_s: float) -> None:
        if isinstance(reply, TasksAccepted):
            now_s = self._world.time_s
            asked_s = round(now_s - waited_s, 6)
            for node in self._passed.get((machine.id, asked_s), ()):
                self._accepted[node].append((asked_s, now_s))
