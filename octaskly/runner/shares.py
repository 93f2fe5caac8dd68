"""What attempts in launchers hold of their node, beyond one slot each."""

from __future__ import annotations

from collections.abc import Sequence

from octaskly.runner.seat import Item


class Shares:
    """The slots and GPUs of a node.

    The dispatcher gives no node more than it has. This is so that an attempt waits for
    those before it, and to say which GPUs are whose.

    Args:
        slots: How many there are.
        gpus: What CUDA calls each.
    """

    def __init__(self, slots: int, gpus: Sequence[str]) -> None:
        self._slots = slots
        self._gpus = list(gpus)  #: free ones
        self._gpus_all = tuple(gpus)
        self._extra_slots = 0

    def may_ever_fit(self, item: Item) -> bool:
        """Whether there are as many GPUs as an attempt asks for, used or not."""
        return item.gpus_asked <= len(self._gpus_all)

    def fits(self, item: Item, begun: int) -> bool:
        """Whether an attempt may begin beside `begun` others."""
        if item.gpus_asked > len(self._gpus):
            return False
        if item.slots == 1 and not self._extra_slots:
            return True  # It may as well wait in a launcher.
        return not begun or begun + self._extra_slots + item.slots <= self._slots

    def take(self, item: Item) -> None:
        """Set aside what an attempt asks for, which fits."""
        self._extra_slots += item.slots - 1
        if item.gpus_asked:
            item.gpus = tuple(self._gpus[: item.gpus_asked])
            del self._gpus[: item.gpus_asked]

    def give(self, item: Item) -> None:
        """Take back what an attempt had, of which nothing runs any more."""
        self._extra_slots -= item.slots - 1
        if item.gpus:
            self._gpus = [g for g in self._gpus_all if g in {*self._gpus, *item.gpus}]
            item.gpus = ()
