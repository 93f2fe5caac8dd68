"""One host: its disk survives, its process starts and ends.

The class holds only state. The world applies faults, `storage` performs writes, and
`commands` runs tasks.
"""

from __future__ import annotations

import math
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
    """One host: its disk survives, its process starts and ends."""

    id: NodeId
    index: int
    slots: int
    log_version: int = 1  #: version of the log that its program reads and writes
    disk: Disk = field(default_factory=Disk)
    node: Node | None = None
    #: number of process starts; callbacks of earlier processes are void
    life: int = 0
    down_s: float = -1e9  #: time at which its process ended last
    is_paused: bool = False
    held: list[Callable[[], None]] = field(default_factory=list)
    is_asleep: bool = False  #: suspended, so that disk and commands stand still, too
    frozen: list[Callable[[], None]] = field(default_factory=list)
    running: dict[tuple[TaskId, AttemptId], TaskSpec] = field(default_factory=dict)
    waiting: list[tuple[AttemptId, TaskSpec]] = field(default_factory=list)
    is_browsing: bool = False
    has_stopped: bool = False
    stall_s: float = 0.0  #: the disk answers nothing before this time
    full_s: float = 0.0  #: the disk refuses writes before this time
    is_failing: bool = False  #: a write has failed and is retried
    wall_skew_ms: int = 0
    highest_skew_ms: int = 0  #: so far
    set_ahead_at_ms: float = -math.inf  #: highest skew at which it was set ahead
    restored_s: float = -1e9  #: time at which it last lost part of its disk
    lost: list[Disk] = field(default_factory=list)  #: as they were then
    timer: Due | None = None  #: time of its next step without an event
    #: time at which the world checks for that; never later than it
    alarm: Due | None = None
    learnt: dict[tuple[str, str], Recorded] = field(default_factory=dict)
    """The records that this process applies."""
    is_committing: bool = False
    dies_after_s: float | None = None  #: seconds from the next write to a crash
    notes: list[tuple[float, LogLine]] = field(default_factory=list)

    @property
    def boot(self) -> str:
        """The name of this process."""
        return f"{self.id}-{self.life}"

    @property
    def address(self) -> Address:
        """The address of its peer port."""
        return Address(f"10.0.0.{self.index + 1}", 7878)

    def info(self) -> NodeInfo:
        """Return the facts that its agent announces."""
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
        """Return True if a task may start beside the running ones."""
        specs = (*self.running.values(), spec)
        return sum(slots_of(each.options) for each in specs) <= self.slots
