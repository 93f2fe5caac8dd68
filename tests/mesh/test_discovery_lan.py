"""Discovery between hosts: decoys, changes of address, splits, floods, a taken port."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octaskly.mesh.discovery.adverts import NODES_PER_ENDPOINT_MAX
from octaskly.mesh.discovery.mdns_scan import FIRST_SCAN_S
from tests.mesh.conftest import MakeLab
from tests.mesh.discovery_process import DiscoveryProcess
from tests.mesh.lab import DECOY_HOST, TUNNEL_NET, Host
from tests.mesh.mdns_flood import fake_id
from tests.mesh.netns import ip, wait_until
from tests.support.agents import soon_s

pytestmark = pytest.mark.netns

FIND_S = soon_s(2.0)
FLOOD = Path(__file__).with_name("mdns_flood.py")
HOLD_5353 = (
    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    "s.bind(('', 5353)); print('held', flush=True); sys.stdin.read()"
)
TAKEN_IN_S = 45.0  #: seconds for a process on a busy machine to take in a flood
SEEN_S = 45.0
GROWTH_MB_MAX = 50.0

Discover = Callable[..., DiscoveryProcess]


def id_of(host: Host) -> str:
    return fake_id(1_000_000 + host.number)


@pytest.fixture
def discover() -> Iterator[Discover]:
    """Start discovery on a host; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(host: Host, *args: str, mesh: str = "mesh-1") -> DiscoveryProcess:
            options = ["--id", id_of(host), "--mesh", mesh, *args]
            return stack.enter_context(DiscoveryProcess(*options, prefix=host.prefix))

        yield start


def test_five_hosts_find_each_other_and_advertise_no_decoy(
    make_lab: MakeLab, discover: Discover
) -> None:
    """All nodes know each other within 2 s, and no advert contains docker0 or tun0."""
    hosts = make_lab(5).hosts
    processes = {host: discover(host) for host in hosts}
    ready_s = max(process.wait_for("started")["at"] for process in processes.values())

    for host, process in processes.items():
        for other in hosts:
            if other is host:
                continue
            line = process.wait_for_node(id_of(other))
            assert line["at"] - ready_s < FIND_S
            assert line["addresses"][0] == [other.ip, 7878]
            assert {address for address, _ in line["addresses"]} <= {
                other.ip,
                f"{other.link_local}%eth0",
            }

    for process in processes.values():
        said = str(process.lines)
        assert DECOY_HOST not in said
        assert TUNNEL_NET not in said


def test_a_new_address_of_a_host_is_advertised(
    make_lab: MakeLab, discover: Discover
) -> None:
    """A laptop that changes networks is found again without a restart."""
    first, second = make_lab(2).hosts
    watcher, mover = discover(first), discover(second)
    watcher.wait_for_node(id_of(second))
    mover.wait_for("started")

    ip(
        f"addr del {second.ip}/24 dev eth0",
        "addr add 10.77.1.99/24 dev eth0",
        netns=second.netns,
    )

    mover.wait_for("moved", lambda line: line["hosts"][0] == "10.77.1.99")
    watcher.wait_for("seen", lambda line: line["addresses"][0][0] == "10.77.1.99")


def test_a_new_device_with_the_old_address_is_used(
    make_lab: MakeLab, discover: Discover
) -> None:
    """As after a suspend that resets the driver, or with a USB adapter."""
    lab = make_lab(2)
    first, second = lab.hosts
    no_ipv6 = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
    assert second.run("sh", "-c", no_ipv6).returncode == 0
    mover = discover(second)
    mover.wait_for("started")

    lab.replace_device(second)

    mover.wait_for("moved", lambda line: line["hosts"] == [second.ip])
    newcomer = discover(first)
    mover.wait_for_node(id_of(first))
    newcomer.wait_for_node(id_of(second))


def test_a_node_that_started_in_a_split_is_found_by_a_fresh_browser(
    make_lab: MakeLab, discover: Discover
) -> None:
    """Without a new query, neither side would see the other for most of an hour."""
    lab = make_lab(2)
    first, second = lab.hosts
    lab.split([first], [second])
    left, right = discover(first), discover(second)
    for process in (left, right):
        process.wait_for("started")
        assert process.state()["in_sight"] == 0
    lab.join()

    left.send_command("browse")

    left.wait_for_node(id_of(second))


