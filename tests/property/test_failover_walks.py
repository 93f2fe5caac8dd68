"""Long random walks through the epochs of dispatchers that die, one after the other.

What one had decided and not yet written dies with it, and may come back later: a node
that was away had it. Reads of the store overtake each other where they may, tasks are
handed in again by their names, and have needs and priorities of all kinds.
"""

from __future__ import annotations

import os
import random

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import AnnounceTaskStates, Append, Effect, LoadLive
from octaskly.core.events import LiveLoaded, SavedState, TasksSubmitted
from octaskly.core.log.facts import (
    Assigned,
    Fact,
    Finished,
    Floor,
    Recorded,
    TaskCancelled,
    TaskFact,
)
from octaskly.core.log.merge import TaskRecord, apply_fact
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.consequences import Outbox
from octaskly.core.model.drafts import log_id_of
from octaskly.core.model.ids import Epoch, NodeId, StreamId
from octaskly.core.model.task_options import Retry, TaskOptions
from octaskly.core.model.tasks import TaskState
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication
from octaskly.core.replies import CancelResult, TasksAccepted
from tests.property.test_reign_walks import Walk
from tests.support import builders
from tests.support.dispatcher_model import LIMITS, NEEDS, DispatcherModel

SEEDS = int(os.environ.get("REIGN_SEEDS", "120"))
OPEN_MAX = 20  #: tasks that are not over, at a time
NAMES = 40  #: that are chosen for tasks
SEQUENCE_STEP = 100  #: so that no number of a task is given twice


