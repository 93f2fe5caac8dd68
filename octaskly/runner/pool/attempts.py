"""What the pool remembers: attempts on their way, and launchers with their load."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from octaskly.core.model.ids import AttemptId
from octaskly.core.model.settings import SHORT_TASK_MS
from octaskly.core.model.task_options import TaskLimits, slots_of
from octaskly.core.model.tasks import TaskSpec
from octaskly.runner.files.task_user import Hands
from octaskly.runner.pool.launcher_process import LauncherProcess
from octaskly.runner.processes import cgroup, proc_tree
from octaskly.runner.processes.limits import Enclosure, enclosure

SHORT_MS = 50.0  #: tasks that take longer are never queued behind each other
DEPTH_MAX = 120  #: orders that wait in one launcher, so that it never idles
AHEAD_MS = 45.0  #: work that may wait in one launcher
BRIEF_AHEAD_MS = 90.0  #: and of brief tasks, whose ends are told each 50


class Item:
    """An attempt on its way through the pool."""

    __slots__ = (
        "alive_s",
        "attempt",
        "enclosure",
        "folder",
        "gpus",
        "gpus_asked",
        "has_file",
        "is_recalled",
        "is_refused",
        "is_stopped",
        "is_wanted",
        "key",
        "pid",
        "process",
        "since_s",
        "slots",
        "spec",
    )

    def __init__(
        self, key: int, attempt: AttemptId, spec: TaskSpec, since_s: float
    ) -> None:
        self.key = key
        self.attempt = attempt
        self.spec = spec
        self.slots = slots_of(spec.options)
        requires = spec.options.requires if spec.options else None
        self.gpus_asked = requires.gpus if requires else 0
        self.gpus: tuple[str, ...] = ()  #: that it was given
        self.since_s = since_s
        self.pid: int | None = None  #: known once it has run for a moment
        self.alive_s = float("inf")  #: when that was known
        self.is_stopped = False
        self.folder: Path | None = None  #: its own, where it asked for one
        self.enclosure: Enclosure | None = None  #: its cgroup, where it has limits
        self.process: LauncherProcess | None = None  #: known together with the pid
        self.is_wanted = False  #: somebody reads its output
        self.has_file = False  #: for its output; asked for, at least
        self.is_refused = False  #: there was no room for the file
        self.is_recalled = False  #: handed back unless it has begun

    def enclose(self, parent: Path | None) -> list[int]:
        """Make a cgroup for its limits, if possible; return what its launcher needs."""
        options = self.spec.options
        if parent is None or options is None or options.limits is None:
            return []
        folder = parent / f"limits-{self.key}"
        self.enclosure = enclosure(folder, given_limits(options.limits))
        return self.enclosure.fds if self.enclosure else []

    def release(self) -> None:
        """Remove that cgroup, unless something is left in it."""
        if self.enclosure is not None:
            with suppress(OSError):
                self.enclosure.folder.rmdir()
            self.enclosure = None

    @property
    def mark(self) -> str:
        """What no other attempt anywhere has in the environment of its processes.

        Two tasks may have one name, and two reigns a first attempt of one task.
        """
        term, stream, n = self.attempt
        return f"{self.spec.id}.{term}.{stream}.{n}"


class Seat:
    """The place of one launcher: its share of the slots and what it was handed."""

    __slots__ = (
        *("born_s", "depth", "first_slot", "folder", "items", "mean_ms", "process"),
        "share",
    )

    def __init__(self, share: int, first_slot: int) -> None:
        self.share = share
        self.first_slot = first_slot  #: of this node, for its tasks
        self.items: dict[int, Item] = {}
        self.process: LauncherProcess | None = None
        self.folder: Path | None = None  #: its cgroup
        self.mean_ms = SHORT_MS  #: of recent tasks
        self.depth = 0  #: orders that may wait here while all slots are taken
        self.born_s = float("-inf")

    def set_depth(self) -> None:
        """Count on tasks that take as long as the recent ones."""
        mean_ms = self.mean_ms
        most_ms = BRIEF_AHEAD_MS if mean_ms < SHORT_TASK_MS else AHEAD_MS
        ahead = int(most_ms / max(mean_ms, 1.0))
        self.depth = 0 if mean_ms >= SHORT_MS else min(DEPTH_MAX, ahead)

    def count_older(self, moment_s: float) -> int:
        """Return how many slots are held by attempts that ran already then."""
        return sum(i.slots for i in self.items.values() if i.alive_s <= moment_s)


def given_limits(limits: TaskLimits) -> dict[str, int]:
    """Return the limits that a task asked for, by their names."""
    return {name: most for name, most in asdict(limits).items() if most}


def seats_for(slots: int, launchers: int) -> list[Seat]:
    """Share the slots of a node among its launchers, of which none is without."""
    count = max(1, min(launchers, slots))
    shares = [slots // count + (place < slots % count) for place in range(count)]
    return [Seat(share, sum(shares[:place])) for place, share in enumerate(shares)]


def roomiest(seats: Sequence[Seat]) -> Seat | None:
    """Return where an attempt would start first, None when it had to wait."""
    best, most = None, 0
    deepest, deepest_room = None, 0
    for seat in seats:
        room = seat.share - len(seat.items)
        if room > most:
            best, most = seat, room
        if room + seat.depth > deepest_room:
            deepest, deepest_room = seat, room + seat.depth
    return best or deepest


def end_lost(
    hands: Hands, lost: list[Item], folder: Path | None, strays: set[int]
) -> None:
    """Kill what a dead launcher ran; takes a while, so not on the event loop.

    Args:
        hands: What may signal tasks.
        lost: Attempts that it ran.
        folder: Its cgroup, where it had one.
        strays: Processes of tasks that lost it as their parent.
    """
    if folder is not None:
        proc_tree.reap_adopted(cgroup.remove(folder))
    if lost or strays:
        marks = {proc_tree.MARK + item.mark.encode() for item in lost}
        pids = {item.pid for item in lost if item.pid is not None}
        proc_tree.reap_adopted(hands.end(marks, pids | strays) | pids)


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
