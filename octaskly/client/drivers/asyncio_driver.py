"""The steps of flows, performed on an event loop, by aiohttp."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final, NoReturn, TypeVar, assert_never

import aiohttp

from octaskly.client.endpoint import Target
from octaskly.client.errors import Closed, NoAnswer, ReplyLost, not_connected
from octaskly.client.flows.calls import Call, Reply
from octaskly.client.flows.steps import (
    Begin,
    Emit,
    Emitting,
    Flow,
    Leave,
    Pause,
    Read,
    Send,
    Step,
)
from octaskly.client.http_connection import (
    CONNECT_S_MAX,
    SOCKET_PATH_BYTES_MAX,
    tls_context,
)

OK_BELOW: Final = 400
IDLE_S_MAX: Final = 8.0  #: nodes close connections that were idle for 10 s

_T = TypeVar("_T")


class Loop:
    """Connections to one node, of one event loop, opened when they are needed."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._session: aiohttp.ClientSession | None = None
        self._owner: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._folder: int | None = None  #: descriptor, for a path that is too long
        self._opening = asyncio.Lock()
        self._is_closed = False

    async def run(self, flow: Flow[_T]) -> _T:
        """Perform a flow; return what it comes to."""
        stage = _Stage(self)
        came: object = None
        raised: BaseException | None = None
        while True:
            try:
                step = flow.send(came) if raised is None else flow.throw(raised)
            except StopIteration as end:
                value: _T = end.value
                return value
            came = raised = None
            try:
                came = await stage.perform(step)
            except BaseException as error:  # noqa: BLE001 - the flow raises it, or not
                raised = error

    async def iterate(self, flow: Emitting[_T]) -> AsyncGenerator[_T]:
        """Perform a flow; yield what it emits. Who leaves early is told to the flow."""
        stage = _Stage(self)
        came: object = None
        raised: BaseException | None = None
        try:
            while True:
                try:
                    step = flow.send(came) if raised is None else flow.throw(raised)
                except StopIteration:
                    return
                came = raised = None
                try:
                    if isinstance(step, Emit):
                        yield step.item
                    else:
                        came = await stage.perform(step)
                except BaseException as error:  # noqa: BLE001 - as above
                    raised = error
        finally:
            stage.leave()

    async def close(self) -> None:
        """Close the connections, also those in use."""
        self._is_closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    async def session(self) -> aiohttp.ClientSession:
        """Return the session, which has connections to nothing but the node.

        Raises:
            Closed: there is none any more, or it is of another loop or process.
            Unreachable, ConfigError: there is no such node.
        """
        owner = (os.getpid(), asyncio.get_running_loop())
        if self._is_closed:
            raise Closed(
                "this client is closed", hint="use it inside of its `async with` block"
            )
        if self._owner not in (None, owner):
            raise Closed(
                "this client belongs to another event loop or process",
                hint="open one AsyncClient in each",
            )
        self._owner = owner
        async with self._opening:
            if self._session is None:
                self._session = await self._opened()
        return self._session

    async def _opened(self) -> aiohttp.ClientSession:
        token = self._target.token
        return aiohttp.ClientSession(
            connector=await self._connector(),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Authorization": f"Bearer {token}"} if token else None,
        )

    async def _connector(self) -> aiohttp.BaseConnector:
        target = self._target
        if target.url is None:
            path = await asyncio.to_thread(target.socket)
            return aiohttp.UnixConnector(
                self._reachable(path), limit=0, keepalive_timeout=IDLE_S_MAX
            )
        context: ssl.SSLContext | bool = True
        if target.url.startswith("https:"):
            context = await asyncio.to_thread(tls_context, target.ca)
        return aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S_MAX, ssl=context)

    def _reachable(self, path: Path) -> str:
        """Return a socket's path; a long one by way of its folder."""
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            return str(path)
        if self._folder is None:
            self._folder = os.open(
                path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            )
        return f"/proc/self/fd/{self._folder}/{path.name}"

    async def begin(self, call: Call, timeout_s: float) -> aiohttp.ClientResponse:
        """Send a request; return its answer, whose body is still to be read."""
        session = await self.session()
        headers = {"Accept": "application/json", **call.headers}
        if call.body is not None:
            headers.setdefault("Content-Type", "application/json")
        base = self._target.url or "http://localhost"
        try:
            async with asyncio.timeout(timeout_s):
                return await session.request(
                    call.method,
                    base + call.target,
                    data=call.body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_S_MAX),
                )
        except aiohttp.ClientConnectorError as error:
            raise not_connected(self.place, error) from error
        except (aiohttp.ClientError, OSError) as error:
            self.lost("closed the connection before it answered", error)

    @property
    def place(self) -> str:
        """What errors call the node."""
        return self._target.name

    def lost(self, how: str, error: BaseException) -> NoReturn:
        """Raise that an answer did not come."""
        if isinstance(error, TimeoutError):
            raise NoAnswer(f"{self.place} did not answer in time") from error
        raise ReplyLost(f"{self.place} {how}") from error


class _Stage:
    """Where one flow is performed, with the stream that it may have open."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._response: aiohttp.ClientResponse | None = None

    async def perform(self, step: Step) -> object:
        match step:
            case Send(call, timeout_s):
                return await self._read_all(
                    await self._loop.begin(call, timeout_s), timeout_s
                )
            case Begin(call, timeout_s):
                return await self._begin(call, timeout_s)
            case Read(timeout_s):
                return await self._read(timeout_s)
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Leave():
                self.leave()
            case _:
                assert_never(step)
        return None

    def leave(self) -> None:
        """Close the stream; whatever is left of it is nobody's answer."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    async def _begin(self, call: Call, timeout_s: float) -> Reply:
        self.leave()
        response = await self._loop.begin(call, timeout_s)
        if response.status >= OK_BELOW:
            return await self._read_all(response, timeout_s)
        self._response = response
        return Reply(response.status, _headers(response), b"")

    async def _read_all(
        self, response: aiohttp.ClientResponse, timeout_s: float
    ) -> Reply:
        try:
            async with asyncio.timeout(timeout_s), response:
                return Reply(response.status, _headers(response), await response.read())
        except (aiohttp.ClientError, OSError) as error:
            self._loop.lost("stopped in the middle of its answer", error)

    async def _read(self, timeout_s: float) -> bytes:
        assert self._response is not None
        try:
            async with asyncio.timeout(timeout_s):
                return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            self.leave()
            self._loop.lost("stopped in the middle of a stream", error)


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
