"""The slots of a launcher: what an attempt has from its start to its end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from octaskly.runner.processes.cgroup import Group, GroupPool, SingleGroupPool
from octaskly.runner.processes.limits import LimitEnforcer


class Slot:
    """One of the slots, while an attempt has it."""

    __slots__ = ("group", "index", "limit_enforcer")

    def __init__(self, index: int) -> None:
        self.index = index  #: no other attempt on this node has it at the same time
        self.group: Group | None = None  #: that its processes are in
        self.limit_enforcer: LimitEnforcer | None = (
            None  #: its limits, where it has any
        )


class SlotAllocator:
    """All slots of a launcher, which is single-threaded.

    Args:
        first: Index of the first one on this node.
        count: How many there are.
        folder: The launcher's cgroup, where there is one.
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
        """Whether one is free."""
        return bool(self._free)

    def acquire_slot(self, limit_enforcer: LimitEnforcer | None) -> Slot:
        """Take a free slot; what the launcher starts until it leaves, begins there.

        Args:
            limit_enforcer: The limits of the attempt, where it has any.
        """
        slot = Slot(self._free.pop())
        if limit_enforcer is not None:
            slot.limit_enforcer, slot.group = limit_enforcer, limit_enforcer.group
        if self._groups is not None and slot.group is None:
            group = self._groups.acquire_group()
            if group is not None and self._groups.move_launcher_in(group):
                slot.group = group
        return slot

    def leave_group(self) -> None:
        """Move the launcher out of what it entered."""
        if self._groups is not None:
            self._groups.move_launcher_out()

    def release_slot(self, slot: Slot, *, is_empty: bool = True) -> None:
        """Take back the slot of an attempt that has ended, or could not begin.

        A group in which a process is left, that cannot be killed, is not used again.
        """
        self._free.append(slot.index)
        if slot.group is None or not is_empty:
            return
        is_own = (
            slot.limit_enforcer is not None and slot.limit_enforcer.group is slot.group
        )
        if self._groups is not None and not is_own:
            self._groups.release_group(slot.group)
