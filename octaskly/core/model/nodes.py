"""Values about nodes: roles, states, load, holds and standbys."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from octaskly.core.model.field_types import (
    Count,
    Float,
    Int,
    Millis,
    NodeWord,
    Port,
    Subject,
    Title,
)
from octaskly.core.model.ids import Addresses, Hosts, NodeId


class Role(StrEnum):
    """A node's current role in the mesh."""

    DISPATCHER = "dispatcher"
    STANDBY = "standby"
    WORKER = "worker"


class NodeState(StrEnum):
    """A node's availability for work."""

    READY = "ready"
    DRAINING = "draining"
    PAUSED = "paused"
    LOST = "lost"


class AvailabilityCommand(StrEnum):
    """A command that an operator may give to a node."""

    DRAIN = "drain"  #: let running attempts end, take no new ones
    RESUME = "resume"  #: undo DRAIN and PAUSE
    PAUSE = "pause"  #: freeze running attempts, take no new ones
    UNPAUSE = "unpause"  #: another word for RESUME


class OperatorHold(NamedTuple):
    """An operator's reasons for a node to take no work; they survive a restart."""

    is_drained: bool = False
    is_paused: bool = False

    def after_command(self, command: AvailabilityCommand) -> OperatorHold:
        """Return the hold after one more command."""
        match command:
            case AvailabilityCommand.DRAIN:
                return self._replace(is_drained=True)
            case AvailabilityCommand.PAUSE:
                return self._replace(is_paused=True)
            case AvailabilityCommand.RESUME | AvailabilityCommand.UNPAUSE:
                return OperatorHold()


NO_HOLD = OperatorHold()


class Pressure(StrEnum):
    """A shortage that keeps a ready node from taking work."""

    DISK = "disk"  #: its disk is full or fails
    MEMORY = "memory"  #: its tasks stall for lack of memory
    LAUNCHERS = "launchers"  #: the processes that start its tasks keep failing


LABELS_MAX = 64  #: per node
GPUS_MAX = 64  #: per node
NodeLabels = Annotated[
    tuple[tuple[NodeWord, NodeWord], ...], Meta(max_length=LABELS_MAX)
]
Gpus = Annotated[tuple[NodeWord, ...], Meta(max_length=GPUS_MAX)]
PYTHONS_MAX = 32  #: per node
Pythons = Annotated[tuple[NodeWord, ...], Meta(max_length=PYTHONS_MAX)]


class NodeInfo(Struct, frozen=True, array_like=True, kw_only=True):
    """A node's description of itself, sent to each peer in the handshake.

    It is fixed while the process runs, except for the addresses.
    """

    id: NodeId
    boot: Title  #: random per process start
    name: NodeWord
    slots: Int
    version: Title
    peer_port: Port
    lan_port: Port
    addresses: Hosts = ()
    memory_mb: Count = 0
    labels: NodeLabels = ()
    electable: bool = True
    has_mains_power: bool = True
    os: NodeWord = ""  #: for example `linux`
    arch: NodeWord = ""  #: for example `x86_64`
    cpus: Count = 0  #: CPUs of the machine; `slots` may differ
    gpus: Gpus = ()  #: name of each GPU
    pythons: Pythons = ()  #: minor versions that run calls, for example `3.13`
    leaves_ms: Millis | None = None  #: wall clock; set by members, for visitors only


class LoadSample(Struct, frozen=True, array_like=True):
    """A measurement of a machine's load."""

    cpu_percent: Float  #: of the whole machine
    load1: Float  #: run queue over the last minute
    memory_used_mb: Int
    process_mb: Int  #: resident set of the agent
    stalled_percent: Float = 0.0  #: share of 10 s in which all tasks waited for memory
    disk_free_mb: Int | None = None  #: on the disk of the agent's state folder


class StandbyView(NamedTuple):
    """A standby as its dispatcher sees it."""

    node: NodeId
    is_in_sync: bool  #: it acknowledges each append as it happens
    lag: int  #: entries not yet acknowledged


