"""Driver of flows for asyncio, on top of aiohttp."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Final, NoReturn, TypeVar, assert_never

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace

from octaskly.client.endpoint import Endpoint
from octaskly.client.errors import Closed, NoAnswer, ReplyLost, connect_error
from octaskly.client.flows import steps
from octaskly.client.flows.rest_calls import Body, Call, Response
from octaskly.client.http_connection import tls_context
from octaskly.client.listener_check import require_trusted_listener
from octaskly.client.unix_socket import CONNECT_S_MAX, SOCKET_PATH_BYTES_MAX
from octaskly.errors import OctasklyError
from octaskly.system.tcp_table import listeners_on

ERROR_STATUS_MIN: Final = 400
IDLE_S_MAX: Final = 8.0  #: nodes close connections that were idle for 10 s

_T = TypeVar("_T")


class _LoopbackConnector(aiohttp.TCPConnector):
    """Connects to ports of this machine, and checks the listener before any use."""

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,
    ) -> ResponseHandler:
        assert req.url.port is not None  # http:// has a default port.
        before = await asyncio.to_thread(listeners_on, req.url.port)
        protocol = await super()._create_connection(req, traces, timeout)
        assert protocol.transport is not None
        peer = protocol.transport.get_extra_info("peername")
        try:
            await asyncio.to_thread(require_trusted_listener, before, *peer[:2])
        except BaseException:
            protocol.close()
            raise
        return protocol


class AsyncioDriver:
    """Runs flows on one event loop; opens connections to one node on first use."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._session: aiohttp.ClientSession | None = None
        self._owner: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._socket_dir_fd: int | None = None  #: open if the path exceeds `sun_path`
        self._opening = asyncio.Lock()
        self._is_closed = False

    async def run(self, flow: steps.Flow[_T]) -> _T:
        """Run a flow and return its result."""
        flow_run = _AsyncioFlowRun(self)
        result: object = None
        raised: BaseException | None = None
        try:
            while True:
                try:
                    step = flow.send(result) if raised is None else flow.throw(raised)
                except StopIteration as end:
                    value: _T = end.value
                    return value
                result = raised = None
                try:
                    result = await flow_run.perform_step(step)
                except BaseException as error:  # noqa: BLE001 - thrown into the flow
                    raised = error
        finally:
            flow_run.close_stream()

    async def iterate(self, flow: steps.EmittingFlow[_T]) -> AsyncGenerator[_T]:
        """Run a flow and yield its items; closing this early cancels the flow."""
        flow_run = _AsyncioFlowRun(self)
        result: object = None
        raised: BaseException | None = None
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
                        result = await flow_run.perform_step(step)
                except BaseException as error:  # noqa: BLE001 - as above
                    raised = error
        finally:
            flow_run.close_stream()

    async def close(self) -> None:
        """Close all connections, including those in use."""
        self._is_closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if self._socket_dir_fd is not None:
            os.close(self._socket_dir_fd)
            self._socket_dir_fd = None

    async def session(self) -> aiohttp.ClientSession:
        """Return the HTTP session with the node.

        Raises:
            Closed: the client is closed, or belongs to another loop or process.
            Unreachable, ConfigError: the node cannot be found.
        """
        owner = (os.getpid(), asyncio.get_running_loop())
        self._require_open()
        if self._owner not in (None, owner):
            raise Closed(
                "this client belongs to another event loop or process",
                hint="open one AsyncClient in each",
            )
        self._owner = owner
        async with self._opening:
            if self._session is None:
                self._session = await self._open_session()
                if self._is_closed:  # Meanwhile, and without this session.
                    await self.close()
                    self._require_open()
        return self._session

    def _require_open(self) -> None:
        if self._is_closed:
            raise Closed(
                "this client is closed", hint="use it inside its `async with` block"
            )

    async def _open_session(self) -> aiohttp.ClientSession:
        token = self._endpoint.token
        return aiohttp.ClientSession(
            connector=await self._connector(),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Authorization": f"Bearer {token}"} if token else None,
        )

    async def _connector(self) -> aiohttp.BaseConnector:
        target = self._endpoint
        if target.url is None:
            path = await asyncio.to_thread(target.socket_path)
            return aiohttp.UnixConnector(
                self._socket_address(path), limit=0, keepalive_timeout=IDLE_S_MAX
            )
        if target.url.startswith("https:"):
            context = await asyncio.to_thread(tls_context, target.ca)
            return aiohttp.TCPConnector(
                limit=0, keepalive_timeout=IDLE_S_MAX, ssl=context
            )
        kind = _LoopbackConnector if target.token else aiohttp.TCPConnector
        return kind(limit=0, keepalive_timeout=IDLE_S_MAX)

    def _socket_address(self, path: Path) -> str:
        """Return the path of a socket, shortened through `/proc/self/fd` if needed."""
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            return str(path)
        if self._socket_dir_fd is None:
            self._socket_dir_fd = os.open(
                path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            )
        return f"/proc/self/fd/{self._socket_dir_fd}/{path.name}"

    async def start_request(
        self, call: Call, timeout_s: float
    ) -> aiohttp.ClientResponse:
        """Send a request; return its response with the body unread."""
        session = await self.session()
        headers = {"Accept": "application/json", **call.headers}
        if call.body is not None:
            headers.setdefault("Content-Type", "application/json")
            headers["Content-Length"] = str(len(call.body))
        base = self._endpoint.url or "http://localhost"
        try:
            async with asyncio.timeout(timeout_s):
                return await session.request(
                    call.method,
                    base + call.target,
                    data=_payload(call.body),
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_S_MAX),
                )
        except aiohttp.ClientConnectorError as error:
            raise connect_error(self.node_label, error) from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error.__cause__, OctasklyError):  # The body cannot be read.
                raise error.__cause__ from None
            self.raise_lost("closed the connection before it answered", error)

    @property
    def node_label(self) -> str:
        """Name of the node in error messages."""
        return self._endpoint.label

    def raise_lost(self, message: str, error: BaseException) -> NoReturn:
        """Raise the error for a lost response."""
        if isinstance(error, TimeoutError):
            raise NoAnswer(f"{self.node_label} did not answer in time") from error
        raise ReplyLost(f"{self.node_label} {message}") from error


