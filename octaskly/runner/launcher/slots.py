"""The slots of a launcher, and the cgroup of the attempt in each."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from octaskly.runner.processes.cgroup import Group, GroupPool, SingleGroupPool
from octaskly.runner.processes.limits import LimitEnforcer


class Slot:
    """A slot that an attempt holds from its start to its end."""

    __slots__ = ("group", "index", "limit_enforcer")

    def __init__(self, index: int) -> None:
        self.index = index  #: unique among the running attempts of this node
        self.group: Group | None = None  #: contains the processes
        self.limit_enforcer: LimitEnforcer | None = None  #: None without limits


class SlotAllocator:
    """All slots of a launcher. Not thread-safe.

    Args:
        first: Index of the launcher's first slot, unique on this node.
        count: Number of slots.
        folder: The launcher's cgroup; None if it has none.
    """

    def __init__(self, first: int, count: int, folder: Path | None) -> None:
        self._free = list(range(first, first + count))[::-1]
        self._groups: SingleGroupPool | GroupPool | None = None
        if folder is not None:
            with suppress(OSError):
                self._groups = (
                    GroupPool(folder, count) if count > 1 else SingleGroupPool(folder)
                )

    def __bool__(self) -> bool:
        """Return True if a slot is free."""
        return bool(self._free)

    def acquire_slot(self, limit_enforcer: LimitEnforcer | None) -> Slot:
        """Acquire a free slot, and move the launcher into its cgroup.

        Processes that the launcher starts before `leave_group` start in that cgroup.

        Args:
            limit_enforcer: The limits of the attempt; None without limits.
        """
        slot = Slot(self._free.pop())
        if limit_enforcer is not None:
            slot.limit_enforcer, slot.group = limit_enforcer, limit_enforcer.group
        if self._groups is not None and slot.group is None:
            slot.group = self._groups.enter_group()
        return slot

    def leave_group(self) -> None:
        """Move the launcher out of the cgroup that `acquire_slot` moved it into."""
        if self._groups is not None:
            self._groups.leave_group()

    def release_slot(self, slot: Slot, *, is_empty: bool = True) -> None:
        """Release the slot of an attempt that has ended or could not start.

        A cgroup with a process that cannot be killed is not used again.
        """
        self._free.append(slot.index)
        if slot.group is None or not is_empty:
            return
        is_own = (
            slot.limit_enforcer is not None and slot.limit_enforcer.group is slot.group
        )
        if self._groups is not None and not is_own:
            self._groups.release_group(slot.group)
