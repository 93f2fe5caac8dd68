"""Values about nodes: roles, states, load, holds and standbys."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from octaskly.core.model.ids import NodeId


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


class Steering(StrEnum):
    """What an operator may tell a node."""

    DRAIN = "drain"  #: end what runs, take no more
    RESUME = "resume"  #: the end of that
    PAUSE = "pause"  #: freeze what runs, take no more
    UNPAUSE = "unpause"  #: the end of that


class Hold(NamedTuple):
    """Why a node takes no work, by order of an operator; a restart changes nothing."""

    is_drained: bool = False
    is_paused: bool = False

    def steered(self, steering: Steering) -> Hold:
        """Return what holds after one more order."""
        match steering:
            case Steering.DRAIN | Steering.RESUME:
                return self._replace(is_drained=steering is Steering.DRAIN)
            case Steering.PAUSE | Steering.UNPAUSE:
                return self._replace(is_paused=steering is Steering.PAUSE)


NO_HOLD = Hold()


class Strain(StrEnum):
    """Why a node that is ready takes no work all the same."""

    DISK = "disk"  #: its disk is full, or fails
    MEMORY = "memory"  #: its tasks stand still for lack of memory
    LAUNCHERS = "launchers"  #: the processes that start its tasks come to nothing


LABELS_MAX = 64  #: of a node
GPUS_MAX = 64  #: of a node
WORD_CHARS_MAX = 63  #: of a label's name, its value, the name of a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """What a node says of itself when it meets a peer.

    Fixed while it runs, but for the addresses.
    """

    id: NodeId
    boot: str  #: random per process start
    name: str
    slots: int
    version: str
    peer_port: int
    lan_port: int
    addresses: tuple[str, ...] = ()
    memory_mb: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    electable: bool = True
    on_mains: bool = True
    os: str = ""  #: as `linux`
    arch: str = ""  #: as `x86_64`
    cpus: int = 0  #: of the machine; `slots` are those on offer
    gpus: tuple[str, ...] = ()  #: what each is called


class LoadSample(NamedTuple):
    """How busy a machine is."""

    cpu_percent: float  #: of the whole machine
    load1: float  #: run queue over the last minute
    memory_used_mb: int
    process_mb: int  #: resident set of the agent
    stalled_percent: float = 0.0  #: of 10 s in which all waited for memory


class StandbyView(NamedTuple):
    """A standby as its dispatcher sees it."""

    node: NodeId
    is_level: bool  #: it acknowledges what is appended as that happens
    lag: int  #: entries that it has not acknowledged


class Failover(NamedTuple):
    """How this node became dispatcher in place of another one."""

    at_ms: int  #: wall clock at the end of it
    duration_ms: int  #: from the last sign of the old dispatcher to the new reign
    reason: str


NO_LOAD = LoadSample(0.0, 0.0, 0, 0)  #: before the first sample


STALLED_PERCENT = 20.0  #: of the time without any progress: memory is short
EASED_PERCENT = 5.0  #: below this it is short no more


class Stance(NamedTuple):
    """What operators, a stop and the machine say about taking work."""

    hold: Hold = NO_HOLD
    is_leaving: bool = False
    is_revoked: bool = False  #: the mesh has a new secret, without this node
    is_disk_short: bool = False
    is_memory_short: bool = False
    are_launchers_failing: bool = False

    @property
    def state(self) -> NodeState:
        """What the mesh is told."""
        if self.hold.is_paused and not self.is_leaving:
            return NodeState.PAUSED
        is_draining = self.hold.is_drained or self.is_leaving or self.is_revoked
        return NodeState.DRAINING if is_draining else NodeState.READY

    @property
    def strain(self) -> Strain | None:
        """What the machine lacks."""
        if self.is_disk_short:
            return Strain.DISK
        if self.is_memory_short:
            return Strain.MEMORY
        return Strain.LAUNCHERS if self.are_launchers_failing else None

    @property
    def takes_work(self) -> bool:
        """Whether attempts are welcome."""
        return self.state is NodeState.READY and self.strain is None

    def leaving(self) -> Stance:
        """Return the stance of a node that stops."""
        return self._replace(is_leaving=True)

    def revoked(self) -> Stance:
        """Return the stance of a node that is no member any more."""
        return self._replace(is_revoked=True)

    def steered(self, hold: Hold) -> Stance:
        """Return the stance after an order of an operator."""
        return self._replace(hold=hold)

    def on_disk(self, *, is_failing: bool) -> Stance:
        """Return the stance after a change of the disk."""
        return self._replace(is_disk_short=is_failing)

    def on_launchers(self, *, are_failing: bool) -> Stance:
        """Return the stance after another look at what starts tasks."""
        return self._replace(are_launchers_failing=are_failing)

    def sampled(self, stalled_percent: float) -> Stance:
        """Return the stance after a look at how long tasks waited for memory."""
        bound = EASED_PERCENT if self.is_memory_short else STALLED_PERCENT
        return self._replace(is_memory_short=stalled_percent >= bound)
