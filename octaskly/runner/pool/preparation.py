"""Preparation of attempts in threads, with another try while files or room lack."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf
from typing import Any

from octaskly.core.model.tasks import EndReason, Outcome, TaskSpec
from octaskly.ports.store import Clock
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.blobs.fetch import FilesAwaited
from octaskly.runner.files.attempt_files import (
    AttemptSources,
    NoRoom,
    Prepared,
    ScratchFolders,
)
from octaskly.runner.files.same_folder import FolderProblem
from octaskly.runner.files.task_user_ops import TaskUserOps
from octaskly.runner.input_sources import SourceHistory
from octaskly.runner.pool.attempts import PoolAttempt
from octaskly.runner.pool.launch_messages import (
    cancelled_outcome,
    is_lack_of_resources,
    preparation_failed,
    released_outcome,
)

ROOM_PAUSE_S = 1.0  #: time between returns of attempts for which there is no room


def run_in_thread(
    threads: ThreadPoolExecutor, work: Callable[[], object], then: Callable[[Any], None]
) -> None:
    """Run `work` in a thread, then call `then` with its result or its error.

    An error is a result, because otherwise the attempt would never end.
    """
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    future.add_done_callback(lambda done: then(done.exception() or done.result()))


class Preparer:
    """Prepares attempts, and tries again while files or room are lacking.

    Args:
        scratch: Checks and fetches files, and creates scratch folders.
        blob_fetcher: Knows the nodes that have uploaded files.
        task_user_ops: Names the user of tasks, for errors.
        node_name: Name of this node, for errors.
        clock: The machine's clocks.
        on_ready: Called with an attempt that can start.
        end_attempt: Called with an attempt that cannot, and its outcome.
        proceed: Called after either.
    """

    def __init__(
        self,
        scratch: ScratchFolders,
        blob_fetcher: BlobFetcher,
        task_user_ops: TaskUserOps,
        node_name: str,
        clock: Clock,
        *,
        on_ready: Callable[[PoolAttempt], None],
        end_attempt: Callable[[PoolAttempt, Outcome], None],
        proceed: Callable[[], None],
    ) -> None:
        self._scratch, self._blob_fetcher = scratch, blob_fetcher
        self._task_user_ops, self._node_name = task_user_ops, node_name
        self._clock = clock
        self._on_ready, self._end_attempt = on_ready, end_attempt
        self._proceed = proceed
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="runner")
        self.sources = SourceHistory()  #: of the files of attempts
        self._next_tries: dict[PoolAttempt, asyncio.TimerHandle] = {}
        """The next try of each attempt whose files or room are awaited."""
        self._room_lacked_s = -inf
        """When an attempt was last returned for lack of room."""
        self._is_closing = False

    def prepare(self, item: PoolAttempt) -> None:
        """Prepare an attempt in a thread, then queue or end it."""
        options, fetcher, known = item.spec.options, self._blob_fetcher, item.holders
        sources = AttemptSources(
            fetcher.find_blob(options.tree if options else None, known),
            fetcher.find_blob(options.stdin_file if options else None, known),
        )
        tally = None
        has_outputs = options is not None and bool(options.outputs_of)
        if sources.tree is not None or has_outputs:
            tally = self.sources.tally_of((item.spec.id, item.attempt))

        def is_wanted() -> bool:
            return not (item.is_cancelled or item.return_reason or self._is_closing)

        run_in_thread(
            # Fetching is slow, so it has its own threads.
            fetcher.threads if any(sources) or has_outputs else self._threads,
            partial(
                self._scratch.prepare_attempt, item.spec, sources, is_wanted, tally
            ),
            partial(self._on_prepared, item),
        )

    def stop_waiting(self, item: PoolAttempt) -> bool:
        """Give up the next try of an attempt; return True if there was one."""
        timer = self._next_tries.pop(item, None)
        if timer is not None:
            timer.cancel()
        return timer is not None

    def stop_all_waiting(self) -> list[PoolAttempt]:
        """Give up all next tries; return their attempts."""
        items = list(self._next_tries)
        return [item for item in items if self.stop_waiting(item)]

    def stop(self) -> None:
        """Begin no further preparation or try."""
        self._is_closing = True

    def close(self) -> None:
        """Wait for the threads. Blocks."""
        self._threads.shutdown()

    def return_for_room(
        self, item: PoolAttempt, no_room: NoRoom, retry: Callable[[PoolAttempt], None]
    ) -> None:
        """Return an attempt without room, or try again if others were just returned.

        Otherwise a node without room would soon have tried all members of an array.
        """
        now_s = self._clock.now().mono_s
        waited_s = now_s - item.waiting_since_s
        quiet_s = now_s - self._room_lacked_s
        if max(waited_s, quiet_s) < ROOM_PAUSE_S and item.return_reason is None:
            self._retry_in(item, ROOM_PAUSE_S - waited_s, retry)
            return
        self._room_lacked_s = now_s
        why = f"{no_room.what} on {self._node_name} ({no_room.why})"
        self._end_attempt(item, released_outcome(EndReason.ROOM, why))

    def _on_prepared(self, item: PoolAttempt, found: Prepared | BaseException) -> None:
        if isinstance(found, Prepared):
            item.folder, item.stdin_fd = found.folder, found.stdin_fd
        self.sources.set_awaited((item.spec.id, item.attempt), "")
        if item.is_cancelled:
            self._end_attempt(item, cancelled_outcome())
        elif isinstance(found, FilesAwaited):
            if item.return_reason is None:
                self._prepare_again(item, found)
            else:
                self._end_attempt(item, released_outcome(item.return_reason))
        elif isinstance(found, BaseException):
            self._on_failed(item, found)
        elif found.missing or found.problem is not None:
            lacks = found.missing
            if found.problem is not None:
                lacks = [self._describe_problem(item.spec, found.problem)]
            self._end_attempt(
                item, released_outcome(EndReason.INPUTS, ", ".join(lacks))
            )
        elif found.no_room is not None:
            self.return_for_room(item, found.no_room, self.prepare)
        elif item.return_reason is not None:
            self._end_attempt(item, released_outcome(item.return_reason))
        else:
            item.waiting_since_s = self._clock.now().mono_s
            self._on_ready(item)
        self._proceed()

    def _on_failed(self, item: PoolAttempt, error: BaseException) -> None:
        if is_lack_of_resources(error):
            why = getattr(error, "strerror", None) or str(error)
            lack = NoRoom("resources to check its inputs", why)
            self.return_for_room(item, lack, self.prepare)
        else:
            self._end_attempt(item, preparation_failed(error, self._node_name))

    def _prepare_again(self, item: PoolAttempt, awaited: FilesAwaited) -> None:
        """Prepare an attempt later, or release it if its files do not come."""
        now_s = self._clock.now().mono_s
        if awaited.wait_s_max == inf:
            item.stalled_since_s = None
        elif item.stalled_since_s is None:
            item.stalled_since_s = now_s
        elif now_s - item.stalled_since_s > awaited.wait_s_max:
            if awaited.no_room:
                lack = NoRoom("space for its files", awaited.no_room)
                self.return_for_room(item, lack, self.prepare)
                return
            self._end_attempt(item, released_outcome(EndReason.INPUTS, str(awaited)))
            return
        self.sources.set_awaited((item.spec.id, item.attempt), str(awaited))
        self._retry_in(item, awaited.retry_s, self.prepare)

    def _retry_in(
        self, item: PoolAttempt, wait_s: float, retry: Callable[[PoolAttempt], None]
    ) -> None:
        self._next_tries[item] = asyncio.get_running_loop().call_later(
            wait_s, self._retry, item, retry
        )

    def _retry(self, item: PoolAttempt, retry: Callable[[PoolAttempt], None]) -> None:
        del self._next_tries[item]
        if not self._is_closing:  # `close` ends the attempt.
            retry(item)

    def _describe_problem(self, spec: TaskSpec, problem: FolderProblem) -> str:
        folder = spec.options.cwd if spec.options else ""
        return problem.describe(folder, self._node_name, self._task_user_ops.user)
