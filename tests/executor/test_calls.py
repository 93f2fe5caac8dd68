"""Calls over the mesh: results and errors."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import os
import pickle
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import pytest

import octaskly
from octaskly.executor import call_runner
from octaskly.runner.blobs.blob_index import BOOT_NAME
from octaskly.runner.interpreters import find_interpreters
from tests.support.agents import TASKS, Agent, until

cloudpickle.register_pickle_by_value(sys.modules[__name__])

RESULT_S_MAX = 90.0
VERSIONS = list(find_interpreters(os.environ["PATH"]))
NOWHERE: Any = {"labels": {"moon": "yes"}}  #: what no node has


@pytest.fixture
def executor(agents: list[Agent]) -> Iterator[octaskly.Executor]:
    """An executor at the agent that is not dispatcher."""
    with octaskly.Executor(state_dir=agents[1].state) as executor:
        yield executor


def raised(executor: octaskly.Executor, fn: Callable[..., Any], *args: Any) -> Any:
    """Return the exception that a call raises."""
    return executor.submit(fn, *args).exception(RESULT_S_MAX)


class Array:
    """Bytes that leave a pickle as a buffer of their own, like NumPy's."""

    def __init__(self, data: bytearray | memoryview) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Array, (pickle.PickleBuffer(self.data),)


class Unrestorable(Exception):
    """An exception that cannot be restored from its pickle."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def unpicklable_numbers() -> Iterator[int]:
    """Return numbers that cannot be pickled."""
    yield 1


def fail(value: object) -> NoReturn:
    raise LookupError(value)  # where it came from


def test_an_exception_comes_with_the_remote_traceback(
    executor: octaskly.Executor,
) -> None:
    """As text in its cause, like `ProcessPoolExecutor`."""
    error = raised(executor, fail, 7)

    assert type(error) is LookupError
    assert error.args == (7,)
    assert type(error.__cause__) is octaskly.RemoteTraceback
    assert "in fail" in "".join(traceback.format_exception(error))


def test_an_exception_that_cannot_be_pickled_is_described_in_words(
    executor: octaskly.Executor,
) -> None:
    """Or one that cannot be unpickled."""

    def open_raise() -> NoReturn:
        raise ValueError(unpicklable_numbers())

    def picky_raise() -> NoReturn:
        raise Unrestorable(1, 2)

    assert "ValueError: <generator" in str(raised(executor, open_raise))
    error = raised(executor, picky_raise)
    assert type(error) is octaskly.RemoteError
    assert str(error).endswith("Unrestorable: 1 and 2")


@pytest.mark.parametrize(
    ("end", "says", "code", "number"),
    [
        (lambda: os._exit(3), "exit code 3", 3, None),
        (lambda: os._exit(0), "exit code 0", 0, None),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV", 139, 11),
    ],
    ids=["exit", "exit 0", "segfault"],
)
def test_a_call_that_ends_its_interpreter_fails_alone(
    executor: octaskly.Executor,
    end: Callable[[], None],
    says: str,
    code: int,
    number: int | None,
) -> None:
    """The error says how and where; the executor goes on."""
    beside = executor.submit(pow, 2, 8)
    error = raised(executor, end)

    assert isinstance(error, octaskly.BrokenCall)
    assert isinstance(error, BrokenExecutor)
    assert (error.exit_code, error.signal) == (code, number)
    assert says in str(error)
    assert str(error.node) in ("ash", "birch")
    assert f" on {error.node}" in str(error)
    assert beside.result(RESULT_S_MAX) == 256
    assert executor.submit(pow, 2, 9).result(RESULT_S_MAX) == 512


def test_an_unpicklable_argument_is_reported_at_once(
    executor: octaskly.Executor,
) -> None:
    """Before anything is sent."""
    with pytest.raises(
        pickle.PicklingError, match=r"argument 2 of fail\(\).*generator"
    ):
        executor.submit(fail, 1, unpicklable_numbers())
    with pytest.raises(pickle.PicklingError, match=r"argument 'value' of fail\(\)"):
        executor.submit(fail, value=sys._getframe())
    with pytest.raises(pickle.PicklingError, match=r"call 1, argument 1 of fail\(\)"):
        executor.map(fail, [1, unpicklable_numbers()], chunksize=2)


def test_an_unpicklable_result_is_an_error(
    executor: octaskly.Executor,
) -> None:
    """The call was performed, and its value stays there."""
    error = raised(executor, unpicklable_numbers)

    assert isinstance(error, octaskly.ResultLost)
    assert "of type generator, cannot be pickled" in str(error)


def test_the_output_of_a_call_is_in_the_log_of_its_task(
    executor: octaskly.Executor, agents: list[Agent]
) -> None:
    """Also that of its child processes; the result is not disturbed."""

    def print_some() -> str:
        print("from Python")
        subprocess.run(
            ["sh", "-c", "echo from a program; echo and its errors >&2"], check=True
        )
        return os.environ["OCTASKLY_TASK_ID"]

    task = executor.submit(print_some).result(RESULT_S_MAX)
    stderr = agents[0].call("GET", f"{TASKS}/{task}")[1]["stderr"]

    assert sorted(stderr.split("\n")) == [
        *("", "and its errors", "from Python", "from a program")
    ]


def test_a_version_that_no_node_has_is_an_error(
    agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything waits for ever; it tells what to install where."""
    monkeypatch.setattr("octaskly.executor.executor.python_version", lambda: "3.99")
    with octaskly.Executor(state_dir=agents[0].state, requires={"node": "ash"}) as own:
        error = own.submit(pow, 2, 8).exception(RESULT_S_MAX)

    assert isinstance(error, octaskly.InterpreterMismatch)
    assert "install python3.99 on ash" in str(error)


