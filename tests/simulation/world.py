"""A mesh in one process: virtual time, a seeded random generator, no event loop.

Machines run the real `Node`; everything around it is a model with faults. The world has
the time, the random generator, and the processes, which it starts, stops and steps.
Modules of their own have the network, the storage, the running commands, the clients,
and the promises. Two runs of a seed do the same, event by event.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import partial

from octaskly.core.effects import Effect
from octaskly.core.events import (
    AvailabilityRequested,
    Event,
    SavedState,
    StopRequested,
    TimerFired,
)
from octaskly.core.model.ids import Epoch, Moment, NodeId
from octaskly.core.model.nodes import AvailabilityCommand
from octaskly.core.model.settings import Limits, Settings, Timing
from octaskly.core.node.node import Node
from tests.simulation.clients import Clients
from tests.simulation.commands import Commands
from tests.simulation.cores import Cores
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.promises import Promises
from tests.simulation.shell import Shell
from tests.simulation.storage import Storage
from tests.simulation.store.ages import CLOCK_ERROR_MS
from tests.simulation.store.disk import Disk
from tests.simulation.timeline import Due, Timeline
from tests.simulation.watchers import Watchers

WALL_MS = 1_700_000_000_000
ROUNDING_S = 0.002  #: wall clocks count in milliseconds
CLOCK_ERROR_S = 2 * CLOCK_ERROR_MS / 1000  #: timestamps and steps may be so wrong


class World(Timeline):
    """Machines and their environment."""

    is_calm = False  #: faults are over
    updated_share = 0.0  #: share of starts that come with an upgrade

    def __init__(
        self,
        seed: int,
        *,
        nodes: int = 3,
        slots: int = 2,
        node_type: type[Node] = Node,
        timing: Timing | None = None,
        cores: int | None = None,
        is_traced: bool = False,
    ) -> None:
        super().__init__()
        self.random, self.late, self.needy, self.notes, self.tries = (
            random.Random(text)
            for text in (
                *(seed, f"late {seed}", f"needy {seed}", f"notes {seed}"),
                f"tries {seed}",
            )
        )
        self.node_type = node_type
        self.timing = timing or Timing(missing_dependency_s=60.0)
        self.limits = Limits()
        self.is_strict = False  #: refuse tasks that only one disk would hold
        self.machines = {
            NodeId(f"node{index:012d}"): Machine(
                NodeId(f"node{index:012d}"), index, slots
            )
            for index in range(nodes)
        }
        self.cores = None if cores is None else Cores(self, cores)
        self.network = Network(self)
        self.storage = Storage(self)
        self.commands = Commands(self)
        self.clients = Clients(self)
        self.promises = Promises(self)
        self.shell = Shell(self)
        self.died: set[NodeId] = set()  #: machines whose process ended by itself
        self.restored: set[NodeId] = set()  #: machines that lost part of their disk
        self.is_skewed = False  #: a wall clock was moved
        self.is_step_lost = False  #: by a disk that was restored from a backup
        self.watchers = Watchers()
        self._log: list[tuple[float, NodeId, type[Event], int, Epoch]] = []
        """The steps, which distinguish two runs."""
        self._is_traced = is_traced
        self.trace: list[str] = []

    # Processes

    def saved(self, machine: Machine) -> SavedState:
        """Return a machine's saved state at the start of its process."""
        return machine.disk.saved()

    def may_meet(self, dialler: NodeId, listener: NodeId) -> bool:
        """Return True if TLS between two machines succeeds."""
        return True

    def may_stay(self, _end: NodeId, _peer: NodeId) -> bool:
        """Return True if a peer may still have a link when its other end is up."""
        return True

    def start(self, node_id: NodeId) -> None:
        """Start a machine's agent."""
        machine = self.machines[node_id]
        if machine.node is not None:
            return
        machine.life += 1
        machine.has_stopped = False
        if self.updated_share and self.random.random() < self.updated_share:
            machine.log_version = 2
        machine.learnt = {}
        machine.disk.start(self.now(machine))
        settings = Settings(
            node=machine.info(),
            timing=self.timing,
            limits=self.limits,
            is_strict=self.is_strict,
            log_version=machine.log_version,
        )
        machine.node = self.node_type(settings, self.saved(machine))
        self.feed(machine, TimerFired(self.random.random()))

    def start_all(self) -> None:
        """Start every machine's agent at the same instant."""
        for node_id in self.machines:
            self.start(node_id)

    def boot_all(self, least_s: float, most_s: float) -> None:
        """Start every machine's agent, each after so much time of a shared core."""
        assert self.cores is not None
        for node_id in self.machines:
            cost_s = self.random.uniform(least_s, most_s)
            self.cores.boot(node_id, cost_s, partial(self.start, node_id))

    def crash(self, node_id: NodeId) -> None:
        """End a process without notice; its commands die with it."""
        machine = self.machines[node_id]
        if machine.node is None:
            return
        machine.node = None
        if not machine.has_stopped:
            self.died.add(node_id)
        machine.life += 1
        machine.down_s = self.time_s
        machine.timer = None
        self._wake(machine)
        machine.held.clear()
        machine.frozen.clear()
        machine.disk.crash()
        machine.is_committing = machine.is_failing = False
        machine.running.clear()
        machine.waiting.clear()
        machine.is_browsing = False
        self.network.on_process_end(node_id)

    def pause(self, node_id: NodeId, seconds: float) -> None:
        """Stop a process (SIGSTOP) for some time; its commands run on."""
        machine = self.machines[node_id]
        if machine.node is None or machine.is_paused:
            return
        machine.is_paused = True
        self.network.note_apart(node_id)
        life = machine.life
        self.at(seconds, lambda: self.resume(node_id) if machine.life == life else None)

    def sleep(self, node_id: NodeId, seconds: float) -> None:
        """Suspend a whole machine; only the clock goes on (CLOCK_BOOTTIME)."""
        machine = self.machines[node_id]
        if machine.node is None or machine.is_paused:
            return
        self.pause(node_id, seconds)
        machine.is_asleep = True
        for other in self.machines:
            if other != node_id:
                self.network.cut(node_id, other)

    def resume(self, node_id: NodeId) -> None:
        """End a pause or a sleep; waiting events happen now."""
        machine = self.machines[node_id]
        self._wake(machine)
        held, machine.held = machine.held, []
        frozen, machine.frozen = machine.frozen, []
        for action in held + frozen:
            action()

    def _wake(self, machine: Machine) -> None:
        if machine.is_paused:
            self.network.note_apart(machine.id)
        if machine.is_asleep:
            for other in self.machines:
                self.network.heal(machine.id, other)
        machine.is_paused = machine.is_asleep = False

    def restore(self, node_id: NodeId, backup: Disk) -> None:
        """Restore an older state of the disk of a machine that is down."""
        machine = self.machines[node_id]
        assert machine.node is None
        machine.lost.append(machine.disk)
        if backup.records and backup.steps != machine.disk.steps:
            self.is_step_lost = True
        machine.disk = backup
        self.restored.add(node_id)
        machine.restored_s = self.time_s
        self.promises.lose(node_id, backup)

    def step_clock(self, node_id: NodeId, skew_ms: int) -> None:
        """Set the wall clock of a machine whose agent runs.

        An agent that is down cannot tell a step from a long absence. An agent that runs
        records a step within seconds, so here it does so before the next fault.
        """
        machine = self.machines[node_id]
        if machine.node is None:
            return
        if machine.wall_skew_ms < machine.highest_skew_ms < skew_ms:
            # The step looks like the end of a step back, which changes no age.
            self.is_step_lost = True
        if machine.wall_skew_ms < skew_ms:
            if machine.wall_skew_ms < machine.set_ahead_at_ms:
                # An earlier step seems to have followed what was stored since.
                self.is_step_lost = True
            machine.set_ahead_at_ms = max(machine.set_ahead_at_ms, machine.wall_skew_ms)
        machine.wall_skew_ms = skew_ms
        machine.highest_skew_ms = max(machine.highest_skew_ms, skew_ms)
        machine.disk.record_clock_step(self.now(machine))
        self.is_skewed = True

    def stop(self, node_id: NodeId, drain_s: float = 5.0) -> None:
        """Ask an agent to stop."""
        machine = self.machines[node_id]
        if machine.node is not None:
            self.feed(machine, StopRequested(drain_s))

    def steer(self, node_id: NodeId, steering: AvailabilityCommand) -> None:
        """Set a node's availability, as an operator does."""
        self.feed(self.machines[node_id], AvailabilityRequested(0, steering, "ana"))

    def on_stopped(self, node_id: NodeId) -> None:
        """End a process after its goodbye."""
        self.crash(node_id)
        if self.is_calm:
            self.start(node_id)

    # Steps

    def now(self, machine: Machine) -> Moment:
        """Return the clocks of one machine."""
        wall_ms = WALL_MS + int(self.time_s * 1000) + machine.wall_skew_ms
        return Moment(self.time_s, wall_ms)

    def when_alive(self, machine: Machine, action: Callable[[], None]) -> None:
        """Act in this life of a process, later if it is paused now."""
        if machine.is_paused:
            machine.held.append(action)
        else:
            action()

    def later(
        self, machine: Machine, delay_s: float, action: Callable[[], None]
    ) -> None:
        """Act later, if the process lives so long."""
        life = machine.life

        def act_now() -> None:
            if machine.life == life and machine.node is not None:
                action()

        def due() -> None:
            if machine.life == life and machine.node is not None:
                self.when_alive(machine, act_now)

        self.at(delay_s, due)

    def feed(self, machine: Machine, event: Event) -> None:
        """Step a node and perform its effects."""
        node = machine.node
        if node is None:
            return
        if machine.is_paused:
            machine.held.append(lambda: self.feed(machine, event))
            return
        if self.cores is None:
            self._step(machine, node, event)
        else:
            step = partial(self._step_if_alive, machine, node, event)
            self.cores.run(machine.id, event, step)

    def _step_if_alive(self, machine: Machine, node: Node, event: Event) -> None:
        if machine.node is node:
            self._step(machine, node, event)

    def _step(self, machine: Machine, node: Node, event: Event) -> None:
        effects = node.step(event, self.now(machine))
        step = (self.time_s, machine.id, type(event), len(effects), node.epoch)
        self._log.append(step)
        if self._is_traced:
            self._record(machine, event, effects)
        if effects:
            self.shell.perform_all(machine, node, effects)
        if machine.node is not node:
            return
        self.watchers.check_step(machine, event, effects)
        self._set_timer(machine, node)

    def _record(self, machine: Machine, event: Event, effects: list[Effect]) -> None:
        line = f"{self.time_s:.3f} {machine.id[-2:]} {event!r} -> {effects!r}"
        self.trace.append(line)

    def _set_timer(self, machine: Machine, node: Node) -> None:
        """Schedule the node's next step, and drop the previous schedule."""
        delay_s = max(0.001, node.deadline() - self.time_s)
        machine.timer = due = self.due(delay_s)
        # Most steps only move it later, so it is enough to look again at the earlier
        # time.
        if machine.alarm is None or due < machine.alarm:
            self._set_alarm(machine, due)

    def _set_alarm(self, machine: Machine, due: Due) -> None:
        machine.alarm = due
        self.at_due(due, partial(self._ring, machine, due))

    def _ring(self, machine: Machine, due: Due) -> None:
        if machine.alarm != due:
            return  # An earlier alarm replaced it.
        machine.alarm = None
        if machine.timer == due:
            self.feed(machine, TimerFired(self.random.random()))
        elif machine.timer is not None:
            self._set_alarm(machine, machine.timer)

    # Views

    def trace_hash(self) -> str:
        """Return a digest of all events."""
        lines = (
            " ".join(map(str, (time_s, node, kind.__name__, count, *epoch))) + ";"
            for time_s, node, kind, count, epoch in self._log
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def alive(self) -> list[Machine]:
        """Return the machines whose agent runs."""
        return [m for m in self.machines.values() if m.node is not None]

    def least_age_s(self, age_s: float) -> float:
        """Return the least true age of a task that may count as so old.

        A disk that was restored from a backup does not know of later clock steps. Nor
        does a disk count all steps of a clock that was set back in between.
        """
        if self.is_step_lost:
            return 0.0
        return age_s - (CLOCK_ERROR_S if self.is_skewed else ROUNDING_S)

    def dispatchers(self) -> list[NodeId]:
        """Return the dispatchers."""
        return [m.id for m in self.alive() if m.node and m.node.is_dispatcher]

    def was_apart(self, node: NodeId, since_s: float) -> bool:
        """Return True if a node stood still or was cut off since that time."""
        is_paused = self.machines[node].is_paused
        return is_paused or self.network.was_apart(node, since_s)

    def is_settled(self) -> bool:
        """Return True if every agent names the same dispatcher, which agrees."""
        dispatchers = self.dispatchers()
        return len(dispatchers) == 1 and all(
            m.node is not None and m.node.dispatcher == dispatchers[0]
            for m in self.alive()
        )