class FailoverModel(DispatcherModel):
    """One disk and its workers under many dispatchers."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self._dice = dice
        self._gone: list[TaskFact] = []
        """What dispatchers took with them."""
        self._hlc = self._sequence = 0

    def fail_over(self, *, is_held: bool) -> None:
        """Let another process take over this disk, without what was not yet on it."""
        self._gone += [
            entry.fact
            for append in self.commits
            for entry in append.entries
            if not isinstance(entry.fact, Floor | Recorded)
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
            known, self.journal, self.replication, self._sequence, self.timers
        )
        for node, linked in self.workers.items():
            linked.is_linked = False
            linked.up.clear()
            linked.down.clear()
            self.perform(linked.worker.detach(self.now), node)
        self.term += 1
        # In any order: of two halves of a split each one's may be the higher one.
        stream = StreamId(self._dice.randrange(1000, 9000) * 10_000 + self.term)
        self.journal.open_stream(stream)
        if is_held:
            self.dispatch.reconciler.delay_read(self.now)
        self.perform(
            self.dispatch.start_dispatching(Epoch(self.term, self.me), stream, self.now)
        )
        for node in self.workers:
            self.link(node)

    def regain(self) -> None:
        """Read what the dead had written from the log of a node that comes back."""
        gone, self._gone = self._gone, []
        if not gone:
            return
        for fact in gone:
            for records in (self.written, self.durable):
                records[fact.task] = apply_fact(records.get(fact.task), fact)
        over = [
            fact.task for fact in gone if isinstance(fact, Finished | TaskCancelled)
        ]
        if over:
            self.perform(self.dispatch.on_ended_elsewhere(tuple(over), self.now))
        self.dispatch.reconciler.trust_log()
        self.absorb()

    def hand_in(self, name: str, retry: Retry | None) -> None:
        """Submit a task by a name that may be in use, or have been."""
        options = None if retry is None else TaskOptions(retry=retry)
        draft = replace(builders.draft(id=name), options=options)
        task = log_id_of(draft, "tester")
        known = None if task is None else self.durable.get(task)
        if known is not None and known.spec is not None:
            return  # The store tells the API of it.
        self.ticket += 1
        asked = TasksSubmitted(self.ticket, (draft,), "tester", ("0" * 8,))
        self.perform(self.dispatch.on_submitted(asked, self.now))

    def read(self) -> None:
        """Answer a read; those of one kind stay in order."""
        reads = self.reads
        may_swap = len(reads) > 1 and type(reads[0]) is not type(reads[1])
        if may_swap and self._dice.random() < 0.5:
            reads[0], reads[1] = reads[1], reads[0]
        asked = reads[0]
        if not isinstance(asked, LoadLive):
            super().read()
            return
        reads.popleft()
        known = self.durable.values()
        found = tuple(r for r in known if _is_live(r) or r.id in asked.looked_up)
        self.answers.append(LiveLoaded(found))

    def answer(self) -> None:
        """Hand in an answer, of either kind the first."""
        kinds = [isinstance(answer, LiveLoaded) for answer in self.answers]
        place = kinds.index(self._dice.choice(kinds))
        first = self.answers[place]
        del self.answers[place]
        self.answers.appendleft(first)
        super().answer()

    def perform(self, effects: list[Effect], node: NodeId | None = None) -> None:
        """Tell nobody of ends: who waits asks anew of each dispatcher."""
        told: list[Effect] = [
            e for e in effects if not isinstance(e, AnnounceTaskStates)
        ]
        super().perform(told, node)

    def _write(self, append: Append) -> None:
        self._hlc = max([self._hlc, *(entry.hlc for entry in append.entries)])
        super()._write(append)

    def _check(self, fact: Fact) -> None:
        # What an earlier epoch began may be found, though this one knows of its end.
        is_found = isinstance(fact, Assigned) and fact.attempt.term != self.term
        if not is_found:
            super()._check(fact)

    def _answered(self, ticket: int, reply: object) -> None:
        if isinstance(reply, TasksAccepted):
            # By its name it may be what another log said of the same task.
            assert all(self.durable[spec.id].spec is not None for spec in reply.specs)
            self.accepted += [spec.id for spec in reply.specs]
        elif not isinstance(reply, CancelResult) or ticket in self.asked:
            super()._answered(ticket, reply)


def _is_live(record: TaskRecord) -> bool:
    """Whether it runs, or its last attempt has no end."""
    last = record.attempts[-1:]
    return record.state is TaskState.RUNNING or any(a.state.is_live for a in last)


class FailoverWalk(Walk):
    """What happens in an epoch, and its end."""

    failing = 20

    def __init__(self, seed: int) -> None:
        self.model = FailoverModel(random.Random(seed + 1))
        super().__init__(seed, self.model)
        often, seldom = self.dice.choice([0.3, 1, 3]), self.dice.choice([0.3, 1, 3])
        self.steps += [self.fail_over, self.regain, self.hand_in]
        self.weights += [often, seldom, 3]

    @property
    def _has_room(self) -> bool:
        known = self.world.written.values()
        return sum(not record.state.is_final for record in known) < OPEN_MAX

    def submit(self) -> None:
        if self._has_room:
            dice = self.dice
            self.world.submit(
                dice.randint(1, 3),
                retry=Retry(retries=dice.randrange(3), on_lost=dice.random() < 0.7),
                priority=dice.choice([0, 0, 5, -5]),
                requires=dice.choice((None, None, *NEEDS)),
            )

    def hand_in(self) -> None:
        if self._has_room:
            number = self.dice.randrange(NAMES)
            retry = Retry(retries=number % 3) if number % 2 else None
            self.model.hand_in(f"n{number}", retry)

    def fail_over(self) -> None:
        self.model.fail_over(is_held=self.dice.random() < 0.5)

    def regain(self) -> None:
        self.model.regain()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whoever_dies_every_task_that_was_accepted_ends_and_holds_nothing(
    seed: int,
) -> None:
    """The world itself says no to double runs and early acknowledgements."""
    walk = FailoverWalk(seed)

    walk.go()
    if walk.dice.random() < 0.7:
        walk.regain()
    world = walk.world
    world.calm_down()

    assert all(world.durable[task].state.is_final for task in world.accepted)
    queue, pool = world.dispatch._queue, world.dispatch._pool
    assert queue.tasks == {}
    for node in world.workers:
        granted, worker = queue.granted_resources(node), pool._workers[node]
        assert (granted.slots, granted.memory_mb, granted.gpus) == (0, 0, 0)
        assert (worker.outstanding, worker.memory_mb, worker.gpus) == (0, 0, 0)
