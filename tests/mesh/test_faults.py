"""Cases of the fault catalogue that every `make test` runs, each in seconds.

Their numbers are those of `docs/explanation/faults.md`; the longer ones are beside this
file. One alone: `.venv/bin/pytest -m "" tests/mesh -k f1_`.
"""

import signal
from functools import partial

import pytest

from tests.mesh.conftest import MakeLab
from tests.mesh.faults import lose_log
from tests.mesh.forming import dispatcher_of, is_formed, nodes
from tests.mesh.history import Pace, runs
from tests.mesh.lab import Host
from tests.mesh.netns import wait_until
from tests.mesh.scene import FLOW_S, Scene

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

HAND_OVER_S = FLOW_S


def test_f1_killed_dispatcher_under_load_loses_nothing(make_lab: MakeLab) -> None:
    """Its standbys hold all accepted tasks, and one of them takes over at once."""
    scene = Scene("F1", make_lab(3)).form()
    dispatcher = scene.dispatcher()
    rest = scene.others(dispatcher)
    load = scene.load(*rest)

    scene.kill(dispatcher)
    scene.await_flow(load, 20)
    scene.start(dispatcher)

    scene.conclude()


def test_f5_dispatcher_that_stalls_for_two_seconds_is_deposed(
    make_lab: MakeLab,
) -> None:
    """It wakes up as a dispatcher; the others refuse its frames."""
    scene = Scene("F5", make_lab(3)).form()
    dispatcher = scene.dispatcher()
    rest = scene.others(dispatcher)
    load = scene.load(*rest)

    scene.freeze(dispatcher)
    wait_until(
        "another dispatcher",
        lambda: dispatcher_of(rest[0]) not in (None, dispatcher.name),
        within_s=HAND_OVER_S,
    )
    scene.await_flow(load, 10)
    scene.thaw(dispatcher)
    scene.await_flow(load, 10)

    scene.conclude()


def misses(host: Host) -> bool:
    """Return True if a host lists a node as lost."""
    return "lost" in [node["state"] for node in nodes(host)]


def test_f8_two_separated_nodes_both_work_and_merge(make_lab: MakeLab) -> None:
    """Neither can know that the other lives, so both accept; the union remains."""
    scene = Scene("F8", make_lab(2)).form()
    one, two = scene.hosts
    loads = [scene.load(one), scene.load(two)]

    scene.split([one], [two])
    wait_until(
        "two dispatchers",
        lambda: dispatcher_of(one) == one.name and dispatcher_of(two) == two.name,
        within_s=HAND_OVER_S,
    )
    same = {scene.submit(host, "F8-same") for host in (one, two)}
    for load in loads:
        scene.await_flow(load, 10)
    for load, other in zip(loads, (two, one), strict=True):
        wait_until("it misses a node", partial(misses, other), within_s=FLOW_S)
        load.read_at(other)
    scene.lab.join()

    assert len(same) == 1
    scene.conclude()
    # G7: each missed the other all the time, so it knew that it might not know all
    # tasks.
    assert {read.status for read in scene.history.reads} <= {200, 503}


def test_f13_three_agents_started_at_once_form_one_mesh(make_lab: MakeLab) -> None:
    """They meet within seconds, after at most three claims."""
    scene = Scene("F13", make_lab(3)).form()

    assert scene.term(scene.hosts[0]) <= 3
    scene.load()
    scene.conclude()


def test_f17_task_outlives_the_only_disk_if_a_worker_has_it(
    make_lab: MakeLab,
) -> None:
    """The worker sends the envelope to the dispatcher that does not know the task."""
    lab = make_lab(2)
    dispatcher, hand = lab.hosts
    scene = Scene("F17", lab, slots=1)
    scene.start(dispatcher)
    scene.start(hand, options=["--no-electable"])
    scene.await_mesh()
    tasks = {
        scene.submit(dispatcher, f"F17-{number}", "sleep 4") for number in range(2)
    }

    def taken() -> set[str]:
        return {run.task for run in runs(lab) if run.node == hand.name}

    held = wait_until("the worker has one", taken, within_s=FLOW_S)
    scene.kill(dispatcher)
    lose_log(dispatcher.first.state)
    scene.start(dispatcher)

    scene.lost = tasks - held
    scene.conclude()


def test_f27_stopped_dispatcher_hands_over_without_a_failed_request(
    make_lab: MakeLab,
) -> None:
    """Clients of the other hosts notice nothing."""
    scene = Scene("F27", make_lab(3)).form()
    dispatcher = scene.dispatcher()
    rest = scene.others(dispatcher)
    load = scene.load(*rest, pace=Pace(clients=4))

    scene.suspects.add(dispatcher.name)
    dispatcher.first.signal(signal.SIGTERM)
    scene.await_flow(load, 20)
    assert dispatcher.first.wait() == 0
    wait_until("two are one mesh", lambda: is_formed(rest), within_s=FLOW_S)
    scene.start(dispatcher)
    scene.stop_load()

    told = {operation.status for operation in scene.history.operations}
    assert told == {201}
    scene.conclude()
