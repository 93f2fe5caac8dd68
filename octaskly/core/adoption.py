"""Which attempts that were running before still count, and which are run again.

Owns the time that absent workers get to come back: after a change of dispatcher, and
when another node's log arrives. What a worker says it runs counts more than the log.
What it does not list has ended or was lost. The log tells which, so a new reign reads
it only once it holds what the nodes here hold, or has waited for that long enough.
"""

from __future__ import annotations

from octaskly.core.arrays import member_of
from octaskly.core.facts import Assigned
from octaskly.core.inhand import WAITING, InHand, Stage
from octaskly.core.merge import TaskRecord
from octaskly.core.messages import Reattach
from octaskly.core.model import AttemptId, Moment, NodeId, TaskSpec
from octaskly.core.placing import Placing

READ_S = 0.5  #: how long a new reign waits for what others hold


class Adoption:
    """Attempts that this reign did not start, and workers that are awaited."""

    def __init__(self, placing: Placing, adopt_s: float) -> None:
        self._placing = placing
        self._queue = placing.queue
        self._pool = placing.pool
        self._adopt_s = adopt_s
        self._until_s = 0.0
        self.is_open = False
        """Whether workers of the reign before may still come."""
        self._held_until_s: float | None = None
        self._absent: dict[NodeId, float] = {}
        """Nodes whose attempts are left alone until then, in seconds."""

    def begin(self, now: Moment) -> None:
        """Wait for the workers of the reign before."""
        self._until_s = now.mono_s + self._adopt_s
        self._absent.clear()
        self.is_open = True

    def hold(self, now: Moment) -> None:
        """Read nothing until `go_on`, for a while: others have ends to tell."""
        self._queue.is_held = True
        self._held_until_s = now.mono_s + READ_S

    @property
    def is_held(self) -> bool:
        """Whether nothing is read yet."""
        return self._queue.is_held

    def go_on(self) -> None:
        """Read what is in the log."""
        self._queue.is_held = False
        self._held_until_s = None

    def end(self) -> None:
        """Wait for nobody."""
        self.go_on()
        self._absent.clear()
        self.is_open = False

    def deadline(self) -> float | None:
        """Return when `expire` has something to do."""
        open_s = self._until_s if self.is_open else None
        if not self._absent and self._held_until_s is None:
            return open_s  # As at nearly every step.
        due_s = (*self._absent.values(), open_s, self._held_until_s)
        return min(at_s for at_s in due_s if at_s is not None)

    def on_reattach(self, node: NodeId, message: Reattach, now: Moment) -> None:
        """Adopt what a worker runs, kill what is void, give up what it lost."""
        self._absent.pop(node, None)
        listed = set()
        for attempt, spec in message.running:
            listed.add((spec.id, attempt))
            self._adopt(node, attempt, spec)
        # What the worker does not know was lost with its process, or on the way to it.
        missing = [
            task
            for task in self._held_by(node)
            if (task.spec.id, task.attempt) not in listed
        ]
        self._placing.lose_all(missing, now)

    def on_down(self, node: NodeId, now: Moment) -> bool:
        """Give up a worker's attempts, or wait for it; tell whether they were lost."""
        held = self._held_by(node)
        if self.is_open and now.mono_s < self._until_s:
            if held:
                self._absent[node] = self._until_s
            return False
        self._absent.pop(node, None)
        self._placing.lose_all(held, now)
        return True

    def expire(self, now: Moment) -> None:
        """Give up the attempts of workers that did not come back in time."""
        if self._held_until_s is not None and self._held_until_s <= now.mono_s:
            self.go_on()
        for node in [node for node, at_s in self._absent.items() if at_s <= now.mono_s]:
            del self._absent[node]
            self._placing.lose_all(self._held_by(node), now)
        self.is_open = now.mono_s < self._until_s

    def believe(self, record: TaskRecord, now: Moment) -> None:
        """Settle on one live attempt of a task in the log; give up the others."""
        live = [attempt for attempt in record.attempts if attempt.state.is_live]
        task = self._queue.tasks.get(record.id)
        if not live or (task is not None and task.stage is Stage.ENDED):
            return
        if task is None:
            task = self._queue.from_record(record)
            task.may_be_cut = member_of(record.id) is not None
            self._queue.adopt(task, live[-1].id, live[-1].node)
        elif task.stage is Stage.LIVE:
            task.is_sure = True
        elif task.attempt is None or task.attempt < live[-1].id:
            self._queue.assign(task, live[-1].id, live[-1].node)
        task.n = max(task.n, *(attempt.id.n for attempt in record.attempts))
        if record.state.is_final and task.final is None:
            task.final = record.state
            if task.stage is Stage.LIVE:
                self._placing.kill(task)
            else:
                self._queue.end(task, record.state)
                self._placing.touch(task)
        for attempt in live:
            if attempt.id != task.attempt and attempt.id not in task.reported:
                self._placing.write_lost(record.id, attempt.id, attempt.node, now)
        self._expect(task, now)

    def _adopt(self, node: NodeId, attempt: AttemptId, spec: TaskSpec) -> None:
        """Keep an attempt that a worker runs, if it is the one that counts."""
        task = self._queue.tasks.get(spec.id)
        if task is None and not self._queue.is_final(spec.id):
            # The store may know more; until a read says so, it is asked before
            # the task is run again.
            task = InHand(spec, is_sure=False)
            if (place := member_of(spec.id)) is not None:
                task.may_be_cut = True
                self._queue.look_for(place[0])
            self._queue.adopt(task, attempt, node)
            task.is_heard = True
            self._placing.facts += self._placing.told_again(spec, attempt)
            self._placing.facts.append(Assigned(spec.id, attempt, node))
        elif task is None or not self._is_counting(task, node, attempt):
            self._placing.kill_attempt(node, spec.id, attempt)
        else:
            self._hear(task, node, attempt)

    @staticmethod
    def _is_counting(task: InHand, node: NodeId, attempt: AttemptId) -> bool:
        if task.stage in WAITING:
            # Its assignment was lost with the dispatcher before.
            return task.attempt is None or task.attempt < attempt
        return (
            task.stage is Stage.LIVE
            and task.final is None
            and (task.attempt, task.node) == (attempt, node)
        )

    def _hear(self, task: InHand, node: NodeId, attempt: AttemptId) -> None:
        if task.stage in WAITING:
            self._queue.assign(task, attempt, node)
            self._placing.facts.append(Assigned(task.spec.id, attempt, node))
        task.is_heard = True

    def _expect(self, task: InHand, now: Moment) -> None:
        """Give an absent worker time to come back to its attempt."""
        node = task.node
        if task.stage is not Stage.LIVE or node is None:
            return
        if not self._pool.is_attached(node):
            until_s = self._until_s if self.is_open else now.mono_s + self._adopt_s
            self._absent.setdefault(node, until_s)
        elif not task.is_heard:
            self._placing.lose_task(task, now)

    def _held_by(self, node: NodeId) -> list[InHand]:
        return list(self._queue.held.get(node, {}).values())
