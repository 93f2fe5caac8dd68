"""When tasks that run are told to end, are killed, are frozen: in one place.

There is one way to end a task, whoever wants it: SIGTERM to its whole tree, a time of
grace, SIGKILL until nobody is left. Its first reason stays, but for a cancel, which
is what a client was told.
"""

from __future__ import annotations

import signal

from octaskly.runner.launcher.child import AttemptProcess
from octaskly.runner.launcher.process_tracker import ProcessTracker

KILL_RETRY_S = 0.02
FREEZE_RETRY_S = 0.05
NEVER = float("inf")


class TaskDeadlines:
    """The deadlines of a launcher's tasks.

    Args:
        running: The launcher's tasks by the pid of their first process.
        kin: Reaches their trees.
        grace_s: Time between SIGTERM and SIGKILL, where the task has none of its own.
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
        self._deadline_s = NEVER  #: the first of all
        self._refreeze_s = NEVER  #: when to stop again what does not stand still
        self.is_frozen = False

    @property
    def due_s(self) -> float:
        """When `run_due` has something to do."""
        return min(self._deadline_s, self._refreeze_s)

    def add_task(self, child: AttemptProcess) -> None:
        """Watch a task that has just been started."""
        self._deadline_s = min(self._deadline_s, child.deadline_s)

    def run_due(self, now_s: float) -> None:
        """Do what is due."""
        if now_s >= self._deadline_s:
            self._enforce_deadlines(now_s)
        if now_s >= self._refreeze_s:
            is_still = self._process_tracker.freeze_all()
            self._refreeze_s = NEVER if is_still else now_s + FREEZE_RETRY_S

    def end_task(self, child: AttemptProcess, end_reason: str, now_s: float) -> None:
        """Begin the end of a task, unless it has begun; `verdict` says why."""
        is_ending = bool(child.end_reason)
        if not is_ending or end_reason == "cancelled":
            child.end_reason = end_reason
        if is_ending:
            return
        if self.is_frozen:
            child.pause_deadline(now_s)  # It cannot act on a signal: no grace.
        else:
            self._process_tracker.signal_task(child, signal.SIGTERM)
            child.deadline_s = now_s + self._grace_of(child, end_reason)
        self._deadline_s = min(self._deadline_s, child.deadline_s)

    def set_frozen(self, now_s: float, *, is_frozen: bool) -> None:
        """Stop all tasks where they are, or let them go on; time stands still, too."""
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

    def _grace_of(self, child: AttemptProcess, verdict: str) -> float:
        if child.grace_s is None:
            return self._grace_s
        # A node that stops waits for nobody longer than it said.
        most_s = self._grace_s if verdict == "draining" else NEVER
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
