"""The pure parts of the dashboard's scripts, run where they run: in the browser."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import example, given
from hypothesis import strategies as st
from playwright.async_api import Browser, Page

from tests.agents import Agent, running
from tests.browser.chromium import visitor

ESCAPES = (
    "\x1b[31m",
    "\x1b[0m",
    "\x1b[",
    "\x1b]0;t\x07",
    "\x1b]8;;u",
    "\x1b\\",
    "\x1b",
)
CHARACTERS = (
    "\x1b",
    "\r",
    "\n",
    "\t",
    "\x07",
    "\x9b",
    "\u202e",
    "<b>",
    "a",
    "\U0001f980",
)
PARTS = st.sampled_from((*ESCAPES, *CHARACTERS))
WRITTEN = st.lists(PARTS | st.text(max_size=5), max_size=30)
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
TOTALS = st.integers(0, 3_000_000)
VIEWS_PX = st.integers(100, 2000)

WRITE = """async (pieces) => {
    const { Output } = await import("/static/app/views/ansi.js");
    const output = new Output(1000);
    const pen = output.pen("stdout");
    for (const piece of pieces) pen.write(piece);
    return output.lines.map(({ spans }) => spans);
}"""
SCROLL = """async ([top, total, viewPx]) => {
    const v = await import("/static/app/views/virtual.js");
    const px = v.scrollOf(top, total, viewPx);
    return {
        px, track: v.trackPx(total), most: v.topMax(total, viewPx),
        again: v.topAfter(top, px, px, total, viewPx),
        shown: v.rowsInSight(top, total, viewPx),
    };
}"""
PAGES = """async ([first, last, total, isNewest]) => {
    const v = await import("/static/app/views/virtual.js");
    return [v.pagesOf(first, last, total, isNewest), v.PAGE_ROWS];
}"""


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent, which serves the scripts."""
    with running(tmp_path_factory.mktemp("solo"), "solo") as (agent,):
        yield agent


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def page(browser: Browser, solo: Agent) -> AsyncIterator[Page]:
    """A page of the dashboard that nobody has signed in to."""
    async with visitor(browser) as guest:
        guest.allow()
        page = await guest.page()
        await page.goto(solo.ready()["api_url"])
        yield page


def texts(lines: list[list[dict[str, Any]]]) -> list[str]:
    return ["".join(span["text"] for span in spans) for spans in lines]


@given(WRITTEN)
@example(["\x1b[", "\n"])
async def test_whatever_is_written_no_control_character_is_shown(
    page: Page, written: list[str]
) -> None:
    """What stands on the page can be copied into a terminal."""
    shown = texts(await page.evaluate(WRITE, ["".join(written)]))

    assert [line for line in shown if CONTROLS.search(line)] == []


@given(WRITTEN)
async def test_where_output_is_cut_makes_no_difference(
    page: Page, written: list[str]
) -> None:
    """Pieces come as the network likes; a sequence may be in two of them."""
    pieces = await page.evaluate(WRITE, written)
    whole = await page.evaluate(WRITE, ["".join(written)])

    assert texts(pieces) == texts(whole)


@given(st.floats(0, 1), TOTALS, VIEWS_PX)
@example(1.0, 1_000_000, 600)
async def test_a_list_of_any_length_scrolls_from_its_first_row_to_its_last(
    page: Page, part: float, total: int, view_px: int
) -> None:
    """The bar is inside its track, stays where it was put, and rows fill the view."""
    most = max(0.0, total - view_px / 40)
    found = await page.evaluate(SCROLL, [part * most, total, view_px])

    first, last = found["shown"]["first"], found["shown"]["last"]
    assert found["most"] == most
    assert 0 <= found["px"] <= max(0, found["track"] - view_px) + 1e-6
    assert math.isclose(found["again"], part * most, abs_tol=1.0)
    assert 0 <= first <= last <= total
    assert last - first >= min(total, math.ceil(view_px / 40))


@given(st.integers(0, 2_000_000), st.integers(1, 60), TOTALS, st.booleans())
async def test_the_pages_asked_for_hold_every_row_in_sight(
    page: Page, first: int, count: int, total: int, is_newest: bool
) -> None:
    """From either end of the list, and no page more than that takes."""
    last = min(total, first + count)
    pages, size = await page.evaluate(PAGES, [first, last, total, is_newest])

    rows = range(first, last)
    from_oldest = [total - 1 - row if is_newest else row for row in rows]
    assert pages == sorted({row // size for row in from_oldest})
