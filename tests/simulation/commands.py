"""Commands that machines run: they start, end, fail or are killed.

The module also records the started attempts, and those that started too early. It draws
the duration of a command, and from `tries` whether it fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from octaskly.core.events import AttemptsEnded
from octaskly.core.log.facts import Unblocked
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.hlc import accepted_hlc
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.task_options import is_stdin_freed
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.core.node.node import Node
from octaskly.core.protocol.messages import Report
from tests.simulation.machine import Machine
from tests.simulation.store.queue import GOOD

if TYPE_CHECKING:
    from tests.simulation.world import World

KILL_S = 0.01  #: seconds until a killed command is gone


@dataclass(frozen=True)
class Started:
    """One attempt that a machine started."""

    at_s: float
    node: NodeId
    task: TaskId
    attempt: AttemptId
    seen_term: int  #: highest epoch that the node knew
    born: int  #: time of acceptance, as a hybrid timestamp


class Commands:
    """The commands of all machines."""

    failing_share = 0.0  #: share of commands that fail
    batch_s = 0.0
    """Longest wait of a result for others; if not 0, results have times, too."""
    silent_share = 0.0  #: share of commands with times that write nothing

    def __init__(self, world: World) -> None:
        self._world = world
        self.duration_s = (0.05, 1.5)
        self.started: list[Started] = []
        #: attempts that started before their parents ended
        self.early: list[TaskId] = []
        self._batches: dict[tuple[NodeId, int], list[Report]] = {}
        """Results that wait for others, by machine and life of its process."""

    def run(
        self,
        machine: Machine,
        node: Node,
        items: tuple[tuple[AttemptId, TaskSpec], ...],
    ) -> None:
        """Start attempts in order, each as soon as there is room for it."""
        now_s = self._world.time_s
        for attempt, spec in items:
            seen = node.epoch.term
            assert not is_stdin_freed(spec.options), f"{spec.id} lacks its stdin"
            if not self._may_start(spec):
                self.early.append(spec.id)
            self.started.append(
                Started(now_s, machine.id, spec.id, attempt, seen, accepted_hlc(spec))
            )
            machine.waiting.append((attempt, spec))
        self._fill(machine)

    def _may_start(self, spec: TaskSpec) -> bool:
        """Return True if some disk shows that the parents ended as required.

        A task that was ready stays ready, though the other half of a split may retry
        its parent, and a lost disk may hold the only proof. A task waits only briefly
        for a parent that is on no disk, because that parent is forgotten. One half of a
        split may have forgotten a parent that the other half was running.
        """
        disks = [each.disk for each in self._world.machines.values()]
        if (place := split_member_id(spec.id)) is not None:
            found = (disk.records.get(place[0]) for disk in disks)
            spec = next((r.spec for r in found if r and r.spec), spec)
        after = None if spec.options is None else spec.options.after
        is_ready = any((Unblocked, spec.id, None) in disk.kept for disk in disks)
        for parent in () if after is None else after.tasks:
            assert after is not None
            task = TaskId(parent)
            states = {d.records[task].state for d in disks if task in d.records}
            if not states and self._is_old(spec):
                continue
            states |= {d.past[task] for d in disks if task in d.past}
            if is_ready or self._world.restored:
                states |= self._world.storage.ends.get(task, set())
            if states and not states & GOOD[after.end]:
                return False
        return True

    def _is_old(self, spec: TaskSpec) -> bool:
        """Return True if the task has waited the full time for an unknown parent."""
        world = self._world
        age_s = world.time_s - world.storage.accepted_s[spec.id]
        return age_s >= world.least_age_s(world.timing.missing_dependency_s)

    def _fill(self, machine: Machine) -> None:
        while machine.waiting and machine.has_room(machine.waiting[0][1]):
            attempt, spec = machine.waiting.pop(0)
            key = (spec.id, attempt)
            machine.running[key] = spec
            life = machine.life

            def end(key: tuple[TaskId, AttemptId] = key, life: int = life) -> None:
                # A command ends even while its agent is paused.
                if machine.is_asleep and machine.life == life:
                    machine.frozen.append(lambda: end(key, life))
                elif machine.life == life and key in machine.running:
                    del machine.running[key]
                    self._ended(machine, key, self._state(), EndReason.EXIT)
                    self._fill(machine)

            self._world.at(self._world.random.uniform(*self.duration_s), end)

    def _state(self) -> AttemptState:
        """Return the state of a command that ended by itself."""
        share = self.failing_share
        is_failing = share and self._world.tries.random() < share
        return AttemptState.FAILED if is_failing else AttemptState.OK

    def kill(
        self,
        machine: Machine,
        items: tuple[tuple[TaskId, AttemptId], ...],
        reason: EndReason,
    ) -> None:
        """End attempts, a moment later, whether they run or wait."""
        for key in items:
            before = len(machine.waiting)
            machine.waiting = [
                item for item in machine.waiting if (item[1].id, item[0]) != key
            ]
            is_ended = key in machine.running and reason is not EndReason.RETURNED
            if is_ended or len(machine.waiting) < before:
                self._world.later(machine, KILL_S, self._killer(machine, key, reason))

    def _killer(
        self, machine: Machine, key: tuple[TaskId, AttemptId], reason: EndReason
    ) -> Callable[[], None]:
        state = AttemptState.CANCELLED
        if reason in (EndReason.DRAINING, EndReason.RETURNED):
            state = AttemptState.RELEASED
        is_running = key in machine.running

        def killed() -> None:
            # A command that ended by itself first keeps that outcome.
            if is_running and key not in machine.running:
                return
            machine.running.pop(key, None)
            self._ended(machine, key, state, reason, has_begun=is_running)
            self._fill(machine)

        return killed

    def _ended(
        self,
        machine: Machine,
        key: tuple[TaskId, AttemptId],
        state: AttemptState,
        reason: EndReason,
        *,
        has_begun: bool = True,
    ) -> None:
        code = 0 if state is AttemptState.OK else None
        if state is AttemptState.FAILED:
            code = self._world.tries.choice((None, 7))
            reason = EndReason.SIGNAL if code is None else reason
        outcome = Outcome(
            state=state,
            reason=reason,
            exit_code=code,
            started_ms=self._world.now(machine).wall_ms if has_begun else None,
            stdout=f"{machine.id} {key[1]}".encode(),
        )
        if self.batch_s:
            self._add_to_batch(machine, key, outcome)
            return
        report = Report(task=key[0], attempt=key[1], outcome=outcome)
        self._world.feed(machine, AttemptsEnded((report,)))

    def _add_to_batch(
        self, machine: Machine, key: tuple[TaskId, AttemptId], outcome: Outcome
    ) -> None:
        """Report an end with usual times, together with those that follow soon."""
        duration_ms = int(sum(self.duration_s) / 2 * 1000)
        ended_ms = self._world.now(machine).wall_ms
        outcome = replace(
            outcome,
            started_ms=ended_ms - duration_ms,
            ended_ms=ended_ms,
            duration_ms=duration_ms,
        )
        if self.silent_share and self._world.tries.random() < self.silent_share:
            outcome = replace(outcome, stdout=b"")
        place = (machine.id, machine.life)
        if place not in self._batches:
            wait_s = self._world.random.uniform(0.0, self.batch_s)
            self._world.later(machine, wait_s, partial(self._flush, machine, place))
        report = Report(task=key[0], attempt=key[1], outcome=outcome)
        self._batches.setdefault(place, []).append(report)

    def _flush(self, machine: Machine, place: tuple[NodeId, int]) -> None:
        reports = self._batches.pop(place)
        self._world.feed(machine, AttemptsEnded(tuple(reports)))
