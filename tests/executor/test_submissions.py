"""Submissions of an executor: what a node refuses, a full queue, and reused ids."""

from __future__ import annotations

import pickle
import queue
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import octaskly
from octaskly.client.drivers.thread_driver import ThreadDriver
from octaskly.client.flows import tasks
from tests.support.agents import Agent, running, until, until_nodes

RESULT_S_MAX = 90.0


@pytest.fixture
def executor(agents: list[Agent]) -> Iterator[octaskly.Executor]:
    """An executor at the agent that is not dispatcher."""
    with octaskly.Executor(state_dir=agents[1].state) as executor:
        yield executor


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"cwd": "a/../b"}, "field: cwd"),
        ({"name": "\ud800"}, "lone surrogate"),
        ({"after": ["task-000000000001-00000000"]}, "Parent task not found"),
    ],
)
def test_an_invalid_command_fails_alone(
    executor: octaskly.Executor, wrong: Any, says: str
) -> None:
    """Commands that were submitted with it run; its error names its own field."""
    before = [executor.submit_command(f"echo {n}") for n in range(3)]
    bad = executor.submit_command("true", **wrong)
    after = [executor.submit_command(f"echo {n}") for n in range(3, 6)]

    error = bad.exception(RESULT_S_MAX)
    assert isinstance(error, octaskly.Invalid)
    assert says in str(error)
    assert "$[" not in str(error)
    results = [future.result(RESULT_S_MAX).stdout for future in before + after]
    assert results == [f"{n}\n" for n in range(6)]


def test_an_id_that_was_used_before_gives_the_ended_task(
    executor: octaskly.Executor, agents: list[Agent]
) -> None:
    """As `Client.run` returns it; another command with this id is refused."""
    with octaskly.Client(state_dir=agents[0].state) as client:
        client.run("echo once", id="used-before")
    again = executor.submit_command("echo once", id="used-before")
    other = executor.submit_command("echo twice", id="used-before")
    beside = executor.submit_command("echo beside")

    assert again.result(RESULT_S_MAX).stdout == "once\n"
    assert isinstance(other.exception(RESULT_S_MAX), octaskly.Conflict)
    assert beside.result(RESULT_S_MAX).stdout == "beside\n"


@pytest.mark.parametrize("max_workers", [1, None])
def test_futures_may_share_an_id(agents: list[Agent], max_workers: int | None) -> None:
    """Equal commands share one task; a different one is refused."""
    with octaskly.Executor(max_workers, state_dir=agents[1].state) as executor:
        name = f"shared-{max_workers}"
        commands = ["sleep 0.5; echo one"] * 3 + ["echo two"]
        futures = [executor.submit_command(text, id=name) for text in commands]
        *same, other = [future.exception(RESULT_S_MAX) for future in futures]

    assert same == [None] * 3
    assert {future.result().stdout for future in futures[:3]} == {"one\n"}
    assert isinstance(other, octaskly.Conflict)


@pytest.fixture(scope="module")
def small() -> Iterator[Agent]:
    """A mesh with a short queue."""
    limits = ("--queue-max", "6", "--queued-bytes-per-subject", "1M")
    with (
        tempfile.TemporaryDirectory(prefix="octaskly-") as folder,
        running(Path(folder), "small", extra=("--slots", "4", *limits)) as [agent],
    ):
        until_nodes(agent, 1)
        yield agent


def test_a_batch_larger_than_the_queue_is_divided(small: Agent) -> None:
    """A task that alone exceeds a limit fails; the others run."""
    with octaskly.Executor(state_dir=small.state) as executor:
        huge = executor.submit_command(
            "wc -c", stdin=b"x" * (1 << 20), env={"MORE": "x" * 5000}
        )
        futures = [executor.submit_command(f"echo {n}") for n in range(20)]

        results = [future.result(RESULT_S_MAX).stdout for future in futures]
        error = huge.exception(RESULT_S_MAX)
    assert results == [f"{n}\n" for n in range(20)]
    assert isinstance(error, octaskly.TooMany)
    assert "these tasks have" in str(error)


