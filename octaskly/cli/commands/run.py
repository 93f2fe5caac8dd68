"""`octaskly run`: a command in the mesh with local output and exit code.

The first Ctrl-C or SIGTERM cancels the task; the second only ends the wait.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click
from msgspec.structs import replace

from octaskly.cli import completion
from octaskly.cli.commands.command_words import CommandTaker, command_text
from octaskly.cli.commands.submit import (
    make_draft,
    request_options,
    submit_and_wait,
)
from octaskly.cli.context import CliContext
from octaskly.cli.interrupts import (
    allow_interrupts,
    defer_first_interrupt,
    interrupt_cause,
)
from octaskly.cli.output.follow import OutputPrinter
from octaskly.cli.output.render import (
    EXIT_CANCELLED,
    EXIT_FAILED,
    EXIT_NO_DISPATCHER,
    EXIT_NOT_ALLOWED,
    EXIT_OCTASKLY_FAILED,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    duration,
    note,
    print_error,
    print_json,
    report_error,
    report_os_error,
)
from octaskly.cli.output.task_view import fetch_missing_output, format_time_limit
from octaskly.cli.output.terminal import is_terminal, write_output
from octaskly.cli.sent_files import SentFiles, SentPaths, warn_of_local_files
from octaskly.cli.stdin import stdin_fields
from octaskly.cli.task_options import DraftFields, task_options
from octaskly.cli.wait_hint import explain_if_waiting
from octaskly.client.errors import Conflict, NotFound
from octaskly.client.flows import rest_calls
from octaskly.errors import OctasklyError
from octaskly.rest.client_types import Task, has_all_output

if TYPE_CHECKING:
    from octaskly.client import Session

RUN_WAIT_S: Final = 0.01
"""For which the submission waits for the end of the task.

