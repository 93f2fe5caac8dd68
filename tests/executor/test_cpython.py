"""CPython's own tests of executors, on a mesh; adapted in construction alone.

What is left out, and why, is listed in docs/reference/executor.md.
"""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import octaskly
from tests.support.agents import Agent

if os.environ.get("CI"):  # There it may not be left out.
    support: Any = importlib.import_module("test.support")
else:
    why = "this Python has no test.support"
    support = pytest.importorskip("test.support", reason=why)
if not hasattr(support, "Py_GIL_DISABLED"):
    support.Py_GIL_DISABLED = False  # The tests are younger than Python 3.11 and 3.12.
if not hasattr(support, "requires_gil_enabled"):
    support.requires_gil_enabled = lambda _why: lambda test: test

from tests.executor.cpython import (
    executor,
    test_as_completed,
    test_process_pool,
    test_shutdown,
    test_wait,
)
from tests.executor.cpython.util import BaseTestCase, ExecutorMixin

ROOT = Path(__file__).parent.parent.parent
PLACE: list[Path] = []  #: state folder of the agent that executors use

# Their modules are on no worker, as those of a script would not be.
for module in (
    executor,
    test_as_completed,
    test_process_pool,
    test_shutdown,
    test_wait,
):
    cloudpickle.register_pickle_by_value(module)


@pytest.fixture(autouse=True, scope="module")
def _place(agents: list[Agent]) -> Iterator[None]:
    """Make executors use the mesh, by an agent that is not dispatcher."""
    PLACE.append(agents[1].state)
    yield
    PLACE.clear()


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Keep earlier garbage out of these tests, which collect often."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def on_mesh(max_workers: int | None = None) -> octaskly.Executor:
    """Return an executor, as the tests construct one."""
    return octaskly.Executor(max_workers, state_dir=PLACE[0])


class MeshMixin(ExecutorMixin):  # type: ignore[misc]
    """Adapts their tests to the mesh."""

    executor_type = staticmethod(on_mesh)


class TestExecutor(MeshMixin, executor.ExecutorTest, BaseTestCase):  # type: ignore[misc]
    """`submit`, `map` and their references to objects."""

    test_map_chunksize = test_process_pool.ProcessPoolExecutorTest.test_map_chunksize
    test_map_timeout = pytest.mark.soak(executor.ExecutorTest.test_map_timeout)  # 5 s


@pytest.mark.alone  # Their sleeps are a measure of what others do meanwhile.
class TestAsCompleted(MeshMixin, test_as_completed.AsCompletedTests, BaseTestCase):  # type: ignore[misc]
    """`concurrent.futures.as_completed`."""


@pytest.mark.alone
class TestWait(MeshMixin, test_wait.WaitTests, BaseTestCase):  # type: ignore[misc]
    """`concurrent.futures.wait`."""


class TestShutdown(MeshMixin, test_shutdown.ExecutorShutdownTest, BaseTestCase):  # type: ignore[misc]
    """`shutdown`, and the end of the interpreter."""

    # It counts on what has begun within a moment of `submit`. What a node has not begun
    # is cancelled here; see test_calls.py.
    test_cancel_futures = None

    def test_interpreter_shutdown(self) -> None:
        """The interpreter waits for calls; their output is in the log of the task."""
        done = script(
            """
            from time import sleep
            def sleep_and_write(t, path):
                sleep(t)
                open(path, "w").write("apple")
            executor.submit(sleep_and_write, 1.0, path)
            """
        )
        assert (done.stderr, done.written) == ("", "apple")

    def test_submit_after_interpreter_shutdown(self) -> None:
        """An `atexit` handler runs too late."""
        done = script(
            """
            import atexit
            @atexit.register
            def run_last():
                try:
                    executor.submit(id, None)
                except RuntimeError:
                    print("runtime-error")
                    raise
            executor.submit(id, 42).result()
            """
        )
        assert "RuntimeError: cannot schedule new futures" in done.stderr
        assert done.stdout.strip() == "runtime-error"

    def test_hang_gh83386(self) -> None:
        """`shutdown(wait=False)` does not hang at exit with running futures."""
        done = script(
            """
            def write(path):
                open(path, "w").write("apple")
            executor.submit(write, path)
            executor.shutdown(wait=False)
            """
        )
        assert (done.stderr, done.written) == ("", "apple")


class _Done:
    def __init__(self, process: Any, path: Path) -> None:
        self.stdout: str = process.stdout
        self.stderr: str = process.stderr
        self.written = path.read_text() if path.exists() else None


def script(text: str) -> _Done:
    """Run a script with an executor and the path of a file to write."""
    path = PLACE[0] / f"written-{os.urandom(4).hex()}"
    head = f"""if True:
            import octaskly
            executor = octaskly.Executor(5, state_dir={str(PLACE[0])!r})
            path = {str(path)!r}
            """
    process = subprocess.run(
        [sys.executable, "-c", head + text.lstrip("\n ")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
    )
    return _Done(process, path)
