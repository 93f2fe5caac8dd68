"""The launchers of a node: started when needed, in cgroups where those may be made."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

from octaskly.config.account import Account
from octaskly.ports import Clock
from octaskly.runner.files.task_user import TaskUserOps
from octaskly.runner.pool.attempts import LauncherState
from octaskly.runner.pool.launcher_process import LauncherProcess
from octaskly.runner.processes import cgroup, proc_tree

QUEUE_WAIT_S_MAX = 0.05  #: behind attempts that run so long, none waits any longer
NO_LAUNCHER_WAIT_S = 3.0  #: without a launcher, other nodes are asked after so long
RESTART_S = 1.0  #: a launcher that dies younger than this is not replaced at once
FAILED_MAX = 5  #: so many in a row that came to nothing are no accident
PROBE_S = 5.0  #: how often one is tried while they come to nothing


class Launchers:
    """A launcher for each seat, from the first attempt to the end of the agent.

    Args:
        seats: Their places.
        settings: As launchers want them, but for what differs between seats.
        env: Environment of launchers, and so of tasks.
        account: The user that launchers become, and so tasks; None: the agent's.
        hands: What may signal launchers.
        clock: The machine's clocks.
        threads: Where groups that an earlier agent left are removed.
        with_cgroups: Whether to make cgroups where that is allowed.
        on_messages: Called with what the launcher of a seat sent.
        on_exit: Called when the launcher of a seat is gone.
    """

    def __init__(
        self,
        states: Sequence[LauncherState],
        settings: Mapping[str, object],
        *,
        env: Mapping[str, str],
        account: Account | None,
        task_user_ops: TaskUserOps,
        clock: Clock,
        threads: Executor,
        with_cgroups: bool,
        on_messages: Callable[[LauncherState, list[list[Any]]], None],
        on_exit: Callable[[LauncherState], None],
    ) -> None:
        self.states = states
        user = (account.uid, account.gid, account.groups) if account else None
        self._settings = {**settings, "has_ctype": "LC_CTYPE" in env, "user": user}
        self._env = account.environment(env) if account else env
        self._account = account
        self._task_user_ops = task_user_ops
        self._clock = clock
        self._threads = threads
        self._with_cgroups = with_cgroups
        self._on_messages = on_messages
        self._on_exit = on_exit
        self._started = 0
        self._failed_in_a_row = 0  #: launchers that came to nothing since one was ready
        self._groups_dir: Path | None = None  #: own cgroup, once looked for

    def ensure_started(self, seat: LauncherState) -> LauncherProcess | None:
        """Return the launcher of a seat, started if need be; None if that failed."""
        if seat.process is None and self._may_start(seat):
            seat.started_s = self._clock.now().mono_s
            seat.folder = self._make_group() if self._with_cgroups else None
            try:
                seat.process = self._launch(seat)
            except OSError:  # No process or memory to be had; tried again.
                self._failed_in_a_row += 1
        return seat.process

    def are_failing(self) -> bool:
        """Return whether none starts; while that is so, one is tried now and again.

        Nothing else would: a node that says so is given no work.
        """
        if any(seat.process and seat.process.was_ready for seat in self.states):
            self._failed_in_a_row = 0
        if self._failed_in_a_row < FAILED_MAX:
            return False
        now_s = self._clock.now().mono_s
        if all(now_s - seat.started_s >= PROBE_S for seat in self.states):
            self.ensure_started(self.states[0])
        return True

    def usable_launchers(self) -> list[LauncherState]:
        """Return the seats that have a launcher, or may have one now."""
        return [s for s in self.states if s.process is not None or self._may_start(s)]

    def attempt_wait_s(self, now_s: float, slots: int) -> float:
        """Return how long an attempt may wait here before others are asked."""
        if not any(seat.process for seat in self.states):
            return NO_LAUNCHER_WAIT_S
        long = sum(
            seat.slots_running_since(now_s - QUEUE_WAIT_S_MAX) for seat in self.states
        )
        return QUEUE_WAIT_S_MAX if long >= slots else float("inf")

    def send_to_all(self, order: str) -> None:
        """Send an order to each that runs."""
        for seat in self.states:
            if seat.process is not None:
                seat.process.send([[order]])

    def continue_stopped(self) -> None:
        """Let launchers go on that a task has stopped; nobody else keeps its time."""
        running = [s.process for s in self.states if s.process is not None]
        if pids := {process.pid for process in running if process.was_stopped()}:
            self._threads.submit(self._task_user_ops.continue_processes, pids)

    async def close(self) -> None:
        """End every tree and every launcher, and remove their groups."""
        async with asyncio.TaskGroup() as group:
            for seat in self.states:
                if seat.process is not None:
                    group.create_task(self._stop_process(seat.process))
        for seat in self.states:
            if seat.folder is not None:
                await asyncio.to_thread(cgroup.kill_and_remove_group, seat.folder)

    def adopted_processes(self) -> set[int]:
        """Return the processes of tasks that this one has adopted.

        To be called on the event loop, where launchers are started: a launcher that
        nobody knows yet would look like one of them.
        """
        if self._account is None:
            return set()  # Other processes of this user may be children of ours.
        own = {seat.process.pid for seat in self.states if seat.process is not None}
        return {
            pid
            for pid in proc_tree.children_of(os.getpid()) - own
            if proc_tree.uid_of(pid) == self._account.uid
        }

    async def _stop_process(self, process: LauncherProcess) -> None:
        """Have a launcher end its trees and itself; it is killed if it does not."""
        if await process.stop():
            return
        await asyncio.to_thread(self._task_user_ops.kill_marked, set(), {process.pid})
        await process.exited

    def _on_process_exit(self, seat: LauncherState) -> None:
        was_ready = seat.process is not None and seat.process.was_ready
        self._failed_in_a_row = 0 if was_ready else self._failed_in_a_row + 1
        self._on_exit(seat)

    def _may_start(self, seat: LauncherState) -> bool:
        return self._clock.now().mono_s - seat.started_s >= RESTART_S

    def _make_group(self) -> Path | None:
        if self._started == 0 and (own := cgroup.own_group_folder()):
            self._groups_dir = cgroup.prepare_parent_group(own)
            self._threads.submit(cgroup.remove_stale_groups, self._groups_dir)
        self._started += 1
        if self._groups_dir is None:
            return None
        return cgroup.create_launcher_group(self._groups_dir, self._started)

    def _launch(self, seat: LauncherState) -> LauncherProcess:
        process = LauncherProcess(
            {
                **self._settings,
                "slots": seat.slots,
                "first_slot": seat.first_slot,
                "cgroup": str(seat.folder or ""),
            },
            env=self._env,
            on_messages=partial(self._on_messages, seat),
            on_exit=partial(self._on_process_exit, seat),
        )
        if seat.folder is not None and not cgroup.move_process(
            seat.folder / "home", process.pid
        ):
            seat.folder = None
        return process
