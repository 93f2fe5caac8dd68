"""A backend of joblib, so that what takes `n_jobs` uses the machines of the mesh.

    import joblib
    import octaskly.joblib

    with joblib.parallel_config("octaskly"):
        cross_val_score(model, X, y, n_jobs=-1)

Importing it registers the backend. Its options are those of `octaskly.Executor`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from joblib import register_parallel_backend
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from octaskly.client.client import Client
from octaskly.executor import Executor

BACKEND_NAME: Final = "octaskly"
BATCH_S_MIN: Final = 0.5  #: a task begins in a fifth of that
BATCH_S_MAX: Final = 5.0
ENDPOINT_OPTIONS: Final = ("url", "token", "ca", "node", "state_dir")


class OctasklyBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc] # joblib has no types
    """Performs batches of calls as tasks of the mesh.

    Args:
        nesting_level: How deep in other backends it is.
        options: For the executor.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = False
    default_n_jobs = -1
    MIN_IDEAL_BATCH_DURATION = BATCH_S_MIN
    MAX_IDEAL_BATCH_DURATION = BATCH_S_MAX

    def __init__(self, *, nesting_level: int | None = None, **options: Any) -> None:
        super().__init__(nesting_level=nesting_level)
        self._options = options
        self._executor: Executor | None = None
        self._tasks_max = 1

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks run at a time; -1 is as many as the mesh has slots."""
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
        """Begin to take calls; `options` are those of another backend, and ignored."""
        del options
        n_jobs = self.effective_n_jobs(n_jobs)
        self.parallel = parallel
        self._tasks_max = n_jobs
        self._executor = Executor(n_jobs, **self._options)
        return n_jobs

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None
    ) -> Future[Any]:
        """Call `func` on a node, then `callback` with the future."""
        assert self._executor is not None
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return what a call returned, or raise what it raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002 - as the base class has it
        """Cancel what has not begun, and be as new if more is to come."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        if ensure_ready and self._executor is not None:
            self._executor = Executor(self._tasks_max, **self._options)

    def terminate(self) -> None:
        """Take no more calls."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None


register_parallel_backend(BACKEND_NAME, OctasklyBackend)
