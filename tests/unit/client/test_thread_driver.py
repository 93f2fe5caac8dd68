"""Flows in threads, interrupted by Ctrl-C at every line."""

from __future__ import annotations

import itertools
import json
import linecache
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, cast

import pytest

import octaskly.client
from octaskly.client.drivers import thread_driver
from octaskly.client.drivers.thread_driver import ThreadDriver
from octaskly.client.endpoint import Endpoint
from octaskly.client.errors import Closed
from octaskly.client.flows import arrays, tasks
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.rest_calls import Call, Response
from octaskly.client.flows.steps import (
    CloseStream,
    OpenStream,
    ReadStream,
    SendRequest,
    Step,
)

CLIENT = str(Path(octaskly.client.__file__).parent)


class Mesh:
    """A mesh that remembers submissions by key; its tasks end in their time."""

    def __init__(self) -> None:
        self.status: dict[str, str] = {}
        self._polls = 0
        self._events: list[bytes] = []

    def perform(self, step: Step) -> object:
        match step:
            case SendRequest(call, _):
                return self._answer(call)
            case OpenStream(call, _):
                return self._open(call)
            case ReadStream():
                return self._events.pop(0)
            case _:
                assert step == CloseStream()
        return None

    def _answer(self, call: Call) -> Response:
        if call.method == "POST":
            task = call.headers["Idempotency-Key"]
            self.status.setdefault(task, "running")
            return self._task_response(task)
        task = call.path.rpartition("/")[2]
        if call.method == "DELETE":
            self.status[task] = "cancelled"
        else:
            self._polls += 1
            if self._polls == 2:
                self.status[task] = "completed"
        return self._task_response(task)

    def _open(self, call: Call) -> Response:
        task = call.path.split("/")[-2]
        self.status[task] = "completed"
        done = {"id": task, "status": "completed"}
        self._events = [
            _sse("result", done | {"position": 0}),
            _sse("end", done | {"array": {"completed": 1}}),
        ]
        return Response(200, {}, b"")

    def _task_response(self, task: str) -> Response:
        body = {"id": task, "status": self.status[task]}
        return Response(200, {}, json.dumps(body).encode())


class Stage:
    """Performs the steps of a flow in a mesh without connections."""

    def __init__(self, mesh: Mesh, _pool: ThreadDriver) -> None:
        self.perform_step = mesh.perform

    def close_stream(self) -> None:
        """Close the stream; nothing to do here."""


def _sse(kind: str, data: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def run(asker: RequestFlow, at: ThreadDriver) -> None:
    at.run(
        tasks.run(
            asker,
            "true",
            {},
            check=False,
            durability=None,
            deadline=asker.deadline_after(None),
        )
    )


def map_(asker: RequestFlow, at: ThreadDriver) -> None:
    flow = arrays.map_(
        asker, "f {}", ["a"], {}, ordered=True, deadline=asker.deadline_after(None)
    )
    for _ in at.iterate(flow):
        pass


def interrupt_at(line: int) -> Callable[[FrameType, str, object], Any]:
    """Return a trace function that interrupts the client at this line number."""
    lines = itertools.count()

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(CLIENT):
            return None
        counts = event == "line" and not _does_nothing(path, frame.f_lineno)
        if counts and next(lines) == line:
            sys.settrace(None)
            raise KeyboardInterrupt(f"{path}:{frame.f_lineno}")
        return trace

    return trace


def _does_nothing(path: str, number: int) -> bool:
    """Return True if Python checks no signals there and no `except` can run."""
    return linecache.getline(path, number).strip() in {"try:", "while True:"}


@pytest.fixture(autouse=True)
def tracing() -> Iterator[None]:
    """Restore the trace function of coverage tools and debuggers."""
    before = sys.gettrace()
    yield
    sys.settrace(before)


@pytest.mark.parametrize("word", [run, map_])
def test_ctrl_c_at_any_line_leaves_no_task_running(
    monkeypatch: pytest.MonkeyPatch, word: Callable[[RequestFlow, ThreadDriver], None]
) -> None:
    """Inside a step, between two steps, or before an answer is read."""
    cancelled = 0
    for line in itertools.count():
        mesh = Mesh()
        monkeypatch.setattr(thread_driver, "_ThreadFlowRun", partial(Stage, mesh))
        keys = (f"key-{n}" for n in itertools.count())
        asker = RequestFlow(
            "the node", clock=time.monotonic, random=lambda: 0.0, new_key=keys.__next__
        )
        at = ThreadDriver(Endpoint(url="http://127.0.0.1:1"))
        sys.settrace(interrupt_at(line))
        try:
            word(asker, at)
        except KeyboardInterrupt as interrupt:
            where = str(interrupt)
        else:
            break
        finally:
            sys.settrace(None)
        assert "running" not in mesh.status.values(), where
        cancelled += "cancelled" in mesh.status.values()
    assert cancelled > 9


class FakeConnection:
    """A connection whose answers come when its client has just been closed."""

    def __init__(self, before_answer: Callable[[], None]) -> None:
        self._before_answer = before_answer
        self.is_closed = self.is_aborted = False

    def send_request(self, *_request: object) -> Any:
        self._before_answer()
        return SimpleNamespace(status=200, getheaders=list)

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        self.is_closed = True


def _stream(driver: ThreadDriver) -> None:
    """Open a stream, and read it."""

    def flow() -> Any:
        yield OpenStream(Call("GET", "/api/v1/events"), 1.0)
        yield ReadStream(1.0)

    driver.run(flow())


def test_a_stream_that_opens_while_its_client_is_closed_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would never end: the node sends a sign of life from time to time."""
    driver = ThreadDriver(Endpoint(url="http://127.0.0.1:1"))
    connection = FakeConnection(driver.close)
    monkeypatch.setattr(driver, "acquire_connection", lambda: connection)

    with pytest.raises(Closed):
        _stream(driver)

    assert connection.is_closed


def test_a_forked_child_leaves_the_streams_of_its_parent_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its sockets are those of the parent."""
    driver = ThreadDriver(Endpoint(url="http://127.0.0.1:1"))
    connection = FakeConnection(lambda: None)
    driver.streams.add(cast("Any", connection))

    monkeypatch.setattr(os, "getpid", lambda: -1)
    driver.acquire_connection().close()
    driver.close()

    assert not connection.is_aborted
