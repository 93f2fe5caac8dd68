"""What the doctor makes of symptoms: it contradicts itself nowhere."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from octaskly.cli.doctor import probes
from octaskly.cli.doctor.diagnosis import Finding, FindingStatus, make_findings
from octaskly.cli.doctor.observations import ProbedNode, Symptoms
from octaskly.rest.mesh import Checkup
from octaskly.trust import generate_secret

SECRET = generate_secret()

OUTSIDER = Symptoms(
    agent=None,
    agent_error=None,
    version="1.0.0",
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
    free_bytes=1 << 40,
    descriptors_max=4096,
)
"""A machine on which nothing runs yet, and that sees nobody."""


def of_mesh(place: str) -> ProbedNode:
    """Return a node of a mesh that this machine is not in."""
    return ProbedNode(
        name="mesh 0123",
        mesh="0123",
        address=place,
        is_seen_by_mdns=True,
        is_member=False,
    )


def found(seen: Symptoms) -> dict[str, Finding]:
    return {each.check: each for each in make_findings(seen)}


def test_two_nodes_in_sight_are_one_mesh() -> None:
    """Who sees its name twice looks for two."""
    both = (of_mesh("10.0.0.1:7878"), of_mesh("10.0.0.2:7878"))

    says = found(replace(OUTSIDER, probed_nodes=both))["secret"].says

    assert says.endswith("visible: mesh 0123 (10.0.0.1:7878, 10.0.0.2:7878)")


def test_no_line_denies_the_mesh_that_another_line_shows() -> None:
    """A machine without a secret is in none, and yet sees one."""
    seen = found(replace(OUTSIDER, probed_nodes=(of_mesh("10.0.0.1:7878"),)))

    assert "visible: mesh 0123" in seen["secret"].says
    assert seen["mesh"].says == "other meshes: mesh 0123 (10.0.0.1:7878)"
    assert seen["tcp"].says == (
        "there is no other node in this machine's mesh to try it with"
    )


def test_a_name_without_an_address_is_no_firewall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of `pi4.local`, on a machine that looks up no names over mDNS."""

    def look_up(*_arguments: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    [named] = probes.probe_nodes(
        [probes.target_of_seed("pi4.local", 7878, SECRET.mesh_id)], SECRET
    )

    seen = found(replace(OUTSIDER, mesh=SECRET.mesh_id, probed_nodes=(named,)))

    assert seen["tcp"].status is FindingStatus.FAULT
    assert seen["tcp"].says == "nothing is called 'pi4.local' here: it has no address"


def test_a_node_that_left_is_no_fault() -> None:
    """It was joined at an address, where this node looks as long as it runs."""
    gone = ProbedNode(
        name="10.0.0.1",
        mesh="0123",
        address="10.0.0.1:7878",
        is_seen_by_mdns=False,
        is_member=False,
        probe_result="refused",
    )
    agent = Checkup(
        name="pi4",
        node_id="0011",
        state_dir="/home/ana/state",
        secret_file="/home/ana/mesh.key",
        descriptors_max=4096,
        mesh="0123",
    )

    seen = found(replace(OUTSIDER, agent=agent, mesh="0123", probed_nodes=(gone,)))

    assert seen["tcp"].status is FindingStatus.WARNING
    assert seen["tcp"].says == (
        "no agent listens at 10.0.0.1:7878, where this one also looks"
    )
