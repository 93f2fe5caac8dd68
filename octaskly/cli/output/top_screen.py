"""One frame of `octaskly top`: the mesh, its nodes and the running attempts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    RenderableType,
    RenderResult,
)
from rich.table import Table
from rich.text import Text

from octaskly.cli.output.render import STATE_COLOURS, duration, time_left
from octaskly.cli.output.task_view import command_of, format_progress, format_rate
from octaskly.cli.output.terminal import on_one_line, render_text
from octaskly.client import Session
from octaskly.client.flows.rest_calls import ATTEMPTS, NODES, STATS, TASKS, Call
from octaskly.rest.client_types import Task
from octaskly.rest.mesh import NodeInfo, NodePage
from octaskly.rest.tasks import Members, Run

RUNNING_MAX: Final = 1000  #: attempts requested, which is the limit of the API
PIPE_COLUMNS: Final = 1000  #: width without a terminal, so that nothing is cut
TABLE_COLUMNS: Final = 80  #: a narrower terminal shows the left part of a table
ARRAYS_MAX: Final = 6  #: rows of running arrays
ARRAYS_ROWS_MIN: Final = 20  #: a lower terminal shows nodes and tasks only
BAR: Final = 8
TASK_CHARS, NODE_CHARS = 24, 16  #: widths of these columns
_ROWS_UNLIMITED: Final = 1 << 20  #: height without a terminal


def _title(run: Run) -> str:
    return run.call or run.name or run.command


SORTS: Final[dict[str, Callable[[Run], Any]]] = {
    "time": lambda run: run.assigned_at or "~",
    "node": lambda run: (run.worker_id, run.assigned_at or "~"),
    "task": lambda run: run.id,
    "command": _title,
}
"""Sort orders of the tasks by name; the first is the default."""


class MeshSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The mesh at one moment, as `--json` prints it."""

    at: str
    mesh: dict[str, Any]
    nodes: list[dict[str, Any]]
    tasks: dict[str, int]
    tasks_per_second: float | None = None  #: ended tasks; None in the first snapshot
    running: list[dict[str, Any]]
    arrays: list[dict[str, Any]] = []  #: running arrays, oldest first

    @property
    def ended_count(self) -> int:
        """Number of ended tasks that were not deleted yet."""
        return sum(self.tasks.get(s, 0) for s in ("completed", "failed", "cancelled"))


def fetch_snapshot(client: Session) -> MeshSnapshot:
    """Request the data of one frame."""
    asked = {"since_s": 1, "limit": RUNNING_MAX}
    stats, nodes, runs, tasks = (
        client.send_and_decode(Call("GET", path, query), dict[str, Any])
        for path, query in (
            (STATS, {}),
            (NODES, {}),
            (ATTEMPTS, asked),
            (TASKS, {"status": "running"}),
        )
    )
    return MeshSnapshot(
        at=runs["now"],
        mesh=stats.get("mesh", {}),
        nodes=nodes["nodes"],
        tasks=stats.get("tasks", {}),
        running=runs["running"],
        arrays=[task for task in tasks["tasks"] if task.get("array")],
    )


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """Display options that the user chose."""

    sort: str = "time"
    is_reversed: bool = False
    error: str | None = None  #: why the snapshot is out of date
    has_keys: bool = False
    has_bars: bool = True


