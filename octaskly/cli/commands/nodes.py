"""`octaskly nodes` and `stats`: the state of the mesh."""

from __future__ import annotations

import datetime as dt

import click
import msgspec

from octaskly.cli import completion
from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION
from octaskly.cli.output import node_view
from octaskly.cli.output.render import (
    age,
    duration,
    note,
    print_fields,
    print_json,
)
from octaskly.client.flows.rest_calls import NODES, STATS, Call, resource_path
from octaskly.rest.mesh import (
    Counts,
    Failover,
    NodeInfo,
    NodePage,
    Standby,
    Stats,
    Workers,
)

NO_STANDBY = "no other node keeps copies: is --no-electable set on all of them?"


@click.command(epilog="Example: octaskly nodes pi4")
@click.argument(
    "name",
    required=False,
    metavar="[NODE]",
    shell_complete=completion.complete_nodes,
)
@JSON_OPTION
@click.pass_obj
def nodes(context: CliContext, name: str | None, as_json: bool) -> None:  # noqa: FBT001
    """List the nodes: which take work, and what each is doing now.

    With NODE, show all about one of them, also its disk and how long it has been up.
    """
    path = NODES if name is None else resource_path(NODES, name)
    with context.connect() as client:
        reply = client.send(Call("GET", path))
        if as_json:
            print_json(reply.body)
            return
        # The API sends wall-clock times, so compare them with the wall clock.
        now = dt.datetime.now(dt.UTC)
        if name is not None:
            node = client.decode(reply, NodeInfo)
            runs = node_view.fetch_runs(client).get(node.name, ())
            storage = node_view.fetch_storage(client, node)
            node_view.print_node(node, storage, runs, now)
            return
        page = client.decode(reply, NodePage)
        node_view.print_nodes(page, node_view.fetch_runs(client), now)
    for line in node_view.unavailable_lines(page.nodes):
        note(line)
    if page.replicas == 1 and any(_is_other(node) for node in page.nodes):
        joining = ", ".join(_format_standby(standby) for standby in page.standbys)
        note(f"warning: new tasks have one copy only; {joining or NO_STANDBY}")
    if page.last_failover is not None:
        note(f"last failover: {_failover(page.last_failover, now)}")


def _is_other(node: NodeInfo) -> bool:
    """Return True if this node is up and could store a copy of an accepted task."""
    return node.role != "dispatcher" and node.state != "lost"


def _format_standby(standby: Standby) -> str:
    lag = f", {standby.lag} entries behind" if standby.state == "joining" else ""
    return f"{standby.name} is {node_view.standby_state(standby)}{lag}"


def _failover(failover: Failover, now: dt.datetime) -> str:
    took = duration(failover.duration_ms)
    return f"{age(failover.at, now)}, took {took} ({failover.reason})"


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