def test_fresh_machine_sees_a_mesh_or_none(
    make_lab: MakeLab, discover: Discover
) -> None:
    """This decides whether the machine makes a secret of its own."""
    first, second = make_lab(2).hosts

    look = ("--look", str(FIRST_SCAN_S))
    with DiscoveryProcess(*look, prefix=second.prefix) as alone:
        assert alone.wait_for("sightings")["meshes"] == []
    discover(first).wait_for("started")

    def is_seen() -> bool:
        with DiscoveryProcess(*look, prefix=second.prefix) as fresh:
            return bool(fresh.wait_for("sightings")["meshes"] == ["mesh-1"])

    # A busy machine may answer too late for one attempt.
    wait_until("a look sees the mesh", is_seen, within_s=SEEN_S)


def test_taken_mdns_port_is_logged_once(make_lab: MakeLab, discover: Discover) -> None:
    """The agent runs on: remembered peers and --join do not need mDNS."""
    (host,) = make_lab(1).hosts
    holder = host.popen(sys.executable, "-c", HOLD_5353, stdin=-1, stdout=-1)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"

    process = discover(host)
    note = process.wait_for("note")

    assert note["event"] == "discovery unavailable"
    assert "disallow-other-stacks" in note["fields"]["hint"]
    process.send_command("dispatcher 3")
    assert process.state()["is_degraded"]
    process.close()
    assert [line["kind"] for line in process.lines].count("note") == 1


def test_mdns_resumes_when_the_port_is_free_again(
    make_lab: MakeLab, discover: Discover
) -> None:
    """The agent needs no restart after avahi was repaired."""
    first, second = make_lab(2).hosts
    holder = first.popen(sys.executable, "-c", HOLD_5353, stdin=-1, stdout=-1)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    blocked, free = discover(first), discover(second)
    blocked.wait_for("note")

    holder.kill()

    blocked.wait_for("note", lambda line: line["event"] == "discovery available")
    free.wait_for_node(id_of(first))
    blocked.wait_for_node(id_of(second))


def resident_mb(process: DiscoveryProcess) -> float:
    """Return the resident memory of a process."""
    pages = Path(f"/proc/{process.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096 / 1e6


@pytest.mark.parametrize(
    ("victim", "hints"),
    [("8.8.8.8", 0), ("10.77.1.1", NODES_PER_ENDPOINT_MAX), ("each", 1024)],
)
def test_a_flood_of_5000_nodes_is_bounded(
    make_lab: MakeLab, discover: Discover, victim: str, hints: int
) -> None:
    """Memory, dial hints and the log stay small, whichever nodes the flood names."""
    first, rogue = make_lab(2).hosts
    process = discover(first)
    process.wait_for("started")
    before_mb = resident_mb(process)

    done = rogue.run(
        *(sys.executable, str(FLOOD), rogue.ip, "mesh-1", victim, "5000"),
        timeout_s=50,
    )
    assert done.returncode == 0, done.stderr
    wait_until(
        "the flood is taken in",
        lambda: process.state() and len(process.seen_nodes()) >= hints,
        within_s=TAKEN_IN_S,
    )

    assert process.state()["in_sight"] <= hints
    assert len(process.seen_nodes()) == hints
    assert resident_mb(process) - before_mb < GROWTH_MB_MAX
    notes = [line["event"] for line in process.lines if line["kind"] == "note"]
    assert notes
    assert len(notes) == len(set(notes))


def test_an_honest_node_is_found_after_a_flood(
    make_lab: MakeLab, discover: Discover
) -> None:
    """Each fresh browser gives every name the same chance of an entry."""
    first, second, rogue = make_lab(3).hosts
    process = discover(first)
    process.wait_for("started")
    rogue.run(*(sys.executable, str(FLOOD), rogue.ip, "mesh-1", "each", "3000"))
    discover(second).wait_for("started")

    def is_found() -> bool:
        process.send_command("browse")
        process.state()
        return id_of(second) in process.seen_nodes()

    wait_until("the honest node is seen", is_found, within_s=SEEN_S)
