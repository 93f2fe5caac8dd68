"""Faults beyond the catalogue: bad networks, lost disks, suspend, deaths at the start.

A hub drops, delays, repeats and disorders frames for each direction. In each case some
host accepts tasks again within `GAP_S_MAX` seconds.
"""

import threading
import time
from dataclasses import replace

import pytest

from tests.mesh.agents import START_S
from tests.mesh.conftest import MakeLab
from tests.mesh.faults import lose_log, restore, save
from tests.mesh.history import Load, Pace
from tests.mesh.hub import Hub
from tests.mesh.hub_process import Rule
from tests.mesh.lab import Host
from tests.mesh.netns import wait_until
from tests.mesh.scene import Scene

pytestmark = [pytest.mark.netns, pytest.mark.soak, pytest.mark.timeout(600)]

GAP_S_MAX = 5.0
FAULT_S = 25.0  #: seconds for which a fault lasts
SLEEP_S = 15.0  #: longer than any lease, and than a gap that counts as suspend
PACE = Pace(clients=5, readers=2, is_local=True)
LONG = f": {'x' * 4000}"  #: a command that does not fit in one frame
LOSSY = Rule(loss=0.05, jitter_s=0.04, duplicated=0.02, overtaken=0.05)
DISORDERED = Rule(duplicated=0.2, overtaken=0.2)
BAD = Rule(loss=0.3)
HOLE = Rule(mtu_bytes=1000)


def bad_network(scene: Scene, load: Load, hub: Hub) -> None:
    """Leave the faults of the hub for a while, end them and conclude."""
    threading.Event().wait(FAULT_S)
    scene.figures |= {f"frames {fate}": many for fate, many in hub.clear().items()}
    scene.await_mesh()
    scene.await_flow(load)
    scene.conclude(gap_s_max=GAP_S_MAX)


def test_h1_hosts_meet_through_a_hub(make_lab: MakeLab) -> None:
    """They find each other by mDNS and run tasks, as on a switch."""
    lab = make_lab(2)
    Hub(lab)
    scene = Scene("H1", lab).form()

    scene.load()

    scene.conclude(gap_s_max=GAP_S_MAX)


@pytest.mark.parametrize("rule", [LOSSY, DISORDERED], ids=["lossy", "disordered"])
def test_h2_all_links_are_bad(
    make_lab: MakeLab, request: pytest.FixtureRequest, rule: Rule
) -> None:
    """They lose, delay, repeat and disorder frames; TCP hides it from the mesh."""
    lab = make_lab(4)
    hub = Hub(lab)
    scene = Scene(f"H2-{request.node.callspec.id}", lab).form()
    load = scene.load(pace=PACE)
    scene.distrust_network(is_split=False)

    hub.shape(rule)

    bad_network(scene, load, hub)


@pytest.mark.parametrize("way", ["from", "to"])
def test_h3_dispatcher_loses_frames_in_one_direction(
    make_lab: MakeLab, way: str
) -> None:
    """Almost a third of what it sends, or of what is sent to it."""
    lab = make_lab(4)
    hub = Hub(lab)
    scene = Scene(f"H3-{way}", lab).form()
    load = scene.load(pace=PACE)
    scene.distrust_network(is_split=False)
    dispatcher = [scene.dispatcher()]

    if way == "from":
        hub.shape(BAD, sources=dispatcher)
    else:
        hub.shape(BAD, targets=dispatcher)

    bad_network(scene, load, hub)


CUTS = {
    "dispatcher-all": (0, 4),
    "all-dispatcher": (4, 0),
    "dispatcher-standby": (0, 1),
    "standby-dispatcher": (1, 0),
    "dispatcher-worker": (0, 3),
    "worker-dispatcher": (3, 0),
}


@pytest.mark.parametrize("cut", CUTS)
def test_h4_nothing_arrives_in_one_direction(make_lab: MakeLab, cut: str) -> None:
    """The other direction is free, multicast included."""
    lab = make_lab(4)
    hub = Hub(lab)
    scene = Scene(f"H4-{cut}", lab).form()
    load = scene.load(pace=PACE)
    scene.distrust_network(is_split=True)
    dispatcher = scene.dispatcher()
    standbys = scene.standbys(dispatcher)
    workers = scene.others(dispatcher, *standbys)
    ends: dict[str, list[Host]] = {
        "all": [],
        "dispatcher": [dispatcher],
        "standby": standbys[:1],
        "worker": (workers or standbys)[-1:],
    }
    source, target = cut.split("-")

    hub.cut(ends[source], ends[target])

    bad_network(scene, load, hub)


def test_h5_hosts_hear_only_their_neighbours(make_lab: MakeLab) -> None:
    """A mesh of five becomes a ring: two hosts no longer reach the dispatcher."""
    lab = make_lab(5)
    hub = Hub(lab)
    scene = Scene("H5", lab).form()
    load = scene.load(pace=PACE)
    scene.distrust_network(is_split=True)

    hub.make_ring()

    bad_network(scene, load, hub)


def test_h5_hosts_start_in_a_ring(make_lab: MakeLab) -> None:
    """They accept tasks although they cannot become one mesh.

    At first two hosts that never heard of each other may both be dispatcher.
    """
    lab = make_lab(5)
    hub = Hub(lab)
    hub.make_ring()
    scene = Scene("H5-start", lab)
    scene.start(*scene.hosts)
    scene.note_strangers()
    scene.distrust_network(is_split=True)
    load = scene.load(pace=PACE)

    bad_network(scene, load, hub)


