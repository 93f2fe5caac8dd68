"""The pure modules of the dashboard's scripts, run in the browser."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest_asyncio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from playwright.async_api import Browser, Page, Route

from octaskly.api.schemas.request_bodies import TaskIn, parse_tasks
from octaskly.cli.commands.arrays import array, map_
from octaskly.cli.commands.run import run
from octaskly.files.local_tree import _looks_secret
from octaskly.files.manifest import (
    TreeFile,
    decode_manifest,
    encode_manifest,
    make_manifest,
)
from tests.browser.chromium import visitor
from tests.browser.dash import enter
from tests.support.agents import TASKS, Agent

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
CONTROL_FILES = st.lists(PARTS | st.text(max_size=5), max_size=30)
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
TOTALS = st.integers(0, 3_000_000)
NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=60
)
#: Each in a folder, so that none is a folder of another one.
FILES = st.tuples(
    st.builds("{}/_{}".format, st.integers(0, 9), NAMES),
    st.integers(0, 2**50),
    st.integers(-(2**40), 2**42),
    st.text("0123456789abcdef", min_size=64, max_size=64),
)
SECRETS = ("a/.env", "id_rsa", "certs/Key.PEM", "secrets.yml", ".npmrc")
PLAIN = (".env.example", "id_rsa.pub", "monkey", "key/notes.txt")
VIEWS_PX = st.integers(100, 2000)
ROWS_PX = st.sampled_from((40, 64))

WRITE = """async (pieces) => {
    const { Output } = await import("/static/app/views/ansi.js");
    const output = new Output(1000);
    const pen = output.pen("stdout");
    for (const piece of pieces) pen.write(piece);
    return output.lines.map(({ spans }) => spans);
}"""
SCROLL = """async ([top, sizes]) => {
    const { Track } = await import("/static/app/views/virtual.js");
    const track = new Track(sizes);
    const px = track.scrollOf(top);
    return {
        px, track: track.px, most: track.topMax,
        again: track.topAfter(top, px, px), shown: track.rowsInSight(top),
    };
}"""
PAGES = """async ([first, last, total, isNewest]) => {
    const v = await import("/static/app/views/virtual.js");
    return [v.pagesOf(first, last, total, isNewest), v.PAGE_ROWS];
}"""
#: From the page itself, because another copy of the modules would not be signed in.
LIST = """async (isNewest) => {
    const { Pages } = await import(new URL("views/rows.js", document.scripts[0].src));
    performance.clearResourceTimings();
    const rows = new Pages({}, isNewest);
    while (rows.total.value === null) await new Promise((done) => setTimeout(done, 5));
    const total = rows.total.value;
    const some = Array.from({ length: Math.min(60, total) }, (_, n) => rows.at(n));
    const asked = performance.getEntriesByType("resource")
        .filter(({ name }) => name.includes("/api/v1/tasks"));
    rows.close();
    return [total, some.map((task) => task?.command ?? null), asked.length];
}"""
UNTIL = """async (isTrue) => {
    const end = performance.now() + 8000;
    while (!isTrue() && performance.now() < end) {
        await new Promise(requestAnimationFrame);
    }
    return isTrue();
}"""
#: Scrolls to the end, reads again what is in sight, and scrolls back to the start.
SCROLLS_BACK = f"""async () => {{
    const {{ Pages }} = await import("/static/app/views/rows.js");
    const until = {UNTIL};
    const rows = new Pages({{}}, false);
    await until(() => rows.at(0));
    rows.want(280, 300);
    await until(() => rows.at(299));
    await rows.refresh();
    rows.want(0, 20);
    await until(() => rows.at(0).status === "completed");
    rows.close();
    return rows.at(0).status;
}}"""
SEARCHES = f"""async () => {{
    const {{ Finds }} = await import("/static/app/views/rows.js");
    const rows = new Finds({{ text: "x" }}, true);
    await ({UNTIL})(() => rows.isOver.value);
    rows.close();
    return [rows.at(0).id, rows.at(1)?.id];
}}"""
#: Searches past the first page, and again after missed events.
SEARCHES_AGAIN = f"""async () => {{
    const {{ Finds }} = await import("/static/app/views/rows.js");
    const until = {UNTIL};
    const rows = new Finds({{ text: "x" }}, true);
    await until(() => rows.at(99));
    rows.want(90, 100);
    await until(() => rows.at(100));
    const before = rows.at(100).status;
    await rows.refresh();
    rows.close();
    return [before, rows.at(100)?.status, rows.total.value];
}}"""
#: Searches all tasks, oldest first, and looks for new ones twice.
SEARCHES_ON = f"""async () => {{
    const {{ Finds }} = await import("/static/app/views/rows.js");
    const rows = new Finds({{ text: "x" }}, false);
    for (let n = 0; n < 3; n++) {{
        await ({UNTIL})(() => rows.isOver.value);
        if (n < 2) await rows.reread();
    }}
    rows.close();
    return Array.from({{ length: rows.total.value }}, (_, n) => rows.at(n).id);
}}"""
#: Looks for new tasks again and again.
SEARCHES_LONG = f"""async (rounds) => {{
    const {{ Finds }} = await import("/static/app/views/rows.js");
    const rows = new Finds({{ text: "x" }}, true);
    await ({UNTIL})(() => rows.isOver.value);
    for (let n = 0; n < rounds; n++) await rows.reread();
    rows.close();
    return [rows.total.value, rows.known.size, rows.at(0).id];
}}"""
LANES = """async ([slots, answers]) => {
    const { Lanes } = await import("/static/app/views/lanes.js");
    const lanes = new Lanes();
    lanes.fit([{ name: "ana", slots }]);
    for (const answer of answers) lanes.take(answer);
    const shown = ({ key, start, end }) =>
        [key, start, Number.isFinite(end) ? end : null];
    return [lanes.nodes.get("ana").map((bars) => bars.map(shown)), lanes.waiting];
}"""
#: The nodes with lanes after others joined and left, which ran attempts or not.
LANES_LEFT = """async ([answer, ...names]) => {
    const { Lanes } = await import("/static/app/views/lanes.js");
    const lanes = new Lanes();
    for (const name of names) {
        lanes.fit([{ name, slots: 2 }]);
        lanes.take(answer);
    }
    return [...lanes.nodes.keys()];
}"""
FAMILIES = """async (commands) => {
    const { familyOf, toneOf } = await import("/static/app/views/lanes.js");
    return commands.map((one) => [familyOf(one), toneOf(familyOf(one))]);
}"""
VIEW = """async ([view, factor, around, most]) => {
    const { zoomed, ticks, SPAN_MS } = await import("/static/app/views/lanes.js");
    const after = zoomed(view, factor, around);
    return [after, SPAN_MS, ticks(after.from, after.span, most)];
}"""
FORM = """async ([typed, arrayOf]) => {
    const { bodyOf } = await import("/static/app/views/asking.js");
    return bodyOf(typed, arrayOf);
}"""
PLACES = """async (paths) => {
    const { fieldOf } = await import("/static/app/views/asking.js");
    return paths.map((path) => fieldOf(path, "items"));
}"""
COPIES = """async (task) => {
    const { asCli, asCurl, asked, unread } =
        await import("/static/app/views/copies.js");
    const curl = asCurl(asked(task), "https://pi4:3443");
    return [asCli(task), unread(task) + curl, asked(task)];
}"""
MANIFEST = """async (files) => {
    const { encodeManifest } = await import("/static/app/trees.js");
    const chosen = files.map(([path, size, lastModified]) =>
        [path, { size, lastModified }]);
    const digests = files.map(([path, , , digest]) => [path, digest]);
    const folders = new Set(["z/empty", "z/\\u{10ffff}", "z/\\uffff"]);
    return [...encodeManifest({ files: new Map(chosen), folders }, new Map(digests))];
}"""
WARNINGS = """async (nodes) => {
    const { warnings } = await import("/static/app/health.js");
    return warnings(nodes, null, null).map(({ text, hint, command }) =>
        [text, hint, command]);
}"""
TIMES = """async (values) => {
    const { duration, pace, remaining } = await import("/static/app/format.js");
    return values.map(([ms, rate]) => [duration(ms), remaining(ms), pace(rate)]);
}"""
SHOWN = """async ([paths, sizes]) => {
    const { shownCommand, size, visible } = await import("/static/app/format.js");
    const { secretsIn } = await import("/static/app/trees.js");
    const files = new Map(paths.map((path) => [path, null]));
    const shown = [...paths.map(visible), ...paths.map(shownCommand)];
    return [shown, sizes.map(size), secretsIn({ files })];
}"""
#: All values for the form, except arrays, of which there are two kinds.
TYPED = {
    "command": "echo  two  spaces",
    "name": " nightly ",
    "labels": "team=red\nlone\n\n",
    "requires.cpus": "2",
    "requires.memory_mb": "100",
    "requires.gpus": "1",
    "requires.node": "ana",
    "requires.os": "linux",
    "requires.arch": "x86_64",
    "requires.labels": "room=attic",
    "fail_fast": True,
    "env": "MODE=a=b\nEMPTY=",
    "cwd": "/tmp",
    "stdin": " kept as it is\n",
    "inputs": "a.txt\n b.txt ",
    "outputs": "c.txt",
    "timeout": "1.5 min",
    "grace": "5",
    "limits.memory_mb": "200",
    "limits.cpu_seconds": "9",
    "limits.file_mb": "7",
    "limits.processes": "30",
    "retries": "3",
    "retry_on": "lost, 75",
    "priority": "-5",
    "after": "task-001\ntask-002",
    "on": "any",
    "notify_url": "https://example.org/hook",
    "durability": "strict",
    "visitors": "with-env",
    "visitors_min": "30 min",
    "id": "mine",
}
LEFT_OUT = (
    "# omitted: os linux (only in the API), arch x86_64 (only in the API), "
    "the files that were sent along (--in sends them again)"
)
#: Also in the form; each excludes one above.
APART = {"workdir", "outputs_of", "stdin_base64", "stdin_file", "tree", "array"}
APART |= {"same_folder"}  # Only a program on the machine can make the file.
APART |= {"call"}  # A form submits commands.

EDIT = """async (body) => {
    const { bodyOf, canHold, typedOf } = await import("/static/app/views/asking.js");
    const { typed, arrayOf } = typedOf(body);
    return [bodyOf(typed, arrayOf), canHold(body)];
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def page(browser: Browser, solo: Agent) -> AsyncIterator[Page]:
    """A page of the dashboard without a sign-in."""
    async with visitor(browser) as guest:
        guest.allow()
        page = await guest.page()
        await page.goto(solo.ready()["api_url"])
        yield page


def texts(lines: list[list[dict[str, Any]]]) -> list[str]:
    return ["".join(span["text"] for span in spans) for spans in lines]


@given(CONTROL_FILES)
@example(["\x1b[", "\n"])
async def test_no_control_character_is_shown(page: Page, written: list[str]) -> None:
    """Text of the page can be copied into a terminal."""
    shown = texts(await page.evaluate(WRITE, ["".join(written)]))

    assert [line for line in shown if CONTROLS.search(line)] == []


@given(CONTROL_FILES)
async def test_split_of_the_output_makes_no_difference(
    page: Page, written: list[str]
) -> None:
    """The network may split the output anywhere, also inside a sequence."""
    pieces = await page.evaluate(WRITE, written)
    whole = await page.evaluate(WRITE, ["".join(written)])

    assert texts(pieces) == texts(whole)


@settings(max_examples=25)
@given(st.lists(FILES, max_size=20, unique_by=lambda file: file[0]))
@example([("a/\U0001f980", 2**40, 1, "1" * 64), ("a/\uffff", 0, 0, "2" * 64)])
@example(
    [(f"{n:03}{'x' * (n % 300)}", n, -n, f"{n:064}") for n in range(70_000, 70_020)]
)
async def test_manifest_of_a_browser_is_that_of_a_node(
    page: Page, files: list[tuple[str, int, int, str]]
) -> None:
    """Nodes refuse one whose paths are in another order, which JavaScript's is."""
    made = bytes(await page.evaluate(MANIFEST, files))

    expected = make_manifest(
        [
            TreeFile(path, bytes.fromhex(digest), size, mtime_ms * 1_000_000)
            for path, size, mtime_ms, digest in files
        ],
        (),
        ["z/empty", "z/\U0010ffff", "z/\uffff"],
    )
    assert decode_manifest(made) == expected
    assert made == encode_manifest(expected)


async def test_paths_and_sizes_are_shown_as_the_command_line_shows_them(
    page: Page,
) -> None:
    """What would hide or turn round a part of a name has its number instead."""
    scientist = "\U0001f469\u200d\U0001f52c"  # Two signs and a joiner.
    paths = ["photo\u202egpj.exe", "a\nb\x1b[31m", f"Grüße/日本 {scientist}"]
    paths += [*SECRETS, *PLAIN]
    sizes = [0, 999, 41_200, 999_000, 999_950, 3_100_000_000]

    visible, shown, secrets = await page.evaluate(SHOWN, [paths, sizes])

    assert visible[:3] == ["photo\\u{202e}gpj.exe", "a\\u{a}b\\u{1b}[31m", paths[2]]
    commands = visible[len(paths) :]
    assert commands[:3] == [visible[0], "a\nb\\u{1b}[31m", paths[2]]
    assert shown == ["0 B", "999 B", "41 kB", "999 kB", "1.0 MB", "3.1 GB"]
    assert secrets == [path for path in paths if _looks_secret(path)] == [*SECRETS]


async def test_times_and_rates_read_as_people_say_them(page: Page) -> None:
    """Nothing takes 0 ms, and a slow rate has a unit in which it is a number."""
    shown = await page.evaluate(TIMES, [[0, 2.34], [400, 0.2], [185_000, 0.001]])

    assert shown == [
        ["< 1 ms", "", "2.3 per second"],
        ["0.40 s", "", "12 per minute"],
        ["3 min 5 s", "3 min left", "3.6 per hour"],
    ]


async def test_advice_for_a_lost_node_says_where_to_type_it(page: Page) -> None:
    """And promises no rerun of tasks that only this node may run."""
    lost = {"name": "desk", "state": "lost", "role": "worker", "version": "1"}

    one = await page.evaluate(WARNINGS, [lost])
    two = await page.evaluate(WARNINGS, [lost, {**lost, "name": "nas"}])

    assert [(text, command) for text, _, command in (*one, *two)] == [
        ("desk is lost", "octaskly service status"),
        ("desk and nas are lost", "octaskly service status"),
    ]
    assert "except those that only this node may run" in one[0][1]
    assert one[0][1].endswith("type this in a terminal on desk:")
    assert two[0][1].endswith("type this in a terminal on each of them:")


@given(st.floats(0, 1), TOTALS, VIEWS_PX, ROWS_PX)
@example(1.0, 1_000_000, 600, 40)
async def test_list_of_any_length_scrolls_from_its_first_row_to_its_last(
    page: Page, part: float, total: int, view_px: int, row_px: int
) -> None:
    """The bar is inside its track, stays where it was put, and rows fill the view."""
    most = max(0.0, total - view_px / row_px)
    sizes = {"total": total, "viewPx": view_px, "rowPx": row_px}
    found = await page.evaluate(SCROLL, [part * most, sizes])

    first, last = found["shown"]["first"], found["shown"]["last"]
    assert found["most"] == most
    assert 0 <= found["px"] <= max(0, found["track"] - view_px) + 1e-6
    assert math.isclose(found["again"], part * most, abs_tol=1.0)
    assert 0 <= first <= last <= total
    assert last - first >= min(total, math.ceil(view_px / row_px))


@given(st.integers(0, 2_000_000), st.integers(1, 60), TOTALS, st.booleans())
async def test_requested_pages_hold_every_visible_row(
    page: Page, first: int, count: int, total: int, is_newest: bool
) -> None:
    """From either end of the list, with no more pages than needed."""
    last = min(total, first + count)
    pages, size = await page.evaluate(PAGES, [first, last, total, is_newest])

    rows = range(first, last)
    from_oldest = [total - 1 - row if is_newest else row for row in rows]
    assert pages == sorted({row // size for row in from_oldest})


async def test_list_needs_one_request(browser: Browser, solo: Agent) -> None:
    """From either end, wherever the later pages begin."""
    commands: list[str] = []
    async with visitor(browser) as guest:
        page = await guest.page()
        await enter(page, solo)
        for total in (0, 3, 100, 203):
            fresh = [f"true {number}" for number in range(len(commands), total)]
            commands += fresh
            tasks = [{"command": one, "requires": {"gpus": 1}} for one in fresh]
            if tasks:
                assert solo.call("POST", TASKS, tasks)[0] == 201
            newest, oldest = commands[::-1][:60], commands[:60]

            assert await page.evaluate(LIST, True) == [total, newest, 1]
            assert await page.evaluate(LIST, False) == [total, oldest, 1]


async def test_rows_that_come_back_into_sight_are_read_again(page: Page) -> None:
    """Events may have been missed, so their states may be those of hours ago."""
    asked: list[int] = []

    async def answer(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        first = int(query.get("offset", ["0"])[0])
        rows = range(first, first + int(query["limit"][0]))[: 300 - first]
        asked.append(first)
        status = "completed" if asked.count(200) > 1 else "running"
        tasks = [{"id": f"task-{row}", "status": status} for row in rows]
        await route.fulfill(json={"total": 300, "tasks": tasks})

    await page.route(f"**{TASKS}?*", answer)
    status = await page.evaluate(SCROLLS_BACK)
    await page.unroute_all()

    assert status == "completed"


async def test_search_continues_after_a_failed_request(page: Page) -> None:
    """As during a change of dispatcher, however many tasks are not searched yet."""
    answers: list[tuple[int, dict[str, Any]]] = [
        (200, {"tasks": [{"id": "task-1"}], "next": "a", "left": 5}),
        (503, {"error": "No dispatcher"}),
        (200, {"tasks": [{"id": "task-1"}], "next": "a", "left": 5}),
        (200, {"tasks": [{"id": "task-2"}], "next": None, "left": 0}),
    ]

    async def answer(route: Route) -> None:
        status, said = answers.pop(0)
        await route.fulfill(status=status, json=said)

    await page.route(f"**{TASKS}?*", answer)
    found = await page.evaluate(SEARCHES)
    await page.unroute_all()

    assert found == ["task-1", "task-2"]


async def test_all_rows_of_a_search_are_read_again_after_missed_events(
    page: Page,
) -> None:
    """Also those beyond its first page, whose states may be those of hours ago."""
    asked: list[str] = []

    async def answer(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        (after,) = query.get("after", [""])
        asked.append(after)
        rows = range(100) if not after else range(100, 120)
        status = "completed" if asked.count("") > 1 else "running"
        tasks = [{"id": f"task-{row}", "status": status} for row in rows]
        more = {"next": None, "left": 0} if after else {"next": "task-99", "left": 20}
        await route.fulfill(json={"tasks": tasks, **more})

    await page.route(f"**{TASKS}?*", answer)
    found = await page.evaluate(SEARCHES_AGAIN)
    await page.unroute_all()

    assert found == ["running", "completed", 120]


async def test_new_tasks_come_last_in_a_search_from_the_oldest(page: Page) -> None:
    """Although it has searched all tasks, over any number of pages."""
    pages = [
        (["a"], "a", ""),
        (["b"], None, "a"),
        (["b", "c"], None, "a"),
        (["b", "c", "d"], "d", "a"),
        (["e"], None, "d"),
    ]
    expected = list(pages)
    asked: list[tuple[list[str], str | None, str]] = []

    async def answer(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        ids, end, _ = pages.pop(0)
        asked.append((ids, end, query.get("after", [""])[0]))
        tasks = [{"id": f"task-{one}"} for one in ids]
        await route.fulfill(json={"tasks": tasks, "next": end, "left": 0})

    await page.route(f"**{TASKS}?*", answer)
    found = await page.evaluate(SEARCHES_ON)
    await page.unroute_all()

    assert found == [f"task-{one}" for one in "abcde"]
    assert asked == expected


async def test_search_that_stays_open_keeps_a_limited_number_of_rows(
    page: Page,
) -> None:
    """The latest ones, however many new tasks match."""
    many, rounds = 1000, 6
    numbers = itertools.count()

    async def answer(route: Route) -> None:
        tasks = [{"id": f"task-{next(numbers)}"} for _ in range(many)][::-1]
        await route.fulfill(json={"tasks": tasks, "next": None, "left": 0})

    await page.route(f"**{TASKS}?*", answer)
    total, known, first = await page.evaluate(SEARCHES_LONG, rounds)
    await page.unroute_all()

    assert (total, known) == (5000, 5000)
    assert first == f"task-{next(numbers) - 1}"


@st.composite
def worked(draw: st.DrawFn) -> tuple[int, list[dict[str, Any]]]:
    """A number of slots, and attempts of one node in them, as from the API."""
    slots = draw(st.integers(1, 4))
    free_ms = [0] * slots
    ended = []
    steps = st.tuples(st.integers(0, 500), st.integers(0, 3000))
    for number, (pause_ms, took_ms) in enumerate(draw(st.lists(steps, max_size=20))):
        slot = free_ms.index(min(free_ms))
        start_ms = free_ms[slot] + pause_ms
        free_ms[slot] = start_ms + took_ms
        ended.append(attempt(f"t{number}", start_ms, free_ms[slot]))
    return slots, draw(st.permutations(ended))


def attempt(task: str, start_ms: int, end_ms: int | None) -> dict[str, Any]:
    return {
        "id": task,
        "attempt": 1,
        "worker_id": "ana",
        "command": "true",
        "status": "running" if end_ms is None else "completed",
        "assigned_at": at(start_ms),
        "started_at": at(start_ms),
        "completed_at": None if end_ms is None else at(end_ms),
    }


def at(ms: int) -> str:
    return f"1970-01-01T00:{ms // 60_000:02d}:{ms % 60_000 / 1000:06.3f}Z"


@given(worked())
@settings(max_examples=25)
@example((1, [attempt("t0", 0, 4), attempt("t1", 0, 0)]))
@example((2, [attempt("t0", 0, 10), attempt("t1", 2, 2)]))
async def test_timeline_has_as_many_lanes_as_slots(
    page: Page, of: tuple[int, list[dict[str, Any]]]
) -> None:
    """In any order of arrival, no attempt is lost, and no two overlap."""
    slots, ended = of
    lanes, _ = await page.evaluate(LANES, [slots, [{"running": [], "ended": ended}]])

    assert len(lanes) == slots
    assert sorted(key for bars in lanes for key, *_ in bars) == sorted(
        f"{one['id']}#1@ana" for one in ended
    )
    for bars in lanes:
        for (_, _, end), (_, start, _) in itertools.pairwise(bars):
            assert end - 3 <= start


async def test_running_bars_become_ended_ones_and_surplus_attempts_wait(
    page: Page,
) -> None:
    """A bar grows until its end is known; a node may have more attempts than slots."""
    first, second = attempt("a", 0, None), attempt("b", 100, None)
    begun = {"running": [first, second], "ended": []}
    over = {"running": [second], "ended": [attempt("a", 0, 2000)]}

    assert await page.evaluate(LANES, [1, [begun]]) == [[[["a#1@ana", 0, None]]], 1]
    assert await page.evaluate(LANES, [1, [begun, over]]) == [
        [[["a#1@ana", 0, 2000], ["b#1@ana", 2000, None]]],
        0,
    ]


async def test_node_that_left_keeps_its_lanes_only_with_bars(page: Page) -> None:
    """Else a page that stays open has empty lanes for all visitors that ever were."""
    answer = {"running": [], "ended": [attempt("a", 0, 2000)]}

    left = await page.evaluate(LANES_LEFT, [answer, "visitor", "ana", "ben"])

    assert sorted(left) == ["ana", "ben"]


async def test_command_is_labelled_by_its_program_or_script(page: Page) -> None:
    """By its program, or by the script that it interprets, with a colour of its own."""
    called = {
        "blender -b scene.blend": "blender",
        "/usr/bin/ffmpeg -i a b": "ffmpeg",
        "nice env MODE=fast make -j4": "make",
        "python3.11 /opt/train.py --seed 7": "train.py",
        "python -m http.server": "http.server",
        "bash -c 'convert a b'": "convert",
        'sh -lc "sudo render 7"': "render",
        "python -c 'print(1)'": "python",
        " ": "task",
    }

    found = await page.evaluate(FAMILIES, [*called, "blender other.blend"])

    assert [family for family, _ in found[:-1]] == [*called.values()]
    assert found[-1] == found[0]


@given(st.integers(500, 21_600_000), st.floats(0.01, 100), st.floats(0, 1))
@settings(max_examples=25)
async def test_point_under_the_pointer_stays_there_during_zoom(
    page: Page, span: int, factor: float, part: float
) -> None:
    """Between half a second and six hours; the axis has room for its marks."""
    around = 1_000_000 + part * span
    after, (least, most), axis = await page.evaluate(
        VIEW, [{"from": 1_000_000, "span": span}, factor, around, 8]
    )

    assert least <= after["span"] <= most
    assert math.isclose(around, after["from"] + part * after["span"], abs_tol=1.0)
    assert len(axis["marks"]) <= 9
    assert all(0 <= mark - after["from"] <= after["span"] for mark in axis["marks"])


async def test_form_covers_all_fields_of_the_api(page: Page) -> None:
    """Each field has the API's type, and the API accepts all of them at once."""
    body = await page.evaluate(FORM, [TYPED, ""])

    await parse_tasks(json.dumps(body).encode())
    assert body.keys() | APART == set(TaskIn.__struct_fields__)
    assert body["command"] == "echo  two  spaces"
    assert body["name"] == "nightly"
    assert body["labels"] == {"team": "red", "lone": ""}
    assert body["env"] == {"MODE": "a=b", "EMPTY": ""}
    assert body["stdin"] == " kept as it is\n"
    assert body["inputs"] == ["a.txt", "b.txt"]
    assert body["retry_on"] == ["lost", 75]
    assert body["requires"]["cpus"] == 2
    assert (body["timeout"], body["grace"]) == (90, 5)
    assert (body["visitors"], body["visitors_min"]) == ("with-env", 1800)


async def test_empty_fields_are_not_sent(page: Page) -> None:
    """Of the two kinds of arrays, only the selected one is sent."""
    typed = {"command": "x {}", "name": " ", "array.range": "1-9", "fail_fast": False}
    typed |= {"array.items": "a\nb\n", "array.max_fails": "2", "timeout": "soon"}

    alone = await page.evaluate(FORM, [typed, ""])
    items = await page.evaluate(FORM, [typed, "items"])

    assert alone == {"command": "x {}", "timeout": "soon"}
    typed.pop("timeout")
    assert (await page.evaluate(FORM, [typed, ""]))["timeout"] == "none"
    assert items["array"] == {"items": ["a", "b"], "max_fails": 2}


async def test_error_is_shown_at_its_field(page: Page) -> None:
    """The API names positions in the body; some lie within a field."""
    fields = {
        "$.name": "name",
        "$[3].requires.cpus": "requires.cpus",
        "$.env.A": "env",
        "$.inputs[2]": "inputs",
        "$.array": "array.items",
        "$.array.items[0]": "array.items",
        "Idempotency-Key": "",
        "$": "",
    }

    assert await page.evaluate(PLACES, [*fields]) == [*fields.values()]


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
@settings(max_examples=25)
@example("it's `here` $(now); \n\\")
async def test_copied_command_is_the_same_task_for_a_shell(
    page: Page, text: str
) -> None:
    """For any text in it; quotes are the classic problem."""
    task = {"command": text, "name": text, "timeout": None, "env": {"A": text}}
    cli, curl, body = await page.evaluate(COPIES, task)

    words = shlex.split(cli)
    assert words == [
        *("octaskly", "run", "--name", text, "--env", f"A={text}", "--", text)
    ]
    assert json.loads(shlex.split(curl)[-1]) == body
    assert body == task | {"timeout": "none"}


async def test_copied_command_uses_existing_options(page: Page) -> None:
    """All of them at once, for a task and for both kinds of arrays."""
    body = await page.evaluate(FORM, [TYPED, ""])
    outputs = [{"path": path, "bytes": 1} for path in body["outputs"]]
    task = {**body, "outputs": outputs, "workdir": "scratch"}
    members = {"range": "1-9", "max_fails": 2}

    one, curl, _ = await page.evaluate(COPIES, task)
    many, _, _ = await page.evaluate(COPIES, {**task, "array": members})
    items = {**members, "range": None}
    each, _, _ = await page.evaluate(COPIES, {**task, "array": items})

    run.make_context("run", shlex.split(one, comments=True)[2:])
    array.make_context("array", shlex.split(many, comments=True)[2:])
    # Nodes show no list of items, so the items must be in a file.
    *words, less, file = shlex.split(each, comments=True)
    assert (words[:2], less, file) == (["octaskly", "map"], "<", "items.txt")
    assert map_.make_context("map", words[2:]).params["max_fails"] == 2
    again = json.loads(shlex.split(curl)[-1])
    await parse_tasks(json.dumps(again).encode())
    assert body.keys() - again.keys() == {"stdin", "id", "durability", "fail_fast"}


async def test_copied_command_lists_the_rest_in_a_comment(
    page: Page,
) -> None:
    """Otherwise a user who pastes it would run another task."""
    tree = {"sha256": "1" * 64, "node": "ash", "folders": ["src"]}
    task = {
        "command": "cat",
        "timeout": 3600,
        "workdir": "scratch",
        "stdin_bytes": 12,
        "tree": tree,
        "requires": {"os": "linux", "arch": "x86_64"},
    }

    cli, curl, body = await page.evaluate(COPIES, task)

    *comments, line = cli.splitlines()
    assert comments == [
        "# save stdin (12 B) as stdin.txt first: the API does not return it",
        LEFT_OUT,
    ]
    assert line == "octaskly run --timeout 3600 --scratch --stdin stdin.txt -- cat"
    assert curl.splitlines()[0] == (
        "# omitted: stdin (12 B), which the API does not return"
    )
    assert json.loads(shlex.split(curl, comments=True)[-1]) == body
    assert body["tree"] == tree


async def test_form_filled_with_a_body_submits_that_body(page: Page) -> None:
    """A user who edits a task and submits it again loses no field."""
    body = await page.evaluate(FORM, [TYPED, ""])
    body |= {"workdir": "scratch", "array": {"range": "1-9", "max_fails": 2}}

    assert await page.evaluate(EDIT, body) == [body, True]
