"""`octaskly forget`: ended tasks go now instead of by age."""

from __future__ import annotations

import sys

import click

from octaskly.cli.choice import Choice
from octaskly.cli.render import Duration, note, print_json
from octaskly.cli.tasks import JSON_OPTION
from octaskly.client import calls


@click.command(epilog="Example: octaskly forget --older-than 1d --yes")
@click.option(
    "--older-than",
    "older_than_s",
    type=Duration(),
    metavar="T",
    help="Tasks that ended so long ago, such as 7d or 12h.",
)
@click.option("--all-ended", is_flag=True, help="All tasks that have ended.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@JSON_OPTION
@click.pass_obj
def forget(
    choice: Choice,
    older_than_s: int | None,
    all_ended: bool,  # noqa: FBT001
    yes: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Forget ended tasks and their output now, on all nodes.

    What waits or runs stays. A task that ended later holds up those that were
    submitted after it; single tasks cannot be chosen.
    """
    if all_ended == (older_than_s is not None):
        raise click.UsageError("either --older-than T, or --all-ended")
    if not yes and sys.stdin.isatty():
        click.confirm(
            "What is forgotten is gone on all nodes. Go on?", abort=True, err=True
        )
    with choice.client() as client:
        reply = client.ask(
            calls.order("/api/v1/forget", {"older_than_s": older_than_s or 0})
        )
    if as_json:
        print_json(reply.body)
        return
    forgotten = client.read(reply, dict[str, int | None])["forgotten"]
    if forgotten is None:
        note("there are many: the dispatcher goes on, see `octaskly stats`")
    else:
        note(f"{forgotten} {'task' if forgotten == 1 else 'tasks'} forgotten")
