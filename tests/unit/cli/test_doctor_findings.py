"""Findings of `octaskly doctor`, which must not contradict each other."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from octaskly.cli.doctor import probes
from octaskly.cli.doctor.diagnosis import Finding, FindingStatus, make_findings
from octaskly.cli.doctor.observations import ProbedNode, Symptoms
from octaskly.core.model.ids import STREAMS_MAX, STREAMS_WARN
from octaskly.rest.mesh import Checkup, FileStoreUsage, NodeInfo, Reach
from octaskly.runner.output.output_archive import RESERVE_BYTES
from octaskly.store.store import FREE_BYTES_MIN
from octaskly.trust import generate_secret

SECRET = generate_secret()

OUTSIDER = Symptoms(
    agent=None,
    agent_error=None,
    version="1.0.0",
    build="0a1b2c3d",
    program_build="0a1b2c3d",
    mesh=None,
    secret_file=Path("/home/ana/mesh.key"),
    secret_error=None,
    may_read_secret=True,
    node_id=None,
    hosts_with_same_id=(),
    names=(),
    interfaces=(),
    mdns_error=None,
    mdns_port_owner=None,
    sees_itself=None,
    probed_nodes=(),
    taken_ports=(),
    state_dir=Path("/home/ana/state"),
    log_error=None,
    free_bytes=1 << 40,
    descriptors_max=4096,
)
"""A machine on which nothing runs yet, and that sees nobody."""


def of_mesh(place: str) -> ProbedNode:
    """Return a node of a mesh that does not include this machine."""
    return ProbedNode(
        name="mesh 0123",
        mesh="0123",
        address=place,
        is_seen_by_mdns=True,
        is_member=False,
    )


def found(seen: Symptoms) -> dict[str, Finding]:
    return {each.check: each for each in make_findings(seen)}


def test_two_visible_nodes_are_one_mesh() -> None:
    """A mesh name that is shown twice looks like two meshes."""
    both = (of_mesh("10.0.0.1:7878"), of_mesh("10.0.0.2:7878"))

    says = found(replace(OUTSIDER, probed_nodes=both))["secret"].says

    assert says.endswith("visible: mesh 0123 (10.0.0.1:7878, 10.0.0.2:7878)")


def test_no_line_denies_a_mesh_that_another_line_shows() -> None:
    """A machine without a secret is in no mesh, and yet sees one."""
    seen = found(replace(OUTSIDER, probed_nodes=(of_mesh("10.0.0.1:7878"),)))

    assert "visible: mesh 0123" in seen["secret"].says
    assert seen["mesh"].says == "other meshes: mesh 0123 (10.0.0.1:7878)"
    assert seen["tcp"].says == (
        "there is no other node in this machine's mesh to connect to"
    )


def test_an_unresolved_name_is_not_reported_as_a_firewall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Example: `pi4.local` on a machine that does not resolve names over mDNS."""

    def look_up(*_arguments: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    [named] = probes.probe_nodes(
        [probes.target_of_seed("pi4.local", 7878, SECRET.mesh_id)], SECRET
    )

    seen = found(replace(OUTSIDER, mesh=SECRET.mesh_id, probed_nodes=(named,)))

    assert seen["tcp"].status is FindingStatus.FAULT
    assert seen["tcp"].says == "the name 'pi4.local' cannot be resolved here"


MEMBER = Checkup(
    name="pi4",
    node_id="0011",
    state_dir="/home/ana/state",
    secret_file="/home/ana/mesh.key",
    descriptors_max=4096,
    mesh="0123",
)


def test_a_node_that_left_is_not_a_fault() -> None:
    """It was joined by address, and this node dials that address for ever."""
    gone = ProbedNode(
        name="10.0.0.1",
        mesh="0123",
        address="10.0.0.1:7878",
        is_seen_by_mdns=False,
        is_member=False,
        probe_result="refused",
    )

    seen = found(replace(OUTSIDER, agent=MEMBER, mesh="0123", probed_nodes=(gone,)))

    assert seen["tcp"].status is FindingStatus.WARNING
    assert seen["tcp"].says == (
        "no agent listens at 10.0.0.1:7878, which this agent also tries"
    )


@pytest.mark.parametrize(
    ("streams", "status", "says", "hint"),
    [
        (STREAMS_WARN, FindingStatus.OK, "8192 streams", None),
        (
            STREAMS_WARN + 1,
            FindingStatus.WARNING,
            "8193 of at most 32768 streams",
            "octaskly service logs    says why the dispatcher changes so often",
        ),
        (
            STREAMS_MAX + 1,
            FindingStatus.FAULT,
            "other nodes refuse more than 32768",
            "restart the agent: it repairs its log when it starts",
        ),
    ],
)
def test_a_log_with_many_streams_is_reported_before_other_nodes_refuse_it(
    streams: int, status: FindingStatus, says: str, hint: str | None
) -> None:
    """Each change of the dispatcher opens a stream, and a HELLO names them all."""
    agent = structs.replace(MEMBER, streams=streams)

    seen = found(replace(OUTSIDER, agent=agent))["log"]

    assert (seen.status, seen.hint) == (status, hint)
    assert says in seen.says


def test_a_full_store_of_files_is_reported_with_what_makes_room() -> None:
    """Before tasks have to wait for room."""
    files = FileStoreUsage(store="files", used_bytes=10**9, quota_bytes=10**10)
    outputs = FileStoreUsage(store="outputs", used_bytes=10**10, quota_bytes=10**10)
    agent = structs.replace(MEMBER, stores=[files, outputs])

    seen = found(replace(OUTSIDER, agent=agent))

    assert seen["files"].status is FindingStatus.OK
    assert seen["outputs"].status is FindingStatus.WARNING
    assert "octaskly fetch" in (seen["outputs"].hint or "")


def test_a_log_is_not_reported_where_no_agent_runs() -> None:
    """Only the agent reads its log."""
    assert "log" not in found(OUTSIDER)


@pytest.mark.parametrize(
    ("build", "status", "says"),
    [
        ("0a1b2c3d", "ok", "1.0.0 everywhere"),
        (None, "ok", "1.0.0 everywhere"),  # It was not asked for its health.
        (
            "99887766",
            "warning",
            "this machine runs 1.0.0 (build 0a1b2c3d), but pi4 1.0.0 (build 99887766)",
        ),
    ],
)
def test_builds_of_the_same_version_are_compared(
    build: str | None, status: str, says: str
) -> None:
    """Between two releases an upgrade does not change the version."""
    node = replace(of_mesh("10.0.0.2:7878"), name="pi4", version="1.0.0", build=build)

    finding = found(replace(OUTSIDER, probed_nodes=(node,)))["version"]

    assert (finding.status.value, finding.says) == (status, says)


def test_an_agent_that_was_not_restarted_after_an_upgrade_is_named() -> None:
    """The new program is on the disk, and the old one still runs."""
    findings = found(replace(OUTSIDER, program_build="99887766"))

    assert "upgrade" not in found(OUTSIDER)
    assert findings["upgrade"] == Finding(
        "upgrade",
        FindingStatus.WARNING,
        "the agent runs build 0a1b2c3d, but this program is build 99887766",
        "octaskly service install    restarts the service with this program",
    )


@pytest.mark.parametrize(
    ("free_bytes", "status", "says"),
    [
        (RESERVE_BYTES, "ok", "268 MB is free"),
        (
            RESERVE_BYTES - 1_000_000,
            "fault",
            (
                "only 267 MB is free for /home/ana/state, so files of tasks and their"
                " outputs are refused; 268 MB are needed"
            ),
        ),
        (
            FREE_BYTES_MIN - 1_000_000,
            "fault",
            (
                "only 66 MB is free for /home/ana/state, so no new tasks are accepted;"
                " 268 MB are needed"
            ),
        ),
    ],
)
def test_a_disk_that_is_too_full_for_files_is_a_fault(
    free_bytes: int, status: str, says: str
) -> None:
    """The agent keeps more free for its log than new tasks need."""
    finding = found(replace(OUTSIDER, free_bytes=free_bytes))["disk"]

    assert (finding.status.value, finding.says) == (status, says)


def test_visitors_are_no_nodes_to_connect_to() -> None:
    """They have no address, which looked like a firewall."""
    guest = NodeInfo(id="visitor-1", name="visitor-pc", state="ready", visitor=True)
    member = NodeInfo(
        id="a1", name="ash", state="ready", addresses=["10.0.0.2:7878"], lan_port=3443
    )

    targets = probes._probe_targets((), [guest, member], (), SECRET, skip="")

    assert [target.node.name for target in targets] == ["ash"]


@pytest.mark.parametrize("answer", ["silent", "refused"])
def test_a_member_that_cannot_connect_here_is_a_fault(answer: str) -> None:
    """Some firewalls drop a connection, others refuse it."""
    reach = Reach(peer_port=answer, lan_port="reached")
    member = replace(
        of_mesh("10.0.0.2:7878"),
        name="ash",
        is_member=True,
        probe_result="reached",
        reachability=reach,
    )

    finding = found(replace(OUTSIDER, probed_nodes=(member,)))["tcp"]

    assert finding.status is FindingStatus.FAULT
    assert finding.says.startswith("ash cannot connect to this machine")
