"""`octaskly nodes` and `stats`: the state of the mesh."""

from __future__ import annotations

import datetime as dt

import click
import msgspec

from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION
from octaskly.cli.output.render import (
    age,
    duration,
    note,
    print_fields,
    print_json,
    print_table,
    seconds_since,
)
from octaskly.client.flows.rest_calls import NODES, STATS, Call
from octaskly.rest.mesh import (
    Counts,
    Failover,
    NodeInfo,
    NodePage,
    Standby,
    Stats,
    Workers,
)

NEW_S = 60.0  #: how long a node is marked as joined
NO_STANDBY = "no other node keeps copies: is --no-electable set on all of them?"


@click.command(epilog="Example: octaskly nodes --json")
@JSON_OPTION
@click.pass_obj
def nodes(context: CliContext, as_json: bool) -> None:  # noqa: FBT001
    """List the nodes of the mesh."""
    with context.connect() as client:
        reply = client.send(Call("GET", NODES))
    if as_json:
        print_json(reply.body)
        return
    page = client.decode(reply, NodePage)
    # The API sends wall-clock times, so compare them with the wall clock.
    now = dt.datetime.now(dt.UTC)
    print_table(
        ("NODE", "STATE", "ROLE", "TASKS", "CPU", "MEMORY", "VERSION", "SEEN"),
        [_row(node, page, now) for node in page.nodes],
        state_column=1,
        dropped_first=("VERSION", "MEMORY", "ROLE", "CPU"),
    )
    if page.replicas == 1 and any(_is_other(node) for node in page.nodes):
        joining = ", ".join(_format_standby(standby) for standby in page.standbys)
        note(f"warning: new tasks have one copy only; {joining or NO_STANDBY}")
    if page.last_failover is not None:
        note(f"last failover: {_failover(page.last_failover, now)}")


def _is_other(node: NodeInfo) -> bool:
    """Return True if this node is up and could store a copy of an accepted task."""
    return node.role != "dispatcher" and node.state != "lost"


def _is_short(node: NodeInfo) -> bool:
    """Return True if the node takes no work because it is short of a resource."""
    return node.state == "ready" and node.short_of is not None


def _format_standby(standby: Standby) -> str:
    lag = f", {standby.lag} entries behind" if standby.state == "joining" else ""
    return f"{standby.name} is {_standby_state(standby)}{lag}"


def _standby_state(standby: Standby) -> str:
    """Return the display name of a state; the API calls `in sync` `level`."""
    return "in sync" if standby.state == "level" else standby.state


def _failover(failover: Failover, now: dt.datetime) -> str:
    took = duration(failover.duration_ms)
    return f"{age(failover.at, now)}, took {took} ({failover.reason})"


def _row(node: NodeInfo, page: NodePage, now: dt.datetime) -> tuple[str, ...]:
    standby = next((s for s in page.standbys if s.id == node.id), None)
    load = node.load if node.state != "lost" else None
    memory = "-"
    if load is not None and node.memory_mb:
        used_gib, all_gib = load.memory_used_mb / 1024, node.memory_mb / 1024
        memory = f"{used_gib:.1f}/{all_gib:.1f} GiB"
    return (
        node.name,
        f"short of {node.short_of}" if _is_short(node) else node.state,
        f"standby {_standby_state(standby)}" if standby else node.role,
        f"{node.running}/{node.slots}",
        "-" if load is None else f"{load.cpu_percent:.0f}%",
        memory,
        node.version or "-",
        age(node.last_seen, now) + _joined(node, now),
    )


def _joined(node: NodeInfo, now: dt.datetime) -> str:
    """Mark a node that joined recently."""
    if node.joined_at is None or node.state == "lost":
        return ""
    since_s = seconds_since(node.joined_at, now)
    is_new = since_s is not None and since_s < NEW_S
    return f"  ← joined {age(node.joined_at, now)}" if is_new else ""


@click.command(epilog="Example: octaskly stats")
@JSON_OPTION
@click.pass_obj
def stats(context: CliContext, as_json: bool) -> None:  # noqa: FBT001
    """Count tasks, workers and copies in the whole mesh."""
    with context.connect() as client:
        reply = client.send(Call("GET", STATS))
    if as_json:
        print_json(reply.body)
        return
    found = client.decode(reply, Stats)
    mesh, system = found.mesh, found.system
    failover, now = mesh.last_failover, dt.datetime.now(dt.UTC)
    standbys = "; ".join(_format_standby(standby) for standby in mesh.standbys)
    print_fields(
        [
            ("workers", _counts(found.workers)),
            ("tasks", _counts(found.tasks)),
            ("copies of a new task", mesh.replicas or None),
            ("standbys", standbys or None),
            ("last failover", _failover(failover, now) if failover else None),
            ("dispatcher's agent up", duration(system.uptime_seconds * 1000)),
            ("dispatcher's agent memory", f"{system.memory_usage_mb} MB"),
            ("dispatcher's machine CPU", f"{system.cpu_usage_percent} %"),
            ("log and its journal", f"{found.database.disk_size_mb} MB"),
        ]
    )


def _counts(counts: Workers | Counts) -> str:
    each = msgspec.structs.asdict(counts)
    return ", ".join(f"{value} {key}" for key, value in each.items())
