"""A joblib backend: code that accepts `n_jobs` runs on the mesh.

    import joblib
    import octaskly.joblib

    with joblib.parallel_config("octaskly"):
        cross_val_score(model, X, y, n_jobs=-1)

Importing this module registers the backend. Its options are those of
`octaskly.Executor`.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, Final, NamedTuple

from joblib import register_parallel_backend
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from octaskly.client.client import Client
from octaskly.executor import Executor
from octaskly.executor.call_text import Arguments

BACKEND_NAME: Final = "octaskly"
BATCH_S_MIN: Final = 0.5  #: a task takes 0.1 s to start
BATCH_S_MAX: Final = 5.0
TASK_S_MIN: Final = 0.2  #: of work in a task, if there is so much
TRIAL_S_MAX: Final = 1.0  #: longest wait for the first batch, to learn how long it is
AHEAD_MAX: Final = 256  #: short batches that wait here to fill tasks
ENDPOINT_OPTIONS: Final = ("url", "token", "ca", "node", "state_dir")

Batch = Callable[[], Any]
"""Some calls that joblib wants to run in sequence: its `BatchedCalls`."""


class _Item(NamedTuple):
    """A batch of joblib and the future of its result."""

    batch: Batch
    future: Future[Any]


class _BatchExecutor(Executor):
    """An executor of `_run_batches`; lists show the calls in the batches."""

    def _shown_call(
        self, fn: Callable[..., Any], calls: Sequence[Arguments]
    ) -> tuple[Callable[..., Any], Arguments, int]:
        del fn
        ((batches,), _named) = calls[0]
        function, arguments, named = batches[0].items[0]
        return function, (arguments, named), sum(map(len, batches))


def _make_runner() -> Callable[[Sequence[Batch]], tuple[list[Any], float]]:
    """Return a function that is sent whole, because it is local to another one.

    So a node needs neither Octaskly nor this module to run it.
    """

    def run_batches(batches: Sequence[Batch]) -> tuple[list[Any], float]:
        import time  # noqa: PLC0415

        started_s = time.perf_counter()
        values = [batch() for batch in batches]
        return values, time.perf_counter() - started_s

    return run_batches


_run_batches: Final = _make_runner()


class _TaskMerger:
    """Sends short batches together, as one task.

    joblib submits its batches one by one, and a short task mostly starts a process. So
    the first batch runs alone, to learn how long one takes. After that, short batches
    wait until they fill a task or until a running task ends; long ones never wait.

    Args:
        executor: Runs the tasks.
        tasks_max: The number of tasks that run at a time.
        submit_next: Makes joblib submit its next batch; returns False at the end.
    """

    def __init__(
        self, executor: Executor, tasks_max: int, submit_next: Callable[[], bool]
    ) -> None:
        self._executor = executor
        self._tasks_max = tasks_max
        self._submit_next = submit_next
        self._lock = threading.Lock()  #: guards the fields below
        self._waiting: deque[_Item] = deque()
        self._running_count = 0
        self._has_started = False
        self._trial_over = threading.Event()  #: the first batch has ended or is long
        self._batch_s = math.inf  #: how long each batch of the last task took

    def submit(
        self, batch: Batch, callback: Callable[[Any], None] | None
    ) -> Future[Any]:
        """Run a batch in this or a later task; call `callback` with its future."""
        future: Future[Any] = Future()
        if callback is not None:
            future.add_done_callback(callback)
        with self._lock:
            self._waiting.append(_Item(batch, future))
        self._start_tasks()
        return future

    def close(self) -> None:
        """Cancel the batches that have not started."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        self._trial_over.set()
        for item in waiting:
            item.future.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start_tasks(self, *, is_flush: bool = False) -> None:
        """Start full tasks; if none runs, or with `is_flush`, also the others."""
        with self._lock:
            tasks = self._take_tasks(is_flush=is_flush)
            self._running_count += len(tasks)
        for task in tasks:
            try:
                future = self._executor.submit(
                    _run_batches, [item.batch for item in task]
                )
            except Exception as error:  # noqa: BLE001 - the futures carry it
                self._end_task(task, error)
            else:
                future.add_done_callback(partial(self._on_done, task))

    def _take_tasks(self, *, is_flush: bool) -> list[list[_Item]]:
        if not self._waiting:
            return []
        if not self._has_started:
            self._has_started = True
            threading.Thread(target=self._limit_trial, daemon=True).start()
            return [[self._waiting.popleft()]]
        # What the executor would keep waiting may as well wait here, and share a task.
        room = self._tasks_max - self._running_count
        if not self._trial_over.is_set() or room <= 0:
            return []
        size = self._task_size(room)
        if len(self._waiting) < size and self._running_count > 0 and not is_flush:
            return []
        return [
            [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
            for _ in range(min(room, math.ceil(len(self._waiting) / size)))
        ]

    def _task_size(self, room: int) -> int:
        """Return the number of batches for each of at most `room` tasks.

        The tasks are long enough to be worth a process, or share all work evenly.
        """
        if self._batch_s >= TASK_S_MIN:
            return 1
        # Of batches that take no time at all, any number makes one task.
        enough = int(TASK_S_MIN / max(self._batch_s, 1e-6))
        return max(1, enough, math.ceil(len(self._waiting) / room))

    def _limit_trial(self) -> None:
        """Start what waits for the first batch, if that one is long."""
        if not self._trial_over.wait(TRIAL_S_MAX):
            self._trial_over.set()
            self._start_tasks()

    def _on_done(self, task: list[_Item], future: Future[Any]) -> None:
        try:
            values, duration_s = future.result()
        except (Exception, CancelledError) as error:  # noqa: BLE001 - as above
            self._end_task(task, error)
            return
        with self._lock:
            self._batch_s = duration_s / len(task)
        self._end_task(task, values)

    def _fill_up(self) -> None:
        """Let joblib submit more short batches than two for each slot."""
        with self._lock:
            if self._batch_s >= TASK_S_MIN:
                return
            room = self._tasks_max - self._running_count + 1
            wanted = min(AHEAD_MAX, room * self._task_size(room))
        while len(self._waiting) < wanted and self._submit_next():
            pass

    def _end_task(self, task: list[_Item], end: list[Any] | BaseException) -> None:
        """Set the results of a task, then start what waited for its end."""
        for index, item in enumerate(task):
            if isinstance(end, CancelledError):
                item.future.cancel()
            elif isinstance(end, BaseException):
                item.future.set_exception(end)
            else:
                item.future.set_result(end[index])
        if isinstance(end, list):
            self._fill_up()
        with self._lock:
            self._running_count -= 1
        self._trial_over.set()
        self._start_tasks(is_flush=True)


class OctasklyBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc] # joblib has no types
    """Runs batches of calls as tasks of the mesh.

    Args:
        nesting_level: The depth of nested joblib backends.
        options: Options of `octaskly.Executor`.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = False
    default_n_jobs = -1
    MIN_IDEAL_BATCH_DURATION = BATCH_S_MIN
    MAX_IDEAL_BATCH_DURATION = BATCH_S_MAX

    def __init__(self, *, nesting_level: int | None = None, **options: Any) -> None:
        super().__init__(nesting_level=nesting_level)
        self._options = options
        self._merger: _TaskMerger | None = None
        self._tasks_max = 1

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of parallel tasks; -1 means all slots of the mesh."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        place = {k: v for k, v in self._options.items() if k in ENDPOINT_OPTIONS}
        with Client(**place) as mesh:
            slots = sum(node.slots or 0 for node in mesh.nodes())
        return max(slots + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Create the executor; ignore `options`, which are for other backends."""
        del options
        n_jobs = self.effective_n_jobs(n_jobs)
        self.parallel = parallel
        self._tasks_max = n_jobs
        self._merger = self._make_merger()
        return n_jobs

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None
    ) -> Future[Any]:
        """Call `func` on a node, then `callback` with the future."""
        assert self._merger is not None
        return self._merger.submit(func, callback)

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the value of a call, or raise its exception."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002 - as the base class has it
        """Cancel calls that have not started; create a new executor if required."""
        if self._merger is None:
            return
        self._merger.close()
        self._merger = self._make_merger() if ensure_ready else None
        # joblib 1.6 would run the rest of these items with those of the next run.
        with self.parallel._lock:  # noqa: SLF001
            self.parallel._ready_batches = queue.Queue()  # noqa: SLF001

    def terminate(self) -> None:
        """Shut down the executor and cancel its waiting calls."""
        self.abort_everything(ensure_ready=False)

    def _make_merger(self) -> _TaskMerger:
        executor = _BatchExecutor(self._tasks_max, **self._options)
        return _TaskMerger(executor, self._tasks_max, self._submit_next)

    def _submit_next(self) -> bool:
        parallel = self.parallel
        # The lock and the iterator are private, but its own callbacks do the same.
        with parallel._lock:  # noqa: SLF001
            if parallel._aborting or parallel._original_iterator is None:  # noqa: SLF001
                return False
            parallel.dispatch_next()
            return True


register_parallel_backend(BACKEND_NAME, OctasklyBackend)
