"""How agents meet on a LAN without multicast, or with an attacker."""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.mesh.conftest import MakeLab
from tests.mesh.discovery_process import DiscoveryProcess
from tests.mesh.faults import move
from tests.mesh.forming import FORM_S, dispatcher_of, form, is_formed, nodes
from tests.mesh.forming import secret_file as make_secret
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import ip, wait_until
from tests.mesh.test_discovery_lan import FLOOD, HOLD_5353

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

FLOOD_NODES = 5000
VICTIM_PORT = 22  #: the port that the flood advertises
DIALS_MAX = 64
CALM_S = 3.0
ANSWER_S_MAX = 0.2
ANSWERS = 20
GROWTH_MB_MAX = 50.0


def names(host: Host) -> set[str]:
    return {node["name"] for node in nodes(host) if node["state"] == "ready"}


def hold_mdns(host: Host) -> None:
    """Take port 5353 of a host exclusively."""
    holder = host.popen(sys.executable, "-c", HOLD_5353, stdin=-1, stdout=-1)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"


@pytest.fixture(scope="module")
def lan(_may_make_labs: None) -> Iterator[Lab]:
    """A host that is a mesh, and one for each test that adds a node or attacker."""
    with Lab(4) as lab:
        lab.hosts[0].agent(secret=make_secret(lab.folder))
        yield lab


def test_a_host_without_mdns_joins_by_address(lan: Lab) -> None:
    """`--join` works without multicast, and the log names the problem."""
    first, second, _, _ = lan.hosts
    hold_mdns(second)

    deaf = second.agent("", "--join", first.ip, secret=lan.folder / "mesh.key")

    wait_until("one mesh", lambda: is_formed([first, second]), within_s=FORM_S)
    deaf.stop()
    said = [line for line in deaf.log.splitlines() if "discovery unavailable" in line]
    assert len(said) == 1
    assert "disallow-other-stacks" in said[0]


@pytest.mark.parametrize("options", [(), ("--interface", "eth0")])
def test_an_agent_answers_at_an_address_that_came_after_its_start(
    make_lab: MakeLab, options: tuple[str, ...]
) -> None:
    """Its certificate names the address, and so does what it says of itself."""
    lab = make_lab(2)
    first, second = lab.hosts
    secret = make_secret(lab.folder)
    for host in lab.hosts:
        host.agent("", *options, secret=secret)

    move(second, "10.77.1.201")

    url = "https://10.77.1.201:3443"
    description = second.first.state / "agent.json"
    wait_until(
        "its URL is the new one",
        lambda: f'"lan_url": "{url}"' in description.read_text(),
        within_s=FORM_S,
    )
    root = lab.folder / "ca.pem"
    root.write_text(second.cli("ca").stdout)
    done = first.run("curl", "-sS", "--cacert", str(root), f"{url}/health")
    assert done.returncode == 0, done.stderr
    wait_until("one mesh", lambda: is_formed(lab.hosts), within_s=FORM_S)


def test_agents_of_one_user_share_one_secret_and_one_mesh(make_lab: MakeLab) -> None:
    """Three agents start at the same instant on a machine that has no secret yet."""
    (host,) = make_lab(1).hosts
    config = host.folder / "config"
    config.mkdir()

    for name in ("one", "two", "three"):
        host.agent(name, env={"XDG_CONFIG_HOME": str(config)}, is_awaited=False)
    for agent in host.agents.values():
        assert agent.description

    wait_until(
        "one mesh of three",
        lambda: names(host) == {"one", "two", "three"},
        within_s=FORM_S,
    )
    meshes = {agent.description["mesh"] for agent in host.agents.values()}
    assert len(meshes) == 1
    secret = config / "octaskly" / "mesh.key"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(secret.read_text().splitlines()) == 1


def test_agents_on_loopback_form_a_mesh_without_any_network(make_lab: MakeLab) -> None:
    """`--interface lo` is for the demo; no packet leaves the machine."""
    lab = make_lab(2)
    first, second = lab.hosts
    secret = make_secret(lab.folder)
    for name in ("one", "two"):
        first.agent(name, "--interface", "lo", secret=secret, is_awaited=False)
    for agent in first.agents.values():
        assert agent.description

    wait_until("two", lambda: names(first) == {"one", "two"}, within_s=FORM_S)

    assert {
        address.rpartition(":")[0]
        for node in nodes(first)
        for address in node["addresses"]
    } <= {"127.0.0.1", "[::1]", "::1"}
    with DiscoveryProcess("--look", "1.0", prefix=second.prefix) as look:
        assert look.wait_for("sightings")["meshes"] == []


