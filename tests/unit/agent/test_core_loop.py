"""The order in which the loop hands events to the node, and the node's timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from octaskly.agent.core_loop import CoreLoop
from octaskly.core.effects import Effect
from octaskly.core.events import Event, Persisted, TimerFired
from octaskly.core.model.ids import Moment
from octaskly.core.model.settings import Limits
from octaskly.core.node.node import Node
from octaskly.errors import StoreCorrupt
from octaskly.system.clock import SystemClock


class Recorder:
    """Stands in for the node: records the events and may act on each."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.due_s = SystemClock().now().mono_s + 1000.0
        self.during: Callable[[Event], None] = lambda _: None
        self.last: Event | None = None  #: to wait for
        self.has_last = asyncio.Event()

    def step(self, event: Event, _: Moment) -> list[Effect]:
        """Record an event."""
        self.events.append(event)
        self.during(event)
        if event == self.last:
            self.has_last.set()
        return []

    def deadline(self) -> float:
        """Return the time of the next step without an event."""
        return self.due_s


def loop_of(node: Recorder, store: object = None) -> CoreLoop:
    """Return a loop that runs only this node."""
    none = cast("Any", None)
    return CoreLoop(
        cast("Node", node),
        clock=SystemClock(),
        log=none,
        store=cast("Any", store),
        limits=Limits(),
        on_stopped=lambda: None,
    )


async def test_an_event_is_handled_at_once_after_earlier_events() -> None:
    """Events keep their order, and none waits for a turn of the event loop."""
    node = Recorder()
    loop = loop_of(node)
    loop.post(Persisted(1))
    assert node.events == []
    loop.handle(Persisted(2))
    assert node.events == [Persisted(1), Persisted(2)]
    loop.close()


async def test_events_raised_in_a_step_wait_for_the_next_turn() -> None:
    """A step never calls the node again."""
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


async def test_a_failed_step_ends_the_loop_with_its_error() -> None:
    """After a broken invariant the agent exits, and its supervisor restarts it."""
    node = Recorder()
    loop = loop_of(node)

    def during(_: Event) -> None:
        raise ValueError("broken")

    node.during = during
    loop.handle(Persisted(1))
    assert isinstance(loop.failure, ValueError)
    loop.close()


async def test_a_log_that_cannot_be_read_ends_the_loop_with_its_error() -> None:
    """The agent then says what is wrong, and exits with the code for it."""

    async def read() -> Event:
        raise StoreCorrupt("log.db is damaged")

    loop = loop_of(Recorder())
    async with asyncio.TaskGroup() as loop._reads:
        loop._read(read())

    assert isinstance(loop.failure, StoreCorrupt)
    loop.close()


async def test_an_early_timer_only_checks_the_deadline() -> None:
    """The timer is kept and steps the node only when it is due."""
    node = Recorder()
    loop = loop_of(node)
    loop.handle(Persisted(1))
    early = loop._timer
    assert early is not None
    node.due_s += 1.0
    loop.handle(Persisted(2))
    assert loop._timer is early
    loop._on_timer()
    assert node.events == [Persisted(1), Persisted(2)]
    assert loop._timer is not early
    node.due_s -= 3000.0
    loop._on_timer()
    assert isinstance(node.events[-1], TimerFired)
    loop.close()


async def test_a_late_timer_is_replaced() -> None:
    """A step may make something due before all that the node waited for."""
    node = Recorder()
    loop = loop_of(node)
    loop.handle(Persisted(1))
    late = loop._timer
    assert late is not None
    node.due_s -= 1.0
    loop.handle(Persisted(2))
    assert late.cancelled()
    assert loop._timer is not late
    loop.close()
