"""The dashboard for tests: sign-in, views, and rules for all views."""

from __future__ import annotations

import json
from typing import Any, Final

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from tests.support.agents import Agent

SERIOUS: Final = ("serious", "critical")
SETTLE_MS: Final = 20_000
FITS: Final = """(settle_ms) => new Promise((tell) => {
    const { scrollingElement: all } = document;
    const give_up = performance.now() + settle_ms;
    const look = () => {
        if (all.scrollWidth <= all.clientWidth) tell(true);
        else if (performance.now() > give_up) tell(false);
        else requestAnimationFrame(look);
    };
    look();
})"""


def code_of(agent: Agent) -> str:
    """Return an address that signs in once."""
    status, made = agent.call("POST", "/api/v1/sessions/codes", {})
    assert status == 201, made
    return str(made["url"])


async def enter(page: Page, agent: Agent) -> None:
    """Sign in as `octaskly open` does."""
    await page.goto(code_of(agent))
    await at(page, "overview")


async def show(page: Page, view: str, *parts: str, **query: str) -> None:
    """Open a view by its address, as a bookmark does."""
    path = "/".join(("#", view, *parts))
    rest = "&".join(f"{name}={value}" for name, value in query.items())
    await page.evaluate(
        "(hash) => { location.hash = hash; }", path + "?" * bool(rest) + rest
    )
    await at(page, view)


async def at(page: Page, view: str) -> None:
    """Wait until a view is shown, with its data."""
    tab = page.get_by_role("navigation", name="Views").get_by_role(
        "link", name=view.capitalize(), exact=True
    )
    await expect(tab).to_have_attribute("aria-current", "page")
    await expect(page.locator("main [aria-busy=true]")).to_have_count(0)


async def make_findings(page: Page, *rules: str) -> list[str]:
    """Return axe's findings for a page, serious or worse; by default for all rules."""
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": rules}
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(Axe().axe_script)
    results = await Axe("").run(page, options=options)  # Its script is there already.
    return [
        f"{one['id']}: {json.dumps([node['html'] for node in one['nodes']])[:600]}"
        for one in results.response["violations"]
        if one["impact"] in SERIOUS
    ]


async def fits(page: Page) -> bool:
    """Return True if a page is no wider than its window, once its lists have adapted.

    They change their form in a narrow window, one frame after the resize.
    """
    return bool(await page.evaluate(FITS, SETTLE_MS))
