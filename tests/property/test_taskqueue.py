"""A dispatcher keeps its promises after any events in any order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from octaskly.core.model.ids import NodeId
from octaskly.core.model.task_options import Requirements
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from tests.support import builders, dispatcher_model
from tests.support.dispatcher import queued_count
from tests.support.dispatcher_model import IMPOSSIBLE, LIMITS, NEEDS, DispatcherModel

NODES = st.sampled_from([NodeId(name) for name in "abc"])
PEERS = st.sampled_from([NodeId(name) for name in "bc"])
OUTCOMES = st.sampled_from(
    [
        builders.outcome(duration_ms=1),
        builders.outcome(duration_ms=1),
        builders.outcome(AttemptState.FAILED, duration_ms=1),
        builders.released(EndReason.RETURNED),
        builders.released(EndReason.INPUTS, "data.csv"),
        builders.released(EndReason.LOST),
    ]
)


class DispatcherMachine(RuleBasedStateMachine):
    """Submissions, cancels, losses and results in every order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = DispatcherModel()

    @initialize()
    def start(self) -> None:
        self.world.begin_epoch()
        for node in self.world.workers:
            self.world.link(node)

    @rule(
        count=st.integers(1, 7),
        requires=st.none() | st.sampled_from([*NEEDS, IMPOSSIBLE]),
        priority=st.sampled_from([0, 0, 1]),
    )
    def submit(self, count: int, requires: Requirements | None, priority: int) -> None:
        if len(self.world.written) < 40:
            self.world.submit(count, requires, priority)

    @rule(times=st.integers(1, 3))
    def commit(self, times: int) -> None:
        for _ in range(min(times, len(self.world.commits))):
            self.world.commit()

    @precondition(lambda self: self.world.reads)
    @rule()
    def read(self) -> None:
        self.world.read()

    @precondition(lambda self: self.world.answers)
    @rule()
    def answer(self) -> None:
        self.world.answer()

    @rule(node=NODES, times=st.integers(1, 4))
    def hear_worker(self, node: NodeId, times: int) -> None:
        for _ in range(min(times, len(self.world.workers[node].up))):
            self.world.hear_worker(node)

    @rule(node=NODES, times=st.integers(1, 4))
    def hear_dispatcher(self, node: NodeId, times: int) -> None:
        for _ in range(min(times, len(self.world.workers[node].down))):
            self.world.hear_dispatcher(node)

    @rule(node=NODES, outcome=OUTCOMES)
    def finish(self, node: NodeId, outcome: Outcome) -> None:
        if self.world.workers[node].here:
            self.world.finish(node, outcome)

    @precondition(lambda self: self.world.durable)
    @rule(draw=st.integers(0, 1000), force=st.booleans())
    def cancel(self, draw: int, force: bool) -> None:
        tasks = sorted(
            task for task, record in self.world.durable.items() if record.spec
        )
        if tasks:
            self.world.cancel(tasks[draw % len(tasks)], force=force)

    @rule(node=PEERS)
    def cut(self, node: NodeId) -> None:
        self.world.cut(node)

    @rule(node=PEERS)
    def link(self, node: NodeId) -> None:
        self.world.link(node)

    @rule(node=NODES)
    def beat(self, node: NodeId) -> None:
        self.world.beat(node)

    @rule(seconds=st.sampled_from([0.01, 0.3, 3.0, 6.0]))
    def advance(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(is_wanted=st.sampled_from([False, False, False, True]))
    def begin_epoch_anew(self, is_wanted: bool) -> None:
        if is_wanted:
            self.world.begin_epoch()

    @rule()
    def absorb(self) -> None:
        self.world.absorb()

    @invariant()
    def no_worker_holds_more_than_its_limit(self) -> None:
        for node in self.world.workers:
            assert (
                self.world.dispatch.outstanding(node)
                <= (dispatcher_model.NODES[node].slots + LIMITS.prefetch) * 2
                # Adopted attempts may come on top.
            )
        self.world.check_grants()

    def teardown(self) -> None:
        """Once faults stop, every accepted task ends."""
        world = self.world
        world.cancel_impossible_tasks()
        world.calm_down()
        for task in world.accepted:
            assert world.durable[task].state.is_final
            if task in world.cancelled:
                assert world.durable[task].cancelled_by is not None
        assert all(not linked.here for linked in world.workers.values())
        assert world.dispatch._queue.tasks.count == 0
        assert not world.dispatch._queue.tasks.ranges
        assert queued_count(world.dispatch._queue) == 0


TestDispatcherModel = DispatcherMachine.TestCase
TestDispatcherModel.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None
)
