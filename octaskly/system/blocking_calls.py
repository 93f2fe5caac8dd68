"""Blocking calls in threads, which go on when their caller is cancelled.

The server cancels the handler of a request when its client leaves. A thread cannot be
stopped, so what it opens afterwards has to be closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

_Opened = TypeVar("_Opened")
_Result = TypeVar("_Result")


@asynccontextmanager
async def opened_in_thread(
    open_: Callable[[], _Opened], close: Callable[[_Opened], object]
) -> AsyncGenerator[_Opened]:
    """Yield what `open_` returns, and close it at the end; both block.

    It is closed even if the caller is cancelled while it is being opened.
    """
    opening = asyncio.get_running_loop().run_in_executor(None, open_)
    try:
        yield await asyncio.shield(opening)
    finally:
        await asyncio.shield(_close(opening, close))


async def _close(
    opening: asyncio.Future[_Opened], close: Callable[[_Opened], object]
) -> None:
    await asyncio.wait((opening,))
    if opening.exception() is None:
        await asyncio.to_thread(close, opening.result())


async def run_to_end(function: Callable[[], _Result]) -> _Result:
    """Return the result of a blocking function, which runs in a thread.

    If the caller is cancelled, it waits for the end of the function even so: nothing
    else may use meanwhile what the function uses.
    """
    running = asyncio.get_running_loop().run_in_executor(None, function)
    try:
        return await asyncio.shield(running)
    finally:
        await asyncio.shield(asyncio.wait((running,)))
