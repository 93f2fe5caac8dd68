"""Questions of this node to another one, on behalf of a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from octaskly.api.routing import Call


class Unanswered(Exception):
    """The other node did not answer, or stopped doing so."""


@asynccontextmanager
async def asked(
    call: Call,
    lan_urls: Sequence[str],
    path: str,
    *,
    wait_s: float = 0.0,
    begin_s: float | None = None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Ask another node for an internal path; the block reads the answer.

    Args:
        call: The request on whose behalf it is.
        lan_urls: Where the node serves, best first.
        path: What to ask for.
        wait_s: How long the node may take longer than usual to begin.
        begin_s: How long that is usually; None: as long as a stream may stall.

    Raises:
        Unanswered: it is not there, or broke off while the block read.
    """
    stall_s = call.parts.deadlines.stall_s if begin_s is None else begin_s
    response = await _first(call, lan_urls, path, stall_s + wait_s)
    try:
        async with response:
            yield response
    except (aiohttp.ClientError, OSError) as error:
        raise Unanswered(str(error) or type(error).__name__) from None


async def _first(
    call: Call, lan_urls: Sequence[str], path: str, within_s: float
) -> aiohttp.ClientResponse:
    forwarder = call.parts.forwarder
    last = "it has no address"
    for lan_url in forwarder.ways.to(lan_urls):
        try:
            async with asyncio.timeout(within_s):
                return await forwarder.session().get(
                    URL(lan_url + path, encoded=True),
                    headers=forwarder.headers(call),
                    allow_redirects=False,
                )
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            last = str(error) or type(error).__name__
    raise Unanswered(last)
