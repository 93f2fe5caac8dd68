"""Five hosts with one secret file, and no other configuration, do the main job.

All tests share one mesh. The cases of the fault catalogue beside this file kill and
stop nodes.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.discovery_process import DiscoveryProcess
from tests.mesh.forming import (
    FORM_S,
    form,
    is_formed,
    list_tasks,
    nodes,
    roles,
    submit,
    wait_for_completed,
)
from tests.mesh.lab import DECOY_HOST, TUNNEL_NET, Lab
from tests.mesh.netns import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

TASKS = 1000
DONE_S = 120.0


@pytest.fixture(scope="module")
def lan(_may_make_labs: None) -> Iterator[Lab]:
    with Lab(5) as lab:
        form(lab)
        yield lab


@pytest.fixture
def five(lan: Lab) -> Lab:
    """Five hosts whose agents form one mesh, whatever another test did to them."""
    for host in lan.hosts:
        lan.heal(host)
    wait_until("one mesh", lambda: is_formed(lan.hosts), within_s=FORM_S)
    return lan


def losses(lab: Lab) -> int:
    """Return the number of times that a node was taken for lost."""
    return sum(host.first.log.count(" lost ") for host in lab.hosts)


def test_five_hosts_share_1000_tasks_submitted_through_a_follower(
    five: Lab, tmp_path: Path
) -> None:
    """All complete, each runs once, on several nodes, and all nodes show the same.

    An attempt that waited on a busy worker may be returned and assigned again, so the
    number of a task's last attempt does not show how often it ran.
    """
    _, followers = roles(five)
    before, runs = losses(five), tmp_path / "runs"

    commands = [f"echo {number} | tee -a {runs}" for number in range(TASKS)]
    ids = submit(followers[0], commands)

    assert len(set(ids)) == TASKS
    tasks = wait_for_completed(followers[1], ids, within_s=DONE_S)
    assert [task["id"] for task in tasks] == ids
    assert {task["exit_code"] for task in tasks} == {0}
    if losses(five) == before:  # A busy machine can take a silent node for dead.
        assert sorted(map(int, runs.read_text().split())) == list(range(TASKS))
    shares = Counter(task["worker_id"] for task in tasks)
    assert set(shares) == {host.name for host in five.hosts}
    assert list_tasks(followers[2], ids) == tasks
    answer = followers[3].http("GET", f"/api/v1/tasks/{ids[7]}")
    assert answer.json["stdout"] == "7\n"


def test_decoy_interfaces_are_neither_advertised_nor_listed(five: Lab) -> None:
    """A peer that dialled 172.17.0.1 would reach itself."""
    mesh = five.hosts[0].first.description["mesh"]
    near = {host.ip for host in five.hosts} | {
        f"{host.link_local}%eth0" for host in five.hosts
    }

    listed = str(nodes(five.hosts[0]))
    assert DECOY_HOST not in listed
    assert TUNNEL_NET not in listed
    with DiscoveryProcess("--mesh", mesh, prefix=five.hosts[0].prefix) as watcher:
        for host in five.hosts:
            line = watcher.wait_for_node(host.first.description["node_id"])
            assert {address for address, _ in line["addresses"]} <= near


def test_a_dispatcher_that_loses_its_network_is_replaced_and_comes_back(
    five: Lab,
) -> None:
    """A pulled cable costs seconds; plugged in again, there is one dispatcher."""
    dispatcher, followers = roles(five)

    five.cut(dispatcher)
    wait_until("four go on", lambda: is_formed(followers), within_s=FORM_S)
    ids = submit(followers[0], ["echo while cut"] * 20)
    wait_for_completed(followers[1], ids, within_s=DONE_S)

    five.heal(dispatcher)
    wait_until("five again", lambda: is_formed(five.hosts), within_s=FORM_S * 2)
    assert len(list_tasks(dispatcher, ids)) == len(ids)
