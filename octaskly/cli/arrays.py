"""`octaskly array` and `octaskly map`: one command for many numbers or items."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from octaskly.cli import completing
from octaskly.cli.asking import TAKEN, Asked, asking
from octaskly.cli.choice import Choice
from octaskly.cli.render import EXIT_CANCELLED, EXIT_FAILED, note
from octaskly.cli.submitting import draft, request_options
from octaskly.client import ApiError

if TYPE_CHECKING:
    from octaskly.client import Client, Draft, Task

PLACEHOLDER = "{}"
SEPARATOR = ":::"
POLL_S = 5

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
    """Hand in a command once for each number, as one array, and print its id.

    {} in the command stands for the number, which is in OCTASKLY_ITEM, too.
    """
    wanted = _draft(words, asked, {"range": numbers}, max_fails)
    with choice.client() as client:
        [task] = client.submit(
            [wanted], idempotency_key=idempotency_key, durability=durability
        )
    click.echo(task.id)


@click.command(name="map", epilog="Example: octaskly map 'gzip -k {}' ::: *.log")
@asking
@request_options
@_max_fails
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar=f"[--] CMD... [{SEPARATOR} ITEM...]",
    shell_complete=completing.files,
)
@click.pass_obj
def map_(
    choice: Choice,
    words: Sequence[str],
    max_fails: int | None,
    idempotency_key: str | None,
    durability: str | None,
    asked: Asked,
) -> int:
    """Run a command once for each item, and print what they write in that order.

    {} in the command stands for the item, as one word; it is in OCTASKLY_ITEM, too.
    Without ::: the items are the lines of stdin. Exit code: 0 if all succeeded, else 1.
    """
    command, items = _split(words)
    if not items:
        note("nothing to run: there is no item")
        return 0
    wanted = _draft(command, asked, {"items": items}, max_fails)
    with choice.client() as client:
        [task] = client.submit(
            [wanted], idempotency_key=idempotency_key, durability=durability
        )
        try:
            return _print_all(client, task.id, len(items))
        except KeyboardInterrupt:
            note(f"cancelling {task.id}")
            _cancel(client, task.id)
            return EXIT_CANCELLED


def _draft(
    words: Sequence[str], asked: Asked, members: dict[str, Any], max_fails: int | None
) -> Draft:
    if max_fails is not None:
        members = {**members, "max_fails": max_fails}
    return draft(_text(words), {**asked, "array": members})


def _text(words: Sequence[str]) -> str:
    """Return the shell text of words, in which `{}` stays as it is."""
    if len(words) == 1:
        return words[0]
    return " ".join(
        PLACEHOLDER.join(
            shlex.quote(part) if part or PLACEHOLDER not in word else ""
            for part in word.split(PLACEHOLDER)
        )
        for word in words
    )


def _split(words: Sequence[str]) -> tuple[Sequence[str], list[str]]:
    """Return the words of the command, and the items."""
    if SEPARATOR in words:
        at = list(words).index(SEPARATOR)
        command, items = words[:at], list(words[at + 1 :])
    elif click.get_current_context().meta.get(TAKEN):
        raise click.UsageError("stdin holds the items, or what they read: not both")
    else:
        command, items = words, _lines()
    if not command:
        raise click.UsageError(f"there is no command before {SEPARATOR}")
    return command, items


def _lines() -> list[str]:
    if sys.stdin.isatty():
        note("reading items from the terminal, one a line; Ctrl-D ends them")
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return [line for line in text.splitlines() if line]


def _print_all(client: Client, array: str, count: int) -> int:
    """Print what members write, in their order; return the exit code."""
    failed = 0
    for number in range(count):
        member = f"{array}.{number}"
        task = client.task(member, wait_s=POLL_S, exact=True)
        while not task.is_final:
            task = client.task(member, wait_s=POLL_S, exact=True)
        _print_output(task)
        if task.status != "completed":
            failed += 1
            note(f"{member} {_ending(task)}")
    if failed:
        note(f"{failed} of {count} did not succeed: octaskly show {array}")
    return EXIT_FAILED if failed else 0


def _print_output(task: Task) -> None:
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        stream.flush()
        stream.buffer.write(task.output_bytes(name))
        stream.buffer.flush()
    if task.stdout_truncated or task.stderr_truncated:
        note(f"{task.id} wrote more: octaskly logs {task.id}")


def _ending(task: Task) -> str:
    if task.status == "cancelled":
        return "was cancelled"
    if task.exit_code is not None:
        return f"failed with exit code {task.exit_code}"
    return f"failed: {task.detail or task.reason}"


def _cancel(client: Client, array: str) -> None:
    try:
        client.cancel(array, force=True)
    except ApiError as error:
        if error.status not in (404, 409):  # It has ended by itself.
            raise
