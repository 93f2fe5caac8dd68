"""State of the pool: attempts, launchers with their load, free slots and GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct, structs

from octaskly.core.model.ids import AttemptId, NodeId
from octaskly.core.model.settings import SHORT_TASK_MS
from octaskly.core.model.task_options import TaskLimits
from octaskly.core.model.tasks import EndReason, TaskSpec
from octaskly.core.model.tree_sizes import NO_HOLDERS
from octaskly.runner.files.task_user_ops import TaskUserOps
from octaskly.runner.launch_protocol import ORDERS_WAITING_MAX
from octaskly.runner.pool.launcher_process import LauncherProcess
from octaskly.runner.processes import cgroup, proc_tree
from octaskly.runner.processes.limits import LimitGroup, create_limit_group

SHORT_TASK_MS_MAX = 50.0  #: longer tasks never queue in a launcher
QUEUED_MS_MAX = 45.0  #: expected work that may wait in one launcher
BRIEF_QUEUED_MS_MAX = 90.0  #: for brief tasks: their results come every 50 ms


class PoolAttempt(Struct, eq=False):
    """An attempt in the pool, from its arrival to its report."""

    place: int  #: in the order of arrival, which the waiting attempts keep
    attempt: AttemptId
    spec: TaskSpec
    waiting_since_s: float
    key: int = 0  #: of its latest order to a launcher; that of a later order is higher
    slots: int = 1  #: that it takes
    gpus_requested: int = 0
    gpus: tuple[str, ...] = ()  #: the GPUs assigned to it
    pid: int | None = None  #: known once it has run for some milliseconds
    confirmed_s: float = float("inf")  #: when the pid became known
    is_cancelled: bool = False
    folder: Path | None = None  #: its scratch folder; None without one
    holders: Mapping[int, Sequence[NodeId]] = NO_HOLDERS
    """Nodes that have its files, as the dispatcher knows."""
    stdin_fd: int | None = None  #: the file that it reads; None without one
    stalled_since_s: float | None = None
    """Since when none of its files arrive; None while they do."""
    limit_group: LimitGroup | None = None  #: its cgroup; None without limits
    process: LauncherProcess | None = None  #: its launcher; known with the pid
    is_output_read: bool = False  #: a client reads its output
    has_output_file: bool = False  #: an output file exists or is being created
    is_file_refused: bool = False  #: there was no room for the output file
    return_reason: EndReason | None = None  #: to be released unless it has started

    def __post_init__(self) -> None:
        """Take over what the task asks for."""
        options = self.spec.options
        if options is not None and (requires := options.requires) is not None:
            self.slots, self.gpus_requested = requires.slots, requires.gpus

    def create_limit_group(self, parent: Path | None) -> list[int]:
        """Create a cgroup for its limits if possible; return its open files."""
        options = self.spec.options
        if parent is None or options is None or options.limits is None:
            return []
        folder = parent / f"limits-{self.key}"
        self.limit_group = create_limit_group(folder, requested_limits(options.limits))
        return self.limit_group.fds if self.limit_group else []

    def open_stdin(self) -> list[int]:
        """Return a new descriptor of the file that it reads, at its start, if any."""
        if self.stdin_fd is None:
            return []
        return [os.open(f"/proc/self/fd/{self.stdin_fd}", os.O_RDONLY | os.O_CLOEXEC)]

    def close_stdin(self) -> None:
        """Close the file that it reads, if there is one."""
        if self.stdin_fd is not None:
            os.close(self.stdin_fd)
            self.stdin_fd = None

    def remove_limit_group(self) -> None:
        """Remove its cgroup, unless a process is left in it."""
        if self.limit_group is not None:
            with suppress(OSError):
                self.limit_group.folder.rmdir()
            self.limit_group = None

    @property
    def marker(self) -> str:
        """Globally unique value that marks the environment of its processes.

        It has the task id, because two tasks may have the same name.
        """
        return f"{self.spec.id}.{self.attempt}"


class LauncherState:
    """One launcher's slots, attempts and queue; its process may not run yet."""

    __slots__ = (
        "attempts",
        "first_slot",
        "folder",
        "is_killing",
        "mean_task_ms",
        "process",
        "queue_depth",
        "silent_checks",
        "slots",
        "started_s",
    )

    def __init__(self, share: int, first_slot: int) -> None:
        self.slots = share
        self.first_slot = first_slot  #: index of its first slot, unique on this node
        self.attempts: dict[int, PoolAttempt] = {}
        self.process: LauncherProcess | None = None
        self.folder: Path | None = None  #: its cgroup; None without one
        self.mean_task_ms = SHORT_TASK_MS_MAX  #: moving average of recent tasks
        self.queue_depth = (
            0  #: orders that may wait in this launcher while all its slots are taken
        )
        self.started_s = float("-inf")
        self.silent_checks = 0  #: see `Launchers.end_unresponsive`
        self.is_killing = False  #: its process died, and its tasks are being killed

    def update_queue_depth(self) -> None:
        """Set the queue depth from the mean duration of recent tasks."""
        mean_ms = self.mean_task_ms
        most_ms = BRIEF_QUEUED_MS_MAX if mean_ms < SHORT_TASK_MS else QUEUED_MS_MAX
        ahead = int(most_ms / max(mean_ms, 1.0))
        self.queue_depth = (
            0 if mean_ms >= SHORT_TASK_MS_MAX else min(ORDERS_WAITING_MAX, ahead)
        )

    def slots_running_since(self, moment_s: float) -> int:
        """Return the number of slots of attempts that have run since `moment_s`."""
        return sum(i.slots for i in self.attempts.values() if i.confirmed_s <= moment_s)


