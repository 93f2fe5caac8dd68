"""Limits on request bodies: size, read time, and total bytes in memory.

A body stays in memory until its request is answered, and some may have 32 MiB. A client
with a token could send one on each connection at the same time, so a body that exceeds
the total is refused with 503. The first bytes of each body are not counted, so small
bodies are always accepted. `Route.body_bytes_max` is the limit of one body; where no
token is needed, bodies are small.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import StreamReader, web

from octaskly.api.http.handler_types import (
    BYTES,
    JSON,
    Access,
    RequestInfo,
    Route,
)
from octaskly.api.problems import Problem, status_problem

SMALL_BODY_BYTES: Final = 64 << 10


class BodyReader:
    """Reads bodies, and counts the bytes that this node holds."""

    def __init__(self, timeout_s: float, total_bytes_max: int) -> None:
        self._timeout_s = timeout_s
        self._total_bytes_max = total_bytes_max
        self._reserved_bytes = 0  #: bytes above SMALL_BODY_BYTES of each body

    async def read(
        self, request: web.BaseRequest, info: RequestInfo, route: Route
    ) -> bytes:
        """Return the body of a request; its bytes count until `release`.

        A body that its handler streams is not read here.

        Raises:
            Problem: 413 too large, 408 too late, 415 another type, 503 no room.
        """
        if not request.body_exists:
            return b""
        media, bytes_max = (
            BYTES if route.is_body_streamed else JSON,
            route.body_bytes_max,
        )
        if route.access in (Access.PUBLIC, Access.READ_OR_LOCAL):
            bytes_max = SMALL_BODY_BYTES  # Strangers take no room of other clients.
        if request.content_type != media:
            raise status_problem(415, f"send Content-Type: {media}")
        if route.is_body_streamed:
            return b""
        if (request.content_length or 0) > bytes_max:
            raise _too_large(bytes_max)
        content = request.content
        try:
            if content.is_eof() and content.total_bytes <= bytes_max:
                # The body arrived with the header, so no timer is needed.
                self._reserve(info, content.total_bytes)
                return content.read_nowait()
            async with asyncio.timeout(self._timeout_s):
                return await self._read_chunks(content, info, bytes_max)
        except TimeoutError:
            hint = f"the body did not arrive within {self._timeout_s:g} s"
            raise Problem(
                408, "Request timeout", hint=hint, closes_connection=True
            ) from None
        except web.RequestPayloadError as error:
            why = " ".join(str(error).split()).removeprefix("400, message: ")
            hint = f"the body cannot be read: {why}"
            raise Problem(
                400, "Bad request", hint=hint, closes_connection=True
            ) from None

    def release(self, info: RequestInfo) -> None:
        """Free the bytes of a request that is answered."""
        self._reserved_bytes -= max(0, info.body_bytes - SMALL_BODY_BYTES)
        info.body_bytes = 0

    async def _read_chunks(
        self, content: StreamReader, info: RequestInfo, bytes_max: int
    ) -> bytes:
        chunks: list[bytes] = []
        while chunk := await content.readany():
            chunks.append(chunk)
            if info.body_bytes + len(chunk) > bytes_max:
                raise _too_large(bytes_max)
            self._reserve(info, len(chunk))
        return b"".join(chunks)

    def _reserve(self, info: RequestInfo, size_bytes: int) -> None:
        """Count more bytes of a body; raise `Problem` (503) if there is no room."""
        before = max(0, info.body_bytes - SMALL_BODY_BYTES)
        more = max(0, info.body_bytes + size_bytes - SMALL_BODY_BYTES) - before
        if more and self._reserved_bytes + more > self._total_bytes_max:
            raise Problem(
                503,
                "Too many large requests",
                hint=f"request bodies may take {self._total_bytes_max} bytes in all; "
                "try again later",
                headers={"Retry-After": "1"},
                closes_connection=True,
            )
        info.body_bytes += size_bytes
        self._reserved_bytes += more


def _too_large(bytes_max: int) -> Problem:
    return Problem(
        413,
        "Request body too large",
        hint=f"at most {bytes_max} bytes are allowed here",
        closes_connection=True,
    )
