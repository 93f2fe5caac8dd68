"""Values about nodes: roles, states, load, holds and standbys."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from octaskly.core.model.field_types import Count, Float, Int, NodeWord, Title
from octaskly.core.model.ids import Hosts, NodeId


class Role(StrEnum):
    """What a node is for the mesh at this moment."""

    DISPATCHER = "dispatcher"
    STANDBY = "standby"
    WORKER = "worker"


class NodeState(StrEnum):
    """Whether a node takes work."""

    READY = "ready"
    DRAINING = "draining"
    PAUSED = "paused"
    LOST = "lost"


class AvailabilityCommand(StrEnum):
    """What an operator may tell a node."""

    DRAIN = "drain"  #: end what runs, take no more
    RESUME = "resume"  #: the end of that
    PAUSE = "pause"  #: freeze what runs, take no more
    UNPAUSE = "unpause"  #: the end of that


class OperatorHold(NamedTuple):
    """Why a node takes no work, by order of an operator; a restart changes nothing."""

    is_drained: bool = False
    is_paused: bool = False

    def after_command(self, command: AvailabilityCommand) -> OperatorHold:
        """Return what holds after one more order."""
        match command:
            case AvailabilityCommand.DRAIN | AvailabilityCommand.RESUME:
                return self._replace(is_drained=command is AvailabilityCommand.DRAIN)
            case AvailabilityCommand.PAUSE | AvailabilityCommand.UNPAUSE:
                return self._replace(is_paused=command is AvailabilityCommand.PAUSE)


NO_HOLD = OperatorHold()


class Pressure(StrEnum):
    """Why a node that is ready takes no work all the same."""

    DISK = "disk"  #: its disk is full, or fails
    MEMORY = "memory"  #: its tasks stand still for lack of memory
    LAUNCHERS = "launchers"  #: the processes that start its tasks come to nothing


LABELS_MAX = 64  #: of a node
GPUS_MAX = 64  #: of a node
NodeLabels = Annotated[
    tuple[tuple[NodeWord, NodeWord], ...], Meta(max_length=LABELS_MAX)
]
Gpus = Annotated[tuple[NodeWord, ...], Meta(max_length=GPUS_MAX)]


class NodeInfo(Struct, frozen=True, array_like=True, kw_only=True):
    """What a node says of itself when it meets a peer.

    Fixed while it runs, but for the addresses.
    """

    id: NodeId
    boot: Title  #: random per process start
    name: NodeWord
    slots: Int
    version: Title
    peer_port: Int
    lan_port: Int
    addresses: Hosts = ()
    memory_mb: Count = 0
    labels: NodeLabels = ()
    electable: bool = True
    has_mains_power: bool = True
    os: NodeWord = ""  #: as `linux`
    arch: NodeWord = ""  #: as `x86_64`
    cpus: Count = 0  #: of the machine; `slots` are those on offer
    gpus: Gpus = ()  #: what each is called


class LoadSample(Struct, frozen=True, array_like=True):
    """How busy a machine is."""

    cpu_percent: Float  #: of the whole machine
    load1: Float  #: run queue over the last minute
    memory_used_mb: Int
    process_mb: Int  #: resident set of the agent
    stalled_percent: Float = 0.0  #: of 10 s in which all waited for memory


class StandbyView(NamedTuple):
    """A standby as its dispatcher sees it."""

    node: NodeId
    is_in_sync: bool  #: it acknowledges what is appended as that happens
    lag: int  #: entries that it has not acknowledged


class Takeover(NamedTuple):
    """How this node became dispatcher in place of another one."""

    at_ms: int  #: wall clock at the end of it
    duration_ms: int  #: from the last sign of the old dispatcher to the new reign
    reason: str


NO_LOAD = LoadSample(0.0, 0.0, 0, 0)  #: before the first sample


STALLED_PERCENT_HIGH = 20.0  #: of the time without any progress: memory is short
STALLED_PERCENT_LOW = 5.0  #: below this it is short no more


class Availability(NamedTuple):
    """What operators, a stop and the machine say about taking work."""

    hold: OperatorHold = NO_HOLD
    is_stopping: bool = False
    is_revoked: bool = False  #: the mesh has a new secret, without this node
    is_disk_short: bool = False
    is_memory_short: bool = False
    are_launchers_failing: bool = False

    @property
    def state(self) -> NodeState:
        """What the mesh is told."""
        if self.hold.is_paused and not self.is_stopping:
            return NodeState.PAUSED
        is_draining = self.hold.is_drained or self.is_stopping or self.is_revoked
        return NodeState.DRAINING if is_draining else NodeState.READY

    @property
    def pressure(self) -> Pressure | None:
        """What the machine lacks."""
        if self.is_disk_short:
            return Pressure.DISK
        if self.is_memory_short:
            return Pressure.MEMORY
        return Pressure.LAUNCHERS if self.are_launchers_failing else None

    @property
    def takes_work(self) -> bool:
        """Whether attempts are welcome."""
        return self.state is NodeState.READY and self.pressure is None

    def with_stopping(self) -> Availability:
        """Return the stance of a node that stops."""
        return self._replace(is_stopping=True)

    def with_revoked(self) -> Availability:
        """Return the stance of a node that is no member any more."""
        return self._replace(is_revoked=True)

    def with_hold(self, hold: OperatorHold) -> Availability:
        """Return the stance after an order of an operator."""
        return self._replace(hold=hold)

    def with_disk(self, *, is_failing: bool) -> Availability:
        """Return the stance after a change of the disk."""
        return self._replace(is_disk_short=is_failing)

    def with_launchers(self, *, are_failing: bool) -> Availability:
        """Return the stance after another look at what starts tasks."""
        return self._replace(are_launchers_failing=are_failing)

    def with_stalled_percent(self, stalled_percent: float) -> Availability:
        """Return the stance after a look at how long tasks waited for memory."""
        bound = STALLED_PERCENT_LOW if self.is_memory_short else STALLED_PERCENT_HIGH
        return self._replace(is_memory_short=stalled_percent >= bound)
