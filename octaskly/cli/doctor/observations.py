"""Observations that `octaskly doctor` collects about the machine, agent and neighbours.

The module has values only: `probes` collects them and `diagnosis` interprets them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octaskly.errors import OctasklyError
from octaskly.rest.mesh import Checkup, Reach

if TYPE_CHECKING:
    from octaskly.mesh.discovery.interfaces import Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenPort:
    """A default port that another program occupies."""

    flag: str  #: flag of the agent that selects another port
    port: int
    owner: str  #: process and user, or less if the kernel hides them
    used: int | None = None  #: port of the agent instead; None if no agent runs
    is_stolen: bool = False
    """Another user holds it, and an agent takes no other port in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedNode:
    """Another node, and the result of its probe."""

    name: str  #: its id if no name is known
    mesh: str | None
    address: str  #: HOST:PORT of the peer port
    is_seen_by_mdns: bool
    is_member: bool  #: our agent is connected to it
    probe_result: str = "unasked"
    """`reached`, `refused`, `silent`, `unknown` if its name has no address here,
    `untrusted` if its certificate is not signed with our secret, or `unasked` if it
    belongs to another mesh."""
    version: str | None = None
    build: str | None = None
    clock_ahead_s: float | None = None  #: compared with ours; precise to 1 s
    reachability: Reach | None = None  #: its result when it connects to this node


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptoms:
    """All observations of one run."""

    agent: Checkup | None  #: None if none runs, or the query failed
    agent_error: OctasklyError | None  #: why the query of a running agent failed
    version: str  #: of the agent if it runs, else of this program
    build: str  #: of the agent if it runs, else of this program
    program_build: str  #: of this program
    mesh: str | None  #: id of the mesh of the secret file
    secret_file: Path
    secret_error: OctasklyError | None
    may_read_secret: bool
    node_id: str | None  #: id in the state folder; None if absent or unreadable
    hosts_with_same_id: tuple[str, ...]  #: other machines that use this node's id
    names: tuple[str, ...]  #: interfaces that the user chose
    interfaces: tuple[Interface, ...]
    mdns_error: OSError | None  #: why port 5353 cannot be shared
    mdns_port_owner: str | None
    sees_itself: bool | None  #: mDNS shows our agent; None if it is in no mesh
    probed_nodes: tuple[ProbedNode, ...]
    taken_ports: tuple[TakenPort, ...]
    state_dir: Path
    log_error: OctasklyError | None  #: why no agent could use the log; if none runs
    free_bytes: int | None
    descriptors_max: int
