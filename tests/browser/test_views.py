"""Every view of the dashboard at work: shapes, colours, axe, keys, and its pictures.

The pictures stand in `docs/images`. After a change that is meant to show, draw them
anew, and look at them before they are committed:
OCTASKLY_SCREENS=write .venv/bin/pytest tests/browser/test_views.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import pytest
from playwright.async_api import Browser, Page, ViewportSize, expect

from tests.browser.chromium import visitor
from tests.browser.dash import at, enter, fits, make_findings, show
from tests.browser.scene import Scene, working

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDTHS: Final = (360, 1280, 3840)
DRAWN: Final = (360, 1280)  #: widths of the pictures
PICTURED: Final = ("overview", "tasks", "waiting", "stream")
HEIGHT_PX = 800
NAME_PX = 60  #: of `album` in bold, with the start of its command
#: Until hand-drawn parts have been drawn in another colour and size.
DRAWN_ANEW: Final = "new Promise((drawn) => setTimeout(drawn, 300))"
#: axe's rules, if not all: dark mode changes only colours.
RULES: Final[dict[Literal["light", "dark"], tuple[str, ...]]] = {
    "light": (),
    "dark": ("color-contrast", "link-in-text-block"),
}

#: An address in each view, and a text that appears with its data.
PLACES: Final = {
    "overview": "stored on 3 nodes",
    "tasks": "wind tunnel",  # In the second row: the list draws only rows in sight.
    "task": "epoch 6",
    "waiting": "Will not start until a node with 1 GPU joins",
    "outputs": "Missing when the task ended: legend.txt",
    "array": "img-007.jpg",
    "stream": "",
    "arrays": "First failure:",
    "nodes": "room=studio",
    "node": "Agent up for",
    "submit": "",
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Three agents with work of all kinds."""
    with working(tmp_path_factory.mktemp("scene")) as scene:
        yield scene


async def visit(page: Page, scene: Scene, place: str) -> None:
    """Show a place with its data."""
    tasks = {
        "task": scene.training,
        "waiting": scene.waiting,
        "outputs": scene.atlas,
        "array": scene.album,
    }
    if place in tasks:
        await show(page, "tasks", tasks[place])
    elif place == "node":
        await show(page, "nodes", scene.dispatcher.state.name)
    else:
        await show(page, place)
    if PLACES[place]:
        await expect(page.get_by_text(PLACES[place]).first).to_be_visible()
    await expect(page.locator("main")).not_to_be_empty()


async def test_every_view_fits_any_screen_and_is_accessible(
    browser: Browser, scene: Scene
) -> None:
    """No horizontal scrolling, no serious finding of axe; pictures are drawn."""
    wrong = []
    async with visitor(browser) as guest:
        page = await guest.page()
        await enter(page, scene.dispatcher)
        for place in PLACES:
            await visit(page, scene, place)
            for scheme, rules in RULES.items():
                await page.emulate_media(color_scheme=scheme)
                found = await make_findings(page, *rules)
                wrong += [f"{place}, {scheme}: {one}" for one in found]
            for width in WIDTHS:
                await page.set_viewport_size(
                    ViewportSize(width=width, height=HEIGHT_PX)
                )
                if not await fits(page):
                    wrong.append(f"{place} is too wide for {width} px")
                if width in DRAWN and place in PICTURED:
                    await draw(page, place, width)

    assert wrong == []


async def test_narrow_list_shows_all_columns_of_a_wide_one(
    browser: Browser, scene: Scene
) -> None:
    """On a telephone each row has two lines, and one button opens the filters."""
    viewport = ViewportSize(width=360, height=HEIGHT_PX)
    async with visitor(browser, viewport=viewport) as guest:
        page = await guest.page()
        await enter(page, scene.dispatcher)
        await show(page, "tasks", text="encode")
        row = page.get_by_role("row").filter(has_text="encode clips/intro.mov")

        for cell in (re.compile("^(attic|desk|garage)$"), re.compile("s$"), "ago", "3"):
            await expect(row.get_by_text(cell).last).to_be_visible()
        await show(page, "tasks", text="thumbnail {}")
        row = page.get_by_role("row").filter(has_text="27 ok, 3 failed of 30")
        box = await row.get_by_role("link").first.bounding_box()
        assert box is not None
        assert box["width"] > NAME_PX  # Its progress has a place of its own.
        await page.get_by_role("button", name="Filters (1)").click()
        await expect(page.get_by_label("Node", exact=True)).to_be_visible()


