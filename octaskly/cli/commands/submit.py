"""`octaskly submit`: submission of tasks; prints only their ids."""

from __future__ import annotations

import re
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar

import click
import msgspec
from msgspec.structs import replace

from octaskly.cli import completion
from octaskly.cli.commands.command_words import CommandTaker, command_text
from octaskly.cli.context import CliContext
from octaskly.cli.here import note_other_user
from octaskly.cli.output.render import note
from octaskly.cli.output.terminal import on_one_line, print_text
from octaskly.cli.sent_files import SentFiles, SentPaths
from octaskly.cli.task_options import (
    STDIN_CONSUMED,
    DraftFields,
    require_nonempty,
    strings_in,
    task_options,
)
from octaskly.cli.task_refs import resolve_ref
from octaskly.client import Session
from octaskly.client.errors import Invalid, NotFound
from octaskly.client.flows import rest_calls
from octaskly.errors import OctasklyError
from octaskly.rest.client_types import Draft, Task
from octaskly.rest.tasks import NewIds

BATCH_TASKS_MAX: Final = 10_000  #: tasks per request
BATCH_BYTES_MAX: Final = 31 << 20  #: nodes accept bodies of up to 32 MiB

_COMMAND = re.compile(r"\$\[(\d+)\]\.command")  #: the field of a task in a request

_C = TypeVar("_C", bound=Callable[..., Any])

REQUEST_OPTIONS = (
    click.option(
        "--idempotency-key",
        metavar="KEY",
        callback=require_nonempty,
        help="Makes it safe to submit twice: the same key means the same task.",
    ),
    click.option(
        "--durability",
        type=click.Choice(("normal", "strict")),
        help="strict: fail rather than store only one copy (default: normal).",
    ),
)


def request_options(command: _C) -> _C:
    """Add the options of a submission."""
    for option in reversed(REQUEST_OPTIONS):
        command = option(command)
    return command


def make_draft(command: str, fields: DraftFields) -> Draft:
    """Return the task to submit.

    Raises:
        UsageError: a text is not UTF-8, so JSON cannot encode it.
    """
    for text in (command, *strings_in(fields)):
        if not _is_utf8(text):
            raise click.UsageError(f"{text!r} is not UTF-8 text")
    return Draft(command=command, **fields)


