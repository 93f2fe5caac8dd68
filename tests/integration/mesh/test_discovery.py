"""Processes of one machine find each other over mDNS on loopback.

They share port 5353 with each other and with whatever else runs here, so each test
has a mesh id and node ids of its own.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from octaskly.errors import ConfigError
from octaskly.mesh.discovery.adverts import SERVICE
from octaskly.mesh.discovery.interfaces import LocalAddress
from octaskly.mesh.discovery.mdns import open_mdns
from octaskly.mesh.discovery.mdns_scan import scan_meshes
from tests.mesh.discovery_process import DiscoveryProcess
from tests.support.agents import soon_s

ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
FIND_S = soon_s(2.0)  #: the measured p95 is well below one second


def node_id() -> str:
    """Return an id in the form of node ids."""
    return "".join(secrets.choice(ALPHABET) for _ in range(16))


@pytest.fixture
def mesh_id() -> str:
    return secrets.token_hex(8)


def discovery_node(
    mesh: str | None, *, node: str, boot: str = "boot-1"
) -> DiscoveryProcess:
    """Start a node on loopback; it browses at once."""
    paired = ["--mesh", mesh] if mesh else []
    return DiscoveryProcess("--interface", "lo", "--id", node, "--boot", boot, *paired)


@pytest.fixture
def trio(mesh_id: str) -> Iterator[list[DiscoveryProcess]]:
    """Three nodes, started at the same time."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(discovery_node(mesh_id, node=node_id()))
            for _ in range(3)
        ]


def id_of(process: DiscoveryProcess) -> str:
    args = process.process.args
    assert isinstance(args, list)
    return str(args[args.index("--id") + 1])


def test_three_processes_on_loopback_find_each_other(
    trio: list[DiscoveryProcess],
) -> None:
    """Each sees the two others within seconds of the start of the later one."""
    for process in trio:
        for other in trio:
            if process is other:
                continue
            line = process.wait_for_node(id_of(other))
            both_s = max(each.wait_for("started")["at"] for each in (process, other))
            assert line["at"] - both_s < FIND_S
            assert line["addresses"][0] == ["127.0.0.1", 7878]

    assert all(id_of(process) not in process.seen_nodes() for process in trio)


def test_a_new_dispatcher_is_advertised_with_its_term(
    trio: list[DiscoveryProcess],
) -> None:
    """Browsing nodes learn at once which node to follow."""
    first, second, third = trio
    second.wait_for_node(id_of(first))
    third.wait_for_node(id_of(first))

    first.send_command("dispatcher 7")

    for process in (second, third):
        line = process.wait_for("seen", lambda line: line["is_dispatcher"])
        assert (line["node"], line["term"]) == (id_of(first), 7)


def test_a_goodbye_is_reported_as_a_hint_to_dial(trio: list[DiscoveryProcess]) -> None:
    """A goodbye can be forged, so it never ends a peer; a failed dial does."""
    first, second, _ = trio
    first.send_command("dispatcher 3")
    second.wait_for("seen", lambda line: line["is_dispatcher"])
    before = len(second.lines)

    first.close()

    second.wait_for(
        "seen",
        lambda line: (
            line in second.lines[before:]
            and line["node"] == id_of(first)
            and not line["is_dispatcher"]
        ),
    )


def test_a_fresh_browser_reports_all_nodes_in_sight_again(
    trio: list[DiscoveryProcess],
) -> None:
    """So unreachable peers are dialled again."""
    first, second, _ = trio
    first.wait_for_node(id_of(second))
    first.send_command("rest")
    before = first.state()

    first.send_command("browse")

    again = first.wait_for(
        "seen", lambda line: line["at"] > before["at"] and line["node"] == id_of(second)
    )
    assert again["at"] - before["at"] < FIND_S


def test_nodes_of_other_meshes_or_without_one_are_only_counted(mesh_id: str) -> None:
    """They are reported, but not dialled."""
    other = secrets.token_hex(8)
    ours, theirs, bare = node_id(), node_id(), node_id()
    with (
        discovery_node(mesh_id, node=ours) as process,
        discovery_node(other, node=theirs),
        discovery_node(None, node=bare) as unpaired,
    ):
        process.wait_for("other", lambda line: line["mesh"] == other)
        unpaired.wait_for("other", lambda line: line["mesh"] == mesh_id)
        state = process.state()
        while not state["unpaired"]:
            state = process.state()

        assert state["meshes"][other] == 1
        assert process.seen_nodes() == set()
        assert unpaired.seen_nodes() == set()


