"""`octaskly array` and `octaskly map`: one command for many numbers or items."""

from __future__ import annotations

import contextlib
import posixpath
import re
import shlex
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
from click.core import ParameterSource

from octaskly.cli import completion
from octaskly.cli.commands.command_words import (
    ITEMS_SEPARATOR,
    CommandTaker,
    check_placeholder_quoting,
    check_quoting,
)
from octaskly.cli.commands.run import (
    cancel_if_running,
    exits_as_task,
    hint_on_error,
    report_gaps,
)
from octaskly.cli.commands.submit import make_draft, request_options, submit_drafts
from octaskly.cli.context import CliContext
from octaskly.cli.here import make_here_file_again
from octaskly.cli.interrupts import allow_interrupts, defer_first_interrupt
from octaskly.cli.options import UsageProblem
from octaskly.cli.output.render import (
    EXIT_CANCELLED,
    EXIT_FAILED,
    EXIT_NOT_FOUND,
    EXIT_OCTASKLY_FAILED,
    note,
    report_error,
    size,
)
from octaskly.cli.output.terminal import is_terminal, print_exact, print_line
from octaskly.cli.sent_files import SentFiles, SentPaths, warn_of_local_files
from octaskly.cli.task_options import STDIN_CONSUMED, DraftFields, task_options
from octaskly.cli.task_refs import resolve_ref
from octaskly.cli.wait_hint import explain_if_waiting
from octaskly.client.errors import Refused
from octaskly.client.flows import rest_calls
from octaskly.core.model import placeholders
from octaskly.core.model.arrays import (
    INDEX_VARIABLE,
    ITEM_BYTES_MAX,
    ITEM_VARIABLE,
    ITEMS_BYTES_MAX,
)
from octaskly.core.model.task_options import ITEM_BYTES, ITEMS_MAX
from octaskly.files.manifest import ENTRIES_MAX
from octaskly.files.output_patterns import has_wildcards, prefixes
from octaskly.rest.client_types import Task
from octaskly.rest.tasks import Members

if TYPE_CHECKING:
    from octaskly.cli.output.array_results import ResultPrinter
    from octaskly.client import Session
    from octaskly.rest.client_types import Draft


NO_DIGEST: Final = b""  #: of a file that must not be replaced
RERUN_OPTIONS: Final = frozenset({"retry_failed", "keep_order"})
_RANGE: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,9})(?::([0-9]{1,9}))?")


def parse_command_and_items(
    words: Sequence[str], *, is_nul: bool
) -> tuple[str, Sequence[str]]:
    """Return the shell text of the words, and the items.

    Raises:
        UsageError: the command is missing, or an item is invalid.
    """
    command, items = _split(words, is_nul=is_nul)
    if not command:
        raise click.UsageError(f"there is no command before {ITEMS_SEPARATOR}")
    _check(items)
    text = command_with_placeholders(command)
    if len(command) == 1:
        check_placeholder_quoting(text, items)
    # A command that reads the variables needs no placeholder.
    is_named = len(placeholders.split_placeholders(text)) > 1 or any(
        variable in text for variable in (ITEM_VARIABLE, INDEX_VARIABLE)
    )
    return text if is_named else f"{text} {{}}", items


def command_with_placeholders(words: Sequence[str]) -> str:
    """Return the shell text of words, with placeholders unquoted.

    Raises:
        UsageProblem: the words are quoted by mistake.
    """
    check_quoting(words)
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
    if ITEMS_SEPARATOR in words:
        at = list(words).index(ITEMS_SEPARATOR)
        return words[:at], words[at + 1 :]
    if click.get_current_context().meta.get(STDIN_CONSUMED):
        raise click.UsageError("stdin cannot provide both the items and --stdin")
    return words, _read(is_nul=is_nul)


