"""Five hosts with one secret file, and nothing else configured, do the main job."""

import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

import pytest

from tests.mesh.conftest import MakeLab
from tests.mesh.discovery_process import DiscoveryProcess
from tests.mesh.forming import (
    FORM_S,
    all_tasks,
    dispatcher_of,
    form,
    is_formed,
    nodes,
    roles,
    submit,
    wait_for_completed,
)
from tests.mesh.lab import DECOY_HOST, TUNNEL_NET, Host, Lab
from tests.mesh.netns import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

TASKS = 1000
DONE_S = 120.0
HAND_OVER_S = 15.0
LOAD_S = 1.5  #: of load before and after a hand-over
CLIENTS = 4


@pytest.fixture
def five(make_lab: MakeLab) -> Lab:
    """Five hosts whose agents form one mesh."""
    lab = make_lab(5)
    form(lab)
    return lab


def test_five_hosts_share_1000_tasks_submitted_through_a_follower(five: Lab) -> None:
    """All complete, each once, on several nodes, and every node tells the same."""
    _, followers = roles(five)

    ids = submit(followers[0], [f"echo {number}" for number in range(TASKS)])

    assert len(set(ids)) == TASKS
    tasks = wait_for_completed(followers[1], TASKS, within_s=DONE_S)
    assert [task["id"] for task in tasks] == ids
    assert {task["exit_code"] for task in tasks} == {0}
    assert {task["attempt"] for task in tasks} == {1}
    shares = Counter(task["worker_id"] for task in tasks)
    assert set(shares) == {host.name for host in five.hosts}
    assert all_tasks(followers[2]) == tasks
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


def test_a_worker_killed_in_mid_task_loses_nothing(five: Lab) -> None:
    """Its tasks run again elsewhere, and say so by their attempt."""
    head, followers = roles(five)
    victim = followers[0]
    ids = submit(head, ["sleep 1"] * 40)

    def is_busy() -> bool:
        mine = [node for node in nodes(head) if node["name"] == victim.name]
        return bool(mine) and mine[0]["running"] > 0

    wait_until("the victim runs tasks", is_busy, within_s=DONE_S)
    victim.first.kill()

    tasks = wait_for_completed(head, len(ids), within_s=DONE_S)
    again = [task for task in tasks if task["attempt"] > 1]
    assert again
    assert all(task["worker_id"] != victim.name for task in again)


@dataclass
class Load:
    """Clients that submit one task after the other through one host."""

    host: Host
    accepted: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self.host.token()
        self._threads = [
            threading.Thread(target=self._submit, args=(client,))
            for client in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _submit(self, client: int) -> None:
        for number in count():
            if self._is_over.is_set():
                return
            body = {"command": f"echo {client}-{number}"}
            try:
                answer = self.host.http("POST", "/api/v1/tasks", json=body)
            except OSError as error:
                self.failed.append(repr(error))
                continue
            if answer.status == 201:
                self.accepted.append(answer.json["id"])
            else:
                self.failed.append(f"{answer.status}: {answer.body!r}")


def test_sigterm_of_the_dispatcher_under_load_hands_over_without_a_failed_request(
    five: Lab,
) -> None:
    """Clients of any other node notice nothing, and every accepted task completes."""
    head, followers = roles(five)
    load = Load(followers[0])
    load.start()
    try:
        wait_until("load", lambda: len(load.accepted) >= 20, within_s=DONE_S)
        time.sleep(LOAD_S)
        head.first.signal(signal.SIGTERM)
        wait_until(
            "another dispatcher",
            lambda: dispatcher_of(followers[1]) not in (None, head.name),
            within_s=HAND_OVER_S,
        )
        before = len(load.accepted)
        wait_until(
            "load after it", lambda: len(load.accepted) >= before + 20, within_s=DONE_S
        )
    finally:
        load.stop()

    assert load.failed == []
    assert head.first.wait() == 0
    tasks = wait_for_completed(followers[2], len(load.accepted), within_s=DONE_S)
    assert {task["id"] for task in tasks} == set(load.accepted)
    wait_until("four are one mesh", lambda: is_formed(followers), within_s=FORM_S)


def test_a_dispatcher_that_loses_its_network_is_replaced_and_comes_back(
    five: Lab,
) -> None:
    """A pulled cable costs seconds; plugged in again, there is one dispatcher."""
    head, followers = roles(five)

    five.cut(head)
    wait_until("four go on", lambda: is_formed(followers), within_s=FORM_S)
    ids = submit(followers[0], ["echo while cut"] * 20)
    wait_for_completed(followers[1], len(ids), within_s=DONE_S)

    five.heal(head)
    wait_until("five again", lambda: is_formed(five.hosts), within_s=FORM_S * 2)
    assert {task["id"] for task in all_tasks(head)} == set(ids)
