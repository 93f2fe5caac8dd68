"""Large responses: counted in memory, and written in parts.

A body that is written at once waits in the buffers of its connection, encrypted as a
whole. In parts, only the next one does, and a client that reads slowly is not taken for
one that reads nothing.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from octaskly.api.http.handler_types import Request
from octaskly.api.server.quotas import SMALL_RESPONSE_BYTES, Admission

PART_BYTES: Final = 64 << 10


async def send(
    request: Request, response: web.Response, admission: Admission
) -> web.StreamResponse:
    """Write a response if it is large; return the response to finish.

    Raises:
        Problem: the quota of the client for responses is used up, or that of the node.
    """
    body = response.body
    if not isinstance(body, bytes):
        return response
    admission.resize(len(body))
    is_small = len(body) <= SMALL_RESPONSE_BYTES
    if is_small or request.http_request.method == "HEAD":
        return response
    answer = web.StreamResponse(status=response.status, headers=response.headers)
    answer.content_length = len(body)
    request.add_headers(answer)
    await answer.prepare(request.http_request)
    parts = memoryview(body)
    for start in range(0, len(body), PART_BYTES):
        await request.work.turn()
        await answer.write(parts[start : start + PART_BYTES])
    await answer.write_eof()
    return answer