def _read(*, is_nul: bool) -> list[str]:
    """Return the non-empty lines of stdin, or its NUL-terminated items."""
    if sys.stdin.isatty():
        note("reading items from the terminal, one per line; Ctrl-D ends the list")
    # Read a limited number of bytes, because stdin may be endless.
    data = sys.stdin.buffer.read(ITEMS_BYTES_MAX + 1)
    if len(data) > ITEMS_BYTES_MAX:
        raise _too_many()
    text = data.removeprefix(BOM_UTF8).decode("utf-8", "surrogateescape")
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
                f"item {number} is not UTF-8 text: {item[:40]!r}"
            ) from None
        if size_bytes > ITEM_BYTES_MAX:
            what = f"item {number} has {size_bytes} bytes"
            raise click.UsageError(f"{what}; at most {ITEM_BYTES_MAX} are allowed")
        if "\0" in item:
            raise click.UsageError(f"item {number} contains a NUL character; see -0")
        total += size_bytes + ITEM_BYTES
    if total > ITEMS_BYTES_MAX or len(items) > ITEMS_MAX:
        raise _too_many()


def _too_many() -> click.UsageError:
    return click.UsageError(
        f"more than {ITEMS_MAX} items or {size(ITEMS_BYTES_MAX)}, including "
        f"{ITEM_BYTES} bytes of overhead for each; submit them in parts, for example "
        "with split -l 10000"
    )


_max_fails = click.option(
    "--max-fails",
    type=click.IntRange(0),
    metavar="N",
    help="Stop starting items after more than N failures (default: never stop).",
)


@click.command(
    cls=CommandTaker, epilog="Example: octaskly array 1-1000 -- ./simulate --seed {}"
)
@task_options(is_end_awaited=False)
@request_options
@_max_fails
@click.argument("numbers", metavar="FIRST-LAST[:STEP]")
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar="[--] CMD...",
    shell_complete=completion.complete_files,
)
@click.pass_obj
def array(
    context: CliContext,
    numbers: str,
    words: Sequence[str],
    max_fails: int | None,
    idempotency_key: str | None,
    durability: str | None,
    fields: DraftFields,
    sent: SentPaths,
) -> None:
    """Submit a command for each number of a range, as one array.

    Prints the id and does not wait. {} in the command, --in and --out is replaced by
    the number; OCTASKLY_ITEM holds it too. `octaskly fetch` gets the --out files.
    """
    wanted = _array_draft(
        command_with_placeholders(words), fields, {"range": numbers}, max_fails
    )
    items = _numbers(numbers) if any("{" in path for path in sent.paths) else ()
    with context.connect() as client:
        files = SentFiles(client, sent, items, is_replicated=True)
        task = _submit_array(wanted, idempotency_key, durability, client, files)
    print_line(task.id)


@click.command(
    name="map",
    cls=CommandTaker,
    epilog="Example: octaskly map --in {} --out {}.gz 'gzip -k {}' ::: *.log",
)
@exits_as_task(EXIT_NOT_FOUND)
@click.option(
    "-k",
    "--keep-order",
    is_flag=True,
    help="Print results in the order of the items, not as they end.",
)
@click.option(
    "-0",
    "--null",
    "is_nul",
    is_flag=True,
    help="Items on stdin end with a NUL, not with a newline.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print the commands without submitting them."
)
@click.option(
    "--retry-failed",
    metavar="ID",
    shell_complete=completion.complete_arrays,
    help="Instead of a command: retry what failed in an earlier array, with its files"
    " and options. Only --keep-order may be added.",
)
@_max_fails
@task_options(is_end_awaited=True)
@request_options
@click.argument(
    "words",
    nargs=-1,
    metavar="[--] CMD... [::: ITEM...]",
    shell_complete=completion.complete_files,
)
@click.pass_obj
def map_(
    context: CliContext,
    *,
    words: Sequence[str],
    max_fails: int | None,
    keep_order: bool,
    is_nul: bool,
    dry_run: bool,
    retry_failed: str | None,
    idempotency_key: str | None,
    durability: str | None,
    fields: DraftFields,
    sent: SentPaths,
) -> int:
    """Run a command once for each item, and print the output.

    Items follow :::, or are the lines of stdin. As in GNU parallel, {} is the item as
    one word, {.} the item without its extension, {/} its file name, {//} its folder,
    {/.} its file name without extension, and {#} its number. Without any of them, the
    item is appended. They also work in --in and --out. The outputs that --out names
    are fetched into the current folder.

    The exit code is 0 if all succeeded, otherwise 1; 125 if some output is lost.
    """
    if bool(words) == (retry_failed is not None):
        raise click.UsageError("give either a command, or --retry-failed with an id")
    if retry_failed is not None:
        _refuse_unused_options()
        return _rerun_array(context, retry_failed, keep_order=keep_order)
    text, items = parse_command_and_items(words, is_nul=is_nul)
    if not items:
        note("nothing to run: there are no items after ::: or on stdin")
        return 0
    _check_files(fields, items)
    if dry_run:
        _print_commands(text, items)
        return 0
    wanted = _array_draft(text, fields, {"items": items}, max_fails)
    if not (sent.paths or wanted.needs or wanted.outputs_of or wanted.cwd):
        warn_of_local_files(text, items, outputs=wanted.outputs)
    return _run_array(
        context,
        partial(_submit_array, wanted, idempotency_key, durability),
        sent=sent,
        cwd=wanted.cwd,
        items=items,
        keep_order=keep_order,
        declared=fields["outputs"],
    )


