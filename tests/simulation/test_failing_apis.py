"""The API of each node fails: what breaks one often breaks all."""

from __future__ import annotations

from octaskly.core.events import ApiChanged
from tests.simulation.checks.rules import watch
from tests.simulation.world import World

WATCHED_S = 60.0


def test_role_stays_where_it_is_once_no_api_works() -> None:
    """Each change of dispatcher costs a stream of the log and patience of all nodes."""
    world = World(1, nodes=3)
    watch(world)
    world.start_all()
    assert world.run_until(world.is_settled, 8.0)
    nodes = [machine.node for machine in world.machines.values() if machine.node]
    before = max(node.epoch.term for node in nodes)

    for machine in list(world.machines.values()):
        world.feed(machine, ApiChanged(is_failing=True, reason="no answer"))
    world.run(WATCHED_S)

    # A node may learn of its own failure before the others tell of theirs.
    assert max(node.epoch.term for node in nodes) <= before + len(nodes)
    assert len(world.dispatchers()) == 1