def test_a_full_queue_is_asked_again_when_it_says(
    small: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a second, even if the executor retries no request."""
    asked_s: list[float] = []
    run = ThreadDriver.run

    def noted(self: ThreadDriver, flow: Any) -> Any:
        if flow.__name__ == tasks.submit_draft.__name__:
            asked_s.append(time.monotonic())
        return run(self, flow)

    with octaskly.Client(state_dir=small.state) as client:
        first = client.submit("sleep 60")
        waiting = [client.submit("true", after=[first.id]) for _ in range(6)]
        monkeypatch.setattr(ThreadDriver, "run", noted)
        with octaskly.Executor(state_dir=small.state, retry_timeout_s=0) as executor:
            future = executor.submit_command("echo ran")
            until(lambda: len(asked_s) > 1, "it is submitted again")
            was_done = future.done()
            for task in waiting:
                client.cancel(task)
            assert future.result(RESULT_S_MAX).stdout == "ran\n"
        client.cancel(first, force=True)

    assert not was_done
    assert asked_s[1] - asked_s[0] >= 1.0


class Large:
    """A value that is pickled as a view of its memory, as arrays are."""

    def __init__(self, memory: bytearray | memoryview) -> None:
        self.memory = memory

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Large, (pickle.PickleBuffer(self.memory),)


def _first_byte(value: Large) -> int:
    return bytes(value.memory)[0]


@pytest.mark.parametrize("is_read_only", [False, True])
def test_a_value_may_be_changed_once_it_was_submitted(
    executor: octaskly.Executor, is_read_only: bool
) -> None:
    """Each call gets what the value was then, however large it is."""
    memory = bytearray(1_000_000)
    value = Large(memoryview(memory).toreadonly() if is_read_only else memory)
    futures = []
    for number in range(4):
        memory[:] = bytes([number]) * len(memory)
        futures.append(executor.submit(_first_byte, value))

    assert [future.result(RESULT_S_MAX) for future in futures] == [0, 1, 2, 3]


def test_a_cancelled_future_cancels_no_task_that_it_did_not_get(
    agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mesh refuses its id while it is cancelled: the task is somebody else's."""
    with (
        octaskly.Client(state_dir=agents[0].state) as client,
        octaskly.Executor(state_dir=agents[1].state) as executor,
    ):
        client.submit("sleep 60", id="theirs")
        mesh, made = executor._engine._mesh, queue.SimpleQueue[Any]()
        submit_each = mesh.submit_each

        def submit_and_cancel(drafts: Any) -> Any:
            monkeypatch.setattr(mesh, "submit_each", submit_each)
            assert made.get().cancel()
            return submit_each(drafts)

        monkeypatch.setattr(mesh, "submit_each", submit_and_cancel)
        made.put(executor.submit_command("echo other", id="theirs"))
        assert executor.submit_command("true").result(RESULT_S_MAX).exit_code == 0

        assert client.task("theirs").status in ("queued", "running")
        client.cancel("theirs", force=True)


def test_an_unexpected_error_ends_all_futures(
    agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they, and the end of the program, would wait for ever."""
    with octaskly.Executor(state_dir=agents[1].state) as executor:

        def fail(_drafts: Any) -> Any:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(executor._engine._mesh, "submit_each", fail)
        error = executor.submit_command("true").exception(RESULT_S_MAX)

    assert isinstance(error, octaskly.MeshLost)
    assert "new thread" in str(error)


def test_tasks_whose_answer_was_lost_are_cancelled(
    agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their futures have failed, so a program may submit the same work again."""
    with (
        octaskly.Client(state_dir=agents[0].state) as client,
        octaskly.Executor(state_dir=agents[1].state) as executor,
    ):
        mesh = executor._engine._mesh
        submit_each, accepted = mesh.submit_each, queue.SimpleQueue[str]()

        def submit_and_lose(drafts: Any) -> Any:
            for task in submit_each(drafts):
                assert isinstance(task, octaskly.Task)
                accepted.put(task.id)
                yield octaskly.ReplyLost("the connection was lost")

        monkeypatch.setattr(mesh, "submit_each", submit_and_lose)
        futures = [executor.submit_command("sleep 60") for _ in range(2)]
        errors = [each.exception(RESULT_S_MAX) for each in futures]
        ids = [accepted.get(timeout=RESULT_S_MAX) for _ in range(2)]
        until(
            lambda: {client.task(each).status for each in ids} == {"cancelled"},
            "the tasks are cancelled",
        )

    assert {type(error) for error in errors} == {octaskly.ReplyLost}


def test_a_cancelled_future_cancels_its_task_though_the_answer_was_lost(
    agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node has accepted it, but its future has ended."""
    with (
        octaskly.Client(state_dir=agents[0].state) as client,
        octaskly.Executor(state_dir=agents[1].state) as executor,
    ):
        mesh, made = executor._engine._mesh, queue.SimpleQueue[Any]()
        submit_each = mesh.submit_each

        def submit_and_lose(drafts: Any) -> Any:
            [task] = submit_each(drafts)
            assert isinstance(task, octaskly.Task)
            assert made.get().cancel()
            accepted.put(task.id)
            return iter([octaskly.ReplyLost("the connection was lost")])

        monkeypatch.setattr(mesh, "submit_each", submit_and_lose)
        accepted = queue.SimpleQueue[str]()
        made.put(executor.submit_command("sleep 60"))
        task = accepted.get(timeout=RESULT_S_MAX)
        until(lambda: client.task(task).status == "cancelled", "the task is cancelled")
