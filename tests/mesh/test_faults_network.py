"""Cases of the fault catalogue in which the network misroutes, splits or slows down."""

import threading
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from itertools import count

import pytest

from tests.mesh.conftest import MakeLab
from tests.mesh.faults import (
    Proxy,
    allow_connections,
    block_connections,
    block_multicast,
    move,
)
from tests.mesh.forming import dispatcher_of, is_formed, nodes
from tests.mesh.history import Pace
from tests.mesh.lab import Host
from tests.mesh.netns import ip, wait_until
from tests.mesh.scene import FLOW_S, Scene, holds

pytestmark = [pytest.mark.netns, pytest.mark.soak, pytest.mark.timeout(600)]

REBROWSE_S = 25.0
PEER_PORT = 7878
FLAP_S = 2.0
FLAPS = 15
CLAIMS_PER_FLAP = 3


def await_members(witness: Host, *hosts: Host) -> None:
    """Wait until a host lists exactly these."""
    names = {host.name for host in hosts}
    wait_until(
        "all are listed",
        lambda: {node["name"] for node in nodes(witness)} == names,
        within_s=FLOW_S,
    )


def has_own_dispatcher(side: Sequence[Host]) -> bool:
    """Return True if the first of these hosts sees one of them as dispatcher."""
    return dispatcher_of(side[0]) in {host.name for host in side}


def test_f9_split_of_three_and_two_heals(make_lab: MakeLab) -> None:
    """Both halves accept and run; after the heal each task has one outcome."""
    scene = Scene("F9", make_lab(5)).form()
    big, small = scene.hosts[:3], scene.hosts[3:]
    loads = [scene.load(*big), scene.load(*small)]

    scene.split(big, small)
    for half in (big, small):
        scene.await_mesh(half)
    for load in loads:
        scene.await_flow(load, 40)
    scene.lab.join()

    scene.conclude()


def test_f9_flapping_split_does_not_cause_endless_claims(
    make_lab: MakeLab,
) -> None:
    """Cut until each side has its own dispatcher, and healed for two seconds."""
    scene = Scene("F9-flap", make_lab(5)).form()
    big, small = scene.hosts[:3], scene.hosts[3:]
    term = scene.term(big[0])
    loads = [scene.load(*big), scene.load(*small)]

    for _ in range(FLAPS):
        scene.split(big, small)
        for side in (big, small):
            wait_until(
                "a dispatcher on each side",
                partial(has_own_dispatcher, side),
                within_s=REBROWSE_S,
            )
        scene.lab.join()
        threading.Event().wait(FLAP_S)
    for load in loads:
        scene.await_flow(load)
    scene.await_mesh()

    scene.figures["claims"] = scene.term(big[0]) - term
    assert FLAPS <= scene.figures["claims"] <= FLAPS * CLAIMS_PER_FLAP
    scene.conclude()


def test_f10_node_that_starts_in_a_split_is_found_after_it(
    make_lab: MakeLab,
) -> None:
    """No node has met it, and mDNS alone would be silent for an hour."""
    scene = Scene("F10", make_lab(3))
    one, two, late = scene.hosts
    scene.start(one, two)
    scene.await_mesh([one, two])
    load = scene.load(one, two)
    scene.split([one, two], [late])
    scene.start(late)
    own = scene.load(late)
    scene.await_flow(own)
    scene.lab.join()

    scene.figures["found_s"] = scene.await_mesh(within_s=REBROWSE_S * 2)
    scene.await_flow(load)
    scene.conclude()


def test_f11_follower_that_cannot_reach_the_dispatcher_waits(
    make_lab: MakeLab,
) -> None:
    """The third node still hears it, so no node claims, and repair restores all."""
    scene = Scene("F11", make_lab(3)).form()
    dispatcher = scene.dispatcher()
    near, far = scene.others(dispatcher)
    load = scene.load(dispatcher, near)
    term = scene.term(dispatcher)
    scene.suspects.add(far.name)

    block_connections(scene.lab, dispatcher, far)
    holds(
        lambda: dispatcher_of(near) == dispatcher.name and scene.term(near) == term,
        for_s=10.0,
        what="there is a dispatcher",
    )
    allow_connections(scene.lab, dispatcher, far)

    scene.await_flow(load)
    scene.await_mesh()
    assert scene.term(dispatcher) == term
    scene.conclude()


def test_f12_nodes_with_multicast_but_no_tcp_work_alone(
    make_lab: MakeLab,
) -> None:
    """Multicast passes and TCP is blocked: no node hangs, and the heal joins them."""
    scene = Scene("F12", make_lab(2))
    one, two = scene.hosts
    block_connections(scene.lab, one, two)
    scene.start(one, two)
    for host in scene.hosts:
        scene.await_mesh([host])
        scene.load(host)

    scene.suspects |= {one.name, two.name}
    allow_connections(scene.lab, one, two)

    scene.conclude()


def test_f12_nodes_without_multicast_join_by_address(make_lab: MakeLab) -> None:
    """TCP passes and multicast is blocked, as on a guest network."""
    scene = Scene("F12-deaf", make_lab(2))
    one, two = scene.hosts
    for host in scene.hosts:
        block_multicast(scene.lab, host)
    scene.start(one)
    scene.start(two, options=["--join", one.ip])

    scene.await_mesh()
    scene.load()
    scene.conclude()