def test_an_executor_cannot_require_another_version(tmp_path: Path) -> None:
    """It is not ignored; the own one may be named."""
    wrong = "requires.python is '3.99'"
    with pytest.raises(octaskly.Invalid, match=wrong) as caught:
        octaskly.Executor(state_dir=tmp_path, requires={"python": "3.99"})
    assert "run this program with Python 3.99" in str(caught.value)
    own = call_runner.python_version()
    octaskly.Executor(state_dir=tmp_path, requires={"python": own}).shutdown()
    octaskly.Executor(
        state_dir=tmp_path, requires={"python": "3.99"}, python="/opt/python3.99"
    ).shutdown()


@pytest.mark.skipif(len(VERSIONS) < 2, reason="needs two versions of Python")
def test_a_call_runs_with_the_version_of_its_caller(
    agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any on the node's PATH; its agent may have another one."""
    version = VERSIONS[1]
    monkeypatch.setattr("octaskly.executor.executor.python_version", lambda: version)
    monkeypatch.setattr(call_runner, "python_version", lambda: version)
    with octaskly.Executor(state_dir=agents[0].state) as executor:
        ran = executor.submit(platform.python_version).result(RESULT_S_MAX)

    assert ran.startswith(f"{version}.")


def test_an_interpreter_that_lacks_something_is_named(
    agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command for its node."""
    monkeypatch.setattr(cloudpickle, "__version__", "99.1")
    with octaskly.Executor(
        state_dir=agents[0].state, python=sys.executable, requires={"node": "birch"}
    ) as own:
        error = own.submit(pow, 2, 8).exception(RESULT_S_MAX)

    assert isinstance(error, octaskly.InterpreterMismatch)
    assert f"{sys.executable} has cloudpickle" in str(error)
    assert error.hint == (
        f"{sys.executable} -m pip install 'cloudpickle==99.*'    on birch"
    )


def test_lists_show_the_call_of_a_task(
    executor: octaskly.Executor, agents: list[Agent]
) -> None:
    """Of several that one task runs, the first and how many more."""

    def where(*_values: object, **_named: object) -> str:
        return os.environ["OCTASKLY_TASK_ID"]

    one = executor.submit(where, 3, seed=7, of="a\nb").result(RESULT_S_MAX)
    three = next(executor.map(where, range(3), chunksize=3))
    shown = [agents[0].call("GET", f"{TASKS}/{task}")[1] for task in (one, three)]

    assert [task["call"] for task in shown] == [
        r"where(3, seed=7, of='a\nb')",
        "where(0) and 2 more",
    ]
    assert [task["name"] for task in shown] == ["where", "where"]


def test_large_arguments_and_results_are_files(
    executor: octaskly.Executor, agents: list[Agent]
) -> None:
    """A shared argument goes to each node once; a call may change its own copy."""
    shared = Array(bytearray(os.urandom(2_000_000)))
    before = [files_of(agent) for agent in agents]

    def turned(array: Array, number: int) -> Array:
        array.data[0] = number
        return Array(bytearray(array.data)[::-1])

    futures = [executor.submit(turned, shared, number) for number in range(6)]
    for number, future in enumerate(futures):
        data = future.result(RESULT_S_MAX).data
        assert len(data) == 2_000_000
        assert data[-1] == number
        assert bytes(data[:-1]) == bytes(shared.data[:0:-1])
    after = [files_of(agent) for agent in agents]
    came = [len(now - then) for now, then in zip(after, before, strict=True)]
    assert max(came) == 2, came  # The array, and the list of the call's files.


def test_calls_find_the_files_that_were_sent(
    agents: list[Agent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules can be imported; large values lie beside; commands get them, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "sent_module.py").write_text(
        "def read(array):\n"
        "    return open('data.txt').read(), len(array.data), __file__\n"
    )
    sent_module = importlib.import_module("sent_module")
    large = Array(bytearray(os.urandom(1_000_000)))
    with octaskly.Executor(
        state_dir=agents[1].state,
        inputs=["data.txt", "sent_module.py"],
        requires={"node": "ash"},
    ) as executor:
        read, size, module = executor.submit(sent_module.read, large).result(
            RESULT_S_MAX
        )
        command = executor.submit_command("cp data.txt made", outputs=["made"])
        own = executor.submit_command("ls", inputs={"data.txt": "other"})
        command.result(RESULT_S_MAX).fetch(tmp_path / "home")
        missing = executor.submit_command("true", inputs="no").exception(RESULT_S_MAX)

    assert (read, size) == ("data", 1_000_000)
    assert not Path(module).is_relative_to(tmp_path)
    assert (tmp_path / "home" / "made").read_text() == "data"
    assert own.result().stdout == "other\n"
    assert isinstance(missing, octaskly.ManifestError)


def test_inputs_are_lent_and_an_edited_one_is_an_error(
    agents: list[Agent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take no room at the node; no call runs with other bytes than the first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = os.urandom(2_000_000)
    (tmp_path / "data").write_bytes(data)
    with octaskly.Executor(
        state_dir=agents[1].state, inputs="data", requires={"node": "ash"}
    ) as executor:
        read = executor.submit(lambda: open("data", "rb").read())  # noqa: PTH123, SIM115
        assert read.result(RESULT_S_MAX) == data
        command = executor.submit_command("wc -c < data").result(RESULT_S_MAX)
        for agent in agents:
            for name in files_of(agent):
                (agent.state / "files" / name).unlink()
        (tmp_path / "data").write_bytes(data[::-1])
        late = executor.submit_command("wc -c < data").exception(RESULT_S_MAX)

    assert (command.stdout, command.tree and command.tree.lent) == ("2000000\n", True)
    assert isinstance(late, octaskly.ManifestError)
    assert "'" + str(tmp_path / "data") + "' changes while it is sent" in str(late)


def files_of(agent: Agent) -> set[str]:
    """Return the files that are stored; the first use of the store adds one more."""
    folder = agent.state / "files"
    names = {p.name for p in folder.iterdir()} if folder.exists() else set()
    return names - {BOOT_NAME}


def test_a_waiting_future_can_be_cancelled(
    agents: list[Agent], executor: octaskly.Executor
) -> None:
    """With its task, if the mesh has it already."""
    with octaskly.Executor(1, state_dir=agents[0].state, requires=NOWHERE) as waits:
        sent, kept = waits.submit(pow, 2, 8), waits.submit(pow, 2, 9)
        path = f"{TASKS}/{waits._prefix}-0"
        until(lambda: agents[0].call("GET", path)[0] == 200, "it is in the mesh")

        assert sent.cancel()
        assert kept.cancel()
    task = agents[0].call("GET", path)[1]
    assert (task["status"], sent.cancelled()) == ("cancelled", True)
    assert agents[0].call("GET", f"{TASKS}/{waits._prefix}-1")[0] == 404
    running = executor.submit(time.sleep, 0.5)
    until(lambda: running.running() or running.done(), "it runs")
    assert not running.cancel()


def test_a_shutdown_cancels_calls_that_have_not_started(
    agents: list[Agent], tmp_path: Path
) -> None:
    """CPython's test of this relies on a start within a moment."""

    def wait_for(gate: str) -> None:
        while not os.path.exists(gate):  # noqa: PTH110
            time.sleep(0.05)

    executor = octaskly.Executor(2, state_dir=agents[1].state)
    gate = tmp_path / "gate"
    futures = [executor.submit(wait_for, str(gate)) for _ in range(20)]
    until(futures[0].running, "it runs")
    executor.shutdown(wait=False, cancel_futures=True)
    gate.touch()
    executor.shutdown()

    cancelled = [future for future in futures if future.cancelled()]
    others = [future for future in futures if not future.cancelled()]
    assert len(cancelled) > 10
    assert [future.exception(0) for future in others] == [None] * len(others)
    assert others


def test_map_reads_no_more_items_than_its_buffer(
    executor: octaskly.Executor,
) -> None:
    """So items may be endless, as with Python 3.14."""
    taken = itertools.count()
    results = executor.map(
        pow, taken, itertools.repeat(2), chunksize=3, buffersize=2, timeout=RESULT_S_MAX
    )

    assert [next(results) for _ in range(4)] == [0, 1, 4, 9]
    assert next(taken) == 12
    for wrong in ({"chunksize": 0}, {"buffersize": 0}):
        with pytest.raises(ValueError, match="must be"):
            executor.map(pow, [1], [2], **wrong)


def test_commands_are_futures_too(executor: octaskly.Executor) -> None:
    """A failed command is no exception."""
    future = executor.submit_command("cat; exit 3", stdin="hello", name="cat")
    task = future.result(RESULT_S_MAX)

    assert (task.exit_code, task.output_bytes("stdout")) == (3, b"hello")
    assert task.name == "cat"


async def test_asyncio_accepts_it_as_an_executor(agents: list[Agent]) -> None:
    """`run_in_executor` needs only the base class."""
    executor = octaskly.Executor(state_dir=agents[1].state)
    loop = asyncio.get_running_loop()
    try:
        assert await loop.run_in_executor(executor, pow, 2, 8) == 256
    finally:
        await asyncio.to_thread(executor.shutdown)


def test_options_of_the_executor_apply_to_each_call(
    agents: list[Agent], executor: octaskly.Executor
) -> None:
    """Node, environment and interpreter, for example."""
    del executor
    env = {"COLOUR": "teal"}
    with octaskly.Executor(
        state_dir=agents[1].state,
        requires={"node": "birch"},
        env=env,
        python="/no/such/python",
    ) as broken:
        error = raised(broken, os.getenv, "COLOUR")
    assert isinstance(error, octaskly.BrokenCall)
    assert "exit code 127 on birch" in str(error)
    assert "/no/such/python" in str(error)
    with octaskly.Executor(
        state_dir=agents[1].state, requires={"node": "ash"}, env=env
    ) as good:
        assert good.submit(os.getenv, "COLOUR").result(RESULT_S_MAX) == "teal"
        assert good.submit(os.getenv, "OCTASKLY_NODE").result(RESULT_S_MAX) == "ash"
    with pytest.raises(octaskly.Invalid, match="has no field"):
        octaskly.Executor(state_dir=agents[1].state, colour="teal")  # type: ignore[call-arg]


def test_an_unreachable_mesh_breaks_the_executor(tmp_path: Path) -> None:
    """Submitted and later calls fail with the reason."""
    with octaskly.Executor(state_dir=tmp_path, retry_timeout_s=0.1) as executor:
        error = executor.submit(pow, 2, 8).exception(RESULT_S_MAX)
        assert isinstance(error, octaskly.MeshLost)
        assert isinstance(error, BrokenExecutor)
        assert str(tmp_path) in str(error)
        with pytest.raises(octaskly.MeshLost):
            executor.submit(pow, 2, 8)
