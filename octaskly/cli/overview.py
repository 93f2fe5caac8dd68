"""`octaskly nodes` and `stats`: the mesh at a glance."""

from __future__ import annotations

import datetime as dt
from typing import Any

import click
import msgspec

from octaskly.cli.choice import Choice
from octaskly.cli.render import age, duration, print_fields, print_json, print_table
from octaskly.cli.tasks import JSON_OPTION
from octaskly.client import NodeInfo, NodePage


@click.command()
@JSON_OPTION
@click.pass_obj
def nodes(choice: Choice, as_json: bool) -> None:  # noqa: FBT001
    """List the nodes of the mesh."""
    with choice.client() as client:
        reply = client.request("GET", "/api/v1/nodes")
    if as_json:
        print_json(reply.body)
        return
    page = msgspec.json.decode(reply.body, type=NodePage)
    # The CLI is no agent: it compares the API's wall-clock times with its own.
    now = dt.datetime.now(dt.UTC)
    print_table(
        ("NODE", "STATE", "ROLE", "TASKS", "CPU", "MEMORY", "VERSION", "SEEN"),
        [_row(node, now) for node in page.nodes],
        state_column=1,
    )


def _row(node: NodeInfo, now: dt.datetime) -> tuple[str, ...]:
    load = node.load or {}
    cpu, used_mb = load.get("cpu_percent"), load.get("memory_used_mb")
    memory = "-"
    if node.memory_mb and used_mb is not None:
        memory = f"{used_mb / 1024:.1f}/{node.memory_mb / 1024:.1f} GiB"
    return (
        node.name,
        node.state,
        node.role,
        f"{node.running or 0}/{node.slots or 0}",
        "-" if cpu is None else f"{cpu:.0f}%",
        memory,
        node.version or "-",
        age(node.last_seen, now),
    )


@click.command()
@JSON_OPTION
@click.pass_obj
def stats(choice: Choice, as_json: bool) -> None:  # noqa: FBT001
    """Count the tasks and workers of the whole mesh."""
    with choice.client() as client:
        reply = client.request("GET", "/api/v1/stats")
    if as_json:
        print_json(reply.body)
        return
    answer = msgspec.json.decode(reply.body, type=dict[str, Any])
    workers, tasks = answer.get("workers", {}), answer.get("tasks", {})
    system, database = answer.get("system", {}), answer.get("database", {})
    uptime_s = system.get("uptime_seconds")
    print_fields(
        [
            ("workers", _counts(workers)),
            ("tasks", _counts(tasks)),
            ("dispatcher up", duration(uptime_s * 1000) if uptime_s else None),
            ("dispatcher memory", _unit(system.get("memory_usage_mb"), "MB")),
            ("dispatcher CPU", _unit(system.get("cpu_usage_percent"), "%")),
            ("log", _unit(database.get("disk_size_mb"), "MB")),
        ]
    )


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{value} {key}" for key, value in counts.items())


def _unit(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"