async def draw(page: Page, place: str, width: int) -> None:
    """Save pictures of the page, light and dark, if requested."""
    if os.environ.get("OCTASKLY_SCREENS") != "write":
        return
    IMAGES.mkdir(exist_ok=True)
    for scheme in RULES:
        await page.emulate_media(color_scheme=scheme)
        await page.evaluate(DRAWN_ANEW)
        path = IMAGES / f"{place}-{scheme}-{width}.png"
        await page.screenshot(path=path, animations="disabled")


async def test_failures_of_the_last_hour_are_one_click_away(
    browser: Browser, scene: Scene
) -> None:
    """The tile leads to what it counts, except members of arrays that still run."""
    async with visitor(browser) as guest:
        page = await guest.page()
        await enter(page, scene.dispatcher)
        await page.get_by_role("link", name="failed in the last hour").click()

        await at(page, "tasks")
        ended = page.get_by_label("Ended", exact=True)
        await expect(ended).to_have_value("3600")
        await expect(page.get_by_text("encode clips/intro.mov")).to_be_visible()
        await expect(page.get_by_text("wind tunnel")).to_have_count(0)
        await page.get_by_role("button", name="failed", exact=True).click()
        await expect(page.get_by_text("mkdir maps")).to_be_visible()
        await expect(page.get_by_text("wind tunnel")).to_have_count(0)
        await ended.select_option("Any time")
        await expect(page.get_by_text("wind tunnel")).to_be_visible()


async def test_keyboard_alone_is_enough(browser: Browser, scene: Scene) -> None:
    """From the overview to the reason why a task waits, and back, without a mouse."""
    async with visitor(browser) as guest:
        page = await guest.page()
        await enter(page, scene.dispatcher)
        failed = page.get_by_role("link", name="failed in the last hour")
        await expect(failed).to_have_text(re.compile(r"^\s*6\s*failed"))
        await expect(failed).to_have_attribute(
            "href", "#/tasks?status=failed&ended_within_s=3600"
        )

        await page.keyboard.type("?")
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await page.keyboard.type("gt")
        await at(page, "tasks")
        await expect(page.get_by_text("wind tunnel")).to_be_visible()
        await page.keyboard.type("/")
        await page.keyboard.type("wind")
        await expect(page.get_by_text("render main.blend 0100")).to_have_count(0)
        await expect(page.get_by_text("wind tunnel")).to_be_visible()
        await page.keyboard.press("Escape")
        await page.keyboard.type("j")
        await page.keyboard.type("w")
        await expect(page.get_by_role("dialog")).to_contain_text("has no GPU")
        await page.keyboard.press("Escape")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="wind tunnel")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("grid")).to_be_visible()
        await page.keyboard.type("gn")
        await at(page, "nodes")


async def test_every_control_is_reachable_by_tab_and_shows_its_focus(
    browser: Browser, scene: Scene
) -> None:
    """Users of the keyboard must see the focus."""
    async with visitor(browser) as guest:
        page = await guest.page()
        await enter(page, scene.dispatcher)
        await show(page, "nodes")
        reached: dict[str, str] = {}
        while name_and_look := await tabbed(page):
            reached |= [name_and_look]

    for control in (
        "Skip to content",
        "Tasks",
        "Sign out",
        "Drain desk",
        "Pause attic",
    ):
        assert control in reached
    assert [name for name, look in reached.items() if look == "none none"] == []


async def tabbed(page: Page) -> tuple[str, str] | None:
    """Go to the next control; return its name and its outline."""
    await page.keyboard.press("Tab")
    found: list[str] | None = await page.evaluate("""() => {
        const on = document.activeElement;
        const { outlineStyle, boxShadow } = getComputedStyle(on);
        if (on === document.body) return null;
        return [on.ariaLabel ?? on.textContent, `${outlineStyle} ${boxShadow}`];
    }""")
    return None if found is None else (found[0], found[1])


async def test_nothing_moves_under_reduced_motion(
    browser: Browser, scene: Scene
) -> None:
    """Moving parts make some people ill."""
    async with visitor(browser, reduced_motion="reduce") as guest:
        page = await guest.page()
        await enter(page, scene.dispatcher)
        for place in PLACES:
            await visit(page, scene, place)
            moving = await page.evaluate("""document.getAnimations().filter(
                (one) => one.effect.getComputedTiming().duration > 10
                    && one.playState === "running").length""")
            assert moving == 0, place
