"""The driver of `AsyncClient`."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from octaskly.client.drivers.asyncio_driver import AsyncioDriver
from octaskly.client.endpoint import Endpoint
from octaskly.client.errors import Closed


async def test_a_client_that_is_closed_while_it_connects_leaves_no_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first request goes no further, either."""
    driver = AsyncioDriver(Endpoint(url="http://127.0.0.1:1"))
    opened: list[aiohttp.ClientSession] = []
    open_session: Any = driver._open_session

    async def open_and_close() -> aiohttp.ClientSession:
        opened.append(await open_session())
        await driver.close()
        return opened[0]

    monkeypatch.setattr(driver, "_open_session", open_and_close)
    with pytest.raises(Closed):
        await driver.session()

    assert opened[0].closed
    await asyncio.sleep(0)
