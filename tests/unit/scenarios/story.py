"""Stories of a mesh in plain text: what is done, a line, and what the nodes note.

Above the line stand commands, one a line; below it what came of them. `BLESS=1`
writes what really came, to be read before it is committed.

    nodes a b c          machines, whose agents do not run yet
    start a b            agents start at the same instant; `start` alone: all
    advance 2.5          seconds pass
    settle               time passes until all agree on a dispatcher
    crash a | dispatcher a process is killed; `standby`: the first of the dispatcher's
    stop a | dispatcher  an agent is asked to stop
    pause a 3            a process stands still so long
    steer a drain        an operator tells a node to drain, resume, pause or unpause
    only a               all attempts began there since the last `only`
    split a b / c        the network falls apart
    heal                 and comes together
    submit a 3           tasks are submitted through a node
    finish               time passes until every accepted task is final
"""

from __future__ import annotations

from octaskly.core.model.ids import NodeId
from octaskly.core.model.nodes import AvailabilityCommand
from tests.simulation.checks.rest import unfinished
from tests.simulation.world import World

MOST_S = 60.0  #: of virtual time for `settle` and `finish`
QUIET = ("discovering",)  #: notes that would only blur a story


class Story:
    """One text, told to a world."""

    def __init__(self, commands: list[str]) -> None:
        names = next(c for c in commands if c.startswith("nodes ")).split()[1:]
        self.world = World(1, nodes=len(names))
        self._ids = dict(zip(names, self.world.machines, strict=True))
        self._begun = 0  #: attempts, at the last `only`
        self._names = {node: name for name, node in self._ids.items()}
        for command in commands:
            word, *arguments = command.split()
            if word != "nodes":
                getattr(self, f"_{word}")(*arguments)

    def lines(self) -> list[str]:
        """Return what the nodes noted, in order of time, and the end."""
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
        reigning = [self._names[node] for node in world.dispatchers()]
        lines.append(
            f"end: dispatchers={','.join(reigning)} "
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
            reign = self.world.machines[self._node("dispatcher")].node
            assert reign is not None
            return reign.standbys[0].node
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
        begun = self.world.commands.started[self._begun :]
        self._begun = len(self.world.commands.started)
        assert {self._names[item.node] for item in begun} == set(names), names

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
