"""Both clients behind one interface, so that each test is written once."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Generator
from typing import Any, cast

import octaskly

KINDS = ("blocking", "asyncio")

Open = Callable[..., octaskly.Client]


class Awaited:
    """An `AsyncClient` with synchronous methods that await it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = octaskly.AsyncClient(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **settings: Any) -> Any:
            found = method(*args, **settings)
            if inspect.iscoroutine(found):
                return self._runner.run(found)
            return self._each(found)

        return call

    def close(self) -> None:
        self._runner.run(self._client.close())

    def end(self) -> None:
        """End the loop; fail if it has any task left."""
        left = asyncio.all_tasks(self._runner.get_loop())
        self._runner.close()
        assert not left

    def _each(self, found: Any) -> Generator[Any]:
        async def step() -> Any:
            return await anext(found)

        try:
            while True:
                try:
                    yield self._runner.run(step())
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(found.aclose())


@contextlib.contextmanager
def opening(kind: str) -> Generator[Open]:
    """Return a function that opens clients of one kind; the block's end closes them."""
    opened: list[Any] = []

    def open_one(*args: Any, **settings: Any) -> octaskly.Client:
        make = octaskly.Client if kind == "blocking" else Awaited
        opened.append(make(*args, **settings))
        return cast("octaskly.Client", opened[-1])

    try:
        yield open_one
    finally:
        for client in opened:
            client.close()
            if isinstance(client, Awaited):
                client.end()