def test_hosts_without_any_router_serve_one_api(make_lab: MakeLab) -> None:
    """Without a router there are only link-local addresses, which need a scope."""
    lab = make_lab(2)
    for host in lab.hosts:
        ip(f"addr del {host.ip}/24 dev eth0", netns=host.netns)

    form(lab)

    for host in lab.hosts:
        submitted = host.http("POST", "/api/v1/tasks", json={"command": "true"})
        assert submitted.status == 201, submitted.body
        assert host.first.description["lan_url"] == (
            f"https://[{host.link_local}%eth0]:3443"
        )


def test_machine_without_a_secret_waits_and_names_the_next_step(lan: Lab) -> None:
    """It neither makes a second mesh beside the first, nor is let in."""
    first, _, third, _ = lan.hosts

    bare = third.agent(is_awaited=False)

    wait_until(
        "it is unpaired",
        lambda: "unpaired" in bare.log or bare.process.poll() is not None,
        within_s=FORM_S,
    )
    assert bare.process.poll() is None, bare.log
    health = third.http("GET", "/health", token="", port=3000)
    other = third.http("GET", "/api/v1/tasks", token="", port=3000)
    assert (health.status, other.status) == (200, 503)
    assert "octaskly invite" in other.json["hint"]
    assert not list(third.folder.rglob("mesh.key"))
    assert third.name not in names(first)
    bare.stop()


@contextlib.contextmanager
def counted_dials(host: Host) -> Iterator[list[str]]:
    """Count the connections to a victim's port."""
    dials: list[str] = []
    listener = host.call(lambda: socket.create_server(("", VICTIM_PORT), backlog=256))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, address = listener.accept()
                dials.append(address[0])
                connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield dials
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def answer_s(host: Host) -> float:
    """Return the time that a host takes to answer a health request."""
    begin_s = time.perf_counter()
    assert host.http("GET", "/health", token="").status == 200
    return time.perf_counter() - begin_s


def resident_mb(host: Host) -> float:
    return psutil.Process(host.first.process.pid).memory_info().rss / 1e6


@pytest.mark.alone
def test_a_rogue_advertiser_cannot_turn_the_mesh_against_a_victim(
    make_lab: MakeLab,
) -> None:
    """5000 forged dispatchers at one address: few dials, and the mesh goes on."""
    lab = make_lab(4)
    first, second, rogue, victim = lab.hosts
    members = (first, second)
    form(lab, hosts=members)
    dispatcher = dispatcher_of(first)
    mesh = first.first.description["mesh"]
    before_mb = {host: resident_mb(host) for host in members}

    with counted_dials(victim) as dials:
        flood = rogue.popen(
            *(sys.executable, str(FLOOD), rogue.ip, mesh, victim.ip, str(FLOOD_NODES))
        )
        took_s = sorted(answer_s(first) for _ in range(ANSWERS))
        assert flood.wait(60) == 0
        with pytest.raises(AssertionError, match="calm"):
            wait_until("calm", lambda: len(dials) > DIALS_MAX, within_s=CALM_S)
        took_s = min(took_s, sorted(answer_s(first) for _ in range(ANSWERS)))

    growth_mb = max(resident_mb(host) - before_mb[host] for host in members)
    print(
        f"half within {took_s[ANSWERS // 2]:.3f} s; {len(dials)} dials; {growth_mb} MB"
    )
    assert len(dials) <= DIALS_MAX
    assert took_s[ANSWERS // 2] < ANSWER_S_MAX
    assert growth_mb < GROWTH_MB_MAX
    assert is_formed(members)
    assert dispatcher_of(first) == dispatcher


def test_a_new_host_is_a_worker_at_once(lan: Lab) -> None:
    """A machine that is switched on adds slots to the mesh."""
    first, _, _, new = lan.hosts

    agent = new.agent(secret=lan.folder / "mesh.key")

    wait_until("two", lambda: is_formed([first, new]), within_s=FORM_S)
    agent.stop()