class Takeover(NamedTuple):
    """A failover in which this node replaced another dispatcher."""

    at_ms: int  #: wall clock at the end of the failover
    duration_ms: int  #: from the old dispatcher's last sign of life to the new epoch
    reason: str


NO_LOAD = LoadSample(0.0, 0.0, 0, 0)  #: the load before the first sample


class RosterEntry(Struct, frozen=True, array_like=True, kw_only=True):
    """One member in the roster."""

    id: NodeId
    name: Title  #: unique in the mesh, given by the dispatcher
    role: Role
    state: NodeState
    addresses: Addresses  #: with the peer port
    lan_port: Port
    slots: Int
    running: Int = 0
    version: Title = ""
    load: LoadSample = NO_LOAD
    memory_mb: Count = 0
    pressure: Pressure | None = None  #: as in HeartbeatOk
    labels: NodeLabels = ()
    os: NodeWord = ""
    arch: NodeWord = ""
    cpus: Count = 0
    gpus: Gpus = ()
    pythons: Pythons = ()
    leaves_ms: Millis | None = None  #: wall clock; None: it is a member
    invited_by: Subject = ""  #: who invited it, if it is a visitor


STALLED_PERCENT_HIGH = 20.0  #: from this `stalled_percent` on, memory is short
STALLED_PERCENT_LOW = 5.0  #: below this, the shortage is over


class Availability(NamedTuple):
    """Everything that decides if a node takes work: holds, a stop and shortages."""

    hold: OperatorHold = NO_HOLD
    is_stopping: bool = False
    is_revoked: bool = False  #: the mesh has a new secret, without this node
    is_disk_short: bool = False
    is_memory_short: bool = False
    are_launchers_failing: bool = False

    @property
    def state(self) -> NodeState:
        """State that other nodes see."""
        if self.hold.is_paused and not self.is_stopping:
            return NodeState.PAUSED
        is_draining = self.hold.is_drained or self.is_stopping or self.is_revoked
        return NodeState.DRAINING if is_draining else NodeState.READY

    @property
    def pressure(self) -> Pressure | None:
        """The machine's most urgent shortage, if any."""
        if self.is_disk_short:
            return Pressure.DISK
        if self.is_memory_short:
            return Pressure.MEMORY
        return Pressure.LAUNCHERS if self.are_launchers_failing else None

    @property
    def takes_work(self) -> bool:
        """Return True if the node takes new attempts."""
        return self.state is NodeState.READY and self.pressure is None

    def with_stopping(self) -> Availability:
        """Return the availability of a node that stops."""
        return self._replace(is_stopping=True)

    def with_revoked(self) -> Availability:
        """Return the availability of a node that is no longer a member."""
        return self._replace(is_revoked=True)

    def with_hold(self, hold: OperatorHold) -> Availability:
        """Return the availability after an operator's command."""
        return self._replace(hold=hold)

    def with_disk(self, *, is_failing: bool) -> Availability:
        """Return the availability after a change of the disk."""
        return self._replace(is_disk_short=is_failing)

    def with_launchers(self, *, are_failing: bool) -> Availability:
        """Return the availability after a check of the launchers."""
        return self._replace(are_launchers_failing=are_failing)

    def with_stalled_percent(self, stalled_percent: float) -> Availability:
        """Return the availability after a measurement of memory stalls, in percent."""
        bound = STALLED_PERCENT_LOW if self.is_memory_short else STALLED_PERCENT_HIGH
        return self._replace(is_memory_short=stalled_percent >= bound)


TRANSIENT_CODES = frozenset(
    {
        "slots",
        "memory_granted",
        "gpus_granted",
        "reserved",
        "turn",
        "joining",
        "resting",
        "parents",
    }
)
"""Codes of temporary reasons, which end by themselves while the node takes work."""


class RejectionReason(NamedTuple):
    """One reason why a node does not run a task."""

    code: str
    text: str  #: for people, to be read after the node's name

    @property
    def is_permanent(self) -> bool:
        """Return True if the reason stays until somebody acts."""
        return self.code not in TRANSIENT_CODES
