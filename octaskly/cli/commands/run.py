"""`octaskly run`: as if the command ran here.

Its output and exit code become this command's own. The first Ctrl-C or SIGTERM
ends the task, the second leaves it alone.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from octaskly.cli import completion
from octaskly.cli.commands.submit import command_text, draft, request_options, submitted
from octaskly.cli.context import Choice
from octaskly.cli.interrupts import cause, interrupt_noted, interruptible
from octaskly.cli.output.follow import Following
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
    report,
)
from octaskly.cli.task_options import Asked, asking
from octaskly.cli.wait_hint import stall_told
from octaskly.client.errors import Conflict, NotFound
from octaskly.client.flows import calls
from octaskly.errors import OctasklyError

if TYPE_CHECKING:
    from octaskly.client import Session, Task

OWN_CODES = frozenset({EXIT_USAGE, EXIT_NOT_ALLOWED, EXIT_NO_DISPATCHER, 78})


@click.command(
    context_settings={"ignore_unknown_options": False},
    epilog="Example: octaskly run --timeout 15m -- make -C project test",
)
@asking
@request_options
@click.option("--json", "as_json", is_flag=True, help="Print the task as JSON instead.")
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar="-- CMD...",
    shell_complete=completion.files,
)
@click.pass_obj
def run(
    choice: Choice,
    words: Sequence[str],
    idempotency_key: str | None,
    durability: str | None,
    as_json: bool,  # noqa: FBT001
    asked: Asked,
) -> int:
    """Run a command somewhere in the mesh, as if it ran here.

    One argument is shell text; several are joined as a shell would quote them.
    Exit code: the command's own; 124 timed out, 128+N ended by signal N,
    125 Octaskly failed, 5 no agent or dispatcher.
    """
    task_draft = draft(command_text(words), asked)
    try:
        with choice.client() as client, interrupt_noted() as noted:
            [[task]] = submitted(
                client, [task_draft], key=idempotency_key, durability=durability
            )
            with stall_told(choice, [task.id]), left_told(f"logs -f {task.id}"):
                return _follow(client, task.id, noted, as_json=as_json)
    except OctasklyError as error:
        code = report(error)
        return code if code in OWN_CODES else EXIT_OCTASKLY_FAILED


def _follow(client: Session, ref: str, noted: list[int], *, as_json: bool) -> int:
    """Wait for the end of a task through Ctrl-C and lost connections; report it.

    Args:
        client: The node that has the task.
        ref: Its id.
        noted: Takes a Ctrl-C that comes where nothing waits.
        as_json: Whether the task is printed in the end, and not what it writes.
    """
    following = Following(client, ref, says_state=False)
    task: Task | None = None
    cancelled_by = ""
    while task is None:
        try:
            if cancelled_by:
                _cancel_as_said(client, ref, cancelled_by)
            with interruptible(noted):
                task = (
                    _wait(client, ref) if as_json else following.to_the_end(follow=True)
                )
        except KeyboardInterrupt as interrupt:
            if cancelled_by:
                note(f"not waiting any more; see it with: octaskly logs -f {ref}")
                return EXIT_CANCELLED
            cancelled_by = cause(interrupt)
        except OSError:  # Nobody gets what it writes: here it would end, too.
            with interrupt_noted():
                cancel_ended(client, ref)
            raise
    if as_json:
        print_json(client.ask(calls.task(task.id, is_exact=False)).body)
    return exit_code(task, is_cancelled=bool(cancelled_by))


@contextlib.contextmanager
def left_told(command: str) -> Iterator[None]:
    """Say how to see what goes on in the mesh, where an error ends the waiting."""
    try:
        yield
    except OctasklyError:
        note(f"not waiting any more; see it with: octaskly {command}")
        raise


def _wait(client: Session, ref: str) -> Task:
    from octaskly.client.flows import tasks  # noqa: PLC0415 - only --json waits so

    return client.run(tasks.wait(client.asker, ref, until=client.asker.until(None)))


def _cancel_as_said(client: Session, ref: str, by: str) -> None:
    """Cancel a task; a Ctrl-C that comes meanwhile ends only the waiting for it."""
    with interrupt_noted() as again:
        note(f"cancelling {ref}; {by} again to stop waiting for it")
        cancel_ended(client, ref)
    if again:
        raise KeyboardInterrupt


def cancel_ended(client: Session, ref: str) -> None:
    """Cancel a task that may have ended by itself."""
    with contextlib.suppress(Conflict, NotFound):  # It ended in the meantime.
        client.ask(calls.cancel(ref, force=True))


def exit_code(task: Task, *, is_cancelled: bool) -> int:
    """Return the exit code that a task gives to a command; say what went wrong."""
    if task.array and task.status != "cancelled":
        failed, total = task.array.failed, task.array.total
        if failed:
            note(f"{task.id}: {failed} of {total} failed; octaskly show {task.id}")
        return EXIT_FAILED if failed else 0
    match task.reason:
        case "timeout":
            limit = f" {task.timeout} s" if task.timeout else ""
            note(f"{task.id} was ended at its time limit{limit}")
            return EXIT_TIMEOUT
        case "limit":
            _explain(task)
            return task.exit_code or EXIT_OCTASKLY_FAILED
        case "lost" | "inputs" | "poison":
            _explain(task)
            return EXIT_OCTASKLY_FAILED
        case _:
            return _own_exit_code(task, is_cancelled=is_cancelled)


def _own_exit_code(task: Task, *, is_cancelled: bool) -> int:
    if task.status == "cancelled":
        note(f"{task.id} was cancelled")
        return EXIT_CANCELLED if is_cancelled else EXIT_OCTASKLY_FAILED
    if task.exit_code is None:
        _explain(task)
        return EXIT_OCTASKLY_FAILED
    if task.detail:
        note(task.detail)
    if sys.stderr.isatty():  # For people; elsewhere it is as if the command ran here.
        _say_end(task)
    return task.exit_code


def _say_end(task: Task) -> None:
    """Say where a task ran, and for how long."""
    code = task.exit_code
    how = f"✗ {task.id} exit {code}" if code else f"✓ {task.id} done"
    where = f" on {task.worker_id}" if task.worker_id else ""
    note(f"{how}{where} in {duration(task.duration_ms)}")


def _explain(task: Task) -> None:
    what = {
        "inputs": "no worker has its inputs, or room",
        "lost": "its worker was lost",
        "limit": "it went over a limit",
        "poison": "it took down every worker that ran it",
    }.get(task.reason or "", "Octaskly could not run it")
    print_error(
        f"{task.id} failed: {what}",
        cause=task.detail,
        hints=[f"octaskly show {task.id}"],
    )
