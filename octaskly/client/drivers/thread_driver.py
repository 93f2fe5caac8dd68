"""Blocking driver of flows, with a connection pool that threads share."""

from __future__ import annotations

import http.client
import os
import time
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from typing import Final, TypeVar, assert_never

from octaskly.client.endpoint import Endpoint
from octaskly.client.errors import Closed, ReplyLost
from octaskly.client.flows import steps
from octaskly.client.flows.rest_calls import Call, Response
from octaskly.client.http_connection import HttpConnection, headers_of

IDLE_MAX: Final = 8  #: idle connections kept in the pool
CHUNK_BYTES: Final = 1 << 16
ERROR_STATUS_MIN: Final = 400

_T = TypeVar("_T")


class ThreadDriver:
    """Runs flows over a pool of connections to one node.

    The pool needs no lock, because `append` and `pop` of a deque are atomic. After a
    fork, the child opens connections of its own.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._idle: deque[HttpConnection] = deque()
        self.streams: set[HttpConnection] = set()  #: connections with an open stream
        self._pid = os.getpid()
        self._is_closed = False

    def run(self, flow: steps.Flow[_T], raised: BaseException | None = None) -> _T:
        """Run a flow and return its result; `raised` is thrown into it first."""
        flow_run = _ThreadFlowRun(self)
        result: object = None
        try:
            while True:
                try:
                    step = flow.send(result) if raised is None else flow.throw(raised)
                except StopIteration as end:
                    value: _T = end.value
                    return value
                result = raised = None
                try:
                    result = flow_run.perform_step(step)
                except BaseException as error:  # noqa: BLE001 - thrown into the flow
                    raised = error
        except BaseException as error:
            if steps.is_finished(flow):
                raise
            # The flow must also receive a Ctrl-C that arrives between two steps.
            return self.run(flow, error)
        finally:
            flow_run.close_stream()

    def iterate(
        self, flow: steps.EmittingFlow[_T], raised: BaseException | None = None
    ) -> Generator[_T]:
        """Run a flow and yield its items; closing this early cancels the flow."""
        flow_run = _ThreadFlowRun(self)
        result: object = None
        try:
            while True:
                try:
                    step = flow.send(result) if raised is None else flow.throw(raised)
                except StopIteration:
                    return
                result = raised = None
                try:
                    if isinstance(step, steps.Emit):
                        yield step.item
                    else:
                        result = flow_run.perform_step(step)
                except BaseException as error:  # noqa: BLE001 - as above
                    raised = error
        except BaseException as error:
            if steps.is_finished(flow):
                raise
            yield from self.iterate(flow, error)  # As above.
        finally:
            flow_run.close_stream()

    def require_open(self) -> None:
        """Raise Closed if the client is closed."""
        if self._is_closed:
            raise Closed("this client is closed", hint="use it inside its `with` block")

    def acquire_connection(self) -> HttpConnection:
        """Return a connection for one request.

        Raises:
            Closed: the client is closed.
        """
        self.require_open()
        if self._pid != os.getpid():
            self._pid = os.getpid()
            # Those of the parent are its own.
            self._idle = deque()
            self.streams = set()
        with suppress(IndexError):
            return self._idle.pop()
        target = self._endpoint
        if target.url is None:
            return HttpConnection.at_socket(target.socket_path())
        return HttpConnection.at_url(target.url, token=target.token, ca_file=target.ca)

    def release_connection(self, connection: HttpConnection) -> None:
        """Return a connection to the pool, after its response was read completely."""
        if self._is_closed or len(self._idle) >= IDLE_MAX:
            connection.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Close idle connections now, and connections in use when they are released.

        A thread that reads a stream gets `Closed`.
        """
        self._is_closed = True
        if self._pid == os.getpid():
            for stream in list(self.streams):
                stream.abort()
        with suppress(IndexError):
            while True:
                self._idle.pop().close()


class _ThreadFlowRun:
    """One run of a flow, with its open stream if any."""

    def __init__(self, driver: ThreadDriver) -> None:
        self._driver = driver
        self._connection: HttpConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._pid = os.getpid()

    def perform_step(self, step: steps.Step) -> object:
        match step:
            case steps.SendRequest(call, timeout_s):
                return self._send_request(call, timeout_s)
            case steps.OpenStream(call, timeout_s):
                return self._open_stream(call, timeout_s)
            case steps.ReadStream(timeout_s):
                return self._read_chunk(timeout_s)
            case steps.Sleep(seconds):
                time.sleep(seconds)
            case steps.RunBlocking(function):
                return function()
            case steps.CloseStream():
                self.close_stream()
            case _:
                assert_never(step)
        return None

    def close_stream(self) -> None:
        """Close the stream with its connection, because unread bytes may remain."""
        if self._connection is not None and self._pid == os.getpid():
            self._driver.streams.discard(self._connection)
            self._connection.close()
        self._connection = self._response = None

    def _send_request(self, call: Call, timeout_s: float) -> Response:
        connection = self._driver.acquire_connection()
        reply = connection.request(call, timeout_s)
        self._driver.release_connection(connection)
        return reply

    def _open_stream(self, call: Call, timeout_s: float) -> Response:
        self.close_stream()
        connection = self._driver.acquire_connection()
        response = connection.send_request(
            call.method, call.target, call.body, call.headers, timeout_s
        )
        if response.status >= ERROR_STATUS_MIN:
            reply = connection.read_response(response)
            self._driver.release_connection(connection)
            return reply
        self._connection, self._response = connection, response
        self._driver.streams.add(connection)
        self._driver.require_open()  # Else `close` may have missed this stream.
        return Response(response.status, headers_of(response), b"")

    def _read_chunk(self, timeout_s: float) -> bytes:
        if self._pid != os.getpid():
            raise Closed(
                "this stream belongs to the process that opened it",
                hint="open another one after the fork",
            )
        assert self._connection is not None
        assert self._response is not None
        try:
            return self._connection.read_chunk(self._response, CHUNK_BYTES, timeout_s)
        except ReplyLost:
            self.close_stream()
            raise
