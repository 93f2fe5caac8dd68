"""The rows of `octaskly nodes`, and all about one node."""

from __future__ import annotations

import datetime as dt
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from octaskly.cli.output.render import (
    age,
    clock_time,
    count_of,
    data_size,
    duration,
    print_fields,
    print_table,
    seconds_since,
)
from octaskly.cli.output.task_view import format_pairs
from octaskly.cli.output.terminal import cut, on_one_line
from octaskly.client import Refused, Session
from octaskly.client.flows.rest_calls import ATTEMPTS, NODES, Call, resource_path
from octaskly.rest.mesh import NodeInfo, NodePage, Standby, Storage
from octaskly.rest.tasks import Run, Runs

NEW_S: Final = 60.0  #: how long a node is marked as joined
RUNS_MAX: Final = 1000  #: of the answer: the limit of the API
COMMAND_COLUMNS: Final = 40
HEADS: Final = (
    *("NODE", "STATE", "ROLE", "TASKS", "CPU", "MEMORY", "DISK FREE", "VERSION"),
    "NOW",  # Last, so that it is cut to fit the terminal.
)
DROPPED_FIRST: Final = ("VERSION", "MEMORY", "ROLE", "CPU", "DISK FREE", "TASKS")
UNAVAILABLE: Final = {
    "lost": "is it on and connected? then type there: octaskly doctor",
    "draining": "takes no new tasks; to change that: octaskly resume {node}",
    "paused": "its tasks are stopped; to continue: octaskly resume {node}",
}
SHORTAGES: Final = {
    "disk": "takes no new tasks until its disk has room",
    "memory": "takes no new tasks while its processes wait for memory",
    "launchers": "cannot start tasks; type there: octaskly doctor",
}

RunsByNode = Mapping[str, Sequence[Run]]


def fetch_runs(client: Session) -> RunsByNode:
    """Return what runs on each node, by its name, the longest first."""
    query = {"since_s": 1, "limit": RUNS_MAX}
    runs = client.send_and_decode(Call("GET", ATTEMPTS, query), Runs).running
    found: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=_start_of):
        found[run.worker_id].append(run)
    return found


def print_nodes(page: NodePage, runs: RunsByNode, now: dt.datetime) -> None:
    """Print a line for each node: whether it takes work, and what it does."""
    print_table(
        HEADS,
        [_row(node, page, runs.get(node.name, ()), now) for node in page.nodes],
        state_column=1,
        dropped_first=DROPPED_FIRST,
    )


def _row(
    node: NodeInfo, page: NodePage, runs: Sequence[Run], now: dt.datetime
) -> tuple[str, ...]:
    load = node.load if node.state != "lost" else None
    memory = "-"
    if load is not None and node.memory_mb:
        used_gib, all_gib = load.memory_used_mb / 1024, node.memory_mb / 1024
        memory = f"{used_gib:.1f}/{all_gib:.1f} GiB"
    free_mb = None if load is None else load.disk_free_mb
    return (
        node.name,
        _state(node),
        _role(node, page.standbys),
        f"{node.running}/{node.slots}",
        "-" if load is None else f"{load.cpu_percent:.0f}%",
        memory,
        "-" if free_mb is None else data_size(free_mb << 20),
        node.version or "-",
        "; ".join(_activity(node, runs, now)) or "-",
    )


def _state(node: NodeInfo) -> str:
    is_short = node.state == "ready" and node.short_of is not None
    return f"short of {node.short_of}" if is_short else node.state


def _role(node: NodeInfo, standbys: Sequence[Standby]) -> str:
    if node.visitor:
        return "visitor"
    standby = next((s for s in standbys if s.id == node.id), None)
    return f"standby {standby_state(standby)}" if standby else node.role


def standby_state(standby: Standby) -> str:
    """Return the display name of a state; the API calls `in sync` `level`."""
    return "in sync" if standby.state == "level" else standby.state


