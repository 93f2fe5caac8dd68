"""Reads the body of a request, bounded in size and time."""

from __future__ import annotations

import asyncio

from aiohttp import web

from octaskly.api.problems import Problem, status_problem
from octaskly.api.routing import JSON, Route


async def read_body(request: web.Request, route: Route, deadline_s: float) -> bytes:
    """Return the body; raise `Problem` (400, 408, 413, 415) where it is unusable."""
    if not request.body_exists:
        return b""
    if request.content_type != JSON:
        raise status_problem(415, f"send Content-Type: {JSON}")
    bytes_max = route.body_bytes_max
    if (request.content_length or 0) > bytes_max:
        raise _too_large(bytes_max)
    chunks: list[bytes] = []
    size_bytes = 0
    content = request.content
    try:
        if content.is_eof() and content.total_bytes <= bytes_max:
            return content.read_nowait()  # It came along with the header: no timer.
        async with asyncio.timeout(deadline_s):
            while chunk := await content.readany():
                chunks.append(chunk)
                size_bytes += len(chunk)
                if size_bytes > bytes_max:
                    raise _too_large(bytes_max)
    except TimeoutError:
        hint = f"the body did not arrive within {deadline_s:g} s"
        raise Problem(408, "Request timeout", hint=hint, closes=True) from None
    except web.RequestPayloadError as error:
        hint = f"the body cannot be read: {error}"
        raise Problem(400, "Bad request", hint=hint, closes=True) from None
    return b"".join(chunks)


def _too_large(bytes_max: int) -> Problem:
    return Problem(
        413,
        "Request body too large",
        hint=f"at most {bytes_max} bytes are allowed here",
        closes=True,
    )