def _payload(
    body: Body | None,
) -> bytes | memoryview | AsyncIterator[bytes | memoryview] | None:
    """Return a body as aiohttp takes it; parts are read in a thread."""
    if body is None or isinstance(body, bytes | memoryview):
        return body
    return _read_parts(iter(body))


async def _read_parts(
    parts: Iterator[bytes | memoryview],
) -> AsyncIterator[bytes | memoryview]:
    while part := await asyncio.to_thread(next, parts, b""):
        yield part


class _AsyncioFlowRun:
    """One run of a flow, with its open stream if any."""

    def __init__(self, driver: AsyncioDriver) -> None:
        self._driver = driver
        self._response: aiohttp.ClientResponse | None = None

    async def perform_step(self, step: steps.Step) -> object:
        match step:
            case steps.SendRequest(call, timeout_s):
                return await self._read_response(
                    await self._driver.start_request(call, timeout_s), timeout_s
                )
            case steps.OpenStream(call, timeout_s):
                return await self._open_stream(call, timeout_s)
            case steps.ReadStream(timeout_s):
                return await self._read_chunk(timeout_s)
            case steps.Sleep(seconds):
                await asyncio.sleep(seconds)
            case steps.RunBlocking(function):
                return await asyncio.to_thread(function)
            case steps.CloseStream():
                self.close_stream()
            case _:
                assert_never(step)
        return None

    def close_stream(self) -> None:
        """Close the stream with its connection, because unread bytes may remain."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    async def _open_stream(self, call: Call, timeout_s: float) -> Response:
        self.close_stream()
        response = await self._driver.start_request(call, timeout_s)
        if response.status >= ERROR_STATUS_MIN:
            return await self._read_response(response, timeout_s)
        self._response = response
        return Response(response.status, _headers(response), b"")

    async def _read_response(
        self, response: aiohttp.ClientResponse, timeout_s: float
    ) -> Response:
        try:
            async with asyncio.timeout(timeout_s), response:
                return Response(
                    response.status, _headers(response), await response.read()
                )
        except (aiohttp.ClientError, OSError) as error:
            self._driver.raise_lost("stopped in the middle of its answer", error)

    async def _read_chunk(self, timeout_s: float) -> bytes:
        assert self._response is not None
        try:
            async with asyncio.timeout(timeout_s):
                return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            self.close_stream()
            self._driver.raise_lost("stopped in the middle of a stream", error)


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
