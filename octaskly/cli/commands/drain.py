"""`octaskly drain`, `resume`, `pause`, `unpause`: whether a node takes work."""

from __future__ import annotations

import time

import click

from octaskly.cli import completion
from octaskly.cli.context import Choice
from octaskly.cli.options import JSON_OPTION
from octaskly.cli.output.render import note, print_json
from octaskly.cli.task_options import not_empty
from octaskly.client import NodeInfo
from octaskly.client.flows import calls
from octaskly.client.flows.calls import NODES, Call, path_of
from octaskly.errors import MeshError

POLL_S = 0.5

NODE_ARGUMENT = click.argument(
    "name", metavar="NODE", callback=not_empty, shell_complete=completion.nodes
)


@click.command(epilog="Example: octaskly drain pi4 --wait")
@NODE_ARGUMENT
@click.option("--wait", is_flag=True, help="Return when nothing runs there any more.")
@JSON_OPTION
@click.pass_obj
def drain(
    choice: Choice,
    name: str,
    wait: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Let a node end what it runs, and give it no more work.

    It stays so, also when it restarts, until `octaskly resume`.
    """
    node = _steer(choice, name, "drain", as_json=as_json)
    if wait:
        _until_idle(choice, node)
        note(f"{node.name} runs nothing any more")


@click.command(epilog="Example: octaskly resume pi4")
@NODE_ARGUMENT
@JSON_OPTION
@click.pass_obj
def resume(choice: Choice, name: str, as_json: bool) -> None:  # noqa: FBT001
    """Give a drained node work again."""
    _steer(choice, name, "resume", as_json=as_json)


@click.command(epilog="Example: octaskly pause laptop")
@NODE_ARGUMENT
@JSON_OPTION
@click.pass_obj
def pause(choice: Choice, name: str, as_json: bool) -> None:  # noqa: FBT001
    """Freeze what a node runs, and give it no more work.

    Its tasks use no processor and their time limits stand still until `octaskly
    unpause`.
    """
    _steer(choice, name, "pause", as_json=as_json)


@click.command(epilog="Example: octaskly unpause laptop")
@NODE_ARGUMENT
@JSON_OPTION
@click.pass_obj
def unpause(choice: Choice, name: str, as_json: bool) -> None:  # noqa: FBT001
    """Let the tasks of a paused node go on, and give it work again."""
    _steer(choice, name, "unpause", as_json=as_json)


def _steer(choice: Choice, name: str, steering: str, *, as_json: bool) -> NodeInfo:
    with choice.client() as client:
        reply = client.ask(calls.order(path_of(NODES, name, steering)))
    node = client.read(reply, NodeInfo)
    if as_json:
        print_json(reply.body)
    else:
        note(_standing(node))
    return node


def _standing(node: NodeInfo) -> str:
    running = node.running or 0
    count = f"{running} task" if running == 1 else f"{running} tasks"
    match node.state:
        case "draining":
            return f"{node.name} is draining, {count} still running"
        case "paused":
            return f"{node.name} is paused, {count} frozen"
        case _:
            return f"{node.name} is {node.state}"


def _until_idle(choice: Choice, node: NodeInfo) -> None:
    """Wait until a drained node runs nothing; raise when it is drained no more."""
    while node.running:
        time.sleep(POLL_S)
        with choice.client() as client:
            node = client.asked(Call("GET", path_of(NODES, node.id)), NodeInfo)
        if node.state == "lost":
            return  # What it ran is run elsewhere.
        if node.state == "ready":
            raise MeshError(
                f"{node.name} takes work again", hint=f"octaskly drain {node.name}"
            )
