"""One host: its disk survives, its process comes and goes.

This is only its state. What happens to it, the world does; what it writes, `storage`
does, and what it runs, `commands`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from octaskly.core.effects import LogLine
from octaskly.core.log.facts import Recorded
from octaskly.core.model.ids import Address, AttemptId, NodeId, TaskId
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.task_options import slots_of
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.node.node import Node
from tests.simulation.store.disk import Disk
from tests.simulation.timeline import Due

MEMORY_MB = 100  #: of each machine


@dataclass
class Machine:
    """One host: its disk survives, its process comes and goes."""

    id: NodeId
    index: int
    slots: int
    log_version: int = 1  #: of the log, that its program reads and writes
    disk: Disk = field(default_factory=Disk)
    node: Node | None = None
    life: int = 0  #: counts process starts; callbacks of an earlier one are void
    is_paused: bool = False
    held: list[Callable[[], None]] = field(default_factory=list)
    is_asleep: bool = False  #: suspended, so disk and commands stand still, too
    frozen: list[Callable[[], None]] = field(default_factory=list)
    running: dict[tuple[TaskId, AttemptId], TaskSpec] = field(default_factory=dict)
    waiting: list[tuple[AttemptId, TaskSpec]] = field(default_factory=list)
    is_browsing: bool = False
    has_stopped: bool = False
    stall_s: float = 0.0  #: the disk answers nothing before this time
    full_s: float = 0.0  #: the disk takes no writes before this time
    is_failing: bool = False  #: a write has failed and is tried again
    wall_skew_ms: int = 0
    restored_s: float = -1e9  #: when it lost part of its disk last
    lost: list[Disk] = field(default_factory=list)  #: as they were then
    timer: Due | None = None  #: when it steps without an event
    alarm: Due | None = None  #: when the world looks whether that is so; never later
    learnt: dict[tuple[str, str], Recorded] = field(default_factory=dict)
    """What this process was told to go by."""
    is_committing: bool = False
    dies_after_s: float | None = None  #: a crash so long after the next write
    notes: list[tuple[float, LogLine]] = field(default_factory=list)

    @property
    def boot(self) -> str:
        """The name of this process."""
        return f"{self.id}-{self.life}"

    @property
    def address(self) -> Address:
        """Where its peer port is."""
        return Address(f"10.0.0.{self.index + 1}", 7878)

    def info(self) -> NodeInfo:
        """Return what its agent says of itself."""
        return NodeInfo(
            id=self.id,
            boot=self.boot,
            name="pi",
            slots=self.slots,
            version="1.0",
            peer_port=self.address.port,
            lan_port=3443,
            addresses=(self.address.host,),
            memory_mb=MEMORY_MB,
            os="linux",
        )

    def has_room(self, spec: TaskSpec) -> bool:
        """Whether a task may begin beside those that run."""
        specs = (*self.running.values(), spec)
        return sum(slots_of(each.options) for each in specs) <= self.slots
