"""The processes of each task of a launcher: finding, signalling, killing, freezing.

See `proc_tree` for the method and its limits.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

from octaskly.runner.launcher.attempt_process import AttemptProcess
from octaskly.runner.processes import proc_tree

KILL_ROUNDS = 40
ORPHAN_KILL_ROUNDS = 50  #: scans of orphans alone between two scans of all processes
CHILDREN_BYTES_SHORT = 4000  #: a read returns up to a page; less means the end


class ProcessTracker:
    """The processes of a launcher's tasks.

    Args:
        running: The launcher's tasks by the pid of their first process.
        reap: Reaps children that have ended.
    """

    def __init__(
        self, running: dict[int, AttemptProcess], reap: Callable[[], object]
    ) -> None:
        self._running = running
        self._reap = reap
        self._owners: dict[int, tuple[int, set[int]]] = {}  # of adopted processes
        self._given_up: set[int] = set()  # adopted processes that cannot be killed
        self._stopped: dict[int, proc_tree.Process] = {}  # by a freeze
        self._children_fd: int | None = None
        with suppress(OSError):  # A kernel may be built without this file.
            self._children_fd = os.open(
                f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC
            )

    def on_reaped(self, pid: int) -> None:
        """Forget an adopted process that was reaped: its pid may be reused."""
        self._owners.pop(pid, None)
        self._given_up.discard(pid)

    def kill_remaining(self, child: AttemptProcess) -> bool:
        """Kill the remaining processes of a task whose first process has ended.

        Returns:
            True if no process is left; otherwise call again a little later.
        """
        if child.slot.group is not None and child.slot.group.is_populated():
            child.slot.group.kill_all()
            self._reap()
        for _ in range(KILL_ROUNDS):
            mine = self._kill_orphans(lambda pid: self._should_die_with(pid, child))
            if not mine:
                return child.slot.group is None or not child.slot.group.is_populated()
            processes = proc_tree.process_table()
            for pid in proc_tree.descendants(processes, mine):
                proc_tree.signal_process(processes[pid], signal.SIGKILL)
            self._reap()
        return False

    def give_up(self, child: AttemptProcess) -> None:
        """Leave the remaining processes of an ended task alone.

        They cannot be killed, and no later task is to wait for them.
        """
        self._given_up |= self._kill_orphans(
            lambda pid: self._should_die_with(pid, child)
        )

    def signal_task(self, child: AttemptProcess, number: int) -> None:
        """Send a signal to every process of a running task."""
        for process in self._processes_of(child):
            proc_tree.signal_process(process, number)

    def kill_task(self, child: AttemptProcess) -> None:
        """Kill every process of a running task."""
        if child.slot.group is not None:
            child.slot.group.kill_all()
        self._kill_orphans(lambda pid: self._owner_of(pid, child)[0] == child.pid)
        self.signal_task(child, signal.SIGKILL)

    def freeze_all(self) -> bool:
        """Stop every process of every task, of any user.

        Returns:
            True if all are stopped; otherwise call again a little later.
        """
        grouped: set[int] = set()
        for child in self._running.values():
            if child.slot.group is not None and child.slot.group.set_frozen(
                is_frozen=True
            ):
                grouped |= child.slot.group.pids()
        for _ in range(KILL_ROUNDS):
            moving = [
                process
                for process in self._descendants()
                if process.pid not in grouped and not self._is_stopped(process)
            ]
            if not moving:
                return True
            for process in moving:
                proc_tree.signal_process(process, signal.SIGSTOP)
                self._stopped[process.pid] = process
        return False

    def _is_stopped(self, process: proc_tree.Process) -> bool:
        # A process that waits in the kernel (state D: for a disk, or in `vfork`) stops
        # when it wakes up, if it has received SIGSTOP.
        will_stop = process.state == "D" and process.pid in self._stopped
        return will_stop or process.state in proc_tree.STOPPED_STATES

    def thaw_all(self) -> None:
        """Continue all processes, except those that tasks stopped themselves."""
        for child in self._running.values():
            if child.slot.group is not None and child.slot.group.is_frozen:
                child.slot.group.set_frozen(is_frozen=False)
        # Children first, so that no parent sees a stopped child.
        for process in reversed(self._stopped.values()):
            proc_tree.signal_process(process, signal.SIGCONT)
        self._stopped.clear()

    def _descendants(self) -> list[proc_tree.Process]:
        """Return every process of every task, parents first."""
        processes = proc_tree.process_table()
        below = proc_tree.descendants(processes, [os.getpid()])[1:]
        return [processes[pid] for pid in below]

    def _processes_of(self, child: AttemptProcess) -> list[proc_tree.Process]:
        """Return every process of a running task, parents first."""
        adopted = self._adopted()
        processes = proc_tree.process_table()
        roots = {pid for pid in adopted if self._owner_of(pid, child)[0] == child.pid}
        roots |= proc_tree.session_processes(processes, child.pid)
        if child.slot.group is not None:
            roots |= child.slot.group.pids()
        below = proc_tree.descendants(processes, [child.pid, *roots])
        return [processes[pid] for pid in below]

    def kill_all(self) -> None:
        """Send SIGKILL to every descendant of the launcher."""
        self._kill_orphans(lambda _pid: True)
        for process in self._descendants():
            proc_tree.signal_process(process, signal.SIGKILL)

    def _kill_orphans(self, is_meant: Callable[[int], bool]) -> set[int]:
        """Kill adopted orphans until none is left, at most `ORPHAN_KILL_ROUNDS` times.

        A process that keeps forking and exiting has a new pid before a scan of the
        whole process table is over. The launcher adopts each of its children, and a
        scan of its few adopted children is fast.

        Returns:
            The orphans that are left.
        """
        left: set[int] = set()
        for _ in range(ORPHAN_KILL_ROUNDS):
            left = {pid for pid in self._adopted() if is_meant(pid)}
            if not left:
                break
            for pid in left:
                # The pid is not reaped yet, so it cannot have been reused.
                with suppress(OSError):  # A set-user-id program is another user's.
                    os.kill(pid, signal.SIGKILL)
            self._reap()
        return left

    def _adopted(self) -> set[int]:
        """Return the children that are not tasks: orphans of tasks to be killed."""
        if self._children_fd is None:
            children = proc_tree.children_of(os.getpid())
            return children - self._running.keys() - self._given_up
        parts = []
        offset = 0
        while part := os.pread(self._children_fd, 65536, offset):
            parts.append(part)
            offset += len(part)
            if len(part) < CHILDREN_BYTES_SHORT:
                break
        children = set(map(int, b"".join(parts).split()))
        return children - self._running.keys() - self._given_up

    def _should_die_with(self, pid: int, ended: AttemptProcess) -> bool:
        owner, suspects = self._owner_of(pid, ended)
        if owner:
            return owner == ended.pid or owner not in self._running
        # Unknown owner: kill it when every task that may have started it has ended.
        suspects.intersection_update(self._running)
        return not suspects

    def _owner_of(self, pid: int, child: AttemptProcess) -> tuple[int, set[int]]:
        """Return the owner's pid of an adopted process, or (0, the possible owners)."""
        if pid not in self._owners:
            candidates = {child.pid: child} | self._running
            owner = self._find_owner(pid, candidates)
            self._owners[pid] = (owner, set() if owner else set(candidates))
        return self._owners[pid]

    @staticmethod
    def _find_owner(pid: int, candidates: dict[int, AttemptProcess]) -> int:
        if len(candidates) == 1:
            # Reading /proc takes longer than some of these processes live.
            return next(iter(candidates))
        process = proc_tree.read_process(pid)
        if process is None:
            return 0
        if process.session in candidates:
            return process.session
        settings = proc_tree.environment_of(pid)
        for child in candidates.values():
            if child.slot.group is not None and pid in child.slot.group.pids():
                return child.pid
            if child.marker in settings:
                return child.pid
        return 0
