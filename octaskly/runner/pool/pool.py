"""The runner of a node: distributes attempts to launchers and reports outcomes."""

from __future__ import annotations

import asyncio
import os
from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from octaskly.config.task_account import DEFAULT_INHERITED, Account, InheritedSettings
from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.model.tasks import (
    AttemptState,
    EndReason,
    Outcome,
    OutputFile,
    TaskSpec,
)
from octaskly.core.model.tree_sizes import NO_HOLDERS
from octaskly.core.protocol.messages import Report
from octaskly.ports.files import InputSources
from octaskly.ports.store import Clock
from octaskly.runner.blobs.blob_fetcher import BlobFetcher, KnownHolders
from octaskly.runner.files.attempt_files import (
    NoRoom,
    ScratchFolders,
)
from octaskly.runner.files.capture import CapturedOutputs
from octaskly.runner.files.output_copies import CopiedOutputs
from octaskly.runner.files.task_user_ops import task_user_ops_for
from octaskly.runner.interpreters import call_variables
from octaskly.runner.output.output_archive import OutputArchive
from octaskly.runner.pool.attempts import (
    SHORT_TASK_MS_MAX,
    LauncherState,
    PoolAttempt,
    ResourceAllocator,
    kill_lost_attempts,
    pick_launcher,
    share_slots,
)
from octaskly.runner.pool.launch_messages import (
    build_start_order,
    cancelled_outcome,
    clean_detail,
    outcome_of_end,
    released_outcome,
)
from octaskly.runner.pool.launcher_process import (
    LauncherProcess,
    task_environment,
)
from octaskly.runner.pool.launchers import Launchers
from octaskly.runner.pool.output_recorder import OutputRecorder
from octaskly.runner.pool.preparation import Preparer, run_in_thread
from octaskly.runner.pool.report_queue import AttemptStats, EndedCallback, ReportQueue

OVERDUE_CHECK_S = 0.02
KILL_AGAIN_S = 1.0  #: after tasks of a dead launcher could not be killed


