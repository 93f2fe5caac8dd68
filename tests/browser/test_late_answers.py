"""Pages that learn something while somebody types, reads or chooses.

Each test holds an answer back, or changes the mesh at the worst moment, as a slow
machine does by chance.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest_asyncio
from playwright.async_api import Page, Route, expect

from tests.browser.chromium import Visitor
from tests.browser.dash import enter, show
from tests.support.agents import TASKS, Agent, finished, submit

HELD_S = 30.0
STUCK = {"labels": {"no": "node"}}  #: required of a node, which none has
#: Requests 1, 2 and 3 of one reader; answers come when the test says so.
ONE_AT_A_TIME = """async () => {
    const { Reader } = await import("/static/app/reading.js");
    const answers = [];
    const reader = new Reader(() => new Promise((done) => answers.push(done)));
    const counts = [];
    const count = () => counts.push(answers.length);
    const first = reader.read();
    const second = reader.read();
    const third = reader.read();
    count();
    answers[0]();
    await first;
    await null;
    count();
    answers[1]();
    await Promise.all([second, third]);
    count();
    reader.soon(3_600_000);
    reader.soon(0);
    while (answers.length === 2) await new Promise(requestAnimationFrame);
    count();
    reader.close();
    answers[2]();
    await reader.read();
    count();
    return counts;
}"""
#: Text arrives in the field, and a button is pressed before the text is reported.
TYPES_THEN_PRESSES = """() => {
    const field = document.querySelector(".filters input[type=search]");
    field.value = "late";
    field.dispatchEvent(new InputEvent("input", { bubbles: true }));
    document.querySelector(".filters .chip").click();
}"""
#: A key is pressed as soon as the rows are there, before they are painted.
PRESSES_AT_ONCE = """() => new Promise((done) => {
    new MutationObserver((_, watch) => {
        if (document.querySelector(".node-row") === null) return;
        watch.disconnect();
        dispatchEvent(new KeyboardEvent("keydown", { key: "j" }));
        done();
    }).observe(document.body, { childList: true, subtree: true });
    location.hash = "#/nodes";
})"""
#: The token is renewed while the user signs out; returns the session after both.
SIGNS_OUT_MEANWHILE = """async () => {
    const parts = performance.getEntriesByType("resource").map(({ name }) => name);
    const own = parts.find((name) => name.endsWith("/session.js"));
    const { session, end } = await import(own);
    const given = session.value;
    const real = window.fetch;
    let answer;
    const asked = new Promise((told) => {
        window.fetch = (path, how) => {
            if (!path.endsWith("/renew")) return real(path, how);
            told();
            return new Promise((done) => (answer = () => done(Response.json(given))));
        };
    });
    session.value = { ...given, until: Date.now() + 1000 };
    document.dispatchEvent(new Event("visibilitychange"));
    await asked;
    end();
    answer();
    await new Promise(requestAnimationFrame);
    window.fetch = real;
    return session.value;
}"""


@pytest_asyncio.fixture(loop_scope="session")
async def page(guest: Visitor, mesh: list[Agent]) -> Page:
    """A signed-in page of the dispatcher."""
    page = await guest.page()
    await enter(page, mesh[0])
    return page


@asynccontextmanager
async def held(page: Page, path: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Hold back the answers to requests for a path until the block ends.

    The value waits until one is there, which tells of the mesh at that moment.
    """
    is_over, is_there = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        answer = await route.fetch()
        is_there.set()
        await is_over.wait()
        await route.fulfill(response=answer)

    async def there() -> None:
        async with asyncio.timeout(HELD_S):
            await is_there.wait()

    await page.route(path, hold)
    try:
        yield there
    finally:
        is_over.set()
        await page.unroute_all(behavior="wait")


def waiting(agent: Agent, name: str, **more: object) -> str:
    """Submit a task that stays queued."""
    return submit(agent, "true", name=name, requires=STUCK, **more)


async def test_requests_of_a_reader_never_overtake_each_other(page: Page) -> None:
    """One at a time; what asks meanwhile shares the next one; none after its end."""
    assert await page.evaluate(ONE_AT_A_TIME) == [1, 2, 2, 3, 3]


