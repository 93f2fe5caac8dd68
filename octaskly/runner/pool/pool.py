"""The runner of a node: hands attempts to launchers and reports how they ended."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from octaskly.config.account import INHERITED, Account, Inherited
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
from octaskly.runner.files.blob_fetcher import Supply
from octaskly.runner.files.scratch import Prepared, Scratch
from octaskly.runner.files.task_user import hands_for
from octaskly.runner.files.workdir import Captured
from octaskly.runner.output.output_archive import Archive
from octaskly.runner.pool.attempts import (
    SHORT_MS,
    Item,
    Seat,
    Shares,
    end_lost,
    roomiest,
    seats_for,
)
from octaskly.runner.pool.launch_messages import (
    cancelled,
    clean_detail,
    not_prepared,
    outcome_of_end,
    released,
    run_order,
)
from octaskly.runner.pool.launcher_process import (
    OF_CALLS,
    LauncherProcess,
    task_environment,
)
from octaskly.runner.pool.launchers import Launchers
from octaskly.runner.pool.output_recorder import Recorder
from octaskly.runner.pool.reports import Counts, Delivery, EndedCallback

LOOK_S = 0.02


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

    _look: asyncio.TimerHandle | None = None

    def __init__(
        self,
        *,
        slots: int,
        workdir: Path,
        outputs_dir: Path,
        scratch_dir: Path,
        archive: Archive,
        supply: Supply,
        node_name: str,
        clock: Clock,
        on_ended: EndedCallback,
        launchers: int | None = None,
        output_bytes_max: int = 1 << 20,
        kill_grace_s: float = 10.0,
        inherited: Inherited = INHERITED,
        env: Mapping[str, str] | None = None,
        account: Account | None = None,
        gpus: Sequence[str] = (),
        with_cgroups: bool = True,
    ) -> None:
        self._clock, self._slots, self._node_name = clock, slots, node_name
        self._hands, self._supply = hands_for(account), supply
        self._scratch = Scratch(self._hands, scratch_dir, workdir, outputs_dir, supply)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="runner")
        self._launchers = Launchers(
            seats_for(slots, launchers or os.cpu_count() or 1),
            {
                "workdir": str(workdir.absolute()),
                "node": node_name,
                "output_bytes_max": output_bytes_max,
                "kill_grace_s": kill_grace_s,
                **inherited._asdict(),
                "transcript_bytes_max": archive.bytes_max,
            },
            env=task_environment(os.environ if env is None else env) | OF_CALLS,
            account=account,
            hands=self._hands,
            clock=clock,
            threads=self._threads,
            with_cgroups=with_cgroups,
            on_messages=self._on_messages,
            on_exit=self._on_exit,
        )
        self._keys, self._is_closing = 0, False
        self._items: dict[tuple[TaskId, AttemptId], Item] = {}
        self.recorder = Recorder(archive, supply.depot, self._items)
        self.counts, self._waiting = Counts(), deque[Item]()
        self._shares, self._delivery = Shares(slots, gpus), Delivery(clock, on_ended)

    # -- the port --------------------------------------------------------------

    def start(self, items: Sequence[tuple[AttemptId, TaskSpec]]) -> None:
        """Take attempts; those that are here already are not taken twice."""
        now_s = self._clock.now().mono_s
        for attempt, spec in items:
            name = (spec.id, attempt)
            if name in self._items:
                continue
            self._keys += 1
            item = self._items[name] = Item(self._keys, attempt, spec, now_s)
            if self._is_closing:
                self._end(item, released(EndReason.DRAINING))
            elif not self._shares.may_ever_fit(item):
                self._end(item, released(EndReason.RETURNED))
            elif spec.inputs or (spec.options and spec.options.is_scratch):
                self._prepare(item)
            else:
                self._waiting.append(item)
        self._fill()
        self._delivery.soon()

    def stop(
        self,
        items: Sequence[tuple[TaskId, AttemptId]],
        reason: EndReason = EndReason.CANCELLED,
    ) -> None:
        """End attempts and all that they started; unknown ones are ignored."""
        for name in items:
            item = self._items.get(name)
            if item is None or item.is_stopped:
                continue
            item.is_stopped = reason is EndReason.CANCELLED
            item.is_recalled = True
            if item in self._waiting:
                self._waiting.remove(item)
                self._end(item, released(reason))
                continue
            for seat in self._launchers.seats:
                if item.key in seat.items and seat.process is not None:
                    seat.process.send([["stop", item.key, reason.value]])
        self._delivery.soon()

    def hand_back(self) -> None:
        """Report the attempts that have not begun as released."""
        for item in self._items.values():
            item.is_recalled = True
        while self._waiting:
            self._end(self._waiting.popleft(), released(EndReason.DRAINING))
        self._launchers.tell_all("recall")
        self._delivery.soon()

    def freeze(self, *, is_frozen: bool) -> None:
        """Stop every process of every attempt where it is, or let it go on."""
        self._launchers.tell_all("freeze" if is_frozen else "thaw")

    def look_after(self) -> bool:
        """Undo what a task has done to its launcher; tell whether some can start."""
        self._launchers.wake()
        return not self._launchers.are_failing()

    def usage(self) -> tuple[int, int, int]:
        """Return how many attempts are in launchers, how many wait, and launchers."""
        seats = self._launchers.seats
        begun = sum(len(seat.items) for seat in seats)
        processes = sum(seat.process is not None for seat in seats)
        return begun, len(self._waiting), processes

    async def close(self) -> None:
        """End every tree and every launcher; what had not ended is released."""
        self._is_closing = True
        await self._launchers.close()
        await asyncio.to_thread(self._supply.close)
        await asyncio.to_thread(self._threads.shutdown)
        await self.recorder.close()
        # Let the callbacks of the threads run, which report captured outputs.
        await asyncio.sleep(0)
        for item in list(self._items.values()):
            self._end(item, released(EndReason.DRAINING))
        if self._look is not None:
            self._look.cancel()
        self._delivery.now()
        await asyncio.to_thread(self._scratch.close)
        await asyncio.to_thread(self._hands.close)

    # -- launchers -------------------------------------------------------------

    def _on_messages(self, seat: Seat, messages: list[list[Any]]) -> None:
        for name, key, *fields in messages:
            item = seat.items.get(key)
            if item is None:
                continue
            if name == "alive":
                item.pid, item.alive_s = fields[0], self._clock.now().mono_s
                assert seat.process is not None
                self.recorder.begun(item, seat.process)
                continue
            if name == "full":
                self.recorder.record(item)
                continue
            del seat.items[key]
            item.release()
            self._shares.give(item)
            if name == "end":
                self._on_end(seat, item, fields)
            elif name == "lost" and not item.is_stopped:
                self._end(item, released(EndReason.LOST, fields[0]))
            else:
                seat.mean_ms = max(seat.mean_ms, SHORT_MS)
                self._not_begun(item)
        seat.set_depth()
        self._fill()
        self._deliver()

    def _not_begun(self, item: Item) -> None:
        """Let an attempt wait that a launcher did not start, if it still may."""
        if item.is_stopped:
            self._end(item, cancelled())
        elif item.is_recalled:
            self._end(item, released(EndReason.DRAINING))
        else:
            self._waiting.appendleft(item)

    def _on_end(self, seat: Seat, item: Item, fields: list[Any]) -> None:
        outcome = outcome_of_end(fields)
        duration_ms = outcome.duration_ms or 0
        seat.mean_ms = 0.7 * min(seat.mean_ms, 2 * SHORT_MS) + 0.3 * duration_ms
        if not item.spec.outputs or item.is_stopped:
            self._end(item, outcome)
            return
        self._in_thread(
            partial(self._captured, item, outcome),
            partial(self._scratch.capture, item.spec, item.attempt, item.folder),
        )

    def _on_exit(self, seat: Seat) -> None:
        """A launcher is gone: end what it ran, so that others may run it.

        One that was not ready yet ran nothing, as where the program was replaced
        under its agent: no task took it down, and none may fail for it.
        """
        may_have_begun = seat.process is not None and seat.process.was_ready
        seat.process = None
        if self._is_closing:
            return
        self.counts.launcher_deaths += 1
        lost, seat.items = list(seat.items.values()), {}
        strays = self._launchers.strays()
        bury = partial(end_lost, self._hands, lost, seat.folder, strays)
        buried = partial(self._buried, lost, may_have_begun=may_have_begun)
        self._in_thread(buried, bury)

    def _buried(self, lost: list[Item], _: object, *, may_have_begun: bool) -> None:
        for item in reversed(lost):
            self._shares.give(item)
            if may_have_begun:
                self._end(item, released(EndReason.LOST, "its launcher died"))
            else:
                item.release()
                self._not_begun(item)
        self._fill()
        self._deliver()

    # -- waiting ---------------------------------------------------------------

    def _fill(self) -> None:
        """Hand waiting attempts to launchers with room."""
        if not self._waiting or self._is_closing:
            return
        batches: dict[LauncherProcess, tuple[list[list[Any]], list[int]]] = {}
        seats = self._launchers.usable()
        begun = sum(len(seat.items) for seat in self._launchers.seats)
        while self._waiting and self._shares.fits(self._waiting[0], begun):
            seat = roomiest(seats)
            if seat is None or (process := self._launchers.ensure(seat)) is None:
                break
            item = self._waiting.popleft()
            seat.items[item.key] = item
            begun += 1
            self._shares.take(item)
            orders, fds = batches.setdefault(process, ([], []))
            fds += item.enclose(seat.folder)
            orders.append(run_order(item))
        for process, (orders, fds) in batches.items():
            process.send(orders, fds)
        if self._waiting and self._look is None:
            loop = asyncio.get_running_loop()
            self._look = loop.call_later(LOOK_S, self._look_round)

    def _look_round(self) -> None:
        """Give back what waits behind long attempts, or as no launcher starts."""
        self._look = None
        now_s = self._clock.now().mono_s
        patience_s = self._launchers.patience_s(now_s, self._slots)
        for item in [i for i in self._waiting if now_s - i.since_s >= patience_s]:
            self._waiting.remove(item)
            self._end(item, released(EndReason.RETURNED))
        self._fill()
        self._deliver()

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

    def _prepare(self, item: Item) -> None:
        options = item.spec.options
        sources = self._supply.sources(options.files if options else ())

        def is_wanted() -> bool:
            return not (item.is_stopped or item.is_recalled or self._is_closing)

        self._in_thread(
            partial(self._prepared, item),
            partial(self._scratch.prepare, item.spec, sources, is_wanted),
            # What comes from other nodes takes its time, and others need not wait.
            self._supply.threads if sources else self._threads,
        )

    def _prepared(self, item: Item, found: Prepared | BaseException) -> None:
        if isinstance(found, Prepared):
            item.folder = found.folder
        if item.is_stopped:
            self._end(item, cancelled())
        elif isinstance(found, BaseException):
            self._end(item, not_prepared(found, self._node_name))
        elif found.missing:
            self._end(item, released(EndReason.INPUTS, ", ".join(found.missing)))
        elif item.is_recalled:
            self._end(item, released(EndReason.DRAINING))
        else:
            item.since_s = self._clock.now().mono_s
            self._waiting.append(item)
        self._fill()
        self._deliver()

    def _captured(self, item: Item, outcome: Outcome, found: object) -> None:
        if not isinstance(found, Captured):
            files = tuple(OutputFile(path, None) for path in item.spec.outputs)
            found = Captured(files, f"outputs were not kept: {found}")
        detail = clean_detail("; ".join(filter(None, (outcome.detail, found.why))))
        self._end(item, replace(outcome, outputs=found.files, detail=detail))
        self._deliver()

    # -- reports ---------------------------------------------------------------

    def _end(self, item: Item, outcome: Outcome) -> None:
        del self._items[item.spec.id, item.attempt]
        self.recorder.ended(item)
        if item.folder is not None:
            self._scratch.discard(item.folder)
        if item.is_stopped and outcome.state != AttemptState.CANCELLED:
            # Success is never reported for what was told to end.
            outcome = replace(
                outcome, state=AttemptState.CANCELLED, reason=EndReason.CANCELLED
            )
        self.counts.end(item.spec, item.attempt, outcome)
        self._delivery.add(Report(item.spec.id, item.attempt, outcome))

    def _deliver(self) -> None:
        self._delivery.may_wait(is_busy=bool(self._waiting))
