"""Whether a node takes work, and why not."""

from __future__ import annotations

from typing import NamedTuple

from octaskly.core.model import NO_HOLD, Hold, NodeState, Strain

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
