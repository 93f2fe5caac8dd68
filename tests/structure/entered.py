"""Files of the core that one step of a node enters, and calls between these files.

The node lives in a world of the simulation. An event is measured right after a wake-up
at the same instant, so no other work is due. The call of `deadline` counts, because an
agent makes it after each step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import octaskly.core
from octaskly.core.effects import Effect
from octaskly.core.events import Event, TimerFired
from octaskly.core.model.ids import Moment
from octaskly.core.node.node import Node
from tests.simulation.checks.rest import unfinished
from tests.simulation.machine import Machine
from tests.simulation.world import World

CORE = Path(octaskly.core.__file__).parent
SETTLING_S = 60.0  #: at most
QUIET_S = 30.0  #: until a new mesh has nothing left to do
DURATION_S = 0.05  #: of the task: it ends before the next heartbeat


@dataclass
class Trace:
    """Calls between the files below one folder."""

    folder: Path
    files: set[str] = field(default_factory=set)
    crossings: int = 0  #: calls of a function in another file

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls of this thread during a block."""
        before = sys.getprofile()
        sys.setprofile(self._on_event)
        try:
            yield
        finally:
            sys.setprofile(before)

    def _on_event(self, frame: FrameType, what: str, _argument: Any) -> None:
        if what != "call" or not self._is_inside(frame):
            return
        name = frame.f_code.co_filename
        self.files.add(name)
        # A library may call back, as `sorted` calls its key; its caller then makes the
        # call.
        caller = frame.f_back
        while caller is not None and not self._is_inside(caller):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != name:
            self.crossings += 1

    def _is_inside(self, frame: FrameType) -> bool:
        return frame.f_code.co_filename.startswith(f"{self.folder}/")


class TracedNode(Node):
    """A node whose steps are recorded on demand."""

    trace: Trace | None = None  #: of all nodes

    def step(self, event: Event, now: Moment) -> list[Effect]:
        """Step as a node does."""
        if TracedNode.trace is None:
            return super().step(event, now)
        with TracedNode.trace.recording():
            return super().step(event, now)

    def deadline(self) -> float:
        """Return when to step again."""
        if TracedNode.trace is None:
            return super().deadline()
        with TracedNode.trace.recording():
            return super().deadline()


def settled(nodes: int) -> tuple[World, Machine]:
    """Return a mesh that has nothing to do, and its dispatcher."""
    world = World(1, nodes=nodes, node_type=TracedNode)
    world.commands.duration_s = (DURATION_S, DURATION_S)
    world.start_all()
    assert world.run_until(world.is_settled, SETTLING_S)
    world.run(QUIET_S)
    (dispatcher,) = world.dispatchers()
    return world, world.machines[dispatcher]


def traced(action: Callable[[], object]) -> Trace:
    """Return the files that the nodes of a world enter during `action`."""
    TracedNode.trace = trace = Trace(CORE)
    try:
        action()
    finally:
        TracedNode.trace = None
    return trace


def wake_up(nodes: int) -> Trace:
    """Return the files that a dispatcher enters on a wake-up with nothing due."""
    world, dispatcher = settled(nodes)
    world.feed(dispatcher, TimerFired(0.5))
    return traced(lambda: world.feed(dispatcher, TimerFired(0.5)))


def submission(nodes: int) -> Trace:
    """Return the files that a dispatcher enters in the step that accepts one task."""
    world, dispatcher = settled(nodes)
    world.feed(dispatcher, TimerFired(0.5))
    return traced(lambda: world.clients.submit(dispatcher.id))


def life_of_a_task(nodes: int) -> Trace:
    """Return the files that all nodes enter from a task's submission to its end."""
    world, dispatcher = settled(nodes)
    world.feed(dispatcher, TimerFired(0.5))

    def live() -> None:
        world.clients.submit(dispatcher.id)
        assert world.run_until(lambda: bool(world.clients.accepted), SETTLING_S)
        assert world.run_until(lambda: not unfinished(world), SETTLING_S)

    return traced(live)