def _is_utf8(text: str) -> bool:
    """Return True if the text is valid UTF-8, without surrogate escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Line(NamedTuple):
    """One command, and its line number in the input."""

    command: str
    number: int | None = None


@click.command(
    cls=CommandTaker, epilog="Example: octaskly submit --name nightly -- ./backup.sh"
)
@task_options(is_end_awaited=False)
@request_options
@click.option(
    "--file",
    "file",
    type=click.File("rb"),
    help="Read one command per line from this file, without # comments; - is stdin.",
)
@click.argument(
    "words", nargs=-1, metavar="[--] CMD...", shell_complete=completion.complete_files
)
@click.pass_obj
def submit(
    context: CliContext,
    words: Sequence[str],
    file: BinaryIO | None,
    idempotency_key: str | None,
    durability: str | None,
    fields: DraftFields,
    sent: SentPaths,
) -> None:
    """Submit a task, or with - one per line of stdin. Print the ids; do not wait.

    --in sends files along, and `octaskly fetch` gets the --out files.

    One argument is shell code; several are joined with shell quoting.
    """
    if list(words) == ["-"]:
        file = sys.stdin.buffer
        words = ()
    if (file is None) == (not words):
        raise click.UsageError(
            "give either a command, or - or --file with one command per line"
        )
    if file is not None and file.name == "<stdin>" and _is_stdin_consumed():
        raise click.UsageError("stdin cannot provide both the commands and --stdin")
    lines = [_Line(command_text(words))] if words else _lines(file)
    drafts = [make_draft(line.command, fields) for line in lines]
    if not drafts:
        note("nothing to submit: no line has a command")
        return
    count = 0
    with context.connect() as client:
        drafts = SentFiles(client, sent, is_replicated=True).send(drafts)
        try:
            for accepted in submit_drafts(
                client, drafts, key=idempotency_key, durability=durability
            ):
                print_text("\n".join(on_one_line(task.id) for task in accepted))
                count += len(accepted)
        except OctasklyError as error:
            if count:
                note(f"the first {count} of {len(drafts)} tasks were submitted")
            raise _error_with_line(error, lines[count:]) from error.__cause__


def submit_drafts(
    client: Session, drafts: Iterable[Draft], *, key: str | None, durability: str | None
) -> Iterator[list[Task]]:
    """Submit tasks in as few requests as possible; yield the tasks of each request.

    Each request is all or nothing. Without a user's key, each request gets a random
    key for retries, and its tasks get ids from the mesh, because ids derived from a
    key have long numbers.

    Raises:
        MeshError: the reference in `after` is ambiguous.
    """
    drafts, key = _prepare(client, drafts, key)
    for index, body in enumerate(_batches(drafts)):
        part = f"{key}-{index}" if key and index else key
        call = rest_calls.submission(body, key=part, durability=durability)
        yield client.send_and_decode(call, list[Task])


def submit_and_wait(
    client: Session,
    draft: Draft,
    key: str | None,
    durability: str | None,
    *,
    wait_s: float,
) -> Task:
    """Submit a task; return it with its output if it ends within a short `wait_s`.

    Raises:
        MeshError: the reference in `after` is ambiguous.
    """
    [draft], key = _prepare(client, [draft], key)
    call = rest_calls.submission(
        msgspec.json.encode(draft), key=key, durability=durability, wait_s=wait_s
    )
    return client.send_and_decode(call, Task)


def _prepare(
    client: Session, drafts: Iterable[Draft], key: str | None
) -> tuple[list[Draft], str | None]:
    """Return drafts as they can be submitted, and the key of their submission."""
    drafts = [*_with_resolved_parents(client, drafts)]
    if any(draft.same_folder for draft in drafts):
        note_other_user(client)
    if key is None and (named := _with_ids(client, drafts)) is not None:
        return named, client.requests.new_key()
    return drafts, key


def _with_ids(client: Session, drafts: Sequence[Draft]) -> list[Draft] | None:
    """Return drafts with ids from the mesh, None if the node is too old."""
    named = []
    for at in range(0, len(drafts), BATCH_TASKS_MAX):
        part = drafts[at : at + BATCH_TASKS_MAX]
        try:
            ids = client.send_and_decode(rest_calls.new_ids(len(part)), NewIds).ids
        except NotFound:
            return None
        named += [replace(item, id=i) for item, i in zip(part, ids, strict=True)]
    return named


def _with_resolved_parents(client: Session, drafts: Iterable[Draft]) -> Iterator[Draft]:
    """Yield drafts with the references to parents resolved to full ids."""
    full: dict[str, str] = {}  # Many drafts usually have the same parents.
    for item in drafts:
        if not (item.after or item.outputs_of):
            yield item
            continue
        for ref in (*item.after, *item.outputs_of):
            if ref not in full:
                full[ref] = resolve_ref(client, ref)
        yield replace(
            item,
            after=[full[ref] for ref in item.after],
            outputs_of=[full[ref] for ref in item.outputs_of],
        )


def _batches(drafts: Iterable[Draft]) -> Iterator[bytes]:
    """Yield request bodies: JSON arrays within the limits of the API."""
    items: list[bytes] = []
    size = 0
    for item in map(msgspec.json.encode, drafts):
        if items and (
            len(items) == BATCH_TASKS_MAX or size + len(item) > BATCH_BYTES_MAX
        ):
            yield b"[%s]" % b",".join(items)
            items, size = [], 0
        items.append(item)
        size += len(item) + 1
    yield b"[%s]" % b",".join(items)


def _is_stdin_consumed() -> bool:
    return bool(click.get_current_context().meta.get(STDIN_CONSUMED))


def _lines(file: BinaryIO | None) -> list[_Line]:
    """Return the commands in a file, one per line without blank lines and comments."""
    lines = []
    for number, data in enumerate(file or (), 1):
        try:
            # Editors of Windows begin a file with a mark, which is no command.
            command = data.removeprefix(BOM_UTF8).decode().strip()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"line {number} is not UTF-8 text") from error
        if command and not command.startswith("#"):
            lines.append(_Line(command, number))
    return lines


def _error_with_line(error: OctasklyError, lines: Sequence[_Line]) -> OctasklyError:
    """Return an error about one command, with its line number.

    Args:
        error: Refusal of the API.
        lines: Lines of the request, and perhaps of later requests.
    """
    place = _COMMAND.fullmatch(error.field or "")
    if not isinstance(error, Invalid) or place is None:
        return error
    line = lines[int(place[1])]
    if line.number is None:
        return error
    return Invalid(
        error.message, status=error.status, hint=error.hint, field=f"line {line.number}"
    )
