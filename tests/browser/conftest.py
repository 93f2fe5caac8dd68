"""One browser for all tests of the dashboard, one mesh for each file of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.browser import chromium
from tests.support.agents import Agent, meshed

HERE = Path(__file__).parent
MISSING = chromium.missing()
TEST_S_MAX = 400.0  #: a busy machine takes minutes to draw all views in all widths

expect.set_options(timeout=chromium.ANSWER_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run these tests on the loop that the browser lives on."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(TEST_S_MAX))
            if MISSING:
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, once."""
    async with chromium.started() as browser:
        yield browser


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    """Three agents, dispatcher first."""
    folder = tmp_path_factory.mktemp("mesh")
    with meshed(folder, "ana", "ben", "cleo", extra=("--slots", "2")) as agents:
        yield agents
