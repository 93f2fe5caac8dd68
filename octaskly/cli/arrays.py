"""`octaskly array` and `octaskly map`: one command for many numbers or items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from octaskly.cli import completing
from octaskly.cli.asking import Asked, asking
from octaskly.cli.choice import Choice, resolve_ref
from octaskly.cli.interrupts import interrupt_noted, interruptible
from octaskly.cli.render import (
    EXIT_CANCELLED,
    EXIT_FAILED,
    EXIT_NOT_FOUND,
    EXIT_OCTASKLY_FAILED,
    note,
    report,
)
from octaskly.cli.running import OWN_CODES, cancel_ended, left_told
from octaskly.cli.stalls import stall_told
from octaskly.cli.submitting import draft, request_options, submitted
from octaskly.client import Members, Task, calls
from octaskly.errors import OctasklyError

if TYPE_CHECKING:
    from octaskly.cli.results import Results
    from octaskly.client import Draft, Session

_max_fails = click.option(
    "--max-fails",
    type=click.IntRange(0),
    metavar="N",
    help="Begin no more once more than N have failed (default: go on).",
)


@click.command(epilog="Example: octaskly array 1-1000 -- ./simulate --seed {}")
@asking
@request_options
@_max_fails
@click.argument("numbers", metavar="FIRST-LAST[:STEP]")
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar="[--] CMD...",
    shell_complete=completing.files,
)
@click.pass_obj
def array(
    choice: Choice,
    numbers: str,
    words: Sequence[str],
    max_fails: int | None,
    idempotency_key: str | None,
    durability: str | None,
    asked: Asked,
) -> None:
    """Hand in a command once for each number, as one array.

    Prints its id. {} in the command stands for the number, which is in
    OCTASKLY_ITEM, too.
    """
    # Imported here, as below: what few commands need would cost all of them.
    from octaskly.cli.items import command_text  # noqa: PLC0415

    wanted = _draft(command_text(words), asked, {"range": numbers}, max_fails)
    with choice.client() as client:
        [[task]] = submitted(
            client, [wanted], key=idempotency_key, durability=durability
        )
    click.echo(task.id)


@click.command(
    name="map",
    epilog="Example: octaskly map 'gzip -k {}' ::: *.log",
    # As for GNU parallel: with the first word that is no option the command begins.
    context_settings={"allow_interspersed_args": False},
)
@click.option(
    "-k",
    "--keep-order",
    is_flag=True,
    help="Print in the order of the items; else as they end.",
)
@click.option(
    "-0", "--null", "is_nul", is_flag=True, help="A NUL ends each item of stdin."
)
@click.option(
    "--dry-run", is_flag=True, help="Print the commands, and hand nothing in."
)
@click.option(
    "--retry-failed",
    metavar="ID",
    shell_complete=completing.arrays,
    help="Instead of a command: what did not succeed of an earlier array.",
)
@_max_fails
@asking
@request_options
@click.argument(
    "words",
    nargs=-1,
    metavar="[--] CMD... [::: ITEM...]",
    shell_complete=completing.files,
)
@click.pass_obj
def map_(
    choice: Choice,
    *,
    words: Sequence[str],
    max_fails: int | None,
    keep_order: bool,
    is_nul: bool,
    dry_run: bool,
    retry_failed: str | None,
    idempotency_key: str | None,
    durability: str | None,
    asked: Asked,
) -> int:
    """Run a command once for each item, and print what they write.

    Items stand behind :::, or are the lines of stdin. As in GNU parallel, {} stands
    for the item as one word, {.} for it without extension, {/} for its file name,
    {//} for its folder, {/.} for its file name without extension, {#} for its number;
    without any of them the item comes last.

    Exit code: 0 if all succeeded, else 1.
    """
    from octaskly.cli.items import taken  # noqa: PLC0415

    if bool(words) == (retry_failed is not None):
        raise click.UsageError("either a command, or --retry-failed with an id")
    if retry_failed is not None:
        return _followed(
            choice, lambda client: _repeated(client, retry_failed), (), keep_order
        )
    text, items = taken(words, is_nul=is_nul)
    if not items:
        note("nothing to run: there is no item, neither behind ::: nor on stdin")
        return 0
    if dry_run:
        _print_commands(text, items)
        return 0
    wanted = _draft(text, asked, {"items": items}, max_fails)

    def begun(client: Session) -> Task:
        [[task]] = submitted(
            client, [wanted], key=idempotency_key, durability=durability
        )
        return task

    return _followed(choice, begun, items, keep_order)


def _draft(
    text: str, asked: Asked, members: dict[str, Any], max_fails: int | None
) -> Draft:
    if max_fails is not None:
        members = {**members, "max_fails": max_fails}
    return draft(text, {**asked, "array": members})


def _print_commands(text: str, items: Sequence[str]) -> None:
    from octaskly.core import placeholders  # noqa: PLC0415

    for position, item in enumerate(items):
        click.echo(placeholders.filled(text, item, position, is_quoted=True))


def _repeated(client: Session, ref: str) -> Task:
    full = resolve_ref(client, ref)
    task = client.asked(calls.retry_array(full), Task)
    if task.status != "queued":
        note(f"{full} was repeated before, as {task.id}")
    return task


def _followed(
    choice: Choice,
    begin: Callable[[Session], Task],
    items: Sequence[str],
    keep_order: bool,  # noqa: FBT001
) -> int:
    """Begin an array and print its results; return the exit code."""
    from octaskly.cli.results import Results  # noqa: PLC0415

    try:
        with choice.client() as client, interrupt_noted() as noted:
            task = begin(client)
            array, counts = task.id, task.array or Members()
            results = Results(
                client,
                array,
                items=items,
                total=len(items) or counts.total,
                is_by_number=keep_order,
            )
            with stall_told(choice, [array]), left_told(f"show {array}"):
                return _print(client, results, array, noted)
    except OctasklyError as error:
        code = report(error)
        return code if code in {*OWN_CODES, EXIT_NOT_FOUND} else EXIT_OCTASKLY_FAILED


def _print(client: Session, results: Results, array: str, noted: list[int]) -> int:
    """Print results until the array is over, or nobody gets them; Ctrl-C ends it."""
    try:
        with interruptible(noted):
            task = results.to_the_end()
    except KeyboardInterrupt:
        return _give_up(client, array)
    except OSError:
        _give_up(client, array)
        raise
    counts = task.array or Members()
    if counts.completed == counts.total:
        return 0
    _say_left(task)
    return EXIT_FAILED


def _give_up(client: Session, array: str) -> int:
    """Cancel what is left, whoever is in a hurry; say how to go on."""
    with interrupt_noted():
        note(f"cancelling what is left of {array}")
        cancel_ended(client, array)
        _say_left(client.asked(calls.task(array), Task))
    return EXIT_CANCELLED


def _say_left(task: Task) -> None:
    """Say what did not succeed, and how to go on."""
    counts = task.array or Members()
    left = counts.total - counts.completed
    if not left:
        return
    what = f"{counts.failed} of {counts.total} failed"
    if others := left - counts.failed:
        what += f", {others} did not run to their end"
    note(what)
    note(f"go on with them: octaskly map --retry-failed {task.id}")
