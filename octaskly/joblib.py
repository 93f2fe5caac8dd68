"""A joblib backend: code that accepts `n_jobs` runs on the mesh.

    import joblib
    import octaskly.joblib

    with joblib.parallel_config("octaskly"):
        cross_val_score(model, X, y, n_jobs=-1)

Importing this module registers the backend. Its options are those of
`octaskly.Executor`.
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
BATCH_S_MIN: Final = 0.5  #: a task takes 0.1 s to start
BATCH_S_MAX: Final = 5.0
ENDPOINT_OPTIONS: Final = ("url", "token", "ca", "node", "state_dir")


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
        self._executor: Executor | None = None
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
        """Return the value of a call, or raise its exception."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002 - as the base class has it
        """Cancel calls that have not started; create a new executor if required."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        if ensure_ready and self._executor is not None:
            self._executor = Executor(self._tasks_max, **self._options)

    def terminate(self) -> None:
        """Shut down the executor and cancel its waiting calls."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None


register_parallel_backend(BACKEND_NAME, OctasklyBackend)
