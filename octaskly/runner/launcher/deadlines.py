"""Deadlines of running tasks: timeout, grace period, SIGKILL, freeze.

Every task is ended in the same way: SIGTERM to its whole tree, a grace period, then
SIGKILL until no process is left. The first reason for the end is kept. Only a cancel
replaces it, because the client already has the answer that the task is cancelled.
"""

from __future__ import annotations

import signal

from octaskly.runner.launcher.attempt_process import NEVER, AttemptProcess
from octaskly.runner.launcher.process_tracker import ProcessTracker

KILL_RETRY_S = 0.02
FREEZE_RETRY_S = 0.05


class TaskDeadlines:
    """The deadlines of a launcher's tasks.

    Args:
        running: The launcher's tasks by the pid of their first process.
        process_tracker: Signals the process trees.
        grace_s: Time between SIGTERM and SIGKILL for tasks without their own.
    """

    def __init__(
        self,
        running: dict[int, AttemptProcess],
        process_tracker: ProcessTracker,
        grace_s: float,
    ) -> None:
        self._running = running
        self._process_tracker = process_tracker
        self._grace_s = grace_s
        self._deadline_s = NEVER  #: the earliest of all tasks
        self._refreeze_s = NEVER  #: when to stop processes that still run
        self.is_frozen = False

    @property
    def due_s(self) -> float:
        """The time at which `run_due` has something to do."""
        return min(self._deadline_s, self._refreeze_s)

    def add_task(self, child: AttemptProcess) -> None:
        """Track the deadline of a task that has just been started."""
        self._deadline_s = min(self._deadline_s, child.deadline_s)

    def run_due(self, now_s: float) -> None:
        """Enforce the deadlines that have passed, and repeat a freeze if necessary."""
        if now_s >= self._deadline_s:
            self._enforce_deadlines(now_s)
        if now_s >= self._refreeze_s:
            is_stopped = self._process_tracker.freeze_all()
            self._refreeze_s = NEVER if is_stopped else now_s + FREEZE_RETRY_S

    def end_task(self, child: AttemptProcess, end_reason: str, now_s: float) -> None:
        """Start ending a task, unless it is being ended already."""
        is_ending = bool(child.end_reason)
        if not is_ending or end_reason == "cancelled":
            child.end_reason = end_reason
        if is_ending:
            return
        if self.is_frozen:
            child.pause_deadline(now_s)  # A frozen task cannot act on SIGTERM.
        else:
            self._process_tracker.signal_task(child, signal.SIGTERM)
            child.deadline_s = now_s + self._grace_of(child, end_reason)
        self._deadline_s = min(self._deadline_s, child.deadline_s)

    def set_frozen(self, now_s: float, *, is_frozen: bool) -> None:
        """Freeze or thaw all tasks; deadlines are paused meanwhile."""
        self.is_frozen = is_frozen
        for child in self._running.values():
            if is_frozen:
                child.pause_deadline(now_s)
            else:
                child.resume_deadline(now_s)
        self._deadline_s = self._earliest_s()
        self._refreeze_s = now_s if is_frozen else NEVER
        if not is_frozen:
            self._process_tracker.thaw_all()

    def _grace_of(self, child: AttemptProcess, end_reason: str) -> float:
        if child.grace_s is None:
            return self._grace_s
        # A node that shuts down never waits longer than its own grace period.
        most_s = self._grace_s if end_reason == "draining" else NEVER
        return min(child.grace_s, most_s)

    def _enforce_deadlines(self, now_s: float) -> None:
        for child in list(self._running.values()):
            if now_s < child.deadline_s:
                continue
            if child.end_reason:
                self._process_tracker.kill_task(child)
                child.deadline_s = now_s + KILL_RETRY_S
            else:
                self.end_task(child, "timeout", now_s)
        self._deadline_s = self._earliest_s()

    def _earliest_s(self) -> float:
        return min((c.deadline_s for c in self._running.values()), default=NEVER)
