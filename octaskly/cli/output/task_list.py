"""Selection and rows of `octaskly ls`: what runs and waits, then what ended last."""

from __future__ import annotations

import datetime as dt
import heapq
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from octaskly.cli.output.render import (
    COMPLETED_LACKING,
    clock_time,
    count_of,
    duration,
    print_table,
    time_left,
)
from octaskly.cli.output.task_view import (
    command_of,
    format_progress,
    format_rate,
    format_time_limit,
)
from octaskly.client import Session
from octaskly.client.flows.rest_calls import TASKS, Call
from octaskly.core.end_text import end_text
from octaskly.rest.client_types import FINAL, Task
from octaskly.rest.tasks import FirstFailure, Members

RUNNING_MAX: Final = 100  #: running tasks in an overview
WAITING_MAX: Final = 20
ENDED_MAX: Final = 20
MATCHING_MAX: Final = 100  #: tasks in a list with a filter
DROPPED_FIRST: Final = ("TIMEOUT", "EXIT", "STARTED", "NAME", "NODE", "TIME")
PAGE: Final = 1000  #: limit of the API

Row = dict[str, Any]
Query = Mapping[str, object]


class TaskList(NamedTuple):
    """Tasks as the API shows them, in the order to print, and what was left out."""

    rows: list[Row]
    total: int | None
    notes: list[str]


def fetch_overview(client: Session, query: Query, limit: int | None) -> TaskList:
    """Return what runs, what waits, and the latest tasks that ended, newest last."""
    most = {"running": RUNNING_MAX, "queued": WAITING_MAX}
    notes: list[str] = []
    rows: list[Row] = []
    total = 0
    for status, verb in (("running", "running"), ("queued", "waiting")):
        page = _fetch(client, {**query, "status": status, "limit": most[status]})
        rows += page["tasks"]
        total += page["total"]
        if (more := page["total"] - len(page["tasks"])) > 0:
            notes.append(f"{more} more {verb}: octaskly ls --status {status}")
    count = ENDED_MAX if limit is None else limit
    latest = {**query, "newest": "true", "limit": count}
    pages = [_fetch(client, {**latest, "status": status}) for status in sorted(FINAL)]
    ended = list(
        heapq.merge(*(page["tasks"] for page in pages), key=_order, reverse=True)
    )[:count]
    ended_total = sum(page["total"] for page in pages)
    if len(ended) < ended_total:
        notes.append(
            f"the latest {len(ended)} of {count_of(ended_total, 'ended task')};"
            " more: --limit N, --all, or --oldest"
        )
    return TaskList([*rows, *reversed(ended)], total + ended_total, notes)


def fetch_matching(
    client: Session, query: Query, *, limit: int, order: str | None
) -> TaskList:
    """Return a part of the tasks that match.

    Args:
        client: Session with a node.
        query: The filters, and how many to skip.
        limit: How many to return.
        order: `oldest` or `newest` first; None: the latest, newest last.
    """
    asked = {**query, "newest": None if order == "oldest" else "true", "limit": limit}
    page = _fetch(client, asked)
    rows = page["tasks"]
    while page.get("next") is not None and len(rows) < limit:
        asked |= {"after": page["next"], "limit": limit - len(rows)}
        page = _fetch(client, asked)
        rows += page["tasks"]
    total, after = page["total"], page.get("next")
    offset = query.get("offset")
    before = offset if isinstance(offset, int) else 0
    if "next" not in page and len(rows) == limit and before + limit < total:
        after = rows[-1].get("short_id") or rows[-1]["id"]
    notes = []
    if after is not None:
        of_all = "" if total is None else f" of {total}"
        flag = f" --{order}" if order else ""
        notes = [f"{len(rows)}{of_all} shown; more:{flag} --after {after}"]
    return TaskList(rows if order else rows[::-1], total, notes)


