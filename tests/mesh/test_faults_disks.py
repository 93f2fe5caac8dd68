"""Cases of the fault catalogue with disks, clocks, and peers that send nonsense."""

import random
import socket
import ssl
import threading
import time
from pathlib import Path

import msgpack
import pytest

from octaskly.trust import MeshTls, NodeKey, load_secret
from tests.mesh import databases, power
from tests.mesh.conftest import MakeLab
from tests.mesh.faults import damage, fill, lose_log, restore, save, small_disk
from tests.mesh.forming import all_tasks, dispatcher_of, is_formed, nodes
from tests.mesh.history import Outcome, Pace
from tests.mesh.lab import Host
from tests.mesh.netns import wait_until
from tests.mesh.scene import FLOW_S, Scene, use
from tests.support.frames import length_prefixed

pytestmark = [pytest.mark.netns, pytest.mark.soak, pytest.mark.timeout(600)]

SLEEP_S = 30.0
DISK_MB = 160
PEER_PORT = 7878
LAN_PORT = 3443
STRANGERS = 40
MEMORY_MORE_MB = 96


def test_f18_restored_backup_of_a_follower_is_harmless(make_lab: MakeLab) -> None:
    """A node with the state of an hour ago fetches the entries that it lacks."""
    scene = Scene("F18", make_lab(3)).form()
    old = scene.hosts[0]
    rest = scene.others(old)
    load = scene.load(*rest)
    scene.stop(old)
    copy = scene.lab.folder / "backup"
    save(old.first.state, copy)
    scene.start(old)
    scene.await_mesh()
    scene.await_flow(load, 60)
    scene.stop(old)
    restore(copy, old.first.state)

    scene.start(old)
    scene.await_mesh()
    scene.await_flow(load, 20)

    scene.conclude()


def test_f18_restored_backup_of_the_dispatcher_is_harmless(
    make_lab: MakeLab,
) -> None:
    """The others know more of its streams than it does."""
    scene = Scene("F18-head", make_lab(3)).form()
    old = scene.dispatcher()
    rest = scene.others(old)
    copy = scene.lab.folder / "backup"
    scene.load(*rest)
    scene.kill(old)
    save(old.first.state, copy)
    for host in rest:
        scene.stop(host)
    scene.start(old)
    wait_until(
        "it is dispatcher", lambda: dispatcher_of(old) == old.name, within_s=FLOW_S
    )
    scene.start(*rest)
    scene.await_mesh()
    more = scene.load(*rest)
    scene.await_flow(more, 40)
    scene.kill(old)
    restore(copy, old.first.state)

    scene.start(old)
    scene.await_flow(more, 20)

    scene.conclude()


def test_f18_clone_cannot_join_under_the_same_id(make_lab: MakeLab) -> None:
    """The state folder of a live node, started on another machine."""
    scene = Scene("F18-clone", make_lab(4))
    *real, other = scene.hosts
    scene.start(*real)
    scene.await_mesh(real)
    victim = real[1]
    scene.stop(victim)
    save(victim.first.state, other.folder / other.name / "state")
    scene.start(victim)
    scene.await_mesh(real)
    load = scene.load(*real)

    scene.start(other)
    scene.await_flow(load, 40)

    ids = [node["id"] for node in nodes(real[0])]
    assert len(ids) == len(set(ids))
    said = other.first.log + "".join(host.first.log for host in real)
    assert "duplicate node id" in said
    scene.hosts.remove(other)
    other.first.kill()
    scene.conclude()


def test_f19_node_that_was_away_for_long_brings_no_task_back(
    make_lab: MakeLab,
) -> None:
    """It also drops the tasks that the others have forgotten; new ones stay."""
    scene = Scene("F19", make_lab(3))
    *rest, away = scene.hosts
    scene.start(*rest, options=("--retention", "5s"))
    scene.await_mesh(rest)
    scene.start(away)
    scene.await_mesh()
    old = {_accepted(away, f"echo {n}") for n in range(12)}
    for task in old:
        away.http("GET", f"/api/v1/tasks/{task}?wait=60")
    scene.cut(away)
    wait_until("alone", lambda: dispatcher_of(away) == away.name, within_s=FLOW_S)
    new = _accepted(away, "sleep 600")
    wait_until("the rest forgets", lambda: not old & _ids(rest[0]), within_s=180)
    assert old <= _ids(away)

    scene.lab.heal(away)
    scene.await_mesh()

    wait_until("it is gone", lambda: not old & _ids(away), within_s=FLOW_S)
    assert new in _ids(rest[0])
    assert not any(old & _ids(host) for host in scene.hosts)


