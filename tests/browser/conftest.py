"""One browser for all tests of the dashboard, one mesh for each file of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.browser import chromium
from tests.browser.chromium import Visitor, visitor
from tests.support.agents import Agent, meshed, running, until_nodes

HERE = "tests/browser/"
MISSING = chromium.missing()
TEST_S_MAX = 400.0  #: a busy machine takes minutes to draw all views in all widths

expect.set_options(timeout=chromium.ANSWER_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run these tests on the event loop of the browser."""
    for item in items:
        if item.nodeid.startswith(HERE):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(TEST_S_MAX))
            if MISSING:
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, started once."""
    async with chromium.started() as browser:
        yield browser


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    """Three agents, dispatcher first, that stop at once even with running tasks."""
    folder = tmp_path_factory.mktemp("mesh")
    extra = ("--slots", "2", "--drain", "0")
    with meshed(folder, "ana", "ben", "cleo", extra=extra) as agents:
        yield agents


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent without peers."""
    with running(tmp_path_factory.mktemp("solo"), "solo") as (agent,):
        until_nodes(agent, 1)
        yield agent


@pytest_asyncio.fixture(loop_scope="session")
async def guest(browser: Browser) -> AsyncIterator[Visitor]:
    """A visitor with a browser."""
    async with visitor(browser) as one:
        yield one