def _refuse_unused_options() -> None:
    """Refuse options that `--retry-failed` does not use.

    Raises:
        UsageError: it names such an option.
    """
    context = click.get_current_context()
    for option in context.command.params:
        if not isinstance(option, click.Option) or option.name in RERUN_OPTIONS:
            continue
        if (
            context.get_parameter_source(str(option.name))
            is ParameterSource.COMMANDLINE
        ):
            raise click.UsageError(
                f"{option.opts[-1]} is not allowed: --retry-failed runs the tasks of"
                " that array again as they are, with their files"
            )


def _rerun_array(context: CliContext, ref: str, *, keep_order: bool) -> int:
    """Run the members of an array again that did not succeed."""
    with contextlib.ExitStack() as here:
        return _run_array(
            context,
            lambda client, files: _retry_array(client, ref, files, here),
            sent=SentPaths(),
            cwd=None,
            items=(),
            keep_order=keep_order,
            declared=None,
        )


def _numbers(text: str) -> Sequence[str]:
    """Return the items of an array of numbers; none of a range that is invalid."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return ()
    first, last, step = (int(number or 1) for number in match.groups())
    members = range(first, last + 1, step or 1)
    return list(map(str, members[: ENTRIES_MAX + 1]))  # More make too large a tree.


def _array_draft(
    text: str, fields: DraftFields, members: dict[str, Any], max_fails: int | None
) -> Draft:
    if max_fails is not None:
        members = {**members, "max_fails": max_fails}
    return make_draft(text, {**fields, "array": members})


class _Begun(NamedTuple):
    """An array that was submitted."""

    id: str
    total: int  #: number of its members; 0 if it is not known


def _begun(task: Task) -> _Begun:
    return _Begun(task.id, (task.array or Members()).total)


def _submit_array(
    wanted: Draft,
    key: str | None,
    durability: str | None,
    client: Session,
    files: SentFiles,
) -> _Begun:
    with allow_interrupts([]):  # Nothing was submitted that may be lost.
        drafts = files.send([wanted])
    [[task]] = submit_drafts(client, drafts, key=key, durability=durability)
    return _begun(task)


def _check_files(fields: DraftFields, items: Sequence[str]) -> None:
    """Raise UsageError if items make a path invalid, or an output of two members."""
    for flag, field in (("--out", "outputs"), ("--needs", "needs")):
        _check_paths(flag, fields[field], items)
    _check_distinct_outputs(fields["outputs"], items)


def _check_paths(flag: str, paths: Sequence[str], items: Sequence[str]) -> None:
    """Refuse items that make a path outside the folder of their task.

    Raises:
        UsageProblem: the first such item and its path.
    """
    for template in paths:
        for position, item in enumerate(items):
            path = placeholders.fill_placeholders(template, item, position)
            if path != template and (fault := placeholders.path_fault(path)):
                name = template.replace("{}", "{/}").replace("{.}", "{/.}")
                by_name = f"{flag} '{name}'    {{/}} is an item without its folder"
                raise UsageProblem(
                    f"{flag} {template}: the item {item[:40]!r} makes it"
                    f" {path[:80]!r}, which {fault}",
                    cause="such a path must be inside the folder where the command "
                    "runs",
                    hint=by_name if name != template else f"{flag} out-{{#}}",
                )


def _check_distinct_outputs(declared: Sequence[str], items: Sequence[str]) -> None:
    """Raise UsageError if two members would write the same output.

    What a glob covers is seen when it is fetched: a file of another member is kept.
    """
    paths = [out for out in declared if not has_wildcards(out)]
    if not paths or len(items) == 1:
        return
    owners: dict[str, int] = {}
    leading: dict[str, int] = {}
    for position, item in enumerate(items):
        for out in paths:
            filled = placeholders.fill_placeholders(out, item, position)
            path = posixpath.normpath(filled)
            above = list(prefixes(path))
            found = [owners.get(folder) for folder in above] + [leading.get(path)]
            other = next((n for n in found if n not in (None, position)), None)
            if other is not None:
                _check_globs(items[other], item)
                if items[other] == item:
                    raise click.UsageError(
                        f"--out {out}: the item {item!r} occurs twice, so two tasks"
                        f" would both write {path}"
                    )
                raise click.UsageError(
                    f"--out {out}: {items[other]!r} and {item!r} would both write "
                    f"{path}; add {{}} or another placeholder"
                )
            owners[path] = position
            for folder in above:
                leading.setdefault(folder, position)


def _check_globs(*items: str) -> None:
    """Raise UsageError if the shell has passed on a glob that matches no file."""
    for item in items:
        if has_wildcards(item) and not Path(item).exists():
            raise click.UsageError(f"the item {item!r} is a glob that matches nothing")


def _print_commands(text: str, items: Sequence[str]) -> None:
    from octaskly.core.model import placeholders  # noqa: PLC0415

    for position, item in enumerate(items):
        print_exact(
            placeholders.fill_placeholders(text, item, position, is_quoted=True)
        )


def _retry_array(
    client: Session, ref: str, files: SentFiles, here: contextlib.ExitStack
) -> _Begun:
    """Retry an array; the file of one with `--here` is there until `here` closes."""
    full = resolve_ref(client, ref)
    earlier = client.send_and_decode(rest_calls.task(full), Task)
    if file := make_here_file_again(earlier):
        here.enter_context(file)
    if earlier.array is not None:
        files.send_again(earlier, may_lend=True)
    task = client.send_and_decode(rest_calls.retry_array(full), Task)
    if task.status != "queued":
        note(f"{full} was already retried, as {task.id}")
    return _begun(task)


def _run_array(
    context: CliContext,
    begin: Callable[[Session, SentFiles], _Begun],
    *,
    sent: SentPaths,
    cwd: str | None,
    items: Sequence[str],
    keep_order: bool,
    declared: Sequence[str] | None,
) -> int:
    """Submit an array, print its results and fetch its outputs; return the exit code.

    Args:
        context: Selects the node.
        begin: Submits the array, and sends files before.
        sent: The files to send.
        cwd: Folder in which the command runs, if it is not that of the files.
        items: The items of the members, if known here.
        keep_order: Print results in the order of the items.
        declared: The declared outputs; None if they are not known here.
    """
    from octaskly.cli.output.array_results import ResultPrinter  # noqa: PLC0415

    with (
        context.connect() as client,
        SentFiles(client, sent, items) as files,
        defer_first_interrupt() as noted,
    ):
        array, total = begin(client, files)
        files.cancel_on_failure(array)
        fetcher = _fetcher_of(client, array, files.digests(cwd), declared)
        results = ResultPrinter(
            client,
            array,
            items=items,
            total=len(items) or total,
            is_by_number=keep_order,
            on_ended=fetcher.fetch if fetcher else None,
        )
        with explain_if_waiting(context, [array]), hint_on_error(f"show {array}"):
            code = _print(client, results, array, noted, has_outputs=bool(fetcher))
        files.finish()
        return code or (fetcher.finish() if fetcher else 0)


def _fetcher_of(
    client: Session,
    array: str,
    sent: Mapping[str, bytes],
    declared: Sequence[str] | None,
) -> _MemberFetcher | None:
    """Return what fetches the outputs of an array; None if there are none.

    If they are not known here, an earlier command has declared them, and has sent the
    files.
    """
    if declared is None:
        from octaskly.client.fetching import digests_sent_from  # noqa: PLC0415 - rare

        known = client.send_and_decode(rest_calls.task(array), Task)
        declared = [out.path for out in known.outputs]
        sent = digests_sent_from(Path(), known)
    return _MemberFetcher(client, declared, sent) if declared else None


class _MemberFetcher:
    """Fetches the outputs of members into the current folder, as they end."""

    def __init__(
        self, client: Session, declared: Sequence[str], sent: Mapping[str, bytes]
    ) -> None:
        self._client = client
        self._declared = declared
        self._known = dict(sent)  #: SHA-256 that a file here may have to be replaced
        self._files = self._bytes = 0
        self._is_complete = True

    def fetch(self, member: Task) -> None:
        """Fetch the outputs of a member, also of one that failed.

        Those that cannot be placed here stay at their worker; the others go on.
        """
        from octaskly.cli.output import fetched  # noqa: PLC0415 - for outputs only
        from octaskly.files.home_folder import FetchError  # noqa: PLC0415

        if member.exit_code is None:
            return  # It did not run to an end, so nothing was kept.
        try:
            # The result has no outputs if there are very many.
            ended = member if member.outputs else self._read(member.id)
            placed: set[str] = set()
            found = fetched.fetch_outputs(
                self._client, ended, Path(), sent=self._known, placed=placed
            )
        except (Refused, FetchError) as error:
            report_error(error, about=member.id)
            self._is_complete = False
            return
        # Patterns of two members may cover the same file. The first one is kept.
        self._known |= dict.fromkeys(placed, NO_DIGEST)
        has_succeeded = ended.exit_code == 0
        self._is_complete &= fetched.report_fetched(
            ended, found, must_be_whole=has_succeeded
        )
        self._files += found.files
        self._bytes += found.bytes

    def _read(self, task: str) -> Task:
        return self._client.send_and_decode(rest_calls.task(task), Task)

    def finish(self) -> int:
        """Say what was fetched; return the exit code of an array that succeeded."""
        from octaskly.cli.output.fetched import fetched_text  # noqa: PLC0415
        from octaskly.files.unpacker import Fetched  # noqa: PLC0415

        if is_terminal(is_error=True):
            found = Fetched(files=self._files, bytes=self._bytes)
            mark = "✓" if self._is_complete else "✗"
            note(f"{mark} {fetched_text(self._declared, found)}")
        return 0 if self._is_complete else EXIT_OCTASKLY_FAILED


def _print(
    client: Session,
    results: ResultPrinter,
    array: str,
    deferred: list[int],
    *,
    has_outputs: bool,
) -> int:
    """Print results until the array has ended or stdout is closed; Ctrl-C cancels."""
    try:
        with allow_interrupts(deferred):
            task = results.print_all()
    except KeyboardInterrupt:
        counts = _cancel_rest(client, array).array or Members()
        if unseen := counts.completed + counts.failed - results.ended:
            note(f"{unseen} that ended were not printed: octaskly logs {array}")
            if has_outputs:
                note(f"to fetch their outputs: octaskly fetch {array}")
        return EXIT_CANCELLED
    except OSError:
        _cancel_rest(client, array)
        raise
    counts = task.array or Members()
    if counts.completed == counts.total:
        if results.has_gaps:
            return report_gaps("some items printed more than their nodes keep")
        return 0
    if task.status == "cancelled":
        note(f"{array} was cancelled")
    _print_unsuccessful(task)
    return EXIT_FAILED


def _cancel_rest(client: Session, array: str) -> Task:
    """Cancel the remaining members and print the next command; return the array."""
    with defer_first_interrupt():
        note(f"cancelling the rest of {array}")
        cancel_if_running(client, array)
        task = client.send_and_decode(rest_calls.task(array), Task)
        _print_unsuccessful(task)
    return task


def _print_unsuccessful(task: Task) -> None:
    """Print the number of unsuccessful members and the next command."""
    counts = task.array or Members()
    left = counts.total - counts.completed
    if not left:
        return
    what = f"{counts.failed} of {counts.total} failed"
    if others := left - counts.failed:
        what += f", {others} did not finish"
    note(what)
    note(f"to retry them: octaskly map --retry-failed {task.id}")
