"""`octaskly drain`, `pause` and `resume`: the admission of work to a node."""

from __future__ import annotations

import time

import click

from octaskly.cli import completion
from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION
from octaskly.cli.output.render import note, print_json
from octaskly.cli.task_options import require_nonempty
from octaskly.client.flows import rest_calls
from octaskly.client.flows.rest_calls import NODES, Call, resource_path
from octaskly.errors import MeshError
from octaskly.rest.mesh import NodeInfo

POLL_S = 0.5

NODE_ARGUMENT = click.argument(
    "name",
    metavar="NODE",
    callback=require_nonempty,
    shell_complete=completion.complete_nodes,
)


@click.command(epilog="Example: octaskly drain pi4 --wait")
@NODE_ARGUMENT
@click.option("--wait", is_flag=True, help="Return once nothing runs there.")
@JSON_OPTION
@click.pass_obj
def drain(
    context: CliContext,
    name: str,
    wait: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Let a node finish its tasks, and give it no new ones.

    It stays drained, even after a restart, until `octaskly resume`.
    """
    node = _set_availability(context, name, "drain", as_json=as_json)
    if wait:
        _wait_until_idle(context, node)
        note(f"{node.name} has no running tasks")


@click.command(epilog="Example: octaskly resume pi4")
@NODE_ARGUMENT
@JSON_OPTION
@click.pass_obj
def resume(context: CliContext, name: str, as_json: bool) -> None:  # noqa: FBT001
    """End a drain or a pause of a node, or both."""
    with context.connect() as client:
        path = resource_path(NODES, name)
        before = client.send_and_decode(Call("GET", path), NodeInfo)
        reply = client.send(rest_calls.post_once(f"{path}/resume"))
    if as_json:
        print_json(reply.body)
        return
    node = client.decode(reply, NodeInfo)
    if node.state != "ready":
        note(_format_state(node))
    elif before.state == "paused":
        count = _count_tasks(before)
        note(
            f"{node.name} was paused: {count} running again, and it accepts tasks again"
        )
    elif before.state == "draining":
        note(f"{node.name} was drained; it accepts tasks again")
    else:
        note(f"nothing to resume: {node.name} is neither drained nor paused")


@click.command(epilog="Example: octaskly pause laptop")
@NODE_ARGUMENT
@JSON_OPTION
@click.pass_obj
def pause(context: CliContext, name: str, as_json: bool) -> None:  # noqa: FBT001
    """Freeze the tasks of a node, and give it no new ones.

    They use no CPU and their timeouts stop counting until `octaskly resume`.
    """
    _set_availability(context, name, "pause", as_json=as_json)


def _set_availability(
    context: CliContext, name: str, action: str, *, as_json: bool
) -> NodeInfo:
    with context.connect() as client:
        reply = client.send(rest_calls.post_once(resource_path(NODES, name, action)))
    node = client.decode(reply, NodeInfo)
    if as_json:
        print_json(reply.body)
    else:
        note(_format_state(node))
    return node


def _format_state(node: NodeInfo) -> str:
    count = _count_tasks(node)
    match node.state:
        case "draining":
            return f"{node.name} is draining, {count} still running"
        case "paused":
            return f"{node.name} is paused, {count} frozen"
        case _:
            return f"{node.name} is {node.state}"


def _count_tasks(node: NodeInfo) -> str:
    return "1 task" if node.running == 1 else f"{node.running} tasks"


def _wait_until_idle(context: CliContext, node: NodeInfo) -> None:
    """Wait until a drained node runs nothing; raise if that will not come about."""
    while node.running:
        if node.state == "paused":
            raise MeshError(
                f"{node.name} is paused, so its tasks do not end",
                hint=f"octaskly resume {node.name}    then drain it again",
            )
        time.sleep(POLL_S)
        with context.connect() as client:
            node = client.send_and_decode(
                Call("GET", resource_path(NODES, node.id)), NodeInfo
            )
        if node.state == "lost":
            return  # Other nodes run its tasks again.
        if node.state == "ready":
            raise MeshError(
                f"{node.name} accepts tasks again", hint=f"octaskly drain {node.name}"
            )