def settled_s(hosts: Sequence[Host]) -> float:
    """Return how long after the last agent was ready the last had a dispatcher."""
    readied, settled = [], []
    for line in "".join(host.first.log for host in hosts).splitlines():
        at_s = datetime.fromisoformat(line.split(maxsplit=1)[0]).timestamp()
        if "agent ready" in line:
            readied.append(at_s)
        elif "dispatcher followed" in line or "dispatcher elected" in line:
            settled.append(at_s)
    return max(settled) - max(readied)


@pytest.mark.parametrize("many", [2, 10, 50])
def test_f13_agents_that_start_at_once_form_one_mesh(
    make_lab: MakeLab, many: int
) -> None:
    """A power cut is over: one dispatcher, after few claims."""
    scene = Scene(f"F13-{many}", make_lab(many), slots=1)
    scene.start(*scene.hosts)
    scene.await_mesh(within_s=180.0)
    scene.figures["settled_s"] = settled_s(scene.hosts)

    scene.figures["claims"] = scene.term(scene.hosts[0])
    assert scene.figures["claims"] <= 3
    scene.load(*scene.hosts[:5])
    scene.conclude()


def test_f25_slow_standby_delays_no_client(make_lab: MakeLab) -> None:
    """All its traffic takes 100 ms, then stops: another standby replaces it."""
    scene = Scene("F25", make_lab(4))
    dispatcher, good, slow, wire = scene.hosts
    scene.hosts.remove(wire)
    scene.start(dispatcher)
    scene.await_mesh([dispatcher])
    with Proxy(wire, PEER_PORT, (dispatcher.ip, PEER_PORT)) as proxy:
        block_connections(scene.lab, dispatcher, slow)
        scene.start(slow, options=["--join", wire.ip])
        # Its API cannot forward to the dispatcher, so it is not asked.
        await_members(dispatcher, dispatcher, slow)
        assert proxy.links
        load = scene.load(dispatcher)
        proxy.delay_s = 0.1
        scene.await_flow(load, 40)
        scene.start(good)
        await_members(dispatcher, dispatcher, slow, good)
        scene.suspects.add(slow.name)

        proxy.stall()
        scene.await_flow(load, 40)
        wait_until(
            "the good one is standby",
            lambda: good in scene.standbys(dispatcher),
            within_s=FLOW_S,
        )
        allow_connections(scene.lab, dispatcher, slow)
        proxy.flow()
        proxy.delay_s = 0.0
        scene.conclude(gap_s_max=5.0)


def test_f29_host_with_a_new_address_is_found_again(make_lab: MakeLab) -> None:
    """A peer is its key, not its address: it is neither lost nor listed twice."""
    scene = Scene("F29", make_lab(3)).form()
    dispatcher = scene.dispatcher()
    moving, rest = scene.others(dispatcher)
    load = scene.load(dispatcher, rest)
    for host, address in ((moving, "10.77.1.201"), (dispatcher, "10.77.1.202")):
        scene.suspects.add(host.name)
        move(host, address)
        scene.figures[f"found_{host.name}_s"] = scene.await_mesh()
        wait_until(
            "the new address is listed",
            lambda address=address: address in str(nodes(rest)),  # type: ignore[misc]
            within_s=FLOW_S,
        )
        scene.await_flow(load)

    ids = [node["id"] for node in nodes(rest)]
    assert len(ids) == len(set(ids)) == len(scene.hosts)
    scene.conclude()


def test_f29_interface_comes_and_goes(make_lab: MakeLab) -> None:
    """A pulled cable and a new one beside it disturb no other node."""
    scene = Scene("F29-port", make_lab(3)).form()
    dispatcher = scene.dispatcher()
    docked, rest = scene.others(dispatcher)
    load = scene.load(dispatcher, rest)
    names = count(1)
    for _ in range(3):
        name = f"dock{next(names)}"
        ip(
            f"link add {name} type veth peer name {name}x",
            f"link set {name} up",
            f"addr add 10.99.0.{docked.number}/24 dev {name}",
            netns=docked.netns,
        )
        scene.await_flow(load, 20)
        ip(f"link del {name}", netns=docked.netns)
        scene.await_flow(load, 20)

    assert is_formed(scene.hosts)
    scene.conclude(gap_s_max=3.0)


def test_f31_two_meshes_on_one_lan_stay_separate(make_lab: MakeLab) -> None:
    """Two secrets: each mesh has its own nodes, tasks and dispatcher, and says so."""
    lab = make_lab(4)
    ours = Scene("F31", lab, hosts=lab.hosts[:2]).form()
    theirs = Scene("F31-foreign", lab, hosts=lab.hosts[2:])
    # The same file with another secret: another mesh.
    assert ours.secret == theirs.secret
    theirs.form()

    load = ours.load(pace=Pace(clients=2))
    other = theirs.hosts[0].http("POST", "/api/v1/tasks", json={"command": "true"})
    ours.await_flow(load, 20)

    assert other.status == 201
    assert not is_formed(lab.hosts)
    for mesh in (ours, theirs):
        assert {node["name"] for node in nodes(mesh.hosts[0])} == {
            host.name for host in mesh.hosts
        }
    foreign = ours.hosts[0].http("GET", f"/api/v1/tasks/{other.json['id']}")
    assert foreign.status == 404
    ours.conclude()
