"""`octaskly array` and `octaskly map`: one command for many numbers or items."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from octaskly.cli import completion
from octaskly.cli.commands.run import OWN_CODES, cancel_ended, left_told
from octaskly.cli.commands.submit import draft, request_options, submitted
from octaskly.cli.context import Choice, resolve_ref
from octaskly.cli.interrupts import interrupt_noted, interruptible
from octaskly.cli.output.render import (
    EXIT_CANCELLED,
    EXIT_FAILED,
    EXIT_NOT_FOUND,
    EXIT_OCTASKLY_FAILED,
    note,
    report,
    size,
)
from octaskly.cli.task_options import TAKEN, Asked, asking
from octaskly.cli.wait_hint import stall_told
from octaskly.client import Members, Task
from octaskly.client.flows import calls
from octaskly.core.model import placeholders
from octaskly.core.model.arrays import (
    INDEX_VARIABLE,
    ITEM_BYTES_MAX,
    ITEM_VARIABLE,
    ITEMS_BYTES_MAX,
)
from octaskly.core.model.task_options import ITEM_BYTES
from octaskly.errors import OctasklyError

if TYPE_CHECKING:
    from octaskly.cli.output.results import Results
    from octaskly.client import Draft, Session


SEPARATOR: Final = ":::"


def taken(words: Sequence[str], *, is_nul: bool) -> tuple[str, Sequence[str]]:
    """Return the shell text that words mean, and the items.

    Raises:
        UsageError: there is no command, or an item that no array can have.
    """
    command, items = _split(words, is_nul=is_nul)
    if not command:
        raise click.UsageError(f"there is no command before {SEPARATOR}")
    _check(items)
    text = command_text(command)
    # Who reads the variables needs no placeholder.
    is_named = len(placeholders.split_placeholders(text)) > 1 or any(
        variable in text for variable in (ITEM_VARIABLE, INDEX_VARIABLE)
    )
    return text if is_named else f"{text} {{}}", items


def command_text(words: Sequence[str]) -> str:
    """Return the shell text of words, in which placeholders stay as they are."""
    return words[0] if len(words) == 1 else " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    pieces = list(placeholders.split_placeholders(word))
    if len(pieces) == 1:
        return shlex.quote(word)
    pieces[::2] = (shlex.quote(piece) if piece else "" for piece in pieces[::2])
    return "".join(pieces)


def _split(
    words: Sequence[str], *, is_nul: bool
) -> tuple[Sequence[str], Sequence[str]]:
    if SEPARATOR in words:
        at = list(words).index(SEPARATOR)
        return words[:at], words[at + 1 :]
    if click.get_current_context().meta.get(TAKEN):
        raise click.UsageError("stdin holds the items, or what they read: not both")
    return words, _read(is_nul=is_nul)


def _read(*, is_nul: bool) -> list[str]:
    """Return the lines of stdin that are not empty, or what NULs end there."""
    if sys.stdin.isatty():
        note("reading items from the terminal, one a line; Ctrl-D ends them")
    # No more than may be: what writes there may have no end.
    data = sys.stdin.buffer.read(ITEMS_BYTES_MAX + 1)
    if len(data) > ITEMS_BYTES_MAX:
        raise _too_many()
    text = data.decode("utf-8", "surrogateescape")
    if is_nul:
        return text.removesuffix("\0").split("\0") if text else []
    return [line for line in text.split("\n") if line]


def _check(items: Sequence[str]) -> None:
    total = 0
    for number, item in enumerate(items, 1):
        try:
            size_bytes = len(item.encode())
        except UnicodeEncodeError:
            raise click.UsageError(
                f"item {number} is not UTF-8 text: {item[:40]!a}"
            ) from None
        if size_bytes > ITEM_BYTES_MAX:
            what = f"item {number} has {size_bytes} bytes"
            raise click.UsageError(f"{what}; at most {ITEM_BYTES_MAX} are allowed")
        if "\0" in item:
            raise click.UsageError(f"item {number} contains a NUL character; see -0")
        total += size_bytes + ITEM_BYTES
    if total > ITEMS_BYTES_MAX:
        raise _too_many()


def _too_many() -> click.UsageError:
    return click.UsageError(
        f"the items have more than {size(ITEMS_BYTES_MAX)} in all, where each counts"
        f" {ITEM_BYTES} bytes more; hand them in in parts, as with split -l 10000"
    )


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
    shell_complete=completion.files,
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
    shell_complete=completion.arrays,
    help="Instead of a command: what did not succeed of an earlier array.",
)
@_max_fails
@asking
@request_options
@click.argument(
    "words",
    nargs=-1,
    metavar="[--] CMD... [::: ITEM...]",
    shell_complete=completion.files,
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
    from octaskly.core.model import placeholders  # noqa: PLC0415

    for position, item in enumerate(items):
        click.echo(placeholders.fill_placeholders(text, item, position, is_quoted=True))


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
    from octaskly.cli.output.results import Results  # noqa: PLC0415

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