def _activity(node: NodeInfo, runs: Sequence[Run], now: dt.datetime) -> Iterator[str]:
    """Yield what a node does, when it was last seen if it is lost, and if it is new."""
    if node.state == "lost":
        yield f"last seen {age(node.last_seen, now)}"
        return
    if runs:
        more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        yield _describe_run(runs[0], now) + more
    elif node.running:
        yield f"{count_of(node.running, 'task')} running"
    elif _why_unavailable(node) is None:
        yield "free"
    if node.visitor:
        yield _visit(node, now)
    since_s = seconds_since(node.joined_at, now) if node.joined_at else None
    if since_s is not None and since_s < NEW_S:
        yield f"joined {age(node.joined_at, now)}"


def _visit(node: NodeInfo, now: dt.datetime) -> str:
    """Return until when a visitor stays, and by whose invitation."""
    host = f", invited by {node.invited_by}" if node.invited_by else ""
    return f"until {clock_time(node.leaves_at, now)}{host}"


def unavailable_lines(nodes: Sequence[NodeInfo]) -> Iterator[str]:
    """Yield why some nodes take no tasks and what helps, a line for each reason."""
    names: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        if why := _why_unavailable(node):
            names[why].append(node.name)
    for why, some in names.items():
        yield f"{', '.join(some)}: {why}"


def _why_unavailable(node: NodeInfo) -> str | None:
    if node.state == "ready":
        return SHORTAGES.get(node.short_of or "")
    return UNAVAILABLE.get(node.state, "").format(node=shlex.quote(node.name)) or None


def _describe_run(run: Run, now: dt.datetime) -> str:
    command = cut(on_one_line(run.call or run.command), COMMAND_COLUMNS)
    since_s = seconds_since(_start_of(run), now)
    return command if since_s is None else f"{command} ({duration(since_s * 1000)})"


def _start_of(run: Run) -> str:
    return run.started_at or run.assigned_at or ""


def fetch_storage(client: Session, node: NodeInfo) -> Storage | None:
    """Return what a node stores, or None if it does not answer."""
    if node.state == "lost":
        return None
    try:
        where = resource_path(NODES, node.id, "storage")
        return client.send_and_decode(Call("GET", where, {"limit": 1}), Storage)
    except Refused:
        return None


def print_node(
    node: NodeInfo, storage: Storage | None, runs: Sequence[Run], now: dt.datetime
) -> None:
    """Print all that is known of a node."""
    is_lost = node.state == "lost"
    why = _why_unavailable(node)
    running = (f"{run.short_id or run.id}  {_describe_run(run, now)}" for run in runs)
    print_fields(
        [
            ("name", node.name),
            ("id", node.id),
            ("state", f"{_state(node)}; {why}" if why else node.state),
            ("last seen", age(node.last_seen, now) if is_lost else None),
            ("role", node.role),
            ("visits", _visit(node, now) if node.visitor else None),
            ("tasks", f"{node.running} of {node.slots} at a time"),
            ("running", "\n".join(running) or None),
            *(() if is_lost else _resources(node, storage)),
            ("labels", format_pairs(node.labels)),
            ("system", " ".join(filter(None, (node.os, node.arch))) or None),
            ("gpus", ", ".join(node.gpus) or None),
            ("pythons", ", ".join(node.pythons) or None),
            ("version", node.version or None),
            ("joined", age(node.joined_at, now) if node.joined_at else None),
            ("addresses", ", ".join(node.addresses) or None),
        ]
    )


def _resources(node: NodeInfo, storage: Storage | None) -> Iterator[tuple[str, object]]:
    if (load := node.load) is not None:
        cpus = f" on {count_of(node.cpus, 'CPU')}" if node.cpus else ""
        yield "cpu", f"{load.cpu_percent:.0f}%, load {load.load1:.1f}{cpus}"
        used_gib, all_gib = load.memory_used_mb / 1024, node.memory_mb / 1024
        yield "memory", f"{used_gib:.1f} of {all_gib:.1f} GiB used"
    if storage is not None:
        free, whole = data_size(storage.free_bytes), data_size(storage.disk_bytes)
        yield "disk", f"{free} free of {whole}"
        yield "stored files", data_size(storage.files_bytes)
        yield "stored outputs", data_size(storage.outputs_bytes + storage.logs_bytes)
        yield "agent up", duration(storage.uptime_seconds * 1000)
