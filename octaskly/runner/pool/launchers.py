"""The launchers of a node: started on demand, in cgroups where that is allowed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from octaskly.config.task_account import Account
from octaskly.ports.store import Clock
from octaskly.runner.files.task_user_ops import TaskUserOps
from octaskly.runner.pool.attempts import LauncherState
from octaskly.runner.pool.launcher_process import LauncherProcess
from octaskly.runner.processes import cgroup, proc_tree

#: Maximum wait of an attempt behind attempts that have run at least as long.
QUEUE_WAIT_S_MAX = 0.05
NO_LAUNCHER_WAIT_S = 3.0  #: without a launcher, attempts are returned after this
RESTART_S = 1.0  #: minimum time between two starts of one launcher
FAILED_MAX = 5  #: failed starts in a row after which launchers are failing
SILENT_CHECKS_MAX = 5  #: checks, each 2 s after the other
PROBE_S = 5.0  #: time between start attempts while launchers are failing


class Launchers:
    """Starts and restarts the launchers of a node, from the first attempt on.

    Args:
        states: One for each launcher.
        settings: Settings that all launchers have in common.
        env: Environment of launchers, which tasks inherit.
        account: The user that launchers and tasks run as; None: the agent's.
        task_user_ops: Signals launchers with the rights of their user.
        clock: The machine's clocks.
        threads: Signals processes, and removes cgroups.
        with_cgroups: Whether to create cgroups where that is allowed.
        on_messages: Called with the messages of a launcher.
        on_exit: Called when a launcher has exited.
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
        self._failed_in_a_row = 0  #: failed starts since a launcher was ready
        self._adopts_orphans: bool | None = None  #: None: not read yet
        self._groups_dir: Path | None = None  #: parent of the launchers' cgroups

    def ensure_started(self, state: LauncherState) -> LauncherProcess | None:
        """Return a launcher's process, started if necessary; None if that failed."""
        if state.process is None and self._may_start(state):
            state.started_s = self._clock.now().mono_s
            state.folder = self._make_group() if self._with_cgroups else None
            try:
                state.process = self._launch(state)
            except OSError:  # No process or memory available; retried later.
                self._failed_in_a_row += 1
                self._remove_group(state)
        return state.process

    def are_failing(self) -> bool:
        """Return True if launchers fail to start; tries to start one every `PROBE_S`.

        Nothing else would start one, because a node that reports this gets no work.
        """
        if any(state.process and state.process.was_ready for state in self.states):
            self._failed_in_a_row = 0
        if self._failed_in_a_row < FAILED_MAX:
            return False
        now_s = self._clock.now().mono_s
        if all(now_s - state.started_s >= PROBE_S for state in self.states):
            self.ensure_started(self.states[0])
        return True

    def usable_launchers(self) -> list[LauncherState]:
        """Return the launchers that run or may be started now."""
        return [s for s in self.states if s.process is not None or self._may_start(s)]

    def attempt_wait_s(self, now_s: float, slots: int) -> float:
        """Return the seconds that an attempt may wait before it is returned."""
        if not any(state.process for state in self.states):
            return NO_LAUNCHER_WAIT_S
        long = sum(
            state.slots_running_since(now_s - QUEUE_WAIT_S_MAX) for state in self.states
        )
        return QUEUE_WAIT_S_MAX if long >= slots else float("inf")

    def send_to_all(self, order: str) -> None:
        """Send an order without fields to each running launcher."""
        for state in self.states:
            if state.process is not None:
                state.process.send([[order]])

    def continue_stopped(self) -> None:
        """Continue launchers that tasks stopped: only a launcher enforces timeouts."""
        running = [s.process for s in self.states if s.process is not None]
        if pids := {process.pid for process in running if process.was_stopped()}:
            self._threads.submit(self._task_user_ops.continue_processes, pids)

    def end_unresponsive(self) -> None:
        """Kill launchers that start an attempt for too long.

        For example, its `cwd` is on a file server that does not answer. Meanwhile the
        launcher ends no attempt and starts no other. One with an attempt that is known
        to run is spared.
        """
        for state in self.states:
            is_starting = bool(state.attempts) and all(
                item.pid is None for item in state.attempts.values()
            )
            process = state.process
            if process is None or not process.was_ready or not is_starting:
                state.silent_checks = 0
                continue
            state.silent_checks += 1
            if state.silent_checks > SILENT_CHECKS_MAX:
                self._threads.submit(
                    self._task_user_ops.kill_marked, set(), {process.pid}
                )

    def reap_orphans(self) -> None:
        """Reap adopted processes of tasks that have ended.

        The agent adopts them once their launcher is dead, which a task may have killed.
        Call it on the event loop, where launchers are started.
        """
        if self._adopts_orphans is None:
            self._adopts_orphans = proc_tree.adopts_orphans()
        if self._adopts_orphans:
            own = {state.process.pid for state in self.states if state.process}
            # The helper of `TaskUserHelper` may be reaped too: `Popen` expects that.
            with suppress(OSError):  # Without a free descriptor, the next call reaps.
                proc_tree.reap_children_except(own)

    async def close(self) -> None:
        """End every process tree and every launcher, and remove their cgroups."""
        async with asyncio.TaskGroup() as group:
            for state in self.states:
                if state.process is not None:
                    group.create_task(self._stop_process(state.process))
        for state in self.states:
            if state.folder is not None:
                await asyncio.to_thread(cgroup.kill_and_remove_group, state.folder)

    def adopted_processes(self) -> set[int]:
        """Return the processes of tasks that the agent has adopted.

        Call it on the event loop, where launchers are started: in a thread, a launcher
        that is just being started would be mistaken for a task's process.
        """
        if self._account is None:
            # Other children of the agent have the same user as tasks.
            return set()
        own = {state.process.pid for state in self.states if state.process is not None}
        return {
            pid
            for pid in proc_tree.children_of(os.getpid()) - own
            if proc_tree.uid_of(pid) == self._account.uid
        }

    async def _stop_process(self, process: LauncherProcess) -> None:
        """Make a launcher kill its process trees and exit; kill it on timeout."""
        if await process.stop():
            return
        await asyncio.to_thread(self._task_user_ops.kill_marked, set(), {process.pid})
        await process.exited

    def _on_process_exit(self, state: LauncherState) -> None:
        was_ready = state.process is not None and state.process.was_ready
        self._failed_in_a_row = 0 if was_ready else self._failed_in_a_row + 1
        self._on_exit(state)

    def _may_start(self, state: LauncherState) -> bool:
        is_soon = self._clock.now().mono_s - state.started_s < RESTART_S
        return not (is_soon or state.is_killing)

    def _make_group(self) -> Path | None:
        if self._started == 0 and (own := cgroup.own_group_folder()):
            self._groups_dir = cgroup.prepare_parent_group(own)
            self._threads.submit(cgroup.remove_stale_groups, self._groups_dir)
        self._started += 1
        if self._groups_dir is None:
            return None
        return cgroup.create_launcher_group(self._groups_dir, self._started)

    def _launch(self, state: LauncherState) -> LauncherProcess:
        process = LauncherProcess(
            {
                **self._settings,
                "slots": state.slots,
                "first_slot": state.first_slot,
                "cgroup": str(state.folder or ""),
            },
            env=self._env,
            on_messages=partial(self._on_messages, state),
            on_exit=partial(self._on_process_exit, state),
        )
        if state.folder is not None and not cgroup.move_process(
            state.folder / "home", process.pid
        ):
            self._remove_group(state)
        return process

    def _remove_group(self, state: LauncherState) -> None:
        """Remove the cgroup of a launcher that is not in it."""
        if state.folder is not None:
            self._threads.submit(cgroup.kill_and_remove_group, state.folder)
            state.folder = None
