"""Timers: a node may sleep until one of its timers is due."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

import pytest

from octaskly.core.effects import Effect
from octaskly.core.events import Event, TimerFired
from octaskly.core.model.ids import Moment
from octaskly.core.model.timer_heap import Timer
from octaskly.core.node.node import Node
from tests.simulation.kinds.splits import run_flapping
from tests.simulation.kinds.tormented import run_seed
from tests.simulation.world import World

WAKES_MAX = 10  #: steps of one node,
BRIEF_S = 0.02  #: in this time
DISPATCHER_TIMERS = {
    Timer.RETENTION,
    Timer.DEPENDENCIES,
    Timer.BACKOFF,
    Timer.REATTACH,
}
"""They share one handler, which does all due work."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_no_handler_has_work_before_its_timer_is_due(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the work would be late, because no step comes before that."""
    step = Node.step

    def checked(self: Node, event: Event, now: Moment) -> list[Effect]:
        if self._last_step_s is not None:
            due_s = self._timers._due_s
            due = {timer for timer in due_s if due_s[timer] <= now.mono_s}
            if due & DISPATCHER_TIMERS:
                due |= DISPATCHER_TIMERS
            # Loads are sent with heartbeats, or when they are due.
            due.add(Timer.ROSTER)
            for timer in sorted({*Timer} - due):
                assert self._on_timer(timer, now) == [], timer
        return step(self, event, now)

    monkeypatch.setattr(Node, "step", checked)

    run_seed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_seed, run_flapping])
def test_handled_timer_is_not_due_again_at_once(
    run: Callable[[int], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a node would keep a core busy until something else happens."""
    step = Node.step
    wakes: defaultdict[Node, deque[float]]
    wakes = defaultdict(lambda: deque(maxlen=WAKES_MAX))

    def checked(self: Node, event: Event, now: Moment) -> list[Effect]:
        if isinstance(event, TimerFired):
            last = wakes[self]
            assert len(last) < WAKES_MAX or now.mono_s - last[0] > BRIEF_S, last
            last.append(now.mono_s)
        return step(self, event, now)

    monkeypatch.setattr(Node, "step", checked)

    run(5000)