def render_frame(
    snapshot: MeshSnapshot,
    view: ViewOptions,
    *,
    late_s: float = 0.0,
    rows: int = _ROWS_UNLIMITED,
) -> RenderableType:
    """Return one frame of limited height, with times advanced by the sample's age."""
    page = msgspec.convert({**snapshot.mesh, "nodes": snapshot.nodes}, NodePage)
    tasks = sorted(msgspec.convert(snapshot.running, list[Run]), key=SORTS[view.sort])
    now = dt.datetime.fromisoformat(snapshot.at) + dt.timedelta(seconds=late_s)
    if view.is_reversed:
        tasks.reverse()
    arrays = msgspec.convert(snapshot.arrays, list[Task])
    arrays = _first(arrays, ARRAYS_MAX) if rows >= ARRAYS_ROWS_MIN else []
    left = rows - 6 - (view.error is not None) - view.has_keys
    left -= len(arrays) + 2 if arrays else 0
    # Nodes get the rows that tasks leave, and at least half of the frame.
    some = max(2, left - len(tasks), left // 2)
    nodes = _first(page.nodes, some)
    left -= len(nodes) + (len(nodes) < len(page.nodes))
    shown = _first(tasks, max(1, left))
    parts: list[RenderableType] = [
        *_header_lines(snapshot, page),
        Text(),
        _node_table(nodes, has_bars=view.has_bars),
    ]
    if len(nodes) < len(page.nodes):
        parts.append(Text(f"... and {len(page.nodes) - len(nodes)} more", "dim"))
    if arrays:
        parts += [Text(), _array_table(arrays)]
    parts += [Text(), _task_table(shown, view, now)]
    if (more := max(len(tasks), snapshot.tasks.get("running", 0)) - len(shown)) > 0:
        parts.append(Text(f"... and {more} more", "dim"))
    if view.error is not None:
        parts.append(Text(on_one_line(view.error), "red", overflow="ellipsis"))
    if view.has_keys:
        parts.append(Text("q quit   left, right: order   r: reverse", "dim"))
    return Group(*parts)


def render_plain(snapshot: MeshSnapshot, columns: int = PIPE_COLUMNS) -> str:
    """Return a frame without colours, for a pipe or a file."""
    view = ViewOptions(has_bars=columns != PIPE_COLUMNS)
    text = render_text(render_frame(snapshot, view), columns)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _first(items: list[Any], count: int) -> list[Any]:
    """Return the first rows, leaving one row for the number of hidden rows."""
    return items if len(items) <= count else items[: max(1, count - 1)]


def _header_lines(snapshot: MeshSnapshot, page: NodePage) -> tuple[Text, Text]:
    """Return the two summary lines of the mesh."""
    dispatchers = (node.name for node in page.nodes if node.role == "dispatcher")
    ready = sum(node.state == "ready" for node in page.nodes)
    copies = page.replicas or 1
    mesh = Text(no_wrap=True, overflow="ellipsis")
    mesh.append(on_one_line(next(dispatchers, "no dispatcher")), "bold")
    mesh.append(" is dispatcher" if page.term else "")
    if (term_s := snapshot.mesh.get("reign_seconds")) is not None:
        mesh.append(f" for {duration(term_s * 1000)}")
    mesh.append(f"   {ready}/{len(page.nodes)} nodes ready")
    style = "yellow" if copies == 1 and len(page.nodes) > 1 else ""
    mesh.append(f"   {copies} {'copy' if copies == 1 else 'copies'}", style)
    tasks = Text(no_wrap=True, overflow="ellipsis")
    for state, count in snapshot.tasks.items():
        tasks.append(
            f"{count} {state}   ", STATE_COLOURS.get(state, "") if count else ""
        )
    if snapshot.tasks_per_second is not None:
        tasks.append(f"{snapshot.tasks_per_second:.1f} tasks/s", "bold")
    return mesh, tasks


def _node_table(nodes: list[NodeInfo], *, has_bars: bool) -> Table:
    bar = _bar if has_bars else _no_bar
    table = _table("NODE", ("NODE", "STATE", "ROLE", "SLOTS", "CPU", "MEMORY"))
    for node in nodes:
        is_short = node.state == "ready" and node.short_of is not None
        state = f"short of {node.short_of}" if is_short else node.state
        load = None if node.state == "lost" else node.load
        running = cpu = memory = "-"
        if load is not None:
            running = f"{node.running}/{node.slots}"
            cpu = f"{bar(load.cpu_percent / 100)}{load.cpu_percent:3.0f}%"
            used_gib, all_gib = load.memory_used_mb / 1024, node.memory_mb / 1024
            memory = f"{used_gib:.1f}/{all_gib:.1f} GiB"
        table.add_row(
            _one_line_text(node.name),
            Text(state, STATE_COLOURS.get(state, "")),
            Text(node.role, "bold" if node.role == "dispatcher" else ""),
            running,
            cpu,
            memory,
        )
    return table


def _bar(part: float) -> str:
    full = round(min(1.0, max(0.0, part)) * BAR)
    return "█" * full + "░" * (BAR - full) + " "


def _no_bar(_part: float) -> str:
    return ""


def _array_table(arrays: list[Task]) -> Table:
    """Return the progress of running arrays, and what failed first."""
    table = _table(
        "COMMAND", ("ARRAY", "DONE", "RUNS", "RATE", "TIME", "FAILED", "COMMAND")
    )
    for task in arrays:
        counts = task.array or Members()
        failure = counts.first_failure
        failed = f"{counts.failed}, first .{failure.index}" if failure else "-"
        times = duration(task.elapsed_ms)
        if counts.eta_ms is not None:
            times += f", {time_left(counts.eta_ms)}"
        table.add_row(
            _one_line_text(task.short_id or task.id, TASK_CHARS),
            format_progress(counts),
            str(counts.running),
            "-" if counts.rate_per_s is None else format_rate(counts.rate_per_s),
            times,
            Text(failed, "red" if counts.failed else ""),
            _one_line_text(command_of(task)),
        )
    return table


def _task_table(runs: list[Run], view: ViewOptions, now: dt.datetime) -> Table:
    arrow = "▲" if view.is_reversed else "▼"
    heads = [
        f"{name.upper()} {arrow}" if name == view.sort else name.upper()
        for name in ("task", "node", "time", "command")
    ]
    table = _table(heads[-1], heads)
    for run in runs:
        table.add_row(
            _one_line_text(run.short_id or run.id, TASK_CHARS),
            _one_line_text(run.worker_id, NODE_CHARS),
            _since(run.assigned_at, now),
            _one_line_text(_title(run)),
        )
    if not runs:
        table.add_row(Text("nothing runs", "dim"))
    return table


def _since(instant: str | None, now: dt.datetime) -> str:
    if instant is None:
        return "-"
    # The clock of an earlier dispatcher may have been ahead.
    spent = now - dt.datetime.fromisoformat(instant)
    return duration(max(0.0, spent.total_seconds() * 1000))


class _ClippedTable(Table):
    """A table that is cut on the right if the terminal is too narrow.

    The library would instead narrow columns until node names disappear.
    """

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        """Lay out for a minimum width; the console cuts longer lines."""
        columns = max(options.max_width, TABLE_COLUMNS)
        return super().__rich_console__(console, options.update_width(columns))


def _table(wide: str, heads: Sequence[str]) -> Table:
    """Return a table with one flexible column."""
    table = _ClippedTable(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold"
    )
    for head in heads:
        table.add_column(head, no_wrap=head != wide)
    return table


def _one_line_text(text: str, chars_max: int | None = None) -> Text:
    """Return untrusted text on one line, cut to its column."""
    shown = Text(on_one_line(text), no_wrap=True, overflow="ellipsis")
    if chars_max is not None:
        shown.truncate(chars_max, overflow="ellipsis")
    return shown
