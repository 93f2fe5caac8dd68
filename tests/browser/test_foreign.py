"""Threats 7, 8 and 27 in a real browser: attacks of foreign pages on an agent."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.async_api import Browser, Page, Route

from tests.browser.chromium import Visitor, visitor
from tests.support.agents import TASKS, Agent, running, submit, until_nodes

EVIL = "http://evil.test"
REFUSED_STATUSES = re.compile(
    r"(Access to |Failed to load resource|Refused to |Framing ).*"
)

ASK = """async ([url, token]) => {
    const body = '{"command":"true"}';
    const plain = { "Content-Type": "text/plain" };
    const json = { "Content-Type": "application/json" };
    const bearer = { Authorization: `Bearer ${token}` };
    const asked = [
        [url, { headers: bearer }],
        [url, { method: "POST", headers: json, body }],
        [url, { method: "POST", headers: { ...json, ...bearer }, body }],
        [url, { method: "POST", headers: plain, body }],
        [url, { method: "POST", mode: "no-cors", headers: plain, body }],
        [url, { method: "POST", mode: "no-cors", credentials: "include", body }],
        [`${url}/task-001?force=true`, { method: "DELETE", headers: bearer }],
    ];
    return Promise.all(asked.map(([to, how]) =>
        fetch(to, how).then((answer) => answer.type, (error) => error.name)));
}"""

FORM = """(url) => {
    const form = document.createElement("form");
    Object.assign(form, { action: url, method: "POST", enctype: "text/plain" });
    const field = document.createElement("input");
    field.name = '{"command":"true","name":"';
    field.value = '"}';
    form.append(field);
    document.body.append(form);
    form.submit();
}"""


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Agent, str]]:
    """One agent with one running task, and a valid token."""
    with running(tmp_path_factory.mktemp("solo"), "solo") as (agent,):
        until_nodes(agent, 1)
        task = submit(agent, "sleep 600")
        body = {"role": "admin", "name": "stolen"}
        status, given = agent.call("POST", "/api/v1/tokens", body)
        assert status == 201, given
        yield agent, given["token"]
        agent.call("DELETE", f"{TASKS}/{task}?force=true")


async def stranger(visitor: Visitor, address: str = f"{EVIL}/") -> Page:
    """Return a page of another site."""

    async def answer(route: Route) -> None:
        await route.fulfill(content_type="text/html", body="<!doctype html><body>")

    await visitor.context.route(f"{EVIL}/**", answer)
    page = await visitor.page()
    await page.goto(address)
    return page


def untouched(agent: Agent) -> bool:
    _, listed = agent.call("GET", TASKS)
    return [task["status"] for task in listed["tasks"]] == ["running"]


@pytest.mark.parametrize("address", [f"{EVIL}/", "data:text/html,<body>"])
async def test_foreign_page_changes_and_reads_nothing(
    browser: Browser, solo: tuple[Agent, str], address: str
) -> None:
    """Even with a valid token and every method; opaque answers reveal nothing."""
    agent, token = solo
    async with visitor(browser) as guest:
        guest.allow(REFUSED_STATUSES)
        page = await stranger(guest, address)

        answers = await page.evaluate(ASK, [agent.ready()["api_url"] + TASKS, token])

    assert answers == ["TypeError"] * 4 + ["opaque"] * 2 + ["TypeError"]
    assert untouched(agent)


async def test_foreign_form_submits_no_task(
    browser: Browser, solo: tuple[Agent, str]
) -> None:
    """A form needs no permission of its target, and can look like JSON."""
    agent, _ = solo
    async with visitor(browser) as guest:
        guest.allow(REFUSED_STATUSES)
        page = await stranger(guest)

        async with page.expect_response("**" + TASKS) as refused:
            await page.evaluate(FORM, agent.ready()["api_url"] + TASKS)

    assert (await refused.value).status == 403
    assert untouched(agent)


async def test_foreign_host_name_does_not_reach_an_agent(
    browser: Browser, solo: tuple[Agent, str]
) -> None:
    """DNS rebinding: the page's own name leads here, so the browser allows it."""
    agent, token = solo
    port = agent.ready()["api_url"].rpartition(":")[2]
    async with visitor(browser) as guest:
        guest.allow(REFUSED_STATUSES)
        page = await guest.page()

        answer = await page.goto(f"http://rebound.test:{port}/health")
        text = await page.inner_text("body")
        answers = await page.evaluate(ASK, [TASKS, token])

    assert answer is not None
    assert answer.status == 403
    assert "host not allowed" in text
    assert set(answers) == {"basic"}  # Of its own origin, as the browser sees it.
    assert untouched(agent)
