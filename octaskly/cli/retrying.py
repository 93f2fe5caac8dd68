"""`octaskly retry`: run ended tasks once more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from octaskly.cli import completing
from octaskly.cli.choice import Choice, resolve_ref
from octaskly.cli.render import for_each, note, print_json
from octaskly.cli.tasks import JSON_OPTION
from octaskly.client import Session, Task, calls, reading


@click.command(epilog="Example: octaskly retry --failed")
@click.argument("refs", nargs=-1, metavar="[ID...]", shell_complete=completing.tasks)
@click.option(
    "--failed", is_flag=True, help="All failed tasks that were not repeated yet."
)
@JSON_OPTION
@click.pass_obj
def retry(
    choice: Choice,
    refs: Sequence[str],
    failed: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> int:
    """Run ended tasks once more, as new tasks, and print their ids.

    A task is repeated once, however often it is asked for: repeat the repetition.
    """
    if failed == bool(refs):
        raise click.UsageError("either ids, or --failed")
    with choice.client() as client:

        def retry_one(ref: str) -> None:
            old = ref if failed else resolve_ref(client, ref)
            reply = client.ask(calls.retry(old))
            new = client.read(reply, Task)
            if new.status != "queued":
                note(f"{old} was repeated as {new.id}, which is {new.status}")
                if failed:
                    return  # Only those that were not repeated yet are asked for.
            if as_json:
                print_json(reply.body)
            else:
                click.echo(new.id)

        return for_each(_failed(client) if failed else refs, retry_one)


def _failed(client: Session) -> Iterator[str]:
    """Yield the failed tasks of this moment, the oldest first."""
    found = client.iterate(reading.tasks(client.asker, {"status": "failed"}))
    return iter([task.id for task in found])
