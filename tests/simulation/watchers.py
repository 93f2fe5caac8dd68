"""Checks that follow the steps of all nodes, each called only for what it watches.

Most steps have few effects, and most checks concern few kinds of them. So a check names
the kinds, and the world looks each kind up once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from octaskly.core.effects import Effect, Send
from octaskly.core.events import Event, Received
from tests.simulation.machine import Machine

Watch = Callable[[Machine, Any], None]
"""Checks one event, effect or message of a machine's step."""
StepWatch = Callable[[Machine, Event, list[Effect]], None]
_Kinds = Iterable[type]


class Watchers:
    """The checks, in the order in which a step calls them."""

    def __init__(self) -> None:
        self._of_events: dict[type, list[Watch]] = defaultdict(list)
        self._of_received: dict[type, list[Watch]] = defaultdict(list)
        self._of_effects: dict[type, list[Watch]] = defaultdict(list)
        self._of_sent: dict[type, list[Watch]] = defaultdict(list)
        self._of_steps: list[StepWatch] = []

    def on_event(self, kinds: _Kinds, watch: Watch) -> None:
        """Call `watch` for each event of these kinds."""
        _add(self._of_events, kinds, watch)

    def on_received(self, kinds: _Kinds, watch: Watch) -> None:
        """Call `watch` for each message of these kinds that a node received."""
        _add(self._of_received, kinds, watch)

    def on_effect(self, kinds: _Kinds, watch: Watch) -> None:
        """Call `watch` for each effect of these kinds; `on_sent` watches `Send`."""
        _add(self._of_effects, kinds, watch)

    def on_sent(self, kinds: _Kinds, watch: Watch) -> None:
        """Call `watch` for each message of these kinds that a node sent."""
        _add(self._of_sent, kinds, watch)

    def on_step(self, watch: StepWatch) -> None:
        """Call `watch` after each step."""
        self._of_steps.append(watch)

    def check_step(self, machine: Machine, event: Event, effects: list[Effect]) -> None:
        """Call all checks that concern one step."""
        for watch in self._of_events.get(type(event), ()):
            watch(machine, event)
        if isinstance(event, Received):
            for message in event.messages:
                for watch in self._of_received.get(type(message), ()):
                    watch(machine, message)
        for effect in effects:
            if isinstance(effect, Send):
                self._check_sent(machine, effect)
            else:
                for watch in self._of_effects.get(type(effect), ()):
                    watch(machine, effect)
        for check in self._of_steps:
            check(machine, event, effects)

    def _check_sent(self, machine: Machine, send: Send) -> None:
        for message in send.messages:
            for watch in self._of_sent.get(type(message), ()):
                watch(machine, message)


def _add(watches: dict[type, list[Watch]], kinds: _Kinds, watch: Watch) -> None:
    for kind in kinds:
        watches[kind].append(watch)