def test_a_second_node_with_our_id_is_reported(mesh_id: str) -> None:
    """A copied state folder would otherwise be noticed much later."""
    twin = node_id()
    with (
        discovery_node(mesh_id, node=twin, boot="boot-1") as first,
        discovery_node(mesh_id, node=twin, boot="boot-2"),
    ):
        note = first.wait_for("note", lambda line: "duplicate" in line["event"])
        clone = first.wait_for("clone")

    assert note["event"] == "duplicate node id"
    assert note["fields"] == {"node": twin}
    assert set(clone["ports"]) == {7878}
    assert first.seen_nodes() == set()


@pytest.fixture
async def forger() -> AsyncIterator[AsyncZeroconf]:
    """A stranger on the LAN that sends any advert."""
    zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])
    await zeroconf.zeroconf.async_wait_for_start()
    yield zeroconf
    await zeroconf.async_close()


def forged(name: str, mesh: str, *, host: str = "127.0.0.1", **txt: str) -> ServiceInfo:
    return ServiceInfo(
        SERVICE,
        f"{name}.{SERVICE}",
        port=22,
        server=f"{secrets.token_hex(4)}.local.",
        parsed_addresses=[host],
        properties={"v": "1", "m": mesh, "b": "1", "a": "1", "r": "n", **txt},
    )


def shout(forger: AsyncZeroconf, info: ServiceInfo) -> None:
    """Send the records unchanged; registering would check them."""
    zeroconf = forger.zeroconf
    zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))


async def test_forged_adverts_are_ignored_and_logged_once(
    mesh_id: str, forger: AsyncZeroconf
) -> None:
    """Neither a victim's address, nor a long TXT, nor a strange name gets a dial."""
    honest = node_id()
    infos = [
        forged(node_id(), mesh_id, host="8.8.8.8"),
        forged(node_id(), mesh_id, host="127.255.255.255"),
        forged(node_id(), mesh_id, x="x" * 240, y="y" * 240),
        forged(node_id(), "m\x1b[2J"),
        forged(node_id(), mesh_id, r="?"),
        forged("clear-screen", mesh_id),
        forged(honest, mesh_id),
    ]

    infos[5].name = f"clear\x1b[2Jscreen.{SERVICE}"  # No constructor accepts it.

    with discovery_node(mesh_id, node=node_id()) as process:
        await asyncio.to_thread(process.wait_for, "started")
        for info in infos:
            shout(forger, info)
        await asyncio.to_thread(process.wait_for_node, honest)
        await asyncio.to_thread(process.state)

    assert process.seen_nodes() == {honest}
    notes = [line for line in process.lines if line["kind"] == "note"]
    assert [note["event"] for note in notes] == ["advert ignored"]
    assert "\x1b" not in str(notes)


async def test_adverts_of_the_own_id_lead_to_few_dials(
    mesh_id: str, forger: AsyncZeroconf
) -> None:
    """They may come from a copy, and anybody can send many."""
    own = node_id()
    with discovery_node(mesh_id, node=own) as process:
        await asyncio.to_thread(process.wait_for, "started")
        for number in range(3):
            shout(forger, forged(own, mesh_id, b=f"boot-{number + 2}"))
            behind = node_id()
            shout(forger, forged(behind, mesh_id))
            await asyncio.to_thread(process.wait_for_node, behind)

    clones = [line for line in process.lines if line["kind"] == "clone"]
    assert 1 <= len(clones) < 3


async def test_a_mesh_in_sight_is_found_before_a_secret_is_created(
    mesh_id: str,
) -> None:
    """A second machine must not silently create a second mesh."""
    with discovery_node(mesh_id, node=node_id()) as process:
        await asyncio.to_thread(process.wait_for, "started")
        found: frozenset[str] = frozenset()
        while mesh_id not in found:  # Other meshes may use this machine's loopback.
            found = await scan_meshes(1.0, ["lo"])


async def test_an_unknown_interface_is_a_configuration_error() -> None:
    """A typo ends the start, with the existing names."""
    with pytest.raises(ConfigError, match="nope0"):
        await scan_meshes(1.0, ["nope0"])


# zeroconf leaves a socket to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_interface_that_has_just_gone_makes_mdns_unavailable() -> None:
    """The addresses were read a moment before, so zeroconf does not find its index."""
    gone = LocalAddress("fe80::1%usb0", 64, "usb0", 1 << 20)

    with pytest.raises(OSError, match="no interface takes part in multicast"):
        await open_mdns([gone])
