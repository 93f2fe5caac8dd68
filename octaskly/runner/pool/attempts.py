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
from octaskly.runner.files.task_user import TaskUserOps
from octaskly.runner.pool.launcher_process import LauncherProcess
from octaskly.runner.processes import cgroup, proc_tree
from octaskly.runner.processes.limits import LimitGroup, create_limit_group

SHORT_TASK_MS_MAX = 50.0  #: tasks that take longer are never queued behind each other
QUEUE_DEPTH_MAX = 120  #: orders that wait in one launcher, so that it never idles
QUEUED_MS_MAX = 45.0  #: work that may wait in one launcher
BRIEF_QUEUED_MS_MAX = 90.0  #: and of brief tasks, whose ends are told each 50


class PoolAttempt:
    """An attempt on its way through the pool."""

    __slots__ = (
        "attempt",
        "confirmed_s",
        "folder",
        "gpus",
        "gpus_requested",
        "has_output_file",
        "is_cancelled",
        "is_file_refused",
        "is_output_read",
        "is_return_requested",
        "key",
        "limit_group",
        "pid",
        "process",
        "slots",
        "spec",
        "waiting_since_s",
    )

    def __init__(
        self, key: int, attempt: AttemptId, spec: TaskSpec, since_s: float
    ) -> None:
        self.key = key
        self.attempt = attempt
        self.spec = spec
        self.slots = slots_of(spec.options)
        requires = spec.options.requires if spec.options else None
        self.gpus_requested = requires.gpus if requires else 0
        self.gpus: tuple[str, ...] = ()  #: that it was given
        self.waiting_since_s = since_s
        self.pid: int | None = None  #: known once it has run for a moment
        self.confirmed_s = float("inf")  #: when that was known
        self.is_cancelled = False
        self.folder: Path | None = None  #: its own, where it asked for one
        self.limit_group: LimitGroup | None = None  #: its cgroup, where it has limits
        self.process: LauncherProcess | None = None  #: known together with the pid
        self.is_output_read = False  #: somebody reads its output
        self.has_output_file = False  #: for its output; asked for, at least
        self.is_file_refused = False  #: there was no room for the file
        self.is_return_requested = False  #: handed back unless it has begun

    def create_limit_group(self, parent: Path | None) -> list[int]:
        """Make a cgroup for its limits, if possible; return what its launcher needs."""
        options = self.spec.options
        if parent is None or options is None or options.limits is None:
            return []
        folder = parent / f"limits-{self.key}"
        self.limit_group = create_limit_group(folder, requested_limits(options.limits))
        return self.limit_group.fds if self.limit_group else []

    def remove_limit_group(self) -> None:
        """Remove that cgroup, unless something is left in it."""
        if self.limit_group is not None:
            with suppress(OSError):
                self.limit_group.folder.rmdir()
            self.limit_group = None

    @property
    def marker(self) -> str:
        """What no other attempt anywhere has in the environment of its processes.

        Two tasks may have one name, and two reigns a first attempt of one task.
        """
        a = self.attempt
        return f"{self.spec.id}.{a.term}.{a.stream}.{a.n}"


class LauncherState:
    """The place of one launcher: its share of the slots and what it was handed."""

    __slots__ = (
        *(
            "started_s",
            "queue_depth",
            "first_slot",
            "folder",
            "attempts",
            "mean_task_ms",
            "process",
        ),
        "slots",
    )

    def __init__(self, share: int, first_slot: int) -> None:
        self.slots = share
        self.first_slot = first_slot  #: of this node, for its tasks
        self.attempts: dict[int, PoolAttempt] = {}
        self.process: LauncherProcess | None = None
        self.folder: Path | None = None  #: its cgroup
        self.mean_task_ms = SHORT_TASK_MS_MAX  #: of recent tasks
        self.queue_depth = 0  #: orders that may wait here while all slots are taken
        self.started_s = float("-inf")

    def update_queue_depth(self) -> None:
        """Count on tasks that take as long as the recent ones."""
        mean_ms = self.mean_task_ms
        most_ms = BRIEF_QUEUED_MS_MAX if mean_ms < SHORT_TASK_MS else QUEUED_MS_MAX
        ahead = int(most_ms / max(mean_ms, 1.0))
        self.queue_depth = (
            0 if mean_ms >= SHORT_TASK_MS_MAX else min(QUEUE_DEPTH_MAX, ahead)
        )

    def slots_running_since(self, moment_s: float) -> int:
        """Return how many slots are held by attempts that ran already then."""
        return sum(i.slots for i in self.attempts.values() if i.confirmed_s <= moment_s)


def requested_limits(limits: TaskLimits) -> dict[str, int]:
    """Return the limits that a task asked for, by their names."""
    return {name: most for name, most in asdict(limits).items() if most}


def share_slots(slots: int, launchers: int) -> list[LauncherState]:
    """Share the slots of a node among its launchers, of which none is without."""
    count = max(1, min(launchers, slots))
    shares = [slots // count + (place < slots % count) for place in range(count)]
    return [
        LauncherState(share, sum(shares[:place])) for place, share in enumerate(shares)
    ]


def pick_launcher(states: Sequence[LauncherState]) -> LauncherState | None:
    """Return where an attempt would start first, None when it had to wait."""
    best, most = None, 0
    deepest, deepest_room = None, 0
    for seat in states:
        room = seat.slots - len(seat.attempts)
        if room > most:
            best, most = seat, room
        if room + seat.queue_depth > deepest_room:
            deepest, deepest_room = seat, room + seat.queue_depth
    return best or deepest


def kill_lost_attempts(
    task_user_ops: TaskUserOps,
    lost: list[PoolAttempt],
    folder: Path | None,
    adopted: set[int],
) -> None:
    """Kill what a dead launcher ran; takes a while, so not on the event loop.

    Args:
        task_user_ops: What may signal tasks.
        lost: Attempts that it ran.
        folder: Its cgroup, where it had one.
        adopted: Processes of tasks that lost it as their parent.
    """
    if folder is not None:
        proc_tree.reap_adopted(cgroup.kill_and_remove_group(folder))
    if lost or adopted:
        marks = {proc_tree.MARKER_PREFIX + item.marker.encode() for item in lost}
        pids = {item.pid for item in lost if item.pid is not None}
        proc_tree.reap_adopted(task_user_ops.kill_marked(marks, pids | adopted) | pids)


class ResourceAllocator:
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

    def can_ever_fit(self, item: PoolAttempt) -> bool:
        """Whether there are as many GPUs as an attempt asks for, used or not."""
        return item.gpus_requested <= len(self._gpus_all)

    def fits_now(self, item: PoolAttempt, begun: int) -> bool:
        """Whether an attempt may begin beside `begun` others."""
        if item.gpus_requested > len(self._gpus):
            return False
        if item.slots == 1 and not self._extra_slots:
            return True  # It may as well wait in a launcher.
        return not begun or begun + self._extra_slots + item.slots <= self._slots

    def allocate(self, item: PoolAttempt) -> None:
        """Set aside what an attempt asks for, which fits."""
        self._extra_slots += item.slots - 1
        if item.gpus_requested:
            item.gpus = tuple(self._gpus[: item.gpus_requested])
            del self._gpus[: item.gpus_requested]

    def release(self, item: PoolAttempt) -> None:
        """Take back what an attempt had, of which nothing runs any more."""
        self._extra_slots -= item.slots - 1
        if item.gpus:
            self._gpus = [g for g in self._gpus_all if g in {*self._gpus, *item.gpus}]
            item.gpus = ()
