"""Sign-in and sign-out of the dashboard: codes, tokens, malicious addresses."""

from __future__ import annotations

import re
import time
from urllib.parse import quote

import pytest
from playwright.async_api import Page, Route, expect

from tests.browser.chromium import Visitor
from tests.browser.dash import at, code_of, enter, show
from tests.support.agents import Agent

SCRIPT = "<img src=x onerror=alert(1)>"
FRAGMENTS = (
    f"code={quote(SCRIPT)}",
    f"code={SCRIPT}",
    "code=",
    "code=%",
    "code=%00%ff%0d%0a",
    f"code={'x' * 100_000}",
    "code=a&code=b",
    "code=javascript:alert(1)",
)
REFUSED_TO_VIEWERS = re.compile("Submit|Drain|Pause|Forget|Find machines")
PLACES = (
    "/%",
    "/__proto__",
    "/constructor/prototype?__proto__=1",
    f"/{SCRIPT}",
    f"/tasks/{quote(SCRIPT)}",
    "/tasks/../../api/v1/tokens",
    f"/tasks?status={quote(SCRIPT)}&text=%E2%80%AE",
    "/tasks/" + "x" * 50_000,
    "javascript:alert(1)",
)


async def refused(page: Page) -> str:
    """Return the page's reason for a refused sign-in."""
    alert = page.get_by_role("alert")
    await expect(page.get_by_text("octaskly open", exact=True)).to_be_visible()
    return await alert.inner_text()


async def test_code_signs_in_and_disappears_from_address_and_history(
    guest: Visitor, solo: Agent
) -> None:
    """A code can be found neither in the address bar nor in the history."""
    page = await guest.page()

    await enter(page, solo)
    address = page.url
    await page.go_back()
    before = page.url
    await page.go_forward()
    await page.reload()
    await at(page, "overview")

    assert "code" not in address
    assert before == "about:blank"
    assert await guest.context.cookies() == []
    assert await page.evaluate("localStorage.length") == 0


async def test_code_signs_in_a_tab_that_shows_the_page_already(
    guest: Visitor, solo: Agent
) -> None:
    """The browser loads nothing when only the part after # changes."""
    guest.allow()
    page = await guest.page()
    await page.goto(solo.ready()["api_url"])
    await expect(page.get_by_label("Or paste a token")).to_be_visible()

    await page.goto(code_of(solo))

    await at(page, "overview")
    assert "code" not in page.url


async def test_code_is_valid_once(guest: Visitor, solo: Agent) -> None:
    """A used code from a list of processes is refused with the next step."""
    guest.allow()
    address = code_of(solo)
    first, second = await guest.page(), await guest.page()

    await first.goto(address)
    await at(first, "overview")
    await second.goto(address)

    assert "octaskly open" in await refused(second)
    await first.reload()
    await at(first, "overview")


async def test_script_in_place_of_a_code_does_not_run(
    guest: Visitor, solo: Agent
) -> None:
    """Anyone can send a link to a user's own port."""
    guest.allow()
    page = await guest.page()
    root = solo.ready()["api_url"]

    for fragment in FRAGMENTS:
        await page.goto("about:blank")
        await page.goto(f"{root}/#{fragment}")
        assert await refused(page), fragment
        assert "code" not in page.url


async def test_malicious_addresses_show_a_view_and_run_no_script(
    guest: Visitor, solo: Agent
) -> None:
    """An unknown address shows an error, or the first view."""
    guest.allow()
    page = await guest.page()
    await enter(page, solo)

    for place in PLACES:
        await page.evaluate("(hash) => { location.hash = hash; }", place)
        await expect(page.locator("main")).not_to_be_empty()
        assert await page.locator("main img").count() == 0
    await show(page, "nodes")


async def test_no_other_page_may_frame_it(guest: Visitor, solo: Agent) -> None:
    """A user could unknowingly click it under a foreign button."""

    async def answer(route: Route) -> None:
        body = f'<iframe src="{solo.ready()["api_url"]}/"></iframe>'
        await route.fulfill(content_type="text/html", body=body)

    await guest.context.route("http://evil.test/", answer)
    page = await guest.page()
    async with page.expect_console_message(lambda m: "frame-ancestors" in m.text):
        await page.goto("http://evil.test/")

    (frame,) = page.frames[1:]
    assert await frame.evaluate("document.getElementById('app')") is None
    guest.faults.clear()


async def test_page_renews_its_token_in_time(guest: Visitor, solo: Agent) -> None:
    """The token lives for minutes, and the page for days."""
    page = await guest.page()
    await page.clock.install()
    await enter(page, solo)

    async with page.expect_response("**/sessions/renew") as renewed:
        await page.clock.fast_forward(10 * 60 * 1000)
    answer = await renewed.value

    assert answer.ok
    await page.wait_for_function(
        "(token) => JSON.parse(sessionStorage['octaskly.session']).token === token",
        arg=(await answer.json())["token"],
    )


@pytest.mark.parametrize("wrong_by_s", [-3600, 3600])
async def test_page_renews_its_token_in_time_by_a_wrong_clock(
    guest: Visitor, solo: Agent, wrong_by_s: int
) -> None:
    """Not each second, nor when the token has expired."""
    page = await guest.page()
    renewals: list[str] = []
    page.on("request", lambda request: renewals.append(request.url))
    await page.clock.install(time=time.time() + wrong_by_s)
    await enter(page, solo)

    await page.clock.fast_forward(5 * 60 * 1000)
    early = [url for url in renewals if url.endswith("/renew")]
    async with page.expect_request("**/sessions/renew"):
        await page.clock.fast_forward(5 * 60 * 1000)

    assert early == []


async def test_revoked_token_ends_the_session_with_a_reason(
    guest: Visitor, solo: Agent
) -> None:
    """In mid-stream: the page reports it, and shows no more of the mesh.

    It is that of a viewer, who has no button that would only be refused.
    """
    guest.allow()
    _, given = solo.call("POST", "/api/v1/tokens", {"role": "viewer", "name": "lent"})
    page = await guest.page()
    await page.goto(solo.ready()["api_url"])
    await page.get_by_label("token").fill(given["token"])
    await page.get_by_role("button", name="Sign in").click()
    await at(page, "overview")
    await show(page, "nodes", solo.state.name)
    for verb in ("button", "link"):
        await expect(page.get_by_role(verb, name=REFUSED_TO_VIEWERS)).to_have_count(0)
    await expect(page.get_by_role("region", name="Stored files")).to_be_visible()

    status, _ = solo.call("DELETE", "/api/v1/tokens/lent")

    assert status == 200
    assert "token" in await refused(page)
    assert await page.evaluate("sessionStorage.length") == 0