Most short tasks end earlier, and one request does for all. The output of a longer task
is followed after this time. Little is lost: its node makes the file from which output
is followed only after 5 ms.
"""
OWN_EXIT_CODES = frozenset({EXIT_USAGE, EXIT_NOT_ALLOWED, EXIT_NO_DISPATCHER, 78})

_C = TypeVar("_C", bound=Callable[..., Any])


def exits_as_task(*own: int) -> Callable[[_C], _C]:
    """Decorate a command whose exit code is that of a task, unless Octaskly failed.

    Args:
        own: Exit codes of errors that it keeps, as well as `OWN_EXIT_CODES`.
    """
    kept = OWN_EXIT_CODES.union(own)

    def decorate(command: _C) -> _C:
        @functools.wraps(command)
        def reported(*args: Any, **values: Any) -> Any:
            try:
                return command(*args, **values)
            except OctasklyError as error:
                code = report_error(error)
            except OSError as error:
                code = report_os_error(error)
            return code if code in kept else EXIT_OCTASKLY_FAILED

        return reported  # type: ignore[return-value]

    return decorate


@click.command(
    cls=CommandTaker, epilog="Example: octaskly run --in . --out build/ -- make -j4"
)
@exits_as_task()
@task_options(is_end_awaited=True)
@request_options
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the task as JSON instead of its output.",
)
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar="[--] CMD...",
    shell_complete=completion.complete_files,
)
@click.pass_obj
def run(
    context: CliContext,
    words: Sequence[str],
    idempotency_key: str | None,
    durability: str | None,
    as_json: bool,  # noqa: FBT001
    fields: DraftFields,
    sent: SentPaths,
) -> int:
    """Run a command on a node, with its output and exit code here.

    It runs in a folder of the node that is chosen: --in sends your files there, and
    --out fetches the results.

    It runs where most of its files already are, otherwise on the node with the most
    free capacity. An idle mesh may choose the same node each time; --on chooses one.

    One argument is shell code; several are joined with shell quoting.
    The command gets your stdin if that is a pipe or a file, and starts once
    all of it is read: in a `while read` loop, add </dev/null.
    Exit code: the command's own; 124 timed out, 128+N ended by signal N,
    125 Octaskly failed, 5 no agent or dispatcher.
    """
    task_draft = make_draft(command_text(words), fields)
    if not (sent.paths or task_draft.needs or task_draft.outputs_of or task_draft.cwd):
        warn_of_local_files(task_draft.command, outputs=task_draft.outputs)
    with context.connect() as client, SentFiles(client, sent) as files:
        if task_draft.stdin_base64 is None:
            task_draft = replace(task_draft, **stdin_fields(client))
        [draft] = files.send([task_draft])
        with defer_first_interrupt() as noted:
            task = submit_and_wait(
                client, draft, idempotency_key, durability, wait_s=RUN_WAIT_S
            )
            files.cancel_on_failure(task.id)
            with (
                explain_if_waiting(context, [] if task.is_final else [task.id]),
                hint_on_error(f"logs -f {task.id}"),
            ):
                ended = _follow(client, task, noted, as_json=as_json)
            files.finish()
            digests = files.digests(task_draft.cwd) if fields["outputs"] else {}
            return _finish(client, ended, fields["outputs"], digests, noted)


class EndedTask(NamedTuple):
    """A task that ended while `run` waited for it."""

    task: Task
    is_cancelled: bool  #: by Ctrl-C
    has_gaps: bool  #: some of its output was not kept, so it was not printed


def _finish(
    client: Session,
    ended: EndedTask | None,
    declared: Sequence[str],
    sent: Mapping[str, bytes],
    deferred: list[int],
) -> int:
    """Fetch the outputs of an ended task, report it, and return the exit code."""
    if ended is None:
        return EXIT_CANCELLED
    task = ended.task
    with hint_on_error(f"fetch {task.id}", "no longer fetching"):
        outcome = fetch_at_end(client, task, declared, sent, deferred)
    code = exit_code_of_task(task, is_cancelled=ended.is_cancelled, fetched=outcome)
    if code == 0 and ended.has_gaps:
        return report_gaps(f"{task.id} printed more than its node keeps")
    return code or outcome.exit_code


def report_gaps(text: str) -> int:
    """Say that some output of a successful task is lost; return the exit code."""
    hint = "let it write a file, and fetch that; or raise --output-cap there"
    print_error(text, hints=[hint])
    return EXIT_OCTASKLY_FAILED


def _follow(
    client: Session, submitted: Task, deferred: list[int], *, as_json: bool
) -> EndedTask | None:
    """Wait for the end of a task through Ctrl-C and lost connections.

    Args:
        client: Session with a node.
        submitted: The task, which may have ended during its submission.
        deferred: Signal number of a Ctrl-C that arrived outside a wait.
        as_json: Print the ended task instead of its output.

    Returns:
        How it ended; None if the wait was ended.
    """
    ref = submitted.id
    following = OutputPrinter(client, ref, prints_state=False)
    task = submitted if has_all_output(submitted) else None
    if task is not None and not as_json:
        _print_output(task)
    cancelled_by = ""
    while task is None:
        try:
            if cancelled_by:
                _cancel_on_interrupt(client, ref, cancelled_by)
            with allow_interrupts(deferred):
                task = (
                    _wait(client, ref) if as_json else following.print_all(follow=True)
                )
        except KeyboardInterrupt as interrupt:
            if cancelled_by:
                note(f"no longer waiting; see it with: octaskly logs -f {ref}")
                return None
            cancelled_by = interrupt_cause(interrupt)
        except OSError:  # A local command would also end once its stdout is closed.
            with defer_first_interrupt():
                cancel_if_running(client, ref)
            raise
    has_gaps = following.has_gaps
    if as_json:
        print_json(client.send(rest_calls.task(task.id, is_exact=False)).body)
        has_gaps = bool(fetch_missing_output(client, task))
    return EndedTask(task, bool(cancelled_by), has_gaps)


def _print_output(task: Task) -> None:
    """Print the output that came with an ended task."""
    for stream in ("stdout", "stderr"):
        if data := task.output_bytes(stream):
            write_output(stream, data)


class FetchOutcome(NamedTuple):
    """The result of fetching outputs at the end of a task."""

    text: str = ""  #: what was fetched
    exit_code: int = 0  #: if the task itself ended well


NOTHING_FETCHED: Final = FetchOutcome()


def fetch_at_end(
    client: Session,
    task: Task,
    declared: Sequence[str],
    sent: Mapping[str, bytes],
    deferred: list[int],
) -> FetchOutcome:
    """Fetch the outputs of an ended task into the current folder.

    Args:
        client: Session with a node.
        task: The task.
        declared: Its outputs, as the user wrote them.
        sent: SHA-256 of the files that were sent; one that has changed is kept.
        deferred: Signal number of a Ctrl-C that arrived before.

    Raises:
        OctasklyError: they cannot be fetched.
    """
    if not declared or task.status == "cancelled":
        return NOTHING_FETCHED
    # Only for tasks with outputs.
    from octaskly.cli.output import fetched as fetching  # noqa: PLC0415

    try:
        with allow_interrupts(deferred):
            # The last event of the output does not list the outputs.
            ended = client.send_and_decode(rest_calls.task(task.id), Task)
            found = fetching.fetch_outputs(client, ended, Path(), sent=sent)
    except KeyboardInterrupt:
        note(f"no longer fetching; to continue: octaskly fetch {task.id}")
        return FetchOutcome(exit_code=EXIT_CANCELLED)
    has_succeeded = ended.exit_code == 0
    is_complete = fetching.report_fetched(ended, found, must_be_whole=has_succeeded)
    return FetchOutcome(
        fetching.fetched_text(declared, found),
        0 if is_complete else EXIT_OCTASKLY_FAILED,
    )


@contextlib.contextmanager
def hint_on_error(command: str, what: str = "no longer waiting") -> Iterator[None]:
    """Print the command that goes on, if an error ends the block."""
    try:
        yield
    except OctasklyError:
        then = "see it" if what == "no longer waiting" else "to continue"
        note(f"{what}; {then} with: octaskly {command}")
        raise


def _wait(client: Session, ref: str) -> Task:
    from octaskly.client.flows import tasks  # noqa: PLC0415 - for --json only

    return client.run(
        tasks.wait(client.requests, ref, deadline=client.requests.deadline_after(None))
    )


def _cancel_on_interrupt(client: Session, ref: str, by: str) -> None:
    """Cancel a task; another Ctrl-C ends only the wait for the cancellation."""
    with defer_first_interrupt() as again:
        note(f"cancelling {ref}; {by} again to stop waiting for it")
        cancel_if_running(client, ref)
    if again:
        raise KeyboardInterrupt


def cancel_if_running(client: Session, ref: str) -> None:
    """Cancel a task that may have ended by itself."""
    with contextlib.suppress(Conflict, NotFound):  # It ended in the meantime.
        client.send(rest_calls.cancel(ref, force=True))


def exit_code_of_task(
    task: Task, *, is_cancelled: bool, fetched: FetchOutcome = NOTHING_FETCHED
) -> int:
    """Return the exit code for an ended task; print the reason of a failure.

    Args:
        task: The task.
        is_cancelled: Whether the user has cancelled it by Ctrl-C.
        fetched: What was fetched of its outputs, for the line about its end.
    """
    if task.array and task.status != "cancelled":
        failed, total = task.array.failed, task.array.total
        if failed:
            note(f"{task.id}: {failed} of {total} failed; octaskly show {task.id}")
        return EXIT_FAILED if failed else 0
    match task.reason:
        case "timeout":
            limit = format_time_limit(task, without="")
            note(f"{task.id} exceeded its timeout{limit and f' of {limit}'}")
            return EXIT_TIMEOUT
        case "limit":
            _print_failure(task)
            return task.exit_code or EXIT_OCTASKLY_FAILED
        case "lost" | "inputs" | "poison":
            _print_failure(task)
            return EXIT_OCTASKLY_FAILED
        case _:
            return _own_exit_code(task, is_cancelled=is_cancelled, fetched=fetched)


def _own_exit_code(task: Task, *, is_cancelled: bool, fetched: FetchOutcome) -> int:
    if task.status == "cancelled":
        if is_cancelled:
            note(f"{task.id} was cancelled")
            return EXIT_CANCELLED
        details = f"; details: octaskly explain {task.id}"
        why = f": {task.detail}" if task.detail else details
        note(f"{task.id} was cancelled{why}")
        return EXIT_OCTASKLY_FAILED
    if task.exit_code is None:
        _print_failure(task)
        return EXIT_OCTASKLY_FAILED
    if task.detail:
        note(task.detail)
    # In scripts, stderr must have only the output of the command.
    if is_terminal(is_error=True):
        _print_end(task, fetched)
    return task.exit_code


def _print_end(task: Task, fetched: FetchOutcome) -> None:
    """Print the node and the duration of a task, and what was fetched."""
    code, took = task.exit_code, duration(task.duration_ms)
    if fetched.text and not code:
        # A missing output fails the call, although the command succeeded.
        mark = "✗" if fetched.exit_code else "✓"
        note(f"{mark} {task.worker_id or task.id}, {took} · {fetched.text}")
        return
    how = f"✗ {task.id} exit {code}" if code else f"✓ {task.id} done"
    where = f" on {task.worker_id}" if task.worker_id else ""
    note(f"{how}{where} in {took}{f' · {fetched.text}' if fetched.text else ''}")


def _print_failure(task: Task) -> None:
    cause = task.detail
    if cause and task.reason == "inputs" and cause.endswith("on no node"):
        print_error(
            f"{task.id} failed: {cause}",
            hints=["octaskly run --in PATH ...    sends a file or folder along"],
        )
        return
    what = {
        "inputs": "no worker has its inputs or its folder, or enough disk space",
        "lost": "its worker was lost",
        "limit": "it exceeded a limit",
        "poison": "every worker that ran it was lost",
    }.get(task.reason or "", "Octaskly could not run it")
    print_error(
        f"{task.id} failed: {what}",
        cause=cause,
        hints=[f"octaskly show {task.id}"],
    )
