"""The order in which the loop hands events to the node, and when it wakes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from octaskly.agent.core_loop import TIMER_SLACK_S, CoreLoop
from octaskly.core.effects import Effect, LoadLive
from octaskly.core.events import Event, LiveLoaded, Persisted, TimerFired
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import Moment, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.node.node import Node
from octaskly.system.clock import SystemClock


class Recorder:
    """Stands in for the node: keeps the events, and may do something at each."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.due_s = SystemClock().now().mono_s + 1000.0
        self.during: Callable[[Event], None] = lambda _: None
        self.last: Event | None = None  #: to wait for
        self.has_last = asyncio.Event()

    def step(self, event: Event, _: Moment) -> list[Effect]:
        """Take an event."""
        self.events.append(event)
        self.during(event)
        if event == self.last:
            self.has_last.set()
        return []

    def deadline(self) -> float:
        """Return when to step without an event."""
        return self.due_s


def loop_of(node: Recorder, store: object = None) -> CoreLoop:
    """Return a loop that has nothing but this node."""
    none = cast("Any", None)
    return CoreLoop(
        cast("Node", node),
        clock=SystemClock(),
        log=none,
        store=cast("Any", store),
        limits=Limits(),
        on_stopped=lambda: None,
    )


async def test_an_event_is_handled_at_once_behind_those_that_wait() -> None:
    """Nothing is overtaken, and nothing waits for a turn of the event loop."""
    node = Recorder()
    loop = loop_of(node)
    loop.post(Persisted(1))
    assert node.events == []
    loop.handle(Persisted(2))
    assert node.events == [Persisted(1), Persisted(2)]
    loop.close()


async def test_what_a_step_brings_about_waits_for_the_next_turn() -> None:
    """The node is never stepped from within a step."""
    node = Recorder()
    loop = loop_of(node)

    def during(event: Event) -> None:
        if event == Persisted(1):
            loop.handle(Persisted(2))
            loop.post(Persisted(3))
            assert node.events == [event]

    node.during, node.last = during, Persisted(3)
    loop.handle(Persisted(1))
    assert loop.failure is None
    assert node.events == [Persisted(1)]
    await node.has_last.wait()
    assert node.events == [Persisted(1), Persisted(2), Persisted(3)]
    loop.close()


async def test_a_step_that_fails_ends_the_loop_with_its_error() -> None:
    """A broken invariant is not survived: the agent exits and is started again."""
    node = Recorder()
    loop = loop_of(node)

    def during(_: Event) -> None:
        raise ValueError("broken")

    node.during = during
    loop.handle(Persisted(1))
    assert isinstance(loop.failure, ValueError)
    loop.close()


async def test_a_timer_that_comes_a_little_early_only_looks_again() -> None:
    """A timer is kept while it is early enough, and wakes the node only when due."""
    node = Recorder()
    loop = loop_of(node)
    loop.handle(Persisted(1))
    await asyncio.sleep(0)
    early = loop._timer
    assert early is not None
    node.due_s += TIMER_SLACK_S / 2
    loop.handle(Persisted(2))
    await asyncio.sleep(0)
    assert loop._timer is early
    loop._on_timer()
    assert node.events == [Persisted(1), Persisted(2)]
    assert loop._timer is not early
    node.due_s -= 3000.0
    loop._on_timer()
    assert isinstance(node.events[-1], TimerFired)
    loop.close()


async def test_a_timer_that_is_far_too_early_is_set_anew() -> None:
    """A follower wants to be woken later at each heartbeat: it then never has to be."""
    node = Recorder()
    loop = loop_of(node)
    loop.handle(Persisted(1))
    await asyncio.sleep(0)
    early = loop._timer
    node.due_s += 2 * TIMER_SLACK_S
    loop.handle(Persisted(2))
    await asyncio.sleep(0)
    assert early is not None
    assert early.cancelled()
    assert loop._timer is not early
    loop.close()


async def test_the_store_answers_about_live_tasks_in_the_order_of_the_questions() -> (
    None
):
    """The node counts off what an earlier reign asked; two readers may overtake."""
    node = Recorder()
    store = SimpleNamespace()
    loop = loop_of(node, store)
    seen: list[tuple[TaskId, ...]] = []
    is_slow = asyncio.Event()

    async def load_live(named: tuple[TaskId, ...]) -> tuple[TaskRecord, ...]:
        seen.append(named)
        if named:
            await is_slow.wait()
        return tuple(map(TaskRecord, named))

    store.load_live_tasks = load_live
    name = TaskId("t")
    node.last = LiveLoaded(())
    questions = (LoadLive((name,)), LoadLive(()))
    tasks = [asyncio.create_task(loop._load_live_tasks(each)) for each in questions]
    await asyncio.sleep(0)
    assert seen == [(name,)]
    is_slow.set()
    await asyncio.gather(*tasks)
    await node.has_last.wait()
    assert node.events == [LiveLoaded((TaskRecord(name),)), LiveLoaded(())]
    loop.close()
