"""A node's view of the mesh, as people read it."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.core.effects import LogLine, PublishMeshState, Relay
from octaskly.core.model.ids import Address, Moment
from octaskly.core.model.nodes import NodeState, Role, RosterEntry, Takeover
from octaskly.core.protocol.messages import Roster
from tests.support.builders import epoch, node_id

ME, DISPATCHER, STRANGER = node_id("a"), node_id("b"), node_id("c")


def view(role: Role, dispatcher: str = "b") -> MeshView:
    """Return the view of node a, which has this role."""
    made = MeshView(ME, {ME: "ana"})
    current = epoch(term=2, name=dispatcher)
    members = tuple(
        RosterEntry(
            id=node,
            name=name,
            role=role if node == ME else Role.DISPATCHER,
            state=NodeState.READY,
            addresses=(Address("10.0.0.1", 7878),),
            lan_port=3443,
            slots=2,
        )
        for node, name in ((ME, "ana"), (DISPATCHER, "ben"))
    )
    roster = Roster(current, 1, members)
    made.on_published(
        PublishMeshState(current, node_id(dispatcher), dispatcher == "a", roster)
    )
    return made


@pytest.mark.parametrize(
    ("role", "dispatcher", "line"),
    [
        (Role.STANDBY, "b", "standby of ben, 2 nodes, 0 running"),
        (Role.WORKER, "b", "worker of ben, 2 nodes, 0 running"),
        (Role.DISPATCHER, "a", "dispatcher, 2 nodes, 0 running"),
    ],
)
def test_the_status_line_shows_the_role_of_the_node(
    role: Role, dispatcher: str, line: str
) -> None:
    """`systemctl status` shows nothing else."""
    assert view(role, dispatcher).status_line() == line


def test_a_takeover_is_counted_once() -> None:
    """A dispatcher that claims a further epoch replaces no other node."""
    made = view(Role.DISPATCHER, "a")
    takeover = Takeover(at_ms=1, duration_ms=412, reason="dispatcher lost")
    for term in (2, 3):
        made.on_published(
            PublishMeshState(epoch(term=term, name="a"), ME, True, made.roster)
        )
        made.record_epoch_start(Moment(mono_s=term, wall_ms=term), takeover)

    assert made.takeovers == 1


def test_dispatcher_out_of_reach_has_the_urls_of_its_relay() -> None:
    """The relay is only a way to it: this node has no role."""
    made = view(Role.STANDBY)
    assert made.role is Role.STANDBY
    hosts = (Address("10.0.0.3", 7878), Address("10.0.0.3", 40123))
    relay = Relay(STRANGER, DISPATCHER, hosts, 3443)

    made.on_published(PublishMeshState(epoch(2, "b"), None, False, made.roster, relay))

    seen = made.dispatcher()
    assert seen is not None
    assert (seen.node, seen.relay) == (DISPATCHER, STRANGER)
    assert seen.lan_urls == ("https://10.0.0.3:3443",)
    assert made.role is None


async def test_a_node_is_a_member_once_the_roster_of_its_dispatcher_has_it() -> None:
    """A roster that comes before it was counted does not end the wait."""
    made = view(Role.WORKER)
    assert made.roster is not None
    others = made.roster.members[1:]
    complete = PublishMeshState(epoch(2, "b"), DISPATCHER, False, made.roster)
    early = replace(complete, roster=replace(made.roster, members=others))

    made.on_published(early)
    waiting = asyncio.create_task(made.wait_until_member(30))
    await asyncio.sleep(0)
    made.on_published(early)
    await asyncio.sleep(0)
    assert not waiting.done()
    made.on_published(complete)

    assert await waiting == made.dispatcher()


async def test_the_wait_for_a_member_ends_without_a_dispatcher() -> None:
    """A dispatcher may be known of which no roster has come."""
    made = MeshView(ME, {})

    assert await made.wait_until_member(0) is None


def test_log_lines_name_nodes_by_the_best_known_name() -> None:
    """First the name in the mesh, then the peer's own name, then the id."""
    made = view(Role.WORKER)
    made.learn_peer_name(STRANGER, "cy")
    made.learn_peer_name(DISPATCHER, "another-ben")

    lines = [
        made.with_node_names(LogLine("info", "x", (("peer", node), ("term", 3)))).fields
        for node in (DISPATCHER, STRANGER, node_id("d"))
    ]

    assert lines == [
        (("peer", "ben"), ("term", 3)),
        (("peer", "cy"), ("term", 3)),
        (("peer", node_id("d")), ("term", 3)),
    ]
