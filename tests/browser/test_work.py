"""Work in the dashboard on a real mesh: one test for each user task."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Page, Response, Route, expect
from playwright.async_api import TimeoutError as PlaywrightTimeout

from octaskly.core.model.drafts import sequence_of
from octaskly.trust import MeshTls, NodeKey, load_secret
from tests.browser import chromium
from tests.browser.chromium import Visitor, visitor
from tests.browser.dash import enter, fits, show
from tests.integration.joining.test_joining import Asking, newcomer
from tests.support.agents import (
    TASKS,
    Agent,
    ending,
    finished,
    fork_agent,
    submit,
    until,
)
from tests.support.fork_server import ForkedProcess

SCRIPTS = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "<svg/onload=alert(1)>",
    '"><iframe srcdoc="<script>parent.alert(1)</script>">',
    "javascript:alert(1)",
    "${alert(1)}{{alert(1)}}",
)
FOREIGN = "\u05e9\u05dc\u05d5\u05dd \U0001f980 two words"
REVERSED = "\u202egpj.tcejbo"  #: would show as `object.jpg`
#: Window title, hyperlink, clipboard, cursor to the top, a bell, an unfinished escape.
ESCAPES = (
    r"\033]0;owned\007\033]8;;javascript:alert(1)\033\\press\033]8;;\033\\"
    r"\033]52;c;b3duZWQ=\007\033[2J\033[H\007\033[38;5;300mred\033[999;999mX\033["
)
LOOK = re.compile("Find machines|Look again")
LINE_BYTES = 1 << 20
LARGE = b"large " * (1 << 19)  #: 3 MiB, more than a page hashes itself
BAD_NAME = "<img src=x onerror=alert(1)>\u202egpj.exe"
SHOWN_NAME = "<img src=x onerror=alert(1)>\\u{202e}gpj.exe"
#: Both within one turn of the browser's event loop, as on a busy machine.
ESCAPE_THEN = """async (key) => {
    document.querySelector("dialog[open]").requestClose();
    for (let turn = 0; turn < 10; turn++) await null;
    dispatchEvent(new KeyboardEvent("keydown", { key }));
}"""

#: Whether the page lets itself be closed unasked.
CLOSES = "dispatchEvent(new Event('beforeunload', { cancelable: true }))"
#: Folders are listed when the test says so, as on a slow disk.
SLOW_FOLDERS = """() => {
    const { prototype } = DataTransferItem;
    const { webkitGetAsEntry } = prototype;
    const begun = new Promise((begin) => (window.listFolders = begin));
    prototype.webkitGetAsEntry = function () {
        const entry = webkitGetAsEntry.call(this);
        const { createReader } = entry;
        entry.createReader = function () {
            const reader = createReader.call(this);
            const read = (...hear) => begun.then(() => reader.readEntries(...hear));
            return { readEntries: read };
        };
        return entry;
    };
}"""


@pytest_asyncio.fixture(loop_scope="session")
async def page(guest: Visitor, mesh: list[Agent]) -> Page:
    """A signed-in page of a node that is not the dispatcher."""
    page = await guest.page()
    await enter(page, mesh[-1])
    return page


def task_of(agent: Agent, task: str) -> dict[str, Any]:
    """Return a task from the API."""
    status, said = agent.call("GET", f"{TASKS}/{task}")
    assert status == 200, said
    return dict(said)


async def test_form_submits_a_task(
    guest: Visitor, page: Page, mesh: list[Agent]
) -> None:
    """Errors show at their fields; then the page of the task opens.

    A file that is its standard input may hold any bytes.
    """
    guest.allow()
    await show(page, "submit")
    form = page.get_by_role("form", name="Submit a task")
    await form.get_by_label("Command").fill("echo from the form")
    await form.get_by_label("Name", exact=True).fill("x" * 200)
    await page.keyboard.press("Control+Enter")
    await expect(form.get_by_role("alert")).to_be_visible()
    await form.get_by_label("Name", exact=True).fill("formal")
    await form.get_by_text("More options").click()
    async with page.expect_file_chooser() as chooser:
        await form.get_by_role("button", name="Use a file").press("Enter")
    await (await chooser.value).set_files(
        {"name": "in.bin", "mimeType": "", "buffer": bytes(range(256))}
    )
    await expect(form.get_by_text("in.bin, 256 B")).to_be_visible()
    await form.get_by_role("button", name="Submit").click()

    await expect(page.get_by_role("heading", name="formal")).to_be_visible()
    await expect(page.get_by_role("log")).to_contain_text("from the form")
    await expect(page.locator(".head .state")).to_have_text("completed")
    task = task_of(mesh[0], page.url.rpartition("/")[2])
    assert (task["name"], task["stdin_bytes"]) == ("formal", 256)
    assert task["timeout"] is None
    await expect(page.get_by_label("Details")).to_contain_text("Timeoutnone")
    assert sequence_of(task["id"])  # Counted: an id from a key is long.


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [("number", "Numbers", "is not a range"), ("item", "Items", "there are 0 items")],
)
async def test_array_without_members_is_refused_at_its_field(
    guest: Visitor, page: Page, kind: str, name: str, why: str
) -> None:
    """Of the two kinds of arrays, the form has the field of the selected one."""
    guest.allow()
    await show(page, "submit")
    form = page.get_by_role("form", name="Submit a task")
    await form.get_by_label("Command").fill("echo {}")
    await form.get_by_label(f"For each {kind}").check()

    await form.get_by_role("button", name="Submit").click()

    field = form.get_by_label(name, exact=True)
    await expect(field).to_be_focused()
    await expect(field).to_have_attribute("aria-invalid", "true")
    await expect(form.get_by_role("alert")).to_contain_text(why)


@pytest.mark.parametrize("width", [1280, 400])
async def test_error_of_no_field_is_shown_in_the_window(
    guest: Visitor, page: Page, width: int
) -> None:
    """Wherever Submit was pressed, and it is read out."""
    guest.allow()
    await page.set_viewport_size({"width": width, "height": 800})
    await show(page, "submit")
    form = page.get_by_role("form", name="Submit a task")
    await form.get_by_label("Command").fill("true")
    await form.get_by_text("More options").click()

    async def refuse(route: Route) -> None:
        await route.fulfill(status=429, json={"error": "Too many tasks", "status": 429})

    await page.route(f"**{TASKS}", refuse)
    alert = form.get_by_role("alert")
    for pressed, key in (
        (form.get_by_role("button", name="Submit"), "Enter"),
        (form.get_by_label("Command"), "Control+Enter"),
    ):
        await pressed.press(key)
        await expect(alert).to_be_focused()
        await expect(alert).to_contain_text("Too many tasks")
        await expect(alert).to_be_in_viewport(ratio=1)


async def test_error_names_no_type_of_the_api(guest: Visitor, page: Page) -> None:
    """A form has only texts."""
    guest.allow()
    await show(page, "submit")
    form = page.get_by_role("form", name="Submit a task")
    await form.get_by_label("Command").fill("true")
    await form.get_by_text("More options").click()
    await form.get_by_label("CPUs").fill("many")

    await form.get_by_role("button", name="Submit").click()

    wrong = form.get_by_role("alert")
    await expect(wrong).to_have_text("expected an integer from 1 to 1048576")


async def test_task_made_an_array_is_submitted_after_a_lost_answer(
    guest: Visitor, page: Page
) -> None:
    """It is another task than the one that was sent before, perhaps in vain."""
    guest.allow()

    async def lose(route: Route) -> None:
        await route.fetch()
        await route.abort()

    await page.route(f"**{TASKS}", lose, times=1)
    await show(page, "submit")
    form = page.get_by_role("form", name="Submit a task")
    await form.get_by_label("Command").fill("echo {}")
    await form.get_by_label("For each number").check()
    await form.get_by_label("Numbers", exact=True).fill("1-2")
    await form.get_by_label("Once").check()
    await form.get_by_role("button", name="Submit").click()
    await expect(form.get_by_role("alert")).to_contain_text("does not answer")

    await form.get_by_label("For each number").check()
    await form.get_by_role("button", name="Submit").click()

    await expect(page.get_by_role("region", name="Members")).to_be_visible()


async def drop(page: Page, *paths: Path) -> None:
    """Drop files and folders of this machine on the page, as a user does."""
    cable = await page.context.new_cdp_session(page)
    data = {"items": [], "files": [*map(str, paths)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        await cable.send(
            "Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 200, "data": data}
        )


async def saved(page: Page, button: str) -> tuple[str, bytes]:
    """Press a button that downloads a file; return its name and content."""
    async with page.expect_download() as begun:
        await page.get_by_role("button", name=button, exact=True).press("Enter")
    download = await begun.value
    return download.suggested_filename, Path(await download.path()).read_bytes()


def project_in(folder: Path) -> Path:
    """Make a folder with small and large files, and names that mean no good."""
    project = folder / "project"
    for name, content in (
        (".git/config", b"[core]"),
        ("src/main.sh", b'mkdir -p "out/$1"; cat data.bin > "out/$1/copy"; ls'),
        ("data.bin", LARGE),
        (BAD_NAME, b"x"),
        (".env", b"KEY=1"),
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(content)
    (project / "void").mkdir()
    return project


async def test_dropped_files_go_along_and_what_a_task_leaves_is_downloaded(
    guest: Visitor, page: Page, tmp_path: Path
) -> None:
    """Without `.git`; a file that changed after it was chosen is named."""
    guest.allow()
    project, note = project_in(tmp_path), tmp_path / "note.txt"
    note.write_text("a note\n")
    await show(page, "submit")
    form = page.get_by_role("form", name="Submit a task")
    files = form.get_by_role("region", name="Files to send along")
    command = f"cat note.txt; cd project; sh src/main.sh '{BAD_NAME}'"
    await form.get_by_label("Command").fill(command)
    await form.get_by_label("Outputs", exact=True).fill("project/out\nnever")

    await drop(page, project, note)
    await expect(files).to_contain_text("5 files, 3.1 MB; .git was skipped")
    await expect(files).to_contain_text(
        "look like secrets, and will be sent: project/.env"
    )
    await drop(page, note)
    await expect(files.get_by_role("alert")).to_contain_text("note.txt was already")
    note.write_text("another note\n")
    await form.get_by_role("button", name="Submit").click()
    await expect(form.get_by_role("alert").last).to_contain_text("note.txt cannot be")
    await files.get_by_role("button", name="Remove note.txt").press("Enter")
    async with page.expect_file_chooser() as chooser:
        await files.get_by_role("button", name="Add files").press("Enter")
    await (await chooser.value).set_files(note)
    await expect(files).to_contain_text("5 files, 3.1 MB")
    await form.get_by_role("button", name="Submit").click()

    await expect(page.get_by_role("log")).to_contain_text("another note")
    await expect(page.get_by_role("log")).to_contain_text("void")
    await download_each(page)
    await page.get_by_role("link", name="Edit and submit again").click()
    await expect(files).to_contain_text("files of the original task are sent along")


async def test_files_of_a_task_are_listed_after_a_failed_request(
    page: Page, mesh: list[Agent]
) -> None:
    """The first request may fail during a change of dispatcher."""
    task = submit(mesh[0], "echo >out", workdir="scratch", outputs=["out"])
    finished(mesh[0], task)

    async def fail(route: Route) -> None:
        said = {"error": "No dispatcher", "hint": "Wait a moment", "status": 503}
        await route.fulfill(status=503, json=said)

    await page.route("**/outputs?*", fail, times=1)
    await show(page, "tasks", task)
    files = page.get_by_role("region", name="Output files", exact=True)

    await expect(files.get_by_role("alert")).to_contain_text("Wait a moment")
    await expect(files.get_by_role("status")).to_contain_text("1 file")
    await expect(files.get_by_role("alert")).to_have_count(0)


async def test_no_dropped_file_is_left_out(page: Page, tmp_path: Path) -> None:
    """Neither what was added while a folder is read, nor the folder."""
    folder, note = tmp_path / "folder", tmp_path / "note.txt"
    folder.mkdir()
    (folder / "inner.txt").write_text("inside\n")
    note.write_text("a note\n")
    await show(page, "submit")
    form = page.get_by_role("form", name="Submit a task")
    files = form.get_by_role("region", name="Files to send along")
    button = form.get_by_role("button", name="Submit")
    await form.get_by_label("Command").fill("cat note.txt folder/inner.txt")
    await page.evaluate(SLOW_FOLDERS)

    await drop(page, folder)
    await expect(files).to_contain_text("Reading folders")
    await drop(page, note)
    await expect(files).to_contain_text("1 file,")
    await expect(button).to_be_disabled()
    await page.evaluate("listFolders()")
    await button.click()

    await expect(page.get_by_role("log")).to_contain_text("a note")
    await expect(page.get_by_role("log")).to_contain_text("inside")


async def test_task_is_submitted_although_its_form_was_left(
    page: Page, mesh: list[Agent], tmp_path: Path
) -> None:
    """While files are sent, one may look at another view; a close is asked about."""
    (tmp_path / "note.txt").write_text("a note of a form that was left\n")
    begun, is_open = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        begun.set()
        await is_open.wait()
        await route.continue_()

    await page.route("**/api/v1/files/pack", hold)
    await show(page, "submit")
    form = page.get_by_role("form", name="Submit a task")
    await form.get_by_label("Command").fill("cat note.txt # although left")
    await drop(page, tmp_path / "note.txt")
    await form.get_by_role("button", name="Submit").click()
    async with asyncio.timeout(30):
        await begun.wait()

    await show(page, "nodes")
    await expect(page.get_by_text("still being submitted")).to_be_visible()
    closes = await page.evaluate(CLOSES)
    is_open.set()

    await expect(page.get_by_text("Task submitted")).to_be_visible()
    assert [closes, await page.evaluate(CLOSES)] == [False, True]
    assert urlsplit(page.url).fragment == "/nodes"
    commands = [task["command"] for task in mesh[0].call("GET", TASKS)[1]["tasks"]]
    assert commands.count("cat note.txt # although left") == 1


async def test_files_are_safe_in_the_mesh_before_their_task_is_submitted(
    guest: Visitor, page: Page, tmp_path: Path
) -> None:
    """The page may be closed then; if they are not, there is no task."""
    guest.allow()
    (tmp_path / "note.txt").write_text("a safe note\n")
    answered: list[str] = []
    replicate = "/api/v1/files/replicate"

    def note(response: Response) -> None:
        path = urlsplit(response.url).path
        if response.request.method == "POST" and path in (replicate, TASKS):
            answered.append(path)

    async def refuse(route: Route) -> None:
        said = {"error": "Not enough space", "hint": "ben: the disk is full"}
        await route.fulfill(status=507, json={**said, "status": 507})

    page.on("response", note)
    await page.route(f"**{replicate}", refuse)
    await show(page, "submit")
    form = page.get_by_role("form", name="Submit a task")
    await form.get_by_label("Command").fill("cat note.txt")
    await drop(page, tmp_path / "note.txt")
    await form.get_by_role("button", name="Submit").click()
    await expect(form.get_by_role("alert").last).to_contain_text("Not enough space")
    refused = answered[:]
    await page.unroute(f"**{replicate}")
    await form.get_by_role("button", name="Submit").click()

    await expect(page.get_by_role("log")).to_contain_text("a safe note")
    assert refused == [replicate]
    assert answered[1:] == [replicate, TASKS]


async def download_each(page: Page) -> None:
    """Download the files of the task that `project_in` was made for."""
    sent = page.get_by_role("region", name="Files sent along", exact=True)
    left = page.get_by_role("region", name="Output files", exact=True)
    await expect(sent).to_contain_text("6 files, 3.1 MB")
    await expect(left).to_contain_text("Missing when the task ended: never")
    await expect(left).to_contain_text(f"project/out/{SHOWN_NAME}/copy")
    assert await page.locator("main img, main script").count() == 0
    assert "\u202e" not in await page.locator("main").inner_text()

    copy = await saved(page, f"Download project/out/{SHOWN_NAME}/copy")
    data = await saved(page, "Download project/data.bin")
    name, _ = await saved(page, f"Download project/{SHOWN_NAME}")
    counts = []
    for part in (sent, left):
        async with page.expect_download() as begun:
            await part.get_by_role("button", name="Download all (.tar)").click()
        with tarfile.open(await (await begun.value).path()) as tar:
            counts.append(len(tar.getnames()))

    assert copy == ("copy", LARGE)
    assert data == ("data.bin", LARGE)
    assert name.isprintable()
    assert counts == [6, 1]


@pytest.mark.skipif(not shutil.which("certutil"), reason="apt install libnss3-tools")
async def test_lan_address_opens_for_a_browser_that_trusts_the_mesh(
    mesh: list[Agent], tmp_path: Path
) -> None:
    """By HTTPS, without a warning: signed in, live, and able to submit a task.

    Machines are let in on the node itself only.
    """
    node = mesh[1]
    secret = load_secret(node.state.parent / "mesh.key")
    authority = tmp_path / "ca.pem"
    authority.write_text(MeshTls(secret, NodeKey.generate()).ca_pem())
    chromium.trust(tmp_path, authority)

    async with chromium.started(tmp_path) as browser, visitor(browser) as guest:
        page = await guest.page()
        _, code = node.call("POST", "/api/v1/sessions/codes", {"good_for": "anybody"})
        await page.goto(code["lan_url"])
        await expect(page.get_by_text("Connected", exact=True)).to_be_visible()
        await show(page, "submit")
        form = page.get_by_role("form", name="Submit a task")
        await form.get_by_label("Command").fill("echo over the LAN")
        await page.keyboard.press("Control+Enter")
        await expect(page.get_by_role("log")).to_contain_text("over the LAN")
        await show(page, "nodes")
        await expect(page.get_by_role("heading", name="ben")).to_be_visible()
        for name in ("Find machines", "Invite a visitor"):
            await expect(page.get_by_role("button", name=name)).to_have_count(0)

    assert code["lan_url"].startswith("https://")


async def test_log_is_live_and_the_task_can_be_ended(
    page: Page, mesh: list[Agent], tmp_path: Path
) -> None:
    """A user follows a task from its node, sees each line, and stops its processes."""
    gate = f"{tmp_path}/gate"
    task = submit(
        mesh[0],
        f"mkfifo {gate}; echo first; read line <{gate}; echo $line; sleep 600",
        name="long one",
    )
    until(lambda: task_of(mesh[0], task)["status"] == "running", "it runs")
    await show(page, "nodes", task_of(mesh[0], task)["worker_id"])
    await expect(page.get_by_label("Details")).to_contain_text("Agent up for")
    running = page.get_by_role("region", name="Running now")
    await running.get_by_role("link", name="long one").click()
    log = page.get_by_role("log")
    await expect(log.get_by_text("first")).to_be_visible()

    with open(gate, "w") as fifo:  # noqa: PTH123
        fifo.write("second\n")
    await expect(log.get_by_text("second")).to_be_visible()
    await page.get_by_role("button", name="Cancel", exact=True).click()
    await page.get_by_role("button", name="Cancel now").click()

    await expect(page.locator(".head .state")).to_have_text("cancelled")
    assert task_of(mesh[0], task)["status"] == "cancelled"
    name, output = await saved(page, "Download stdout")
    assert (name, output) == (f"{task}.stdout.txt", b"first\nsecond\n")


async def test_waiting_task_gets_another_priority(
    page: Page, mesh: list[Agent]
) -> None:
    """Enter in the field is enough; a number out of range is not sent."""
    task = submit(mesh[0], "true", requires={"labels": {"no": "node"}})
    await show(page, "tasks", task)
    await page.get_by_role("button", name="Priority …").click()
    field = page.get_by_label("Priority", exact=True)

    await field.fill("51")
    await field.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await field.fill("-7")
    await field.press("Enter")

    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(page.get_by_text("-7", exact=True)).to_be_visible()
    assert task_of(mesh[0], task)["priority"] == -7
    assert mesh[0].call("DELETE", f"{TASKS}/{task}")[0] == 200


async def test_error_of_a_dialog_is_shown_in_front_of_it(
    page: Page, mesh: list[Agent]
) -> None:
    """The page behind is dark, and takes no clicks."""
    task = submit(mesh[0], "true", requires={"labels": {"no": "node"}})

    async def fail(route: Route) -> None:
        said = {"error": "No dispatcher", "hint": "Wait a moment", "status": 503}
        await route.fulfill(status=503, json=said)

    await page.route("**/reprioritize", fail)
    await show(page, "tasks", task)
    await page.get_by_role("button", name="Priority …").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name="Change").click()

    await expect(dialog.get_by_role("status")).to_contain_text("No dispatcher")
    await dialog.get_by_role("button", name="Dismiss").click()
    await expect(page.get_by_text("No dispatcher")).to_have_count(0)
    assert mesh[0].call("DELETE", f"{TASKS}/{task}")[0] == 200


async def test_a_dialog_stays_open_when_the_reason_arrives(
    page: Page, mesh: list[Agent]
) -> None:
    """The text in the field stays when the page learns why the task waits."""
    task = submit(mesh[0], "true", requires={"labels": {"no": "node"}})
    asked = asyncio.Event()
    is_open = asyncio.Event()

    async def explain(route: Route) -> None:
        asked.set()
        await is_open.wait()
        await route.continue_()

    await page.route("**/explain", explain)
    await show(page, "tasks", task)
    await page.get_by_role("button", name="Priority …").click()
    field = page.get_by_label("Priority", exact=True)
    await field.fill("12")
    async with asyncio.timeout(10):
        await asked.wait()
    is_open.set()

    await expect(page.locator(".warning")).to_be_visible()
    await expect(field).to_have_value("12")
    assert mesh[0].call("DELETE", f"{TASKS}/{task}")[0] == 200


async def test_array_with_failed_members_is_retried(
    page: Page, mesh: list[Agent]
) -> None:
    """The failed members, the first of them above all, and a retry of the same ones."""
    array = submit(
        mesh[0],
        "test $((OCTASKLY_INDEX % 4)) -ne 3 || { echo bad {} >&2; exit 5; }",
        name="quarters",
        array={"range": "0-11"},
    )
    finished(mesh[0], array)
    await show(page, "tasks", array)

    await expect(page.get_by_role("button", name="failed 3")).to_be_visible()
    await expect(page.get_by_role("link", name=".7", exact=True)).to_be_visible()
    first = page.get_by_text("First failure: .3 exit code 5")
    await expect(first.get_by_role("link")).to_have_attribute(
        "href", f"#/tasks/{array}.3"
    )
    await page.get_by_role("button", name="Retry").click()
    await expect(page).not_to_have_url(re.compile(array))
    again = page.url.rpartition("/")[2]

    assert task_of(mesh[0], again)["retry_of"] == array
    assert finished(mesh[0], again)["array"]["total"] == 3


async def test_node_is_drained_and_resumed(page: Page, mesh: list[Agent]) -> None:
    """Any node, from any node; a shortcut key asks for the node first."""
    name = mesh[1].state.name

    def state() -> str:
        _, listed = mesh[0].call("GET", "/api/v1/nodes")
        return str(next(n["state"] for n in listed["nodes"] if n["name"] == name))

    await show(page, "nodes")
    await page.get_by_label("Find a node").fill(name)
    await page.keyboard.press("Escape")
    await page.keyboard.type("p")
    await expect(page.get_by_role("dialog")).to_contain_text(f"Pause {name}?")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await page.keyboard.type("d")
    await expect(page.get_by_role("dialog")).to_contain_text(f"Drain {name}?")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name=f"Resume {name}")).to_be_visible()
    until(lambda: state() == "draining", "it is drained")
    await page.get_by_role("button", name=f"Resume {name}").click()
    await expect(page.get_by_role("button", name=f"Drain {name}")).to_be_visible()

    until(lambda: state() == "ready", "it accepts tasks again")


async def test_room_on_a_node_is_shown_and_freed(page: Page, mesh: list[Agent]) -> None:
    """Outputs by task; what the dialog does, `octaskly forget` does as well."""
    name = mesh[1].state.name
    draft = {
        "command": "head -c 3000000 /dev/zero > big",
        "outputs": ["big"],
        "workdir": "scratch",
        "requires": {"node": name},
    }
    status, created = mesh[0].call("POST", TASKS, draft, key="a-client")
    assert status == 201, created
    task = created["id"]
    finished(mesh[0], task)
    await show(page, "nodes")
    await page.get_by_role("link", name=name).press("Enter")

    room = page.get_by_role("region", name="Stored files", exact=True)
    row = room.get_by_role("row").filter(has_text=task)
    await expect(row).to_contain_text("3.0 MB")
    await expect(row).to_contain_text("outputs")
    await room.get_by_role("button", name="Forget ended tasks").press("Enter")
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("combobox").select_option("604800")
    await expect(dialog).to_contain_text("octaskly forget --older-than 7d")
    await dialog.get_by_role("button", name="Forget them").press("Enter")
    await expect(page.get_by_text("0 tasks forgotten")).to_be_visible()
    await row.get_by_role("link", name=task, exact=True).press("Enter")
    await expect(page.get_by_role("heading", name=task)).to_be_visible()


async def test_files_that_travelled_are_shown_in_the_stream(
    page: Page, mesh: list[Agent], tmp_path: Path
) -> None:
    """Only those of tasks with files; one that has ended is asked for once."""
    plain = submit(mesh[0], "true", name="no files")
    (tmp_path / "plan").write_text("x")
    await show(page, "submit")
    form = page.get_by_role("form", name="Submit a task")
    await form.get_by_label("Command").fill("cat plan")
    await form.get_by_label("Name", exact=True).fill("with files")
    await drop(page, tmp_path / "plan")
    await expect(form.get_by_label("Files to send along")).to_contain_text("1 file")
    await form.get_by_role("button", name="Submit").click()
    await expect(page.locator(".head .state")).to_have_text("completed")
    task = page.url.rpartition("/")[2]
    node = task_of(mesh[0], task)["worker_id"]
    asked: list[str] = []

    async def answer(route: Route) -> None:
        asked.append(route.request.url)
        sent = [{"node": "<b>nas</b>", "bytes": 100_000_000}]
        inputs = {"node": node, "bytes": 3_200_000_000, "present_bytes": 3_100_000_000}
        told: dict[str, Any] = {"summary": "it ran", "placement": None, "nodes": []}
        await route.fulfill(json={**told, "inputs": {**inputs, "sent": sent}})

    await page.route("**/explain", answer)
    await show(page, "stream")
    travelled = page.get_by_role("region", name="Transfers", exact=True)
    row = travelled.get_by_role("row").filter(has_text="with files")
    for text in (node, "<b>nas</b> (100", "3.1 GB", "3.2 GB"):
        await expect(row).to_contain_text(text)
    await show(page, "tasks", task)
    await expect(page.get_by_text("3.1 GB of 3.2 GB was already there")).to_be_visible()
    # Once in the stream, once on its page.
    assert [one for one in asked if f"/{task}/" in one] == [asked[-1]] * 2
    assert not [one for one in asked if f"/{plain}/" in one]


async def test_key_right_after_escape_opens_the_next_dialog(
    page: Page, mesh: list[Agent]
) -> None:
    """The browser reports late that a dialog has closed; this closes no other one."""
    name = mesh[1].state.name
    await show(page, "nodes")
    await page.get_by_label("Find a node").fill(name)
    await page.keyboard.press("Escape")
    await page.keyboard.type("p")
    await expect(page.get_by_role("dialog")).to_contain_text(f"Pause {name}?")

    await page.evaluate(ESCAPE_THEN, "d")

    await expect(page.get_by_role("dialog")).to_contain_text(f"Drain {name}?")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_key_right_after_escape_reopens_the_same_dialog(
    page: Page,
) -> None:
    """It is a new dialog, whichever view shows it."""
    await show(page, "nodes")
    await page.keyboard.type("?")
    await expect(page.get_by_role("dialog")).to_be_visible()

    await page.evaluate(ESCAPE_THEN, "?")

    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_waiting_task_names_its_unmet_requirement(
    page: Page, mesh: list[Agent]
) -> None:
    """In the list, without leaving it."""
    task = submit(mesh[0], "true", name="needy", requires={"gpus": 2})
    await show(page, "tasks")

    await page.get_by_role("button", name="Why is it queued: needy?").click()

    await expect(page.get_by_role("dialog")).to_contain_text("needs 2 GPUs")
    mesh[0].call("DELETE", f"{TASKS}/{task}")


async def test_impossible_task_is_edited_and_resubmitted(
    page: Page, mesh: list[Agent]
) -> None:
    """The form shows its requirements, and the excessive one is removed."""
    labels = {"team": "red", "film": "intro"}
    fields = {"labels": labels, "grace": 0, "requires": {"gpus": 2}}
    task = submit(mesh[0], "echo ran", **fields)
    await show(page, "tasks", task)
    await expect(
        page.get_by_text("Will not start until a node with 2 GPUs joins")
    ).to_be_visible()
    await page.get_by_role("link", name="Edit and submit again").click()

    form = page.get_by_role("form", name="Submit a task")
    await form.get_by_label("GPUs").fill("")
    await form.get_by_role("button", name="Submit").click()
    await expect(page.get_by_role("log")).to_contain_text("ran")

    again = task_of(mesh[0], page.url.rpartition("/")[2])
    assert (again["labels"], again["timeout"], again["grace"]) == (labels, 3600, 0)
    mesh[0].call("DELETE", f"{TASKS}/{task}")


@pytest.mark.parametrize(
    "fields",
    [
        {"env": {"KEY": "-----BEGIN-----\nA=B\n"}},
        {"inputs": [" a.txt"], "workdir": "scratch"},
    ],
)
async def test_task_that_the_form_would_change_is_not_edited(
    page: Page, mesh: list[Agent], fields: dict[str, Any]
) -> None:
    """A field has one variable or path for each line."""
    requires = {"labels": {"no": "node"}}
    task = submit(mesh[0], "true", requires=requires, **fields)

    await show(page, "tasks", task)

    await expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    await expect(page.get_by_role("link", name="Edit and submit")).to_have_count(0)
    mesh[0].call("DELETE", f"{TASKS}/{task}")


async def test_failed_task_shows_its_last_output_in_the_list(
    page: Page, mesh: list[Agent]
) -> None:
    """Its exit code says little."""
    task = submit(mesh[0], "echo no such film >&2; exit 3", name="encode")
    finished(mesh[0], task)
    await show(page, "tasks")

    await page.get_by_role("button", name="Why did it fail: encode?").click()

    dialog = page.get_by_role("dialog", name="Why did it fail?")
    await expect(dialog).to_contain_text("exit code 3")
    await expect(dialog).to_contain_text("no such film")


async def test_list_says_which_member_failed_and_which_output_is_missing(
    page: Page, mesh: list[Agent]
) -> None:
    """As `explain` and `ls` do."""
    array = submit(mesh[0], "exit $(({} / 2))", name="odd", array={"range": "1-3"})
    task = submit(mesh[0], "true", name="lacking", outputs=["r.txt"])
    finished(mesh[0], array)
    finished(mesh[0], task)
    await show(page, "tasks")

    await expect(page.get_by_role("row", name="lacking")).to_contain_text(
        "without r.txt"
    )
    await page.get_by_role("button", name="Why did it fail: odd?").click()
    dialog = page.get_by_role("dialog", name="Why did it fail?")
    await expect(dialog).to_contain_text("First failure: .2 exit code 1")


async def test_invalid_filter_is_an_error_and_loads_nothing(
    guest: Visitor, page: Page
) -> None:
    """No row will come."""
    guest.allow()
    await show(page, "tasks", label="bad label!")

    await expect(page.get_by_role("alert")).to_contain_text("label")
    await expect(page.locator(".head")).not_to_contain_text("Loading")
    await expect(page.get_by_role("grid")).to_have_count(0)


async def test_members_cancelled_before_their_start_are_counted(
    page: Page, mesh: list[Agent]
) -> None:
    """No list has them."""
    requires = {"labels": {"no": "node"}}
    array = submit(mesh[0], "true", requires=requires, array={"range": "1-9"})
    assert mesh[0].call("DELETE", f"{TASKS}/{array}.4")[0] == 200
    assert mesh[0].call("DELETE", f"{TASKS}/{array}")[0] == 200
    finished(mesh[0], array)
    await show(page, "tasks", array)

    members = page.get_by_role("region", name="Members")
    await expect(members.get_by_role("row")).to_have_count(2)
    await expect(members).to_contain_text("Not listed: 8 members that never started.")


@pytest.mark.parametrize("width", [1280, 400])
async def test_long_label_wraps(page: Page, mesh: list[Agent], width: int) -> None:
    """Of the greatest length that the API accepts."""
    requires = {"labels": {"no": "node"}}
    labels = {"a" * 64: "v" * 256}
    task = submit(mesh[0], "true", labels=labels, requires=requires)
    await page.set_viewport_size({"width": width, "height": 800})
    await show(page, "tasks", task)
    await expect(page.get_by_role("link", name="v" * 256)).to_be_visible()

    assert await fits(page)
    mesh[0].call("DELETE", f"{TASKS}/{task}")


async def test_stream_counts_nothing_before_the_first_answer(
    guest: Visitor, page: Page
) -> None:
    """It loads, or says why it cannot."""
    guest.allow()
    is_over, is_up = asyncio.Event(), asyncio.Event()

    async def answer(route: Route) -> None:
        await is_over.wait()
        await (route.continue_() if is_up.is_set() else route.abort())

    await page.route("**/api/v1/attempts*", answer)
    await show(page, "stream")
    status = page.locator(".head").get_by_role("status")

    await expect(status).to_have_text("Loading …")
    is_over.set()
    await expect(status).to_have_text("The node does not answer; retrying …")
    is_up.set()
    await expect(status).to_contain_text("started in")


async def test_failed_python_call_shows_its_call_and_its_traceback(
    page: Page, mesh: list[Agent]
) -> None:
    """Not the command of the runner, nor the pickle on its stdout."""
    command = r"printf '\200\005pickle'; echo ValueError: odd >&2; exit 1"
    task = submit(mesh[0], command, call="simulate(3, seed=7)")
    finished(mesh[0], task)
    await show(page, "tasks")

    await page.get_by_role("link", name="simulate(3, seed=7)").first.click()

    await expect(
        page.get_by_role("heading", name="simulate(3, seed=7)")
    ).to_be_visible()
    await expect(page.get_by_role("log")).to_contain_text("ValueError: odd")
    await expect(page.get_by_role("log")).not_to_contain_text("pickle")
    await expect(page.locator("main")).not_to_contain_text("printf")


async def test_names_of_strangers_run_no_script(page: Page, mesh: list[Agent]) -> None:
    """Names, labels and commands of strangers, in the list and in each task.

    In any writing, too.
    """
    names = (*SCRIPTS, FOREIGN)
    tasks = [
        submit(
            mesh[0],
            f"cat <<'E'\n{script}\nE",
            name=f"{number} {script}"[:128],
            labels={"l": script},
            env={"A": script},
            requires={"labels": {"l": "x"}},
        )
        for number, script in enumerate(names)
    ]
    await show(page, "tasks")
    for number, (task, script) in enumerate(zip(tasks, names, strict=True)):
        await show(page, "tasks")
        await expect(page.get_by_text(f"{number} {script}").first).to_be_visible()
        await show(page, "tasks", task)
        await expect(page.get_by_role("heading", name=script)).to_be_visible()
        assert await page.locator("main script, main img, main iframe").count() == 0
        assert await page.locator("a[href^='javascript']").count() == 0
        mesh[0].call("DELETE", f"{TASKS}/{task}")


async def test_task_output_is_shown_as_plain_text(
    page: Page, mesh: list[Agent]
) -> None:
    """Markup, terminal escapes, right-to-left text, and a line of 1 MiB."""
    task = submit(
        mesh[0],
        f"cat; printf '{ESCAPES}\\nlast\\n'; "
        f"head -c {LINE_BYTES} /dev/zero | tr '\\0' x; echo; echo over",
        stdin="\n".join((*SCRIPTS, REVERSED, "")),
    )
    finished(mesh[0], task)
    title = await page.title()
    await show(page, "tasks", task)

    log = page.get_by_role("log")
    await expect(log.get_by_text("over", exact=True)).to_be_visible()
    await log.evaluate("(frame) => { frame.scrollTop = 0; }")
    for script in SCRIPTS:
        await expect(log.get_by_text(script, exact=True)).to_be_visible()
    assert await log.locator("a, img, script, iframe, svg").count() == 0
    assert "\x1b" not in await log.inner_text()
    assert "\u202e" not in await log.inner_text()
    assert (await page.title()).endswith("Octaskly"), title


async def found_words(page: Page) -> str:
    """Look for a machine that waits until one look has found it; return its words."""
    words = page.get_by_label("Its words")
    while not await words.count():
        await page.get_by_role("button", name=LOOK).click()
        with contextlib.suppress(PlaywrightTimeout):
            await words.wait_for(timeout=5000)
    return await words.inner_text()


async def test_waiting_machine_is_admitted_once_the_words_match(
    page: Page, mesh: list[Agent], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its words are on its own screen; users compare them here."""
    agent = newcomer(tmp_path_factory.mktemp("bay"), "bay")
    with ending(agent):
        agent.ready()
        asking = Asking(agent)
        asking.expect("on a member: octaskly approve bay")
        await show(page, "nodes")
        asking.expect(f"    {await found_words(page)}")
        await page.get_by_role("button", name="Yes, let it join").click()
        asking.type("y\n")
        asking.expect("joined the mesh of")

        assert asking.end() == 0
        await expect(page.get_by_role("heading", name="bay")).to_be_visible()


