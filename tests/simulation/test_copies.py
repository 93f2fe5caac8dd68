"""A node is data: a copy of it does the same as the original."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import count

import pytest

from octaskly.core.effects import Effect
from octaskly.core.events import Event
from octaskly.core.model.ids import Moment
from octaskly.core.node.node import Node
from tests.simulation.kinds.failing import run_failing
from tests.simulation.kinds.ranges import run_ranges
from tests.simulation.kinds.tormented import run_seed
from tests.simulation.world import World

STEPS_BETWEEN_COPIES = 20


@pytest.mark.parametrize("run", [run_seed, run_failing, run_ranges])
def test_a_copy_of_a_node_goes_on_as_the_original(
    run: Callable[[int], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time: also what waits for a disk or a standby is copied."""
    twins: dict[Node, Node] = {}
    numbers, step = count(), Node.step

    def step_both(node: Node, event: Event, now: Moment) -> list[Effect]:
        if node not in twins or next(numbers) % STEPS_BETWEEN_COPIES == 0:
            twins[node] = deepcopy(node)
        effects = step(node, event, now)
        assert step(twins[node], event, now) == effects
        return effects

    monkeypatch.setattr(Node, "step", step_both)

    run(3)

    assert len(twins) > 1
