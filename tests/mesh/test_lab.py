"""The lab itself: hosts connect, faults cut, decoys exist."""

import socket
import struct
import threading
from pathlib import Path

import pytest

from octaskly.mesh.discovery.interfaces import InterfaceKind, list_interfaces
from tests.mesh.conftest import MakeLab
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import NETNS, wait_until

pytestmark = pytest.mark.netns

GROUP = "224.0.0.251"
PORT = 5454
TRY_S = 0.5
SETTLE_S = 45.0


def listen(host: Host) -> socket.socket:
    return host.call(lambda: socket.create_server(("", 9000), backlog=16))


def reaches(host: Host, peer: Host) -> bool:
    """Return True if a TCP connection to the peer's listener succeeds."""
    try:
        host.connect((peer.ip, 9000), TRY_S).close()
    except OSError:
        return False
    return True


def until_reached(host: Host, peer: Host) -> None:
    """Wait until it succeeds; on a busy machine one attempt may be too short."""
    what = f"{host.name} reaches {peer.name}"
    wait_until(what, lambda: reaches(host, peer), within_s=SETTLE_S)


def multicast_socket(host: Host) -> socket.socket:
    """Return a socket that receives from the multicast group."""

    def open_it() -> socket.socket:
        heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        heard.bind(("", PORT))
        member = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(host.ip))
        heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        heard.settimeout(SETTLE_S)
        return heard

    return host.call(open_it)


def send_multicast(host: Host, word: bytes) -> None:
    """Send a datagram to the multicast group."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.sendto(word, (GROUP, PORT))

    host.call(send)


def test_hosts_connect_until_they_are_cut_and_after_they_are_healed(
    make_lab: MakeLab,
) -> None:
    """A cut host gets silence, as from an unplugged cable."""
    lab = make_lab(3)
    first, second, third = lab.hosts
    with listen(second):
        assert reaches(first, second)
        assert reaches(third, second)

        lab.cut(second)
        assert not reaches(first, second)

        lab.heal(second)
        until_reached(first, second)


def test_a_split_leaves_each_group_alive(make_lab: MakeLab) -> None:
    """Both halves go on, which makes splits hard."""
    lab = make_lab(4)
    first, second, third, fourth = lab.hosts
    with listen(second), listen(fourth):
        lab.split([first, second], [third, fourth])
        until_reached(first, second)
        until_reached(third, fourth)
        assert not reaches(first, fourth)

        lab.join()
        until_reached(first, fourth)


def test_multicast_reaches_all_hosts_of_the_group(make_lab: MakeLab) -> None:
    """Discovery depends on it."""
    lab = make_lab(3)
    first, second, third = lab.hosts
    with multicast_socket(second) as near, multicast_socket(third) as cut:
        send_multicast(first, b"all")
        assert (near.recv(16), cut.recv(16)) == (b"all", b"all")

        lab.split([first, second], [third])
        send_multicast(first, b"half")
        assert near.recv(16) == b"half"
        cut.settimeout(TRY_S)
        with pytest.raises(TimeoutError):
            cut.recv(16)


def test_misrouted_host_cannot_reach_a_peer_that_still_hears_its_multicast(
    make_lab: MakeLab,
) -> None:
    """The one-way cut: discovery sees a peer that no connection reaches."""
    lab = make_lab(3)
    first, second, third = lab.hosts
    with listen(second), multicast_socket(second) as heard:
        lab.misroute(first, second)
        send_multicast(first, b"x")
        assert heard.recv(16) == b"x"
        assert not reaches(first, second)
        until_reached(third, second)

        lab.end_misroute(first, second)
        until_reached(first, second)


def test_every_host_has_the_same_decoys(make_lab: MakeLab) -> None:
    """The interfaces that must not be advertised exist."""
    lab = make_lab(2)
    for host in lab.hosts:
        kinds = {each.name: each.kind for each in host.call(list_interfaces)}
        assert set(kinds) == {"lo", "eth0", "docker0", "tun0"}
        # A thread sees the /sys of the machine; a process sees that of its namespace.
        said = host.run("cat", "/sys/class/net/tun0/flags", "/proc/net/if_inet6")
        assert int(said.stdout.split()[0], 16) & 0x10
        assert kinds["eth0"] is InterfaceKind.LAN
        assert kinds["docker0"] is InterfaceKind.CONTAINER
        assert kinds["tun0"] is InterfaceKind.POINT_TO_POINT


def has_ended(pid: int) -> bool:
    """Return True if a process is gone; its adopter may be slow to collect it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def test_a_closed_lab_leaves_no_process_and_no_namespace(make_lab: MakeLab) -> None:
    """This includes a process that has daemonised."""
    del make_lab
    with Lab(1) as lab:
        host = lab.hosts[0]
        done = host.run("sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!")
        pid = int(done.stdout)
        sleeper = host.popen("sleep", "600")
        names = lab._namespaces()
        assert len(names) == 2

    assert not any((NETNS / name).exists() for name in names)
    assert not lab.folder.exists()
    assert sleeper.returncode == -9
    wait_until("the orphan has ended", lambda: has_ended(pid), within_s=SETTLE_S)


def test_nothing_of_a_lab_appears_in_the_network_of_this_machine(
    make_lab: MakeLab,
) -> None:
    """Tests never touch the network that the machine uses."""
    before = {each.name for each in list_interfaces()}
    make_lab(2)

    assert {each.name for each in list_interfaces()} == before
    assert threading.active_count() < 50