@contextlib.contextmanager
def visiting(
    folder: Path, command: str
) -> Iterator[ForkedProcess | subprocess.Popen[bytes]]:
    """Run a visitor that joins by a command which the dashboard has shown."""
    program, verb, flag, invite = command.split()
    assert (program, verb, flag) == ("octaskly", "join", "--visitor")
    words = ("agent", "--visitor", "--slots", "1", "--name", "borrowed")
    environ = {**os.environ, "OCTASKLY_INVITE": invite, "TMPDIR": str(folder)}
    with (folder / "log").open("wb") as log, Path(os.devnull).open("rb") as nothing:
        forked = fork_agent(words, environ=environ, files=(nothing, log, log))
        process: ForkedProcess | subprocess.Popen[bytes] = forked or subprocess.Popen(
            [sys.executable, "-m", "octaskly", *words],
            env=environ,
            stdin=nothing,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


async def test_a_machine_is_borrowed(
    page: Page, mesh: list[Agent], tmp_path: Path
) -> None:
    """An invite, its QR code, who came by it, a task there, and the visit's end."""
    await show(page, "nodes")
    visitors = page.get_by_role("region", name="Visitors")
    await visitors.get_by_role("button", name="Invite a visitor").click()
    await expect(
        visitors.get_by_role("img", name="The invite as a QR code")
    ).to_be_visible()
    command = await visitors.locator(".command code").inner_text()

    with visiting(tmp_path, command) as borrowed:
        row = page.get_by_role("listitem").filter(has_text="borrowed")
        await expect(row).to_contain_text("visitor until")
        [shown] = [
            node
            for node in mesh[0].call("GET", "/api/v1/nodes")[1]["nodes"]
            if node["visitor"]
        ]
        await expect(row).to_contain_text(f"invited by {shown['invited_by']}")
        await expect(row.get_by_role("button", name="Drain borrowed")).to_have_count(0)
        await expect(visitors.get_by_label("Open invites")).to_have_count(0)

        await show(page, "submit")
        form = page.get_by_role("form", name="Submit a task")
        await form.get_by_label("Command").fill("echo from $OCTASKLY_NODE")
        await form.get_by_text("More options").click()
        await form.get_by_label("Visitors", exact=True).select_option("true")
        await form.get_by_label("Run on").select_option("borrowed")
        await form.get_by_role("button", name="Submit").click()
        await expect(page.get_by_role("log")).to_contain_text("from borrowed")

        await show(page, "nodes", "borrowed")
        details = page.get_by_role("region", name="Details")
        await expect(details).to_contain_text("Invited by")
        await page.get_by_role("button", name="End the visit of borrowed").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("needs a new invite to come back")
        await expect(dialog).to_contain_text("Other visitors stay")
        await dialog.get_by_role("button", name="End the visit of borrowed").click()
        await expect(page.get_by_text("is no visitor any more")).to_be_visible()
        assert borrowed.wait(60) == 0
    await expect(page.get_by_text("There is no such node")).to_be_visible()


async def test_an_invite_is_withdrawn(page: Page, mesh: list[Agent]) -> None:
    """Whoever has its code comes too late."""
    await show(page, "nodes")
    visitors = page.get_by_role("region", name="Visitors")
    await visitors.get_by_role("button", name="Invite a visitor").click()
    command = await visitors.locator(".command code").inner_text()
    number = command.rpartition("/")[2].partition("-")[0]

    withdraw = visitors.get_by_role("button", name=f"Withdraw invite {number}")
    await withdraw.click()

    await expect(withdraw).to_have_count(0)
    await expect(visitors.locator(".command code")).to_have_count(0)
    _, listed = mesh[-1].call("GET", "/api/v1/invites")
    states = {invite["id"]: invite["state"] for invite in listed["invites"]}
    assert states[number] == "revoked"
