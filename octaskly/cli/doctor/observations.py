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

    flag: str  #: of the agent, that chooses another one
    port: int
    owner: str | None  #: None: it cannot be read
    used: int | None = None  #: by the agent instead; None: no agent runs


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedNode:
    """Another node, and the result of its probe."""

    name: str  #: its id where no name is known
    mesh: str | None
    address: str  #: HOST:PORT for peers
    is_seen_by_mdns: bool  #: over mDNS
    is_member: bool  #: our agent is connected to it
    probe_result: str = "unasked"
    """`reached`, `refused` or `silent`; `unknown`: its name has no address here;
    `untrusted`: its certificate is of another secret; `unasked`: it is of another
    mesh."""
    version: str | None = None
    clock_ahead_s: float | None = None  #: of its clock; precise to a second
    reachability: Reach | None = None  #: what it finds when it dials this node


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptoms:
    """All symptoms."""

    agent: Checkup | None  #: None: none runs, or it does not talk to us
    agent_error: OctasklyError | None  #: why one that runs does not talk to us
    version: str  #: of the agent, or of this program
    mesh: str | None  #: of the secret file
    secret_file: Path
    secret_error: OctasklyError | None
    may_read_secret: bool
    node_id: (
        str | None
    )  #: of this state folder; None: it has none yet, or is unreadable
    hosts_with_same_id: tuple[str, ...]  #: other machines that live with this node's id
    names: tuple[str, ...]  #: of the interfaces that somebody asked for
    interfaces: tuple[Interface, ...]
    mdns_error: OSError | None  #: why port 5353 cannot be shared
    mdns_port_owner: str | None
    sees_itself: bool | None  #: our agent is in sight; None: no agent is in a mesh
    probed_nodes: tuple[ProbedNode, ...]
    taken_ports: tuple[TakenPort, ...]
    state_dir: Path
    free_bytes: int | None
    descriptors_max: int