async def test_order_to_a_node_is_not_undone_by_an_older_answer(
    page: Page, mesh: list[Agent]
) -> None:
    """The list was asked for before the order, and answered after it."""
    name = mesh[2].state.name
    await show(page, "nodes")
    row = page.get_by_role("listitem").filter(has=page.get_by_role("link", name=name))
    async with held(page, "**/api/v1/nodes") as there:
        await there()
        await row.get_by_role("button", name=f"Pause {name}").click()
        await page.get_by_role("dialog").get_by_role("button", name="Pause").click()
        await expect(row.locator(".state").first).to_have_text("paused")
    async with held(page, "**/api/v1/nodes") as there:
        await there()  # It is asked again, so the older answer has been there.
        assert await row.locator(".state").first.text_content() == "paused"

    await row.get_by_role("button", name=f"Resume {name}").click()
    await expect(row.locator(".state").first).to_have_text("ready")


async def test_keys_count_from_the_moment_their_view_is_shown(page: Page) -> None:
    """A slow browser paints much later."""
    await page.evaluate(PRESSES_AT_ONCE)

    chosen = page.locator(".node-row[aria-current=true]")
    await expect(chosen.get_by_role("heading")).to_have_text("ben")


async def test_chosen_node_stays_chosen_when_others_join(page: Page) -> None:
    """Keys give orders to the chosen one, wherever its row has moved."""
    await show(page, "nodes")
    await expect(page.get_by_role("heading", name="ben")).to_be_visible()
    await page.keyboard.press("j")
    chosen = page.locator(".node-row[aria-current=true]")
    await expect(chosen.get_by_role("heading")).to_have_text("ben")

    async def one_more(route: Route) -> None:
        answer = await route.fetch()
        said = await answer.json()
        said["nodes"].append({**said["nodes"][0], "id": "new", "name": "aaron"})
        await route.fulfill(response=answer, json=said)

    await page.route("**/api/v1/nodes", one_more)

    await expect(page.get_by_role("heading", name="aaron")).to_be_visible()
    await expect(chosen.get_by_role("heading")).to_have_text("ben")


async def test_list_of_nodes_stays_where_it_is_read(page: Page) -> None:
    """A node joins that sorts before all others."""
    names = [f"node-{number:02}" for number in range(40)]

    async def many(route: Route) -> None:
        answer = await route.fetch()
        said = await answer.json()
        first = said["nodes"][0]
        said["nodes"] = [{**first, "id": name, "name": name} for name in names]
        await route.fulfill(response=answer, json=said)

    await page.route("**/api/v1/nodes", many)
    await show(page, "nodes")
    last = page.get_by_role("heading", name="node-39", exact=True)
    await last.scroll_into_view_if_needed()
    names.insert(0, "first")
    await expect(page.get_by_role("heading", name="41 nodes")).to_be_visible()

    await expect(page.get_by_role("heading", name="first")).not_to_be_in_viewport()
    await expect(last).to_be_in_viewport()


async def test_chosen_task_stays_chosen_when_others_leave_the_list(
    page: Page, mesh: list[Agent]
) -> None:
    """One below it is cancelled: the keys still open the chosen one."""
    tasks = [waiting(mesh[0], f"in line {n}") for n in range(3)]
    await show(page, "tasks", status="queued")
    await expect(page.get_by_role("row").filter(has_text="in line")).to_have_count(3)
    await page.keyboard.press("j")
    await page.keyboard.press("j")
    chosen = page.locator("[role=row][aria-selected=true]")
    await expect(chosen).to_contain_text("in line 1")

    mesh[0].call("DELETE", f"{TASKS}/{tasks[0]}")
    await expect(page.get_by_role("row").filter(has_text="in line")).to_have_count(2)
    await expect(chosen).to_contain_text("in line 1")
    await page.keyboard.press("Enter")

    await expect(page.get_by_role("heading", name="in line 1")).to_be_visible()
    for task in tasks[1:]:
        mesh[0].call("DELETE", f"{TASKS}/{task}")


async def test_reason_stays_open_when_its_task_leaves_the_list(
    page: Page, mesh: list[Agent]
) -> None:
    """It was the last one of the list, which says now that no task matches."""
    task = waiting(mesh[0], "last in line")
    await show(page, "tasks", status="queued")
    await page.get_by_role("button", name="Why is it queued: last in line").click()
    reason = page.get_by_role("dialog", name="Why is it queued?")
    await expect(reason).to_contain_text("last in line")

    mesh[0].call("DELETE", f"{TASKS}/{task}")

    await expect(page.get_by_text("No task matches")).to_be_attached()
    await expect(page.get_by_role("dialog")).to_contain_text("last in line")


