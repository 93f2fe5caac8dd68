"""Grants: tasks get their resources exclusively, and never more than their node has."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from octaskly.core.model.ids import NodeId
from octaskly.core.model.task_options import Requirements
from tests.support import builders
from tests.support.dispatcher_model import NEEDS, NODES, DispatcherModel

NAMES = st.sampled_from([NodeId(name) for name in NODES])
NEED = st.sampled_from(NEEDS)
ACTIONS = st.one_of(
    st.tuples(st.just("submit"), NEED, st.integers(1, 5)),
    st.tuples(st.just("finish"), NAMES),
    st.tuples(st.just("cut"), NAMES),
    st.tuples(st.just("link"), NAMES),
    st.tuples(st.just("pause"), NAMES, st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 6.0])),
    st.tuples(st.just("begin_epoch")),
)


def act(world: DispatcherModel, action: tuple[object, ...]) -> None:
    """Perform one action, and all its consequences."""
    match action:
        case "submit", (Requirements() | None) as requires, int(count):
            world.submit(count, requires)
        case "finish", str(name):
            if world.workers[NodeId(name)].here:
                world.finish(NodeId(name), builders.outcome(duration_ms=1000))
        case "cut", str(name):
            if name != world.me:
                world.cut(NodeId(name))
        case "link", str(name):
            world.link(NodeId(name))
        case "pause", str(name), bool(is_paused):
            world.pause(NodeId(name), is_paused=is_paused)
        case "wait", float(seconds):
            world.advance(seconds)
        case ("begin_epoch",):
            world.begin_epoch()
        case _:
            raise AssertionError(action)
    world.settle()


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTIONS, min_size=5, max_size=40))
def test_grants_never_exceed_what_a_node_has(actions: list[tuple[object, ...]]) -> None:
    """Tasks start, end, get lost, come back and pause; no room is left unused."""
    world = DispatcherModel()
    world.begin_epoch()
    for name in world.workers:
        world.link(name)
    world.settle()

    for action in actions:
        act(world, action)
        world.check_grants()
        world.check_no_task_is_overlooked()