def requested_limits(limits: TaskLimits) -> dict[str, int]:
    """Return the limits of a task, by the field names of `TaskLimits`."""
    return {name: most for name, most in structs.asdict(limits).items() if most}


def share_slots(slots: int, launchers: int) -> list[LauncherState]:
    """Divide the slots of a node among launchers; each gets at least one slot."""
    count = max(1, min(launchers, slots))
    shares = [slots // count + (place < slots % count) for place in range(count)]
    return [
        LauncherState(share, sum(shares[:place])) for place, share in enumerate(shares)
    ]


def pick_launcher(states: Sequence[LauncherState]) -> LauncherState | None:
    """Return the launcher with the most room, or None if an attempt must wait.

    A free slot comes before a place in a queue.
    """
    best, most = None, 0
    deepest, deepest_room = None, 0
    for state in states:
        room = state.slots - len(state.attempts)
        if room > most:
            best, most = state, room
        if room + state.queue_depth > deepest_room:
            deepest, deepest_room = state, room + state.queue_depth
    return best or deepest


def kill_lost_attempts(
    task_user_ops: TaskUserOps,
    lost: list[PoolAttempt],
    folder: Path | None,
    adopted: set[int],
) -> None:
    """Kill the tasks of a dead launcher. Blocks; call it in a thread.

    Args:
        task_user_ops: Signals tasks with the rights of their user.
        lost: Attempts that the launcher ran.
        folder: The launcher's cgroup; None if it had none.
        adopted: Processes of its tasks that this process has adopted.
    """
    if folder is not None:
        proc_tree.reap_adopted(cgroup.kill_and_remove_group(folder))
    if lost or adopted:
        marks = {proc_tree.MARKER_PREFIX + item.marker.encode() for item in lost}
        pids = {item.pid for item in lost if item.pid is not None}
        proc_tree.reap_adopted(task_user_ops.kill_marked(marks, pids | adopted) | pids)


class ResourceAllocator:
    """Allocates the slots and GPUs of a node to attempts.

    The dispatcher never assigns more than a node has. This class makes an attempt wait
    until earlier ones have released their slots, and chooses the GPUs of each attempt.

    Args:
        slots: Number of slots.
        gpus: Names of the GPUs in `CUDA_VISIBLE_DEVICES`.
    """

    def __init__(self, slots: int, gpus: Sequence[str]) -> None:
        self._slots = slots
        self._gpus = list(gpus)  #: free ones
        self._gpus_all = tuple(gpus)
        self._extra_slots = 0

    def can_ever_fit(self, item: PoolAttempt) -> bool:
        """Return True if the node has enough GPUs for an attempt, free or not."""
        return item.gpus_requested <= len(self._gpus_all)

    def fits_now(self, item: PoolAttempt, begun: int) -> bool:
        """Return True if an attempt may start while `begun` others run."""
        if item.gpus_requested > len(self._gpus):
            return False
        if item.slots == 1 and not self._extra_slots:
            return True  # If all slots are taken, it waits in a launcher.
        return not begun or begun + self._extra_slots + item.slots <= self._slots

    def allocate(self, item: PoolAttempt) -> None:
        """Allocate slots and GPUs to an attempt; it must fit."""
        self._extra_slots += item.slots - 1
        if item.gpus_requested:
            item.gpus = tuple(self._gpus[: item.gpus_requested])
            del self._gpus[: item.gpus_requested]

    def release(self, item: PoolAttempt) -> None:
        """Release the slots and GPUs of an attempt that no longer runs."""
        self._extra_slots -= item.slots - 1
        if item.gpus:
            self._gpus = [g for g in self._gpus_all if g in {*self._gpus, *item.gpus}]
            item.gpus = ()
