"""Long random walks through the epochs of dispatchers that die one after another.

A dispatcher's unwritten decisions die with it, and may come back later from a node that
was away. Reads of the store overtake each other where they may. Tasks are submitted
again by their names, and have requirements and priorities of all kinds.
"""

from __future__ import annotations

import os
import random

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import AnnounceTaskStates, Append, Effect
from octaskly.core.events import SavedState, TasksSubmitted
from octaskly.core.log.facts import (
    Assigned,
    Decided,
    Fact,
    Finished,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import apply_fact
from octaskly.core.log.range_facts import task_entries
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.drafts import log_id_of
from octaskly.core.model.ids import Epoch, NodeId, StreamId
from octaskly.core.model.task_options import Retry, TaskOptions
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication
from octaskly.core.replies import CancelResult, TasksAccepted
from octaskly.core.scheduling.task_table import HeldAttempts
from tests.property.test_epoch_walks import Walk
from tests.support import builders
from tests.support.dispatcher_model import LIMITS, NEEDS, DispatcherModel

SEEDS = int(os.environ.get("REIGN_SEEDS", "120"))
OPEN_MAX = 20  #: tasks that have not ended, at a time
NAMES = 40  #: names to choose for tasks
SEQUENCE_STEP = 100  #: so that no task gets a number twice


class FailoverModel(DispatcherModel):
    """One disk and its workers under many dispatchers."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._dice = rng
        self._gone: list[TaskFact] = []
        """Writes that were lost with their dispatchers."""
        self._hlc = self._sequence = 0

    def fail_over(self, *, is_held: bool) -> None:
        """Let another process take over this disk, without the uncommitted writes."""
        self._gone += [
            fact for append in self.commits for _, fact in task_entries(append.entries)
        ]
        for waiting in (self.commits, self.reads, self.answers):
            waiting.clear()
        self.asked.clear()
        self.written = dict(self.durable)
        known = builders.settings(self.me, limits=LIMITS)
        self.journal = Journal(SavedState(hlc=self._hlc), Outbox())
        self.timers = TimerHeap()
        self.replication = Replication(
            known,
            self.journal,
            PeerTable(known, SavedState(), TimerHeap(), Outbox()),
            self.timers,
        )
        self._sequence += SEQUENCE_STEP
        self.dispatch = Dispatcher(
            known,
            self.journal,
            self.replication,
            self._sequence,
            self.timers,
            lambda _: True,
        )
        for node, linked in self.workers.items():
            linked.is_linked = False
            linked.up.clear()
            linked.down.clear()
            self.perform(linked.worker.detach(self.now), node)
        self.term += 1
        # In any order: either half of a split may have the higher epoch.
        stream = StreamId(self._dice.randrange(1000, 9000) * 10_000 + self.term)
        self.journal.open_stream(stream)
        if is_held:
            self.dispatch.reconciler.await_logs(self.now)
        self.perform(
            self.dispatch.start_dispatching(Epoch(self.term, self.me), stream, self.now)
        )
        for node in self.workers:
            self.link(node)

    def recover_log(self) -> None:
        """Read the dead dispatcher's writes from the log of a node that comes back."""
        gone, self._gone = self._gone, []
        if not gone:
            return
        for fact in gone:
            for records in (self.written, self.durable):
                records[fact.task] = apply_fact(records.get(fact.task), fact)
        over = [
            fact.task
            for fact in gone
            if isinstance(fact, Finished | TaskCancelled | Decided)
        ]
        if over:
            self.perform(self.dispatch.on_ended_elsewhere(tuple(over), self.now))
        self.dispatch.reconciler.trust_log()
        self.absorb()

    def resubmit(self, name: str, retry: Retry | None) -> None:
        """Submit a task by a name that may be or may have been in use."""
        options = None if retry is None else TaskOptions(retry=retry)
        draft = replace(builders.draft(id=name), options=options)
        task = log_id_of(draft, "tester")
        known = None if task is None else self.durable.get(task)
        if known is not None and known.spec is not None:
            return  # The store reports the task to the API.
        self.ticket += 1
        asked = TasksSubmitted(self.ticket, (draft,), "tester", ("0" * 8,), (task,))
        self.perform(self.dispatch.on_submitted(asked, self.now))

    def read(self) -> None:
        """Answer a read; reads of one kind stay in order."""
        reads = self.reads
        may_swap = len(reads) > 1 and type(reads[0]) is not type(reads[1])
        if may_swap and self._dice.random() < 0.5:
            reads[0], reads[1] = reads[1], reads[0]
        super().read()

    def answer(self) -> None:
        """Apply an answer; answers of one kind come in order."""
        kinds = [type(answer) for answer in self.answers]
        place = kinds.index(self._dice.choice(kinds))
        first = self.answers[place]
        del self.answers[place]
        self.answers.appendleft(first)
        super().answer()

    def perform(self, effects: list[Effect], node: NodeId | None = None) -> None:
        """Drop replies about ends: waiting clients ask each new dispatcher again."""
        performed: list[Effect] = [
            e for e in effects if not isinstance(e, AnnounceTaskStates)
        ]
        super().perform(performed, node)

    def _write(self, append: Append) -> None:
        self._hlc = max([self._hlc, *(entry.hlc for entry in append.entries)])
        super()._write(append)

    def _check(self, fact: Fact) -> None:
        # An attempt of an earlier epoch may be found, though this epoch knows its end.
        is_found = isinstance(fact, Assigned) and fact.attempt.term != self.term
        if not is_found:
            super()._check(fact)

    def _answered(self, ticket: int, reply: object) -> None:
        if isinstance(reply, TasksAccepted):
            # The name may belong to the same task from another log.
            assert all(self.durable[spec.id].spec is not None for spec in reply.specs)
            self.accepted += [spec.id for spec in reply.specs]
        elif not isinstance(reply, CancelResult) or ticket in self.asked:
            super()._answered(ticket, reply)


class FailoverWalk(Walk):
    """The events of an epoch, and its end."""

    failing = 20

    def __init__(self, seed: int) -> None:
        self.model = FailoverModel(random.Random(seed + 1))
        super().__init__(seed, self.model)
        often, seldom = self.rng.choice([0.3, 1, 3]), self.rng.choice([0.3, 1, 3])
        self.steps += [self.fail_over, self.recover_log, self.resubmit]
        self.weights += [often, seldom, 3]

    @property
    def _has_room(self) -> bool:
        known = self.world.written.values()
        return sum(not record.state.is_final for record in known) < OPEN_MAX

    def submit(self) -> None:
        if self._has_room:
            rng = self.rng
            self.world.submit(
                rng.randint(1, 3),
                retry=Retry(retries=rng.randrange(3), on_lost=rng.random() < 0.7),
                priority=rng.choice([0, 0, 5, -5]),
                requires=rng.choice((None, None, *NEEDS)),
            )

    def resubmit(self) -> None:
        if self._has_room:
            number = self.rng.randrange(NAMES)
            retry = Retry(retries=number % 3) if number % 2 else None
            self.model.resubmit(f"n{number}", retry)

    def fail_over(self) -> None:
        self.model.fail_over(is_held=self.rng.random() < 0.5)

    def recover_log(self) -> None:
        self.model.recover_log()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_accepted_task_ends_and_frees_its_resources_despite_failovers(
    seed: int,
) -> None:
    """The model itself rejects double runs and early acknowledgements."""
    walk = FailoverWalk(seed)

    walk.go()
    if walk.rng.random() < 0.7:
        walk.recover_log()
    world = walk.world
    world.calm_down()

    assert all(world.durable[task].state.is_final for task in world.accepted)
    queue, pool = world.dispatch._queue, world.dispatch._pool
    assert queue.tasks.count == 0
    assert not queue.tasks.ranges
    for node in world.workers:
        held, worker = queue.tasks.held_at(node), pool._workers[node]
        assert held == HeldAttempts()
        assert (worker.outstanding, worker.memory_mb, worker.gpus) == (0, 0, 0)
