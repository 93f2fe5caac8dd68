"""A page that stays open while dispatchers die, networks fail and tabs sleep."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.browser.cable import cable
from tests.browser.chromium import Visitor, visitor
from tests.browser.dash import code_of, enter, show
from tests.support.agents import TASKS, Agent, finished, soon_s, submit

BANNER_MS = 1000 * soon_s(15)
SILENCE_MS = 1000 * soon_s(11)
AT_ONCE_MS = 1000 * soon_s(3)
HOUR_MS = 3_600_000
RESTS_S = 20  #: until a hidden tab has closed its connections
SET_HIDDEN = """(isHidden) => {
    Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""
#: The browser's error if no server answers.
UNANSWERED = re.compile(r"Failed to load resource: .*|.*net::ERR_.*")


@pytest_asyncio.fixture(loop_scope="session")
async def hampered_guest(browser: Browser) -> AsyncIterator[Visitor]:
    """A visitor with a browser who gets no answer for some requests."""
    async with visitor(browser) as one:
        one.allow(UNANSWERED)
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def page(hampered_guest: Visitor, mesh: list[Agent]) -> Page:
    """A signed-in page of the last node, which records whether it was reloaded."""
    page = await hampered_guest.page()
    await enter(page, mesh[-1])
    await page.evaluate("window.isSame = true")
    return page


def counting(mesh: list[Agent], gate: Path, **more: object) -> str:
    """Submit a task to the last node that writes a line when the gate is opened."""
    command = f"mkfifo {gate}; echo first; read line <{gate}; echo $line; echo end"
    node = mesh[-1].state.name
    return submit(mesh[-1], command, requires={"node": node}, **more)


def say(gate: Path, line: str) -> None:
    """Let the task continue."""
    with gate.open("w") as fifo:
        fifo.write(f"{line}\n")


async def test_lost_and_restored_network_loses_no_line(
    hampered_guest: Visitor, mesh: list[Agent], tmp_path: Path
) -> None:
    """The page says that it reconnects, and continues from the same line."""
    address = code_of(mesh[-1])
    port = urlsplit(address).port
    assert port is not None
    async with cable(port) as line:
        page = await hampered_guest.page()
        await page.goto(address.replace(f":{port}/", f":{line.port}/"))
        await page.evaluate("window.isSame = true")
        task = counting(mesh, tmp_path / "gate")
        await show(page, "tasks", task)
        log = page.get_by_role("log")
        await expect(log.get_by_text("first")).to_be_visible()

        await line.cut()
        await expect(page.get_by_text("Connection lost")).to_be_visible()
        say(tmp_path / "gate", "unseen")
        finished(mesh[-1], task)
        await line.mend()

        await expect(log.get_by_text("end", exact=True)).to_be_visible()
        await expect(page.locator(".head .state")).to_have_text("completed")
        await expect(page.get_by_text("Connection lost")).to_have_count(0)
        written = await log.inner_text()
        assert [written.count(word) for word in ("first", "unseen")] == [1, 1]
        assert await page.evaluate("window.isSame")


async def test_silent_network_is_noticed_within_seconds(
    hampered_guest: Visitor, mesh: list[Agent]
) -> None:
    """No connection is refused or closed, as with a pulled cable."""
    address = code_of(mesh[-1])
    port = urlsplit(address).port
    assert port is not None
    async with cable(port) as line:
        page = await hampered_guest.page()
        await page.goto(address.replace(f":{port}/", f":{line.port}/"))
        await expect(page.get_by_text("Connected", exact=True)).to_be_visible()

        line.hold()
        waiting = page.get_by_text("Connection lost")
        await expect(waiting).to_be_visible(timeout=SILENCE_MS)
        line.let_go()

        await expect(page.get_by_text("Connected", exact=True)).to_be_visible()
        await expect(waiting).to_have_count(0)
        await hampered_guest.context.set_offline(offline=True)
        await expect(waiting).to_be_visible(timeout=AT_ONCE_MS)
        await hampered_guest.context.set_offline(offline=False)


async def test_tab_that_slept_for_an_hour_is_up_to_date_on_wake_up(
    hampered_guest: Visitor, mesh: list[Agent]
) -> None:
    """Its timers stood still, its token is about to expire, and much has happened."""
    page = await hampered_guest.page()
    await page.clock.install()
    await enter(page, mesh[-1])
    await show(page, "tasks")
    client = await page.context.new_cdp_session(page)
    await client.send("Page.setWebLifecycleState", {"state": "frozen"})

    task = submit(mesh[-1], "true", name="done while you slept")
    finished(mesh[-1], task)
    await client.send("Page.setWebLifecycleState", {"state": "active"})
    await page.clock.fast_forward(HOUR_MS)
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    row = page.get_by_role("row").filter(has_text="done while you slept")
    await expect(row).to_contain_text("completed")
    await expect(page.get_by_text("Connected", exact=True)).to_be_visible()


async def test_ages_are_right_by_a_wrong_clock(
    hampered_guest: Visitor, mesh: list[Agent]
) -> None:
    """The clock of the browser is an hour fast; the node's counts."""
    page = await hampered_guest.page()
    await page.clock.install(time=time.time() + HOUR_MS / 1000)
    await enter(page, mesh[-1])
    submit(mesh[-1], "true", name="of this minute")
    await show(page, "tasks")

    row = page.get_by_role("row").filter(has_text="of this minute")

    await expect(row).to_contain_text(re.compile("just now| s ago"))


async def test_tab_in_the_background_holds_no_connection(
    page: Page, mesh: list[Agent], tmp_path: Path
) -> None:
    """A browser opens six to a node, so the seventh tab would get no answer.

    What happened meanwhile is there as soon as the tab is visible again.
    """
    task = counting(mesh, tmp_path / "gate")
    await show(page, "tasks", task)
    log = page.get_by_role("log")
    await expect(log.get_by_text("first")).to_be_visible()
    ended = asyncio.Queue[str]()
    page.on(
        "requestfailed", lambda request: ended.put_nowait(urlsplit(request.url).path)
    )

    await page.evaluate(SET_HIDDEN, True)
    async with asyncio.timeout(soon_s(RESTS_S)):
        paths = sorted([await ended.get(), await ended.get()])
    say(tmp_path / "gate", "unseen")
    finished(mesh[-1], task)
    await expect(page.get_by_text("Connection lost")).to_have_count(0)
    await page.evaluate(SET_HIDDEN, False)

    assert paths == ["/api/v1/events", f"{TASKS}/{task}/logs"]
    await expect(log.get_by_text("end", exact=True)).to_be_visible()
    await expect(page.locator(".head .state")).to_have_text("completed")


async def test_page_survives_the_death_of_the_dispatcher(
    page: Page, mesh: list[Agent], tmp_path: Path
) -> None:
    """A banner for a moment, no reload, and every line of the log once.

    The other tests need the last node alone, so they may come before or after.
    """
    task = counting(mesh, tmp_path / "gate")
    await show(page, "tasks", task)
    log = page.get_by_role("log")
    await expect(log.get_by_text("first")).to_be_visible()

    mesh[0].process.kill()
    mesh[0].process.wait()
    banner = page.locator(".banner")
    await expect(banner).to_contain_text("is the dispatcher now", timeout=BANNER_MS)
    began_s = time.perf_counter()
    say(tmp_path / "gate", "after the failover")
    await expect(log.get_by_text("end", exact=True)).to_be_visible()
    await expect(page.locator(".head .state")).to_have_text("completed")
    await expect(banner).to_have_count(0)

    assert time.perf_counter() - began_s < BANNER_MS / 1000
    assert (await log.inner_text()).count("first") == 1
    assert (await log.inner_text()).count("after the failover") == 1
    assert await page.evaluate("window.isSame")
    await show(page, "tasks")
    _, listed = mesh[-1].call("GET", TASKS)
    await expect(page.get_by_role("grid")).to_have_attribute(
        "aria-rowcount", str(listed["total"] + 1)
    )