def fetch_all(client: Session, query: Query) -> TaskList:
    """Return all tasks that match, oldest first."""
    rows: list[Row] = []
    asked = {**query, "limit": PAGE}
    while True:
        page = _fetch(client, asked)
        rows += page["tasks"]
        if "next" in page:  # A search, which says where it stopped.
            asked["after"] = page["next"]
        else:
            asked["after"] = rows[-1]["id"] if len(page["tasks"]) == PAGE else None
        if asked["after"] is None:
            return TaskList(rows, len(rows), [])


def _fetch(client: Session, query: Query) -> dict[str, Any]:
    return client.send_and_decode(Call("GET", TASKS, query), dict[str, Any])


def _order(row: Row) -> tuple[str, int, int]:
    """Return the sort key of a task: time of creation, number, number of the member."""
    name, _, member = row["id"].removeprefix("task-").partition(".")
    number = name.partition("-")[0]
    is_counted = number.isdecimal() and len(number) < 12  # noqa: PLR2004 - see ids
    counted = int(number) if is_counted else 0
    # Other dots are in names that users chose.
    return row["created_at"] or "", counted, int(member) if member.isdecimal() else 0


def print_list(found: TaskList) -> None:
    """Print a line for each task; on a terminal, one more for the work of an array."""
    tasks = [msgspec.convert(row, Task) for row in found.rows]
    now = dt.datetime.now(dt.UTC)
    heads = ["ID", "STATE", "NODE", "STARTED", "TIME", "EXIT", "COMMAND"]
    rows = [_cells(task, now) for task in tasks]
    if any(task.name and not task.call for task in tasks):
        heads.insert(-1, "NAME")
        for row, task in zip(rows, tasks, strict=True):
            row.insert(-1, "-" if task.call else task.name or "-")
    if any(task.timeout for task in tasks):
        place = heads.index("EXIT")
        heads.insert(place, "TIMEOUT")
        for row, task in zip(rows, tasks, strict=True):
            row.insert(place, format_time_limit(task, without="-"))
    below = {n: text for n, task in enumerate(tasks) if (text := _remark(task))}
    print_table(heads, rows, state_column=1, below=below, dropped_first=DROPPED_FIRST)


def _remark(task: Task) -> str:
    """Return the line below a task: how far an array is, or what a task lacks."""
    if task.array is not None:
        return describe_progress(task, task.array)
    return f"without its output {task.missing_output}" if task.missing_output else ""


def _cells(task: Task, now: dt.datetime) -> list[str]:
    is_running = task.elapsed_ms is not None
    return [
        task.short_id or task.id,
        COMPLETED_LACKING if task.missing_output else task.status,
        _place(task),
        clock_time(task.started_at, now),
        duration(task.elapsed_ms if is_running else task.duration_ms),
        "-" if task.exit_code is None else str(task.exit_code),
        f"{command_of(task)}{'…' if task.command_truncated and not task.call else ''}",
    ]


def _place(task: Task) -> str:
    """Return the node of a task, or how far an array is."""
    if task.array is None:
        return task.worker_id or "-"
    # "failed 3/3" would say that all three have failed.
    members = task.array.total
    return count_of(members, "member") if task.is_final else format_progress(task.array)


def describe_progress(task: Task, counts: Members) -> str:
    """Return rate, remaining time and failures of an array on one line."""
    return ", ".join(_progress_parts(task, counts))


def _progress_parts(task: Task, counts: Members) -> Iterator[str]:
    if task.status == "running":
        if counts.running:
            yield f"{counts.running} running"
        if counts.rate_per_s is not None:
            yield format_rate(counts.rate_per_s)
        if counts.eta_ms is not None:
            yield time_left(counts.eta_ms)
    if counts.failed:
        yield f"{counts.failed} {f'of {counts.total} ' if task.is_final else ''}failed"
    if counts.first_failure is not None:
        yield describe_first_failure(counts.first_failure)


def describe_first_failure(failure: FirstFailure) -> str:
    """Return the first failure of an array: `first .17: exit code 3`."""
    how = end_text(failure.reason, failure.exit_code, failure.signal, failure.detail)
    return f"first .{failure.index}: {how}"