@pytest.mark.parametrize("where", ["standby", "dispatcher", "all"])
def test_h6_long_frames_vanish(make_lab: MakeLab, where: str) -> None:
    """An MTU hole from the dispatcher to a standby, to all hosts, between all hosts."""
    lab = make_lab(4)
    hub = Hub(lab)
    scene = Scene(f"H6-{where}", lab).form()
    load = scene.load(pace=replace(PACE, body=LONG))
    scene.distrust_network(is_split=True)
    dispatcher = scene.dispatcher()

    match where:
        case "standby":
            hub.shape(HOLE, [dispatcher], scene.standbys(dispatcher)[:1])
        case "dispatcher":
            hub.shape(HOLE, [dispatcher])
        case _:
            hub.shape(HOLE)

    bad_network(scene, load, hub)


@pytest.mark.parametrize("who", ["dispatcher", "standby"])
@pytest.mark.parametrize("what", ["log", "disk"])
def test_h7_disk_is_wiped(make_lab: MakeLab, who: str, what: str) -> None:
    """The log of a node, or all that it had: a new node takes its place."""
    lab = make_lab(3)
    scene = Scene(f"H7-{who}-{what}", lab).form()
    load = scene.load(pace=PACE)
    for _ in range(3):
        dispatcher = scene.dispatcher()
        victim = dispatcher if who == "dispatcher" else scene.standbys(dispatcher)[0]
        scene.kill(victim)
        scene.await_flow(load)
        if what == "log":
            lose_log(victim.first.state)
            scene.start(victim)
        else:
            scene.replace(victim)
        scene.await_mesh()
        scene.await_flow(load, 20)
        scene.await_copies()

    scene.conclude(gap_s_max=GAP_S_MAX)


def test_h8_each_disk_in_turn_is_restored_from_a_backup(make_lab: MakeLab) -> None:
    """One at a time, so that another disk has what the backup lacks."""
    lab = make_lab(3)
    scene = Scene("H8", lab).form()
    load = scene.load(pace=PACE)
    for host in scene.hosts:
        scene.kill(host)
        save(host.first.state, lab.folder / f"backup-{host.name}")
        scene.start(host)
        scene.await_mesh()
        scene.await_flow(load, 20)
        scene.await_copies()

    for host in scene.hosts:
        scene.kill(host)
        restore(lab.folder / f"backup-{host.name}", host.first.state)
        scene.start(host)
        scene.await_mesh()
        scene.await_flow(load, 20)
        scene.await_copies()

    scene.conclude(gap_s_max=GAP_S_MAX)


@pytest.mark.parametrize("apart_s", [0.0, 1.5], ids=["at-once", "one-by-one"])
def test_h9_all_hosts_sleep(
    make_lab: MakeLab, request: pytest.FixtureRequest, apart_s: float
) -> None:
    """With all their processes; the gap counts from when the first one wakes up."""
    lab = make_lab(4)
    scene = Scene(f"H9-{request.node.callspec.id}", lab).form()
    load = scene.load(pace=replace(PACE, body="sleep 0.2"))

    with scene.outage():
        scene.sleep(*scene.hosts)
        threading.Event().wait(SLEEP_S)
        scene.wake(scene.hosts[0])
    for host in scene.hosts[1:]:
        threading.Event().wait(apart_s)
        scene.wake(host)
    scene.await_flow(load, 40)

    scene.conclude(gap_s_max=GAP_S_MAX)


def test_h9_hosts_sleep_in_turn(make_lab: MakeLab) -> None:
    """The dispatcher of the moment each time, for longer than its workers wait."""
    lab = make_lab(4)
    scene = Scene("H9-turn", lab).form()
    load = scene.load(pace=replace(PACE, body="sleep 0.2"))
    for _ in range(3):
        sleeper = scene.dispatcher()
        scene.sleep(sleeper)
        threading.Event().wait(SLEEP_S / 2)
        scene.wake(sleeper)
        scene.await_mesh()
        scene.await_flow(load, 20)

    scene.conclude(gap_s_max=GAP_S_MAX)


def said(scene: Scene, word: str) -> int:
    """Return how often the agents have logged an event."""
    return sum(host.first.log.count(word) for host in scene.hosts)


def test_h10_all_are_killed_three_times_while_they_start(make_lab: MakeLab) -> None:
    """Before they can log, while they look for others, and once one claims.

    The gap counts from when the first agent is ready after the last start.
    """
    lab = make_lab(4)
    scene = Scene("H10", lab).form()
    load = scene.load(pace=replace(PACE, body="sleep 0.2"))

    with scene.outage():
        for moment in ("", "discovering", "claiming"):
            scene.kill(*scene.hosts)
            before = said(scene, moment)
            scene.launch(*scene.hosts)
            wait_until(
                f"one is at {moment!r}",
                lambda moment=moment, before=before: (  # type: ignore[misc]
                    not moment or said(scene, moment) > before
                ),
                within_s=START_S,
            )
        scene.kill(*scene.hosts)
        began_s = time.monotonic()
        before = said(scene, "agent ready")
        scene.launch(*scene.hosts)
        wait_until(
            "one is ready",
            lambda: said(scene, "agent ready") > before,
            within_s=START_S,
        )
        scene.figures["ready_s"] = time.monotonic() - began_s
    scene.await_flow(load, 40)

    scene.conclude(gap_s_max=GAP_S_MAX)
