"""Scenarios of a mesh in plain text: commands, a line, and the nodes' notes.

Each command has its own line above the separator; the notes of the nodes follow below
it. `BLESS=1` writes the actual notes, for a review before the commit.

    nodes a b c          machines without a running agent
    start a b            start agents at the same instant; `start` alone: all
    advance 2.5          advance time by these seconds
    settle               advance time until all agree on a dispatcher
    crash a | dispatcher kill a process; `standby`: the dispatcher's first one
    stop a | dispatcher  ask an agent to stop
    pause a 3            suspend a process for these seconds
    steer a drain        order a node to drain, resume, pause or unpause
    only a               all attempts since the last `only` started there
    split a b / c        split the network
    heal                 heal the network
    submit a 3           submit tasks through a node
    finish               advance time until every accepted task is final
"""

from __future__ import annotations

from octaskly.core.model.ids import NodeId
from octaskly.core.model.nodes import AvailabilityCommand
from tests.simulation.checks.rest import unfinished
from tests.simulation.world import World

MOST_S = 60.0  #: of virtual time for `settle` and `finish`
QUIET = ("discovering",)  #: notes that no scenario needs


class Story:
    """One scenario, played in a simulated world."""

    def __init__(self, commands: list[str]) -> None:
        names = next(c for c in commands if c.startswith("nodes ")).split()[1:]
        self.world = World(1, nodes=len(names))
        self._ids = dict(zip(names, self.world.machines, strict=True))
        self._started = 0  #: attempts, up to the last `only`
        self._names = {node: name for name, node in self._ids.items()}
        for command in commands:
            word, *arguments = command.split()
            if word != "nodes":
                getattr(self, f"_{word}")(*arguments)

    def lines(self) -> list[str]:
        """Return the notes of the nodes in order of time, and the final state."""
        noted = [
            (at_s, self._names[machine.id], note)
            for machine in self.world.machines.values()
            for at_s, note in machine.notes
            if note.event not in QUIET
        ]
        lines = []
        for _, name, note in sorted(noted, key=lambda item: item[:2]):
            fields = [f"{k}={self._named(v)}" for k, v in note.fields if k != "peers"]
            lines.append(" ".join([f"{name}: {note.event}", *fields]))
        world = self.world
        dispatchers = [self._names[node] for node in world.dispatchers()]
        lines.append(
            f"end: dispatchers={','.join(dispatchers)} "
            f"accepted={len(world.clients.accepted)} "
            f"open={len(unfinished(world))} starts={len(world.commands.started)}"
        )
        return lines

    def _named(self, value: object) -> str:
        return self._names.get(NodeId(str(value)), str(value)).replace(" ", "-")

    def _node(self, name: str) -> NodeId:
        if name == "dispatcher":
            (node,) = self.world.dispatchers()
            return node
        if name == "standby":
            dispatcher = self.world.machines[self._node("dispatcher")].node
            assert dispatcher is not None
            return dispatcher.standbys[0].node
        return self._ids[name]

    def _start(self, *names: str) -> None:
        for name in names or tuple(self._ids):
            self.world.start(self._ids[name])

    def _advance(self, seconds: str) -> None:
        self.world.run(float(seconds))

    def _settle(self) -> None:
        assert self.world.run_until(self.world.is_settled, MOST_S)

    def _finish(self) -> None:
        assert self.world.run_until(lambda: not unfinished(self.world), MOST_S)

    def _crash(self, name: str) -> None:
        self.world.crash(self._node(name))

    def _stop(self, name: str) -> None:
        self.world.stop(self._node(name), drain_s=10.0)

    def _pause(self, name: str, seconds: str) -> None:
        self.world.pause(self._node(name), float(seconds))

    def _steer(self, name: str, order: str) -> None:
        self.world.steer(self._node(name), AvailabilityCommand(order))

    def _only(self, *names: str) -> None:
        started = self.world.commands.started[self._started :]
        self._started = len(self.world.commands.started)
        assert {self._names[item.node] for item in started} == set(names), names

    def _fill_disk(self, name: str, seconds: str) -> None:
        machine = self.world.machines[self._node(name)]
        machine.full_s = self.world.time_s + float(seconds)

    def _split(self, *names: str) -> None:
        middle = names.index("/")
        groups = [names[:middle], names[middle + 1 :]]
        self.world.network.split([[self._ids[n] for n in group] for group in groups])

    def _heal(self) -> None:
        self.world.network.heal_all()

    def _submit(self, name: str, count: str) -> None:
        self.world.clients.submit(self._node(name), int(count))
