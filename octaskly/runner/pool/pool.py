"""The runner of a node: hands attempts to launchers and reports how they ended."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from octaskly.config.account import DEFAULT_INHERITED, Account, InheritedSettings
from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.model.tasks import (
    AttemptState,
    EndReason,
    Outcome,
    OutputFile,
    TaskSpec,
)
from octaskly.core.protocol.messages import Report
from octaskly.ports import Clock
from octaskly.runner.files.blob_fetcher import BlobFetcher
from octaskly.runner.files.scratch import Prepared, ScratchFolders
from octaskly.runner.files.task_user import task_user_ops_for
from octaskly.runner.files.workdir import CapturedOutputs
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
    preparation_failed,
    released_outcome,
)
from octaskly.runner.pool.launcher_process import (
    CALL_VARIABLES,
    LauncherProcess,
    task_environment,
)
from octaskly.runner.pool.launchers import Launchers
from octaskly.runner.pool.output_recorder import OutputRecorder
from octaskly.runner.pool.reports import AttemptStats, EndedCallback, ReportQueue

OVERDUE_CHECK_S = 0.02


class Pool:
    """Runs attempts in a fixed number of slots; implements `seams.Runner`.

    Launchers are started with the first attempt. Attempts beyond the slots wait, and
    are reported as released (`returned`) when the slots are held by long ones.

    Args:
        slots: Attempts that run at the same time.
        workdir: Where they run, and where inputs are looked for.
        outputs_dir: Where declared outputs are kept, a folder for each attempt.
        scratch_dir: Where attempts get a fresh folder that ask for one.
        archive: Where long output is kept, and what somebody reads meanwhile.
        supply: Brings the files that tasks name.
        node_name: Shown to tasks as `OCTASKLY_NODE`.
        clock: The machine's clocks.
        on_ended: Called on the event loop with one or more reports.
        launchers: Launcher processes; default one per core, at most one per slot.
        output_bytes_max: Bytes kept of each stream; the rest is counted.
        kill_grace_s: Time between SIGTERM and SIGKILL.
        inherited: What tasks have otherwise than the agent.
        env: Environment that tasks start from; default the agent's, without what
            speaks to the agent alone.
        account: The user that tasks run as; None: the agent's own.
        gpus: What CUDA calls each GPU that attempts can be given.
        with_cgroups: Whether to make cgroups for launchers where that is allowed.
    """

    _last_key = 0
    _is_closing = False
    _overdue_timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        *,
        slots: int,
        workdir: Path,
        outputs_dir: Path,
        scratch_dir: Path,
        archive: OutputArchive,
        blob_fetcher: BlobFetcher,
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
        self._blob_fetcher = blob_fetcher
        self._scratch = ScratchFolders(
            self._task_user_ops, scratch_dir, workdir, outputs_dir, blob_fetcher
        )
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="runner")
        self._launchers = Launchers(
            share_slots(slots, launchers or os.cpu_count() or 1),
            _launcher_settings(workdir, node_name, inherited, archive)
            | {"output_bytes_max": output_bytes_max, "kill_grace_s": kill_grace_s},
            env=task_environment(os.environ if env is None else env) | CALL_VARIABLES,
            account=account,
            task_user_ops=self._task_user_ops,
            clock=clock,
            threads=self._threads,
            with_cgroups=with_cgroups,
            on_messages=self._on_messages,
            on_exit=self._on_launcher_exit,
        )
        self._attempts: dict[tuple[TaskId, AttemptId], PoolAttempt] = {}
        self.recorder = OutputRecorder(archive, blob_fetcher.blob_store, self._attempts)
        self.attempt_stats, self._waiting = AttemptStats(), deque[PoolAttempt]()
        self._resources = ResourceAllocator(slots, gpus)
        self._reports = ReportQueue(clock, on_ended)

    # -- the port --------------------------------------------------------------

    def start_attempts(self, items: Sequence[tuple[AttemptId, TaskSpec]]) -> None:
        """Take attempts; those that are here already are not taken twice."""
        now_s = self._clock.now().mono_s
        for attempt, spec in items:
            name = (spec.id, attempt)
            if name in self._attempts:
                continue
            self._last_key += 1
            item = self._attempts[name] = PoolAttempt(
                self._last_key, attempt, spec, now_s
            )
            if self._is_closing:
                self._end_attempt(item, released_outcome(EndReason.DRAINING))
            elif not self._resources.can_ever_fit(item):
                self._end_attempt(item, released_outcome(EndReason.RETURNED))
            elif spec.inputs or (spec.options and spec.options.is_scratch):
                self._prepare(item)
            else:
                self._waiting.append(item)
        self._start_waiting()
        self._reports.schedule_flush()

    def stop_attempts(
        self,
        items: Sequence[tuple[TaskId, AttemptId]],
        reason: EndReason = EndReason.CANCELLED,
    ) -> None:
        """End attempts and all that they started; unknown ones are ignored."""
        for name in items:
            item = self._attempts.get(name)
            if item is None or item.is_cancelled:
                continue
            item.is_cancelled = reason is EndReason.CANCELLED
            item.is_return_requested = True
            if item in self._waiting:
                self._waiting.remove(item)
                self._end_attempt(item, released_outcome(reason))
                continue
            for seat in self._launchers.states:
                if item.key in seat.attempts and seat.process is not None:
                    seat.process.send([["stop", item.key, reason.value]])
        self._reports.schedule_flush()

    def release_waiting(self) -> None:
        """Report the attempts that have not begun as released."""
        for item in self._attempts.values():
            item.is_return_requested = True
        while self._waiting:
            self._end_attempt(
                self._waiting.popleft(), released_outcome(EndReason.DRAINING)
            )
        self._launchers.send_to_all("recall")
        self._reports.schedule_flush()

    def set_frozen(self, *, is_frozen: bool) -> None:
        """Stop every process of every attempt where it is, or let it go on."""
        self._launchers.send_to_all("freeze" if is_frozen else "thaw")

    def check_launchers(self) -> bool:
        """Undo what a task has done to its launcher; tell whether some can start."""
        self._launchers.continue_stopped()
        return not self._launchers.are_failing()

    def count_attempts(self) -> tuple[int, int, int]:
        """Return how many attempts are in launchers, how many wait, and launchers."""
        seats = self._launchers.states
        begun = sum(len(seat.attempts) for seat in seats)
        processes = sum(seat.process is not None for seat in seats)
        return begun, len(self._waiting), processes

    async def close(self) -> None:
        """End every tree and every launcher; what had not ended is released."""
        self._is_closing = True
        await self._launchers.close()
        await asyncio.to_thread(self._blob_fetcher.close)
        await asyncio.to_thread(self._threads.shutdown)
        await self.recorder.close()
        # Let the callbacks of the threads run, which report captured outputs.
        await asyncio.sleep(0)
        for item in list(self._attempts.values()):
            self._end_attempt(item, released_outcome(EndReason.DRAINING))
        if self._overdue_timer is not None:
            self._overdue_timer.cancel()
        self._reports.flush()
        await asyncio.to_thread(self._scratch.close)
        await asyncio.to_thread(self._task_user_ops.close)

    # -- launchers -------------------------------------------------------------

    def _on_messages(self, state: LauncherState, messages: list[list[Any]]) -> None:
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
            elif name == "lost" and not item.is_cancelled:
                self._end_attempt(item, released_outcome(EndReason.LOST, fields[0]))
            else:
                state.mean_task_ms = max(state.mean_task_ms, SHORT_TASK_MS_MAX)
                self._requeue_or_end(item)
        state.update_queue_depth()
        self._start_waiting()
        self._flush_reports()

    def _requeue_or_end(self, item: PoolAttempt) -> None:
        """Let an attempt wait that a launcher did not start, if it still may."""
        if item.is_cancelled:
            self._end_attempt(item, cancelled_outcome())
        elif item.is_return_requested:
            self._end_attempt(item, released_outcome(EndReason.DRAINING))
        else:
            self._waiting.appendleft(item)

    def _on_attempt_end(
        self, seat: LauncherState, item: PoolAttempt, fields: list[Any]
    ) -> None:
        outcome = outcome_of_end(fields)
        duration_ms = outcome.duration_ms or 0
        seat.mean_task_ms = (
            0.7 * min(seat.mean_task_ms, 2 * SHORT_TASK_MS_MAX) + 0.3 * duration_ms
        )
        if not item.spec.outputs or item.is_cancelled:
            self._end_attempt(item, outcome)
            return
        self._in_thread(
            partial(self._on_captured, item, outcome),
            partial(
                self._scratch.capture_outputs, item.spec, item.attempt, item.folder
            ),
        )

    def _on_launcher_exit(self, seat: LauncherState) -> None:
        """A launcher is gone: end what it ran, so that others may run it.

        One that was not ready yet ran nothing, as where the program was replaced
        under its agent: no task took it down, and none may fail for it.
        """
        may_have_begun = seat.process is not None and seat.process.was_ready
        seat.process = None
        if self._is_closing:
            return
        self.attempt_stats.launcher_crashes += 1
        lost, seat.attempts = list(seat.attempts.values()), {}
        strays = self._launchers.adopted_processes()
        bury = partial(
            kill_lost_attempts, self._task_user_ops, lost, seat.folder, strays
        )
        buried = partial(self._on_lost_killed, lost, may_have_begun=may_have_begun)
        self._in_thread(buried, bury)

    def _on_lost_killed(
        self, lost: list[PoolAttempt], _: object, *, may_have_begun: bool
    ) -> None:
        for item in reversed(lost):
            self._resources.release(item)
            if may_have_begun:
                self._end_attempt(
                    item, released_outcome(EndReason.LOST, "its launcher died")
                )
            else:
                item.remove_limit_group()
                self._requeue_or_end(item)
        self._start_waiting()
        self._flush_reports()

    # -- waiting ---------------------------------------------------------------

    def _start_waiting(self) -> None:
        """Hand waiting attempts to launchers with room."""
        if not self._waiting or self._is_closing:
            return
        batches: dict[LauncherProcess, tuple[list[list[Any]], list[int]]] = {}
        seats = self._launchers.usable_launchers()
        begun = sum(len(seat.attempts) for seat in self._launchers.states)
        while self._waiting and self._resources.fits_now(self._waiting[0], begun):
            seat = pick_launcher(seats)
            if (
                seat is None
                or (process := self._launchers.ensure_started(seat)) is None
            ):
                break
            item = self._waiting.popleft()
            seat.attempts[item.key] = item
            begun += 1
            self._resources.allocate(item)
            orders, fds = batches.setdefault(process, ([], []))
            fds += item.create_limit_group(seat.folder)
            orders.append(build_start_order(item))
        for process, (orders, fds) in batches.items():
            process.send(orders, fds)
        if self._waiting and self._overdue_timer is None:
            loop = asyncio.get_running_loop()
            self._overdue_timer = loop.call_later(OVERDUE_CHECK_S, self._return_overdue)

    def _return_overdue(self) -> None:
        """Give back what waits behind long attempts, or as no launcher starts."""
        self._overdue_timer = None
        now_s = self._clock.now().mono_s
        patience_s = self._launchers.attempt_wait_s(now_s, self._slots)
        for item in [
            i for i in self._waiting if now_s - i.waiting_since_s >= patience_s
        ]:
            self._waiting.remove(item)
            self._end_attempt(item, released_outcome(EndReason.RETURNED))
        self._start_waiting()
        self._flush_reports()

    # -- threads ---------------------------------------------------------------

    def _in_thread(
        self,
        then: Callable[[Any], None],
        work: Callable[[], object],
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(threads or self._threads, work)
        # An error is an answer too: nothing may stay in a slot for ever.
        future.add_done_callback(lambda done: then(done.exception() or done.result()))

    def _prepare(self, item: PoolAttempt) -> None:
        options = item.spec.options
        sources = self._blob_fetcher.find_sources(options.files if options else ())

        def is_wanted() -> bool:
            return not (
                item.is_cancelled or item.is_return_requested or self._is_closing
            )

        self._in_thread(
            partial(self._on_prepared, item),
            partial(self._scratch.prepare_attempt, item.spec, sources, is_wanted),
            # What comes from other nodes takes its time, and others need not wait.
            self._blob_fetcher.threads if sources else self._threads,
        )

    def _on_prepared(self, item: PoolAttempt, found: Prepared | BaseException) -> None:
        if isinstance(found, Prepared):
            item.folder = found.folder
        if item.is_cancelled:
            self._end_attempt(item, cancelled_outcome())
        elif isinstance(found, BaseException):
            self._end_attempt(item, preparation_failed(found, self._node_name))
        elif found.missing:
            self._end_attempt(
                item, released_outcome(EndReason.INPUTS, ", ".join(found.missing))
            )
        elif item.is_return_requested:
            self._end_attempt(item, released_outcome(EndReason.DRAINING))
        else:
            item.waiting_since_s = self._clock.now().mono_s
            self._waiting.append(item)
        self._start_waiting()
        self._flush_reports()

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
        if item.folder is not None:
            self._scratch.discard_folder(item.folder)
        if item.is_cancelled and outcome.state != AttemptState.CANCELLED:
            # Success is never reported for what was told to end.
            outcome = replace(
                outcome, state=AttemptState.CANCELLED, reason=EndReason.CANCELLED
            )
        self.attempt_stats.count_ended(item.spec, item.attempt, outcome)
        self._reports.add_report(Report(item.spec.id, item.attempt, outcome))

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
