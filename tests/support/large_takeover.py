"""A dispatcher that takes over while 26 400 attempts run, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from octaskly.core.effects import Effect, LoadLive, LoadQueued, LoadTasks
from octaskly.core.events import QueuedLoaded
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, NodeId, StreamId
from octaskly.core.model.nodes import NodeState
from octaskly.core.protocol.messages import Reattach
from tests.support.builders import (
    STREAM,
    epoch,
    is_live,
    live_reply,
    moment,
    node_info,
    spec,
    tasks_reply,
)
from tests.support.dispatcher import LATE, DispatcherWithJournal, live_attempt

WORKERS, ATTEMPTS = 100, 264  #: 8 slots, and as many attempts as a worker may prefetch
BEFORE = AttemptId(1, StreamId(5), 1, 1)  #: of the epoch before

Step = Callable[[], list[Effect]]


def takeover_steps() -> Iterator[tuple[str, Step]]:
    """Yield each step of a takeover, by name; the caller performs it.

    Three of four workers come back, one of them with a task that the log lacks. Another
    node's log has the end of a task. Then the other workers are given up.
    """
    world = DispatcherWithJournal()
    dispatcher = world.dispatch
    running = {
        NodeId(f"w{number}"): _running_on(NodeId(f"w{number}"), number)
        for number in range(WORKERS)
    }
    stored = [record for records in running.values() for record in records]
    pending: list[Effect] = []

    def performing(step: Step) -> Step:
        def perform() -> list[Effect]:
            effects = step()
            pending.extend(effects)
            return effects

        return perform

    def reads() -> Iterator[tuple[str, Step]]:
        while asked := _first_read(pending):
            pending.remove(asked)
            answer = (
                live_reply(stored, asked, is_live)
                if isinstance(asked, LoadLive)
                else tasks_reply(stored, asked)
                if isinstance(asked, LoadTasks)
                else QueuedLoaded(asked.term, (), has_more=False)
            )
            name = f"answer to {type(asked).__name__}"
            step = performing(partial(dispatcher.on_store_answer, answer, moment()))
            yield name, step

    now = moment()
    yield (
        "start",
        performing(lambda: dispatcher.start_dispatching(epoch(2), STREAM, now)),
    )
    yield from reads()
    for number, (node, records) in enumerate(running.items()):
        if number % 4 == 0:
            continue
        info = node_info(node, 8)
        yield "worker up", performing(partial(dispatcher.on_worker_up, info, now))
        listed = tuple((BEFORE, record.spec) for record in records if record.spec)
        if number == 1:
            listed = (*listed, (BEFORE, spec("task-999999-0000abcd", ord=10**6)))
        message = Reattach(listed, 0, NodeState.READY)
        yield (
            "reattach",
            performing(partial(dispatcher.on_reattach, node, message, now)),
        )
    yield from reads()
    ended = (stored[-1].id,)
    yield "ended", performing(lambda: dispatcher.on_ended_elsewhere(ended, now))
    yield "remote entries", performing(lambda: dispatcher.on_remote_entries(now))
    yield from reads()
    late = moment(LATE)
    while world.timers.next_at() <= late.mono_s:
        yield "workers given up", performing(lambda: dispatcher.on_time(late))
        yield "commit", performing(lambda: world.commit(LATE))
    assert dispatcher.outstanding(NodeId("w0")) == 0


def _running_on(node: NodeId, number: int) -> Sequence[TaskRecord]:
    """Return the tasks of a worker as the store has them."""
    places = range(number * ATTEMPTS + 1, (number + 1) * ATTEMPTS + 1)
    specs = (spec(f"task-{place}-0000abcd", ord=place) for place in places)
    return [
        TaskRecord(each.id, each, attempts=(live_attempt(node, BEFORE),))
        for each in specs
    ]


def _first_read(
    effects: Sequence[Effect],
) -> LoadLive | LoadTasks | LoadQueued | None:
    for effect in effects:
        if isinstance(effect, LoadLive | LoadTasks | LoadQueued):
            return effect
    return None