async def test_search_keeps_what_is_typed_while_it_runs(page: Page) -> None:
    """A pause after a word does not remove the space; a filter is not undone."""
    await show(page, "tasks")
    field = page.get_by_label("Search command or name")
    await field.press_sequentially("two ")
    await expect(page).to_have_url(re.compile("text=two$"))
    await field.press_sequentially("words")
    await expect(page).to_have_url(re.compile(r"text=two\+words$"))
    await page.get_by_role("button", name="Clear", exact=True).click()
    await expect(field).to_have_value("")

    await page.evaluate(TYPES_THEN_PRESSES)

    await expect(page).to_have_url(re.compile("status=queued&text=late$"))


async def test_form_is_filled_before_somebody_types_in_it(
    page: Page, mesh: list[Agent]
) -> None:
    """Nor is a section closed while somebody empties its last field."""
    task = waiting(mesh[0], "original", env={"MODE": "fast"})
    form = page.get_by_role("form", name="Submit a task")
    async with held(page, f"**/api/v1/tasks/{task}") as there:
        await page.evaluate(
            "(hash) => { location.hash = hash; }", f"#/submit?from={task}"
        )
        await there()
        await expect(page.locator("form.submit")).to_have_attribute("inert", "")
    await form.get_by_label("Command").fill("false")
    await expect(form.get_by_label("Name", exact=True)).to_have_value("original")
    await form.get_by_label("Environment variables").fill("")

    await expect(form.get_by_label("Environment variables")).to_be_focused()
    await expect(form.get_by_label("Command")).to_have_value("false")
    mesh[0].call("DELETE", f"{TASKS}/{task}")


async def test_details_stay_open_when_a_task_starts(
    page: Page, mesh: list[Agent], tmp_path: Path
) -> None:
    """They move on the page, because the output is more interesting then."""
    gate = tmp_path / "gate"
    first = submit(mesh[0], f"mkfifo {gate}; read line <{gate}")
    second = submit(mesh[0], "true", after=[first], env={"MODE": "fast"})
    await show(page, "tasks", second)
    await page.get_by_text("1 variable").click()
    await expect(page.get_by_text("MODE=fast")).to_be_visible()
    await asyncio.to_thread(gate.write_text, "on\n")
    finished(mesh[0], second)

    await expect(page.locator(".head .state")).to_have_text("completed")
    await expect(page.get_by_text("MODE=fast")).to_be_visible()


async def test_members_are_asked_for_again_after_a_failure(
    page: Page, mesh: list[Agent]
) -> None:
    """No event would bring them, as the array has ended."""
    array = submit(mesh[0], "true {}", array={"range": "1-2"})
    finished(mesh[0], array)
    is_refused = asyncio.Event()

    async def refuse_once(route: Route) -> None:
        if is_refused.is_set():
            await route.continue_()
        else:
            is_refused.set()
            await route.fulfill(status=503, json={"error": "not yet"})

    await page.route("**/api/v1/tasks?array=*", refuse_once)
    await show(page, "tasks", array)

    await expect(page.get_by_role("link", name=".2", exact=True)).to_be_visible()
    assert is_refused.is_set()


async def test_dialog_stays_open_when_a_selection_ends_beside_it(page: Page) -> None:
    """The button of the mouse went down in the dialog; a click beside it closes it."""
    await page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    await dialog.get_by_text("This help").hover()
    await page.mouse.down()
    await page.mouse.move(2, 2)
    await page.mouse.up()
    await expect(dialog).to_be_visible()

    await page.mouse.click(2, 2)

    await expect(dialog).to_have_count(0)


async def test_who_signs_out_stays_out_when_the_token_was_being_renewed(
    guest: Visitor, page: Page
) -> None:
    """The answer comes afterwards, and does not bring the session back."""
    guest.allow()  # Without a token the page asks whether there is a mesh.
    assert await page.evaluate(SIGNS_OUT_MEANWHILE) is None
    await expect(page.get_by_label("Or paste a token")).to_be_visible()
