"""The dashboard in a real browser, over a mesh of 200 nodes and a million tasks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, expect

from benchmarks.measure import Row, bound_row
from tests.browser.chromium import ANSWER_MS, started, visitor
from tests.browser.dash import enter
from tests.support.agents import TASKS, Agent, running, until_nodes
from tests.support.herd import herd

MEMBERS = 199  #: beside the agent itself
FORM_S = 120.0
BULK = 10_000  #: as many as one request may hold
OPENS = 7
OPEN_MS = 1000.0
SCROLL_S = 6.0
WHEEL_PX = 400
WHEEL_S = 0.02
FRAMES = 30.0  #: a second, at least
MEMORY_MB = 150.0
HEAD = {"Content-Type": "application/json"}
FAMILIES = (
    "blender -b scene.blend -f {}",
    "make -C build target-{}",
    "ffmpeg -i clip-{}.mov clip-{}.mp4",
    "python train.py --seed {}",
    "convert photo-{}.png -resize 50% small-{}.png",
)

#: What stands on a view only once its data came.
EVENTS_WITH_DRAW = {
    "overview": "text=member-101",
    "tasks": "[role=row][aria-rowindex='2']:not([aria-busy])",
}
#: Counts frames until it is asked for them.
COUNT_FRAMES = """() => {
    window.frames = [performance.now()];
    const note = (now) => { window.frames.push(now); requestAnimationFrame(note); };
    requestAnimationFrame(note);
}"""


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Fill an agent's store, give it many members, and look at it."""
    tasks = 100_000 if quick else 1_000_000
    with running(folder, "head", extra=("--slots", "2")) as (head,):
        until_nodes(head, 1)
        fill(head, tasks)
        with herd(head, MEMBERS):
            until_nodes(head, MEMBERS + 1, deadline_s=FORM_S)
            yield from asyncio.run(_look(head, tasks))
        head.process.kill()


def fill(agent: Agent, tasks: int) -> None:
    """Queue so many tasks of several families, some with names and labels."""
    numbers = itertools.count()
    with contextlib.closing(agent.connection()) as connection:
        for first in range(0, tasks, BULK):
            count = min(BULK, tasks - first)
            body = [_task(number) for number in itertools.islice(numbers, count)]
            connection.request("POST", TASKS, json.dumps(body), HEAD)
            reply = connection.getresponse()
            reply.read()
            assert reply.status == 201


def _task(number: int) -> dict[str, Any]:
    task: dict[str, Any] = {
        "command": FAMILIES[number % len(FAMILIES)].replace("{}", f"{number:07d}")
    }
    if number % 3 == 0:
        task |= {"name": f"job-{number:07d}", "labels": {"shot": f"{number % 40}"}}
    return task


async def _look(agent: Agent, tasks: int) -> list[Row]:
    expect.set_options(timeout=ANSWER_MS)
    async with started() as browser, visitor(browser) as guest:
        page = await guest.page()
        await enter(page, agent)
        overview = [await _open_ms(page, "overview") for _ in range(OPENS)]
        listing = [await _open_ms(page, "tasks") for _ in range(OPENS)]
        frames, worst_ms = await _scroll(page)
        heap_mb, process_mb = await _memory(browser, page)
    name = f"{MEMBERS + 1} nodes, {tasks} tasks"
    met = "yes" if frames >= FRAMES else "no"
    return [
        bound_row(f"{name}: overview", statistics.median(overview), "ms", OPEN_MS),
        bound_row("list of tasks", statistics.median(listing), "ms", OPEN_MS),
        ("the list scrolls", f"{frames:.0f}/s", "", f">= {FRAMES:.0f}/s", met),
        ("longest frame", f"{worst_ms:.0f} ms", "", "", ""),
        bound_row("JavaScript's memory", heap_mb, "MB", MEMORY_MB),
        bound_row("the page's process, its own memory", process_mb, "MB", MEMORY_MB),
    ]


async def _open_ms(page: Page, view: str) -> float:
    """Load the page anew; return when the data of a view was drawn."""
    await page.evaluate("(view) => { location.hash = `/${view}`; }", view)
    began_s = time.perf_counter()
    await page.reload(wait_until="commit")
    await page.locator(EVENTS_WITH_DRAW[view]).first.wait_for(state="attached")
    return (time.perf_counter() - began_s) * 1000


async def _scroll(page: Page) -> tuple[float, float]:
    """Turn the wheel over the list of tasks; return frames a second and the longest."""
    await page.evaluate(COUNT_FRAMES)
    await page.mouse.move(400, 400)
    until_s = time.perf_counter() + SCROLL_S
    while time.perf_counter() < until_s:
        await page.mouse.wheel(0, WHEEL_PX)
        await asyncio.sleep(WHEEL_S)
    stamps: list[float] = await page.evaluate("window.frames")
    gaps = [after - before for before, after in itertools.pairwise(stamps)]
    return 1000 / statistics.mean(gaps), max(gaps)


async def _memory(browser: Browser, page: Page) -> tuple[float, float]:
    """Return what the page's JavaScript and its process hold, without garbage."""
    client = await page.context.new_cdp_session(page)
    await client.send("HeapProfiler.collectGarbage")
    used = await client.send("Runtime.getHeapUsage")
    whole = await browser.new_browser_cdp_session()
    info = await whole.send("SystemInfo.getProcessInfo")
    pids = [one["id"] for one in info["processInfo"] if one["type"] == "renderer"]
    return used["usedSize"] / 1e6, max(map(_own_mb, pids))


def _own_mb(pid: int) -> float:
    """Return the memory of a process, less what it shares with other processes."""
    own_kb = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean", "Private_Dirty")):
            own_kb += int(line.split()[1])
    return own_kb / 1024
