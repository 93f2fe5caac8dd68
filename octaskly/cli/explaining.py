"""`octaskly explain`: why a task is where it is."""

from __future__ import annotations

import click

from octaskly.cli import completing
from octaskly.cli.choice import Choice, resolve_ref
from octaskly.cli.render import print_json, print_table
from octaskly.cli.tasks import JSON_OPTION
from octaskly.client import Explanation, calls


@click.command(epilog="Example: octaskly explain last")
@click.argument("ref", metavar="ID", shell_complete=completing.tasks)
@JSON_OPTION
@click.pass_obj
def explain(choice: Choice, ref: str, as_json: bool) -> None:  # noqa: FBT001
    """Say why a task does not run, for each node."""
    with choice.client() as client:
        full = resolve_ref(client, ref)
        reply = client.ask(calls.explain(full))
    if as_json:
        print_json(reply.body)
        return
    told = client.read(reply, Explanation)
    click.echo(f"{told.id} ({told.status}): {told.summary}")
    if told.placement:
        click.echo(f"placed there: {told.placement}")
    if told.nodes:
        rows = [
            [node.name, node.state, "; ".join(why.message for why in node.reasons)]
            for node in told.nodes
        ]
        print_table(["NODE", "STATE", "WHY NOT THERE"], rows, state_column=1)
