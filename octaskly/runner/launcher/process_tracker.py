"""Which processes belong to which task of a launcher, and how they are ended.

See `tree` for how that is found out and what it can miss.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

from octaskly.runner.launcher.child import AttemptProcess
from octaskly.runner.processes import proc_tree

KILL_ROUNDS = 40
ORPHAN_KILL_ROUNDS = 50  #: looks at orphans alone, between two at all processes
CHILDREN_BYTES_SHORT = 4000  #: the kernel gives a page at once; less is the end


class ProcessTracker:
    """The processes below a launcher.

    Args:
        running: The launcher's tasks by the pid of their first process.
        reap: Collects children that have ended.
    """

    def __init__(
        self, running: dict[int, AttemptProcess], reap: Callable[[], object]
    ) -> None:
        self._running = running
        self._reap = reap
        self._owners: dict[int, tuple[int, set[int]]] = {}  # of adopted processes
        self._stopped: dict[int, proc_tree.Process] = {}  # by a freeze
        self._children_fd: int | None = None
        with suppress(OSError):  # A kernel may be built without that file.
            self._children_fd = os.open(
                f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC
            )

    def on_reaped(self, pid: int) -> None:
        """Note that an adopted process was reaped: its pid may come again."""
        self._owners.pop(pid, None)

    def kill_remaining(self, child: AttemptProcess) -> bool:
        """Kill what a task left whose first process has ended.

        Returns:
            Whether nothing is left; if not, ask again a little later.
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

    def signal_task(self, child: AttemptProcess, number: int) -> None:
        """Send a signal to every process of a task that still runs."""
        for process in self._processes_of(child):
            proc_tree.signal_process(process, number)

    def kill_task(self, child: AttemptProcess) -> None:
        """Kill every process of a task that still runs."""
        if child.slot.group is not None:
            child.slot.group.kill_all()
        self._kill_orphans(lambda pid: self._owner_of(pid, child)[0] == child.pid)
        self.signal_task(child, signal.SIGKILL)

    def freeze_all(self) -> bool:
        """Stop every process of every task where it is, whoever it belongs to.

        Returns:
            Whether all stand still; if not, ask again a little later.
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
        # What waits in the kernel, for a disk or as `vfork` for a child, stops as it
        # wakes, but only if it was told to.
        is_told = process.state == "D" and process.pid in self._stopped
        return is_told or process.state in proc_tree.STOPPED_STATES

    def thaw_all(self) -> None:
        """Let all go on, but for what tasks had stopped themselves."""
        for child in self._running.values():
            if child.slot.group is not None and child.slot.group.is_frozen:
                child.slot.group.set_frozen(is_frozen=False)
        # Children first: no parent finds a child stopped.
        for process in reversed(self._stopped.values()):
            proc_tree.signal_process(process, signal.SIGCONT)
        self._stopped.clear()

    def _descendants(self) -> list[proc_tree.Process]:
        """Return every process of every task, parents first."""
        processes = proc_tree.process_table()
        below = proc_tree.descendants(processes, [os.getpid()])[1:]
        return [processes[pid] for pid in below]

    def _processes_of(self, child: AttemptProcess) -> list[proc_tree.Process]:
        """Return every process of a task that still runs, parents first."""
        adopted = self._adopted()
        processes = proc_tree.process_table()
        roots = {pid for pid in adopted if self._owner_of(pid, child)[0] == child.pid}
        roots |= proc_tree.session_processes(processes, child.pid)
        if child.slot.group is not None:
            roots |= child.slot.group.pids()
        below = proc_tree.descendants(processes, [child.pid, *roots])
        return [processes[pid] for pid in below]

    def kill_all(self) -> None:
        """Send SIGKILL to all that is below the launcher."""
        self._kill_orphans(lambda _pid: True)
        for process in self._descendants():
            proc_tree.signal_process(process, signal.SIGKILL)

    def _kill_orphans(self, is_meant: Callable[[int], bool]) -> set[int]:
        """Kill orphans as fast as they come, until none is left or for some time.

        What forks and ends, over and over, has another pid by the time that all
        processes have been looked at. Its children come here each time, and there
        are few of those.

        Returns:
            Those that are left.
        """
        left: set[int] = set()
        for _ in range(ORPHAN_KILL_ROUNDS):
            left = {pid for pid in self._adopted() if is_meant(pid)}
            if not left:
                break
            for pid in left:
                with suppress(OSError):  # Another user's, by a program with rights.
                    os.kill(pid, signal.SIGKILL)  # Not reaped yet, so still itself.
            self._reap()
        return left

    def _adopted(self) -> set[int]:
        """Return the children that are not tasks: orphans of tasks."""
        if self._children_fd is None:
            return proc_tree.children_of(os.getpid()) - self._running.keys()
        parts = []
        offset = 0
        while part := os.pread(self._children_fd, 65536, offset):
            parts.append(part)
            offset += len(part)
            if len(part) < CHILDREN_BYTES_SHORT:
                break
        return {int(pid) for pid in b"".join(parts).split()} - self._running.keys()

    def _should_die_with(self, pid: int, ended: AttemptProcess) -> bool:
        owner, suspects = self._owner_of(pid, ended)
        if owner:
            return owner == ended.pid or owner not in self._running
        # Unknown: it goes when all have ended that may have started it.
        suspects.intersection_update(self._running)
        return not suspects

    def _owner_of(self, pid: int, child: AttemptProcess) -> tuple[int, set[int]]:
        """Return whose an adopted process is, or else (0, whose it may be)."""
        if pid not in self._owners:
            candidates = {child.pid: child} | self._running
            owner = self._find_owner(pid, candidates)
            self._owners[pid] = (owner, set() if owner else set(candidates))
        return self._owners[pid]

    @staticmethod
    def _find_owner(pid: int, candidates: dict[int, AttemptProcess]) -> int:
        if len(candidates) == 1:
            return next(iter(candidates))  # To ask takes longer than some of them live.
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