class Pool:
    """Runs attempts in a fixed number of slots.

    The first attempt starts the launchers. Attempts wait while all slots are taken. If
    the attempts in the slots run long, waiting ones are released as `returned`.

    Args:
        slots: Maximum number of attempts that run at the same time.
        workdir: Working directory of attempts, and the folder of their inputs.
        scratch_dir: Folder for the scratch folders of attempts.
        archive: Holds output files: long output, and output that a client reads.
        blob_fetcher: Fetches uploaded files from other nodes.
        output_copies: Has other nodes copy captured outputs.
        node_name: Shown to tasks as `OCTASKLY_NODE`.
        clock: The machine's clocks.
        on_ended: Called on the event loop with one or more reports.
        launchers: Launcher processes; default one per core, at most one per slot.
        output_bytes_max: Bytes kept of each stream; the rest is counted.
        kill_grace_s: Time between SIGTERM and SIGKILL.
        inherited: Process settings of tasks that differ from the agent's.
        env: Base environment of tasks; default the agent's, without the variables
            that concern only the agent.
        account: The user that tasks run as; None: the agent's own.
        gpus: Names of the GPUs in `CUDA_VISIBLE_DEVICES`.
        with_cgroups: Whether to create cgroups for launchers where that is allowed.
    """

    _last_place = _last_key = 0
    _is_closing = _is_frozen = False
    _overdue_timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        *,
        slots: int,
        workdir: Path,
        scratch_dir: Path,
        archive: OutputArchive,
        blob_fetcher: BlobFetcher,
        output_copies: CopiedOutputs | None = None,
        node_name: str,
        clock: Clock,
        on_ended: EndedCallback,
        launchers: int | None = None,
        output_bytes_max: int = 1 << 20,
        kill_grace_s: float = 10.0,
        inherited: InheritedSettings = DEFAULT_INHERITED,
        env: Mapping[str, str] | None = None,
        account: Account | None = None,
        gpus: Sequence[str] = (),
        with_cgroups: bool = True,
    ) -> None:
        self._clock, self._slots, self._node_name = clock, slots, node_name
        self._task_user_ops = task_user_ops_for(account)
        self._blob_fetcher, self._output_copies = blob_fetcher, output_copies
        self._scratch = ScratchFolders(
            self._task_user_ops, scratch_dir, workdir, archive, blob_fetcher
        )
        self._waiting = deque[PoolAttempt]()
        self._preparer = self._make_preparer()
        # Copying outputs may take minutes, and no start of a task may wait for it.
        self._capture_threads = ThreadPoolExecutor(2, thread_name_prefix="capture")
        # The tasks of a dead launcher are killed at once, whatever others wait for.
        self._kill_thread = ThreadPoolExecutor(1, thread_name_prefix="kill")
        self._launchers = self._make_launchers(
            share_slots(slots, launchers or os.cpu_count() or 1),
            _launcher_settings(workdir, node_name, inherited, archive)
            | {"output_bytes_max": output_bytes_max, "kill_grace_s": kill_grace_s},
            env=os.environ if env is None else env,
            account=account,
            with_cgroups=with_cgroups,
        )
        self._attempts: dict[tuple[TaskId, AttemptId], PoolAttempt] = {}
        self.recorder = OutputRecorder(archive, blob_fetcher.blob_store, self._attempts)
        self.attempt_stats = AttemptStats()
        self._resources = ResourceAllocator(slots, gpus)
        self._reports = ReportQueue(clock, on_ended)

    def _make_preparer(self) -> Preparer:
        return Preparer(
            self._scratch,
            self._blob_fetcher,
            self._task_user_ops,
            self._node_name,
            self._clock,
            on_ready=self._waiting.append,
            end_attempt=self._end_attempt,
            proceed=self._proceed,
        )

    def _make_launchers(
        self,
        states: Sequence[LauncherState],
        settings: Mapping[str, object],
        *,
        env: Mapping[str, str],
        account: Account | None,
        with_cgroups: bool,
    ) -> Launchers:
        # Of the agent's environment, tasks get a part; calls need some variables more.
        env = task_environment(env)
        return Launchers(
            states,
            settings,
            env={**env, **call_variables(env.get("PATH"))},
            account=account,
            task_user_ops=self._task_user_ops,
            clock=self._clock,
            threads=self._kill_thread,
            with_cgroups=with_cgroups,
            on_messages=self._on_messages,
            on_exit=self._on_launcher_exit,
        )

    # -- the port --------------------------------------------------------------

    def start_attempts(
        self,
        items: Sequence[tuple[AttemptId, TaskSpec]],
        holders: KnownHolders = NO_HOLDERS,
    ) -> None:
        """Start attempts, or queue them; ignores attempts that the pool already has.

        Args:
            items: The attempts.
            holders: Nodes that have blobs that they need.
        """
        now_s = self._clock.now().mono_s
        for attempt, spec in items:
            name = (spec.id, attempt)
            if name in self._attempts:
                continue
            self._last_place += 1
            item = self._attempts[name] = PoolAttempt(
                self._last_place, attempt, spec, now_s
            )
            self._reports.expect_report(spec.id)
            if self._is_closing:
                self._end_attempt(item, released_outcome(EndReason.DRAINING))
            elif not self._resources.can_ever_fit(item):
                self._end_attempt(item, released_outcome(EndReason.RETURNED))
            elif spec.needs_preparation:
                item.holders = holders
                self._preparer.prepare(item)
            else:
                self._waiting.append(item)
        self._start_waiting()
        self._reports.schedule_flush()

    def stop_attempts(
        self,
        items: Sequence[tuple[TaskId, AttemptId]],
        reason: EndReason = EndReason.CANCELLED,
    ) -> None:
        """End attempts with their process trees; ignores unknown attempts.

        They are reported as cancelled, or as released if `reason` is DRAINING. If it is
        RETURNED, those that have started go on. An attempt that ended by itself is
        reported as it ended, but never as a success after a cancel.
        """
        spares_started = reason is EndReason.RETURNED
        for name in items:
            item = self._attempts.get(name)
            if item is None or item.is_cancelled:
                continue
            item.is_cancelled = reason is EndReason.CANCELLED
            item.return_reason = reason
            is_waiting = item in self._waiting
            if is_waiting:
                self._waiting.remove(item)
            if is_waiting or self._preparer.stop_waiting(item):
                self._end_attempt(item, released_outcome(reason))
                continue
            for state in self._launchers.states if not spares_started else ():
                if item.key in state.attempts and state.process is not None:
                    state.process.send([["stop", item.key, reason.value]])
        if spares_started:
            self._launchers.send_to_all("recall")
        self._reports.schedule_flush()

    def release_waiting(self) -> None:
        """Report the attempts that have not started as released."""
        for item in self._attempts.values():
            item.return_reason = EndReason.DRAINING
        waiting = [*self._preparer.stop_all_waiting(), *self._waiting]
        self._waiting.clear()
        for item in waiting:
            self._end_attempt(item, released_outcome(EndReason.DRAINING))
        self._launchers.send_to_all("recall")
        self._reports.schedule_flush()

    def set_frozen(self, *, is_frozen: bool) -> None:
        """Stop every process of every attempt (SIGSTOP or cgroup), or continue it.

        While they are frozen, no attempt starts and no timeout runs.
        """
        self._is_frozen = is_frozen
        self._launchers.send_to_all("freeze" if is_frozen else "thaw")

    def check_launchers(self) -> bool:
        """Continue stopped launchers; return True if launchers can be started.

        Also ends launchers that do not respond, and reaps the processes of tasks that
        have outlived their launcher. Call it every 2 s.
        """
        self._launchers.continue_stopped()
        if not self._is_frozen:  # Else attempts may wait in a launcher.
            self._launchers.end_unresponsive()
        self._launchers.reap_orphans()
        return not self._launchers.are_failing()

    def count_attempts(self) -> tuple[int, int, int]:
        """Count attempts in launchers, waiting attempts, and launchers."""
        states = self._launchers.states
        begun = sum(len(state.attempts) for state in states)
        processes = sum(state.process is not None for state in states)
        return begun, len(self._waiting), processes

    def read_input_sources(
        self, task: TaskId, attempt: AttemptId
    ) -> InputSources | None:
        """Return where the files of a recent attempt came from, if it had any."""
        return self._preparer.sources.read((task, attempt))

    async def close(self) -> None:
        """End every process tree and launcher; release the remaining attempts."""
        self._is_closing = True
        self._preparer.stop()
        await self._launchers.close()
        await asyncio.to_thread(self._kill_thread.shutdown)
        for state in self._launchers.states:
            if state.is_killing:
                with suppress(OSError):
                    await asyncio.to_thread(self._killer_of(state))
        # This also ends the copy that is being made.
        await asyncio.to_thread(self._blob_fetcher.close)
        if self._output_copies is not None:
            await asyncio.to_thread(self._output_copies.close)
        await asyncio.to_thread(self._preparer.close)
        await asyncio.to_thread(self._capture_threads.shutdown)
        await self.recorder.close()
        # Run the callbacks of the threads first: they report captured outputs.
        await asyncio.sleep(0)
        self._preparer.stop_all_waiting()
        for item in list(self._attempts.values()):
            self._end_attempt(item, released_outcome(EndReason.DRAINING))
        if self._overdue_timer is not None:
            self._overdue_timer.cancel()
        self._reports.flush()
        await asyncio.to_thread(self._scratch.close)
        await asyncio.to_thread(self._task_user_ops.close)

    # -- launchers -------------------------------------------------------------

    def _on_messages(self, state: LauncherState, messages: list[list[Any]]) -> None:
        state.silent_checks = 0
        for name, key, *fields in messages:
            item = state.attempts.get(key)
            if item is None:
                continue
            if name == "alive":
                item.pid, item.confirmed_s = fields[0], self._clock.now().mono_s
                assert state.process is not None
                self.recorder.on_started(item, state.process)
                continue
            if name == "full":
                self.recorder.record_output(item)
                continue
            del state.attempts[key]
            item.remove_limit_group()
            self._resources.release(item)
            if name == "end":
                self._on_attempt_end(state, item, fields)
                continue
            state.mean_task_ms = max(state.mean_task_ms, SHORT_TASK_MS_MAX)
            if name == "refused" and item.return_reason is None:
                self._return_unstarted(item, fields[0])
            else:
                self._requeue_or_end(item)
        state.update_queue_depth()
        self._proceed()

    def _requeue_or_end(self, item: PoolAttempt) -> None:
        """Requeue an attempt that a launcher did not start, unless it is stopped.

        Attempts keep their order, so that members of an array start by their numbers.
        """
        if item.is_cancelled:
            self._end_attempt(item, cancelled_outcome())
        elif item.return_reason is not None:
            self._end_attempt(item, released_outcome(item.return_reason))
        else:
            insort(self._waiting, item, key=attrgetter("place"))

    def _on_attempt_end(
        self, state: LauncherState, item: PoolAttempt, fields: list[Any]
    ) -> None:
        outcome = outcome_of_end(fields)
        duration_ms = outcome.duration_ms or 0
        state.mean_task_ms = (
            0.7 * min(state.mean_task_ms, 2 * SHORT_TASK_MS_MAX) + 0.3 * duration_ms
        )
        runs_again = outcome.state is AttemptState.RELEASED and item.spec.may_run_twice
        if not item.spec.outputs or runs_again:
            self._end_attempt(item, outcome)
            return
        run_in_thread(
            self._capture_threads,
            partial(self._capture_outputs, item),
            partial(self._on_captured, item, outcome),
        )

    def _on_launcher_exit(self, state: LauncherState) -> None:
        """Kill the tasks of a launcher that has exited, then release its attempts.

        Those that it had not begun are requeued: none of them caused the exit.
        """
        begun_key = 0 if state.process is None else state.process.begun_key
        state.process = None
        if self._is_closing:
            return
        self.attempt_stats.launcher_crashes += 1
        state.is_killing = True
        self._kill_attempts(state, begun_key)

    def _kill_attempts(self, state: LauncherState, begun_key: int) -> None:
        if self._is_closing:
            return  # `close` kills them.
        on_killed = partial(self._on_lost_killed, state, begun_key)
        try:
            kill = self._killer_of(state)
        except OSError as error:
            on_killed(error)
        else:
            run_in_thread(self._kill_thread, kill, on_killed)

    def _killer_of(self, state: LauncherState) -> Callable[[], None]:
        """Return what kills the tasks of a dead launcher; raise OSError."""
        return partial(
            kill_lost_attempts,
            self._task_user_ops,
            list(state.attempts.values()),
            state.folder,
            self._launchers.adopted_processes(),
        )

    def _on_lost_killed(
        self, state: LauncherState, begun_key: int, error: object
    ) -> None:
        if error is not None:
            # They still run, and hold their slots. For example, no descriptor was free.
            loop = asyncio.get_running_loop()
            loop.call_later(KILL_AGAIN_S, self._kill_attempts, state, begun_key)
            return
        state.is_killing = False
        lost, state.attempts = list(state.attempts.values()), {}
        self._launchers.reap_orphans()
        for item in lost:
            self._resources.release(item)
            if item.key <= begun_key:
                self._end_attempt(
                    item, released_outcome(EndReason.LOST, "its launcher died")
                )
            else:
                item.remove_limit_group()
                self._requeue_or_end(item)
        self._proceed()

    # -- waiting ---------------------------------------------------------------

    def _start_waiting(self) -> None:
        """Send waiting attempts to launchers that have room."""
        if not self._waiting or self._is_closing:
            return
        batches: dict[LauncherProcess, tuple[list[list[Any]], list[list[int]]]] = {}
        states = self._launchers.usable_launchers()
        begun = sum(len(state.attempts) for state in self._launchers.states)
        while self._waiting and self._resources.fits_now(self._waiting[0], begun):
            state = pick_launcher(states)
            if (
                state is None
                or (process := self._launchers.ensure_started(state)) is None
            ):
                break
            item = self._waiting.popleft()
            try:
                stdin_fds = item.open_stdin()
            except OSError as error:
                self._return_unstarted(item, str(error.strerror))
                continue
            self._last_key += 1
            item.key = self._last_key
            state.attempts[item.key] = item
            begun += 1
            self._resources.allocate(item)
            orders, fds_of_orders = batches.setdefault(process, ([], []))
            fds = item.create_limit_group(state.folder) + stdin_fds
            orders.append(build_start_order(item, fds))
            if fds:
                fds_of_orders.append(fds)
        for process, (orders, fds_of_orders) in batches.items():
            process.send(orders, fds_of_orders)
        if self._waiting and self._overdue_timer is None:
            loop = asyncio.get_running_loop()
            self._overdue_timer = loop.call_later(OVERDUE_CHECK_S, self._return_overdue)

    def _return_overdue(self) -> None:
        """Return attempts that waited too long, for a slot or for a launcher."""
        self._overdue_timer = None
        now_s = self._clock.now().mono_s
        wait_s_max = self._launchers.attempt_wait_s(now_s, self._slots)
        for item in [
            i for i in self._waiting if now_s - i.waiting_since_s >= wait_s_max
        ]:
            self._waiting.remove(item)
            self._end_attempt(item, released_outcome(EndReason.RETURNED))
        self._proceed()

    def _return_unstarted(self, item: PoolAttempt, why: str) -> None:
        lack = NoRoom("resources to start it", why)
        self._preparer.return_for_room(item, lack, self._start_again)

    def _start_again(self, item: PoolAttempt) -> None:
        self._requeue_or_end(item)
        self._proceed()

    # -- outputs ---------------------------------------------------------------

    def _capture_outputs(self, item: PoolAttempt) -> CapturedOutputs:
        """Capture outputs, and have another node copy them. Blocks."""
        task, attempt = item.spec.id, item.attempt
        found = self._scratch.capture_outputs(item.spec, attempt, item.folder)
        sizes = [file.size_bytes for file in found.files if file.size_bytes is not None]
        if not sizes or self._output_copies is None:
            return found
        why = self._output_copies.on_captured(task, attempt, sum(sizes))
        problem = "; ".join(filter(None, (found.problem, why)))
        return found._replace(problem=problem)

    def _on_captured(self, item: PoolAttempt, outcome: Outcome, found: object) -> None:
        if not isinstance(found, CapturedOutputs):
            files = tuple(OutputFile(path, None) for path in item.spec.outputs)
            found = CapturedOutputs(files, f"outputs were not kept: {found}")
        detail = clean_detail("; ".join(filter(None, (outcome.detail, found.problem))))
        self._end_attempt(item, replace(outcome, outputs=found.files, detail=detail))
        self._flush_reports()

    # -- reports ---------------------------------------------------------------

    def _end_attempt(self, item: PoolAttempt, outcome: Outcome) -> None:
        del self._attempts[item.spec.id, item.attempt]
        self.recorder.on_ended(item)
        item.close_stdin()
        if item.folder is not None:
            self._scratch.discard_folder(item.folder)
        if item.is_cancelled and outcome.state != AttemptState.CANCELLED:
            # A cancelled attempt is never reported as completed.
            outcome = replace(
                outcome, state=AttemptState.CANCELLED, reason=EndReason.CANCELLED
            )
        self.attempt_stats.count_ended(item.spec, item.attempt, outcome)
        self._reports.add_report(Report(item.spec.id, item.attempt, outcome))

    def _proceed(self) -> None:
        """Start waiting attempts, and send the reports of ended ones."""
        self._start_waiting()
        self._flush_reports()

    def _flush_reports(self) -> None:
        self._reports.flush_or_delay(is_busy=bool(self._waiting))


def _launcher_settings(
    workdir: Path, node: str, inherited: InheritedSettings, archive: OutputArchive
) -> dict[str, Any]:
    return {
        "workdir": str(workdir.absolute()),
        "node": node,
        **inherited._asdict(),
        "transcript_bytes_max": archive.bytes_max,
    }