def _accepted(host: Host, command: str) -> str:
    """Submit a task; return its id."""
    answer = host.http("POST", "/api/v1/tasks", json={"command": command})
    assert answer.status == 201, answer.body
    return str(answer.json["id"])


def _ids(host: Host) -> set[str]:
    """Return the tasks in a host's list."""
    return {task["id"] for task in all_tasks(host)}


@pytest.mark.parametrize("who", ["dispatcher", "standby", "both"])
def test_f20_power_loss_takes_no_accepted_task(make_lab: MakeLab, who: str) -> None:
    """All unflushed writes are gone, three times, at any moment."""
    scene = Scene(f"F20-{who}", make_lab(3))
    draw = random.Random(f"F20 {who}")
    library = power.build(scene.lab.folder)

    def folders(host: Host) -> tuple[Path, Path]:
        return host.folder / host.name / "state", host.folder / "unflushed"

    scene.environ = lambda host: power.noting(library, *folders(host))
    scene.form()
    load = scene.load(*scene.hosts)
    gone = 0
    for _ in range(3):
        scene.await_flow(load, 20)
        dispatcher = scene.dispatcher()
        standby = scene.standbys(dispatcher)[0]
        struck = {
            "dispatcher": [dispatcher],
            "standby": [standby],
            "both": [dispatcher, standby],
        }
        time.sleep(draw.uniform(0.0, 0.5))  # Any moment is equally good.
        scene.kill(*struck[who])
        gone += sum(power.cut(*folders(host), draw) for host in struck[who])
        scene.start(*struck[who])
        scene.await_mesh()
    scene.figures["unflushed writes"] = gone

    scene.conclude()


@pytest.mark.parametrize("who", ["dispatcher", "standby"])
def test_f21_full_disk_makes_no_false_promise(make_lab: MakeLab, who: str) -> None:
    """A write that fails is refused, and succeeds again once there is room."""
    scene = Scene(f"F21-{who}", make_lab(3))
    first, *rest = scene.hosts
    with small_disk(first.folder / first.name / "state", DISK_MB) as disk:
        if who == "dispatcher":
            scene.start(first)
            scene.await_mesh([first])
            scene.start(*rest)
        else:
            scene.start(*rest)
            scene.await_mesh(rest)
            scene.start(first)
        scene.await_mesh()
        load = scene.load(*rest)
        assert (scene.dispatcher() == first) == (who == "dispatcher")

        ballast = fill(disk)
        threading.Event().wait(5.0)
        # A dispatcher without room refuses, unless it handed its role over.
        made = scene.history.submit(rest[0], "F21-full")
        assert made.outcome is not Outcome.UNKNOWN
        assert made.status in (201, 507)
        ballast.unlink()

        scene.await_flow(load, 20)
        scene.conclude()


def test_f22_damaged_database_is_refused_and_never_spreads(
    make_lab: MakeLab,
) -> None:
    """The agent reports the damage; without the file, it fetches all from others."""
    scene = Scene("F22", make_lab(3)).form()
    dispatcher = scene.dispatcher()
    hurt = scene.others(dispatcher)[0]
    rest = scene.others(hurt)
    load = scene.load(*rest)
    scene.stop(hurt)
    damage(hurt.first.state)

    hurt.agent("", secret=scene.secret, is_awaited=False)
    assert hurt.first.wait() != 0
    assert "damaged" in hurt.first.log
    done = hurt.cli("db", "reset", "--yes")
    assert done.returncode == 0, done.stderr
    scene.start(hurt)
    scene.await_mesh()
    scene.await_flow(load, 20)

    scene.conclude()


@pytest.mark.parametrize("who", ["dispatcher", "standby", "worker"])
def test_f23_machine_that_slept_comes_back(make_lab: MakeLab, who: str) -> None:
    """Half a minute without a step; on wake-up it knows that the others went on."""
    scene = Scene(f"F23-{who}", make_lab(4)).form()
    dispatcher = scene.dispatcher()
    standby, *_, worker = (*scene.standbys(dispatcher), *scene.others(dispatcher))
    sleeper = {"dispatcher": dispatcher, "standby": standby, "worker": worker}[who]
    rest = scene.others(sleeper)
    load = scene.load(*rest, pace=Pace(body="sleep 0.1"))

    scene.freeze(sleeper)
    threading.Event().wait(SLEEP_S)
    scene.thaw(sleeper)
    scene.await_flow(load, 20)

    scene.conclude(gap_s_max=12.0)


class Stranger:
    """A peer that connects to a host and sends invalid data."""

    def __init__(self, near: Host, target: Host, trust: MeshTls | None) -> None:
        self._near = near
        self._target = target
        self._trust = trust

    def connect(self, port: int) -> socket.socket:
        """Open a connection, with TLS if the stranger has the secret."""
        plain = self._near.connect((self._target.ip, port), 5.0)
        if self._trust is None:
            return plain
        context = self._trust.client_contexts()[0]
        context.set_alpn_protocols(["octaskly/1"])
        return context.wrap_socket(plain)

    def say(self, port: int, data: bytes) -> None:
        """Send bytes and wait until the other side has closed or refused them."""
        with self.connect(port) as link:
            try:
                link.sendall(data)
                while link.recv(4096):
                    pass
            except (ConnectionError, ssl.SSLError):
                pass


def test_f34_invalid_data_from_peers_is_harmless(make_lab: MakeLab) -> None:
    """Frames of 4 GiB, deep nesting, silence, junk: bounded, and the mesh goes on."""
    scene = Scene("F34", make_lab(4))
    *members, rogue = scene.hosts
    scene.hosts.remove(rogue)
    scene.form()
    dispatcher = scene.dispatcher()
    load_ = scene.load()
    before = use(dispatcher.first.pid)
    outsider = Stranger(rogue, dispatcher, None)

    for data in (
        (0xFFFFFFFF).to_bytes(4, "big"),
        length_prefixed(b"\x91" * 200_000),
        length_prefixed(b"\xdd\xff\xff\xff\xff"),
        length_prefixed(b"\xc1" * 64),
        length_prefixed(msgpack.packb([[3, [0, ""]]])),
        length_prefixed(msgpack.packb({"a": 1})),
        length_prefixed(b""),
    ):
        # Each time another member: a member that sent invalid data is refused for a
        # while.
        trust = MeshTls(load_secret(scene.secret), NodeKey.generate())
        Stranger(rogue, dispatcher, trust).say(PEER_PORT, data)
    for port in (PEER_PORT, LAN_PORT):
        outsider.say(port, b"GET / HTTP/1.1\r\n\r\n" + b"\x00" * 4096)
    silent = [outsider.connect(PEER_PORT) for _ in range(STRANGERS)]
    scene.await_flow(load_, 40)
    for link in silent:
        link.close()

    assert use(dispatcher.first.pid).memory_mb - before.memory_mb < MEMORY_MORE_MB
    assert is_formed(members)
    assert dispatcher_of(members[0]) == dispatcher.name
    scene.conclude(gap_s_max=5.0)


def test_f17_dispatcher_that_lost_its_disk_gets_all_from_its_standbys(
    make_lab: MakeLab,
) -> None:
    """A task that two disks hold survives the loss of one."""
    scene = Scene("F17-disk", make_lab(3)).form()
    dispatcher = scene.dispatcher()
    rest = scene.others(dispatcher)
    load = scene.load(*rest)

    scene.kill(dispatcher)
    lose_log(dispatcher.first.state)
    scene.await_flow(load, 20)
    scene.start(dispatcher)
    scene.await_mesh()

    assert databases.vector(rest[0].first.state)
    scene.conclude()
