"""`octaskly retry`: ended tasks once more, as new tasks."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import click

from octaskly.cli import completion
from octaskly.cli.context import CliContext
from octaskly.cli.options import (
    JSON_OPTION,
    YES_OPTION,
    Duration,
    UsageProblem,
    require_yes,
)
from octaskly.cli.output.render import (
    age,
    count_of,
    for_each_task,
    note,
    print_json,
    seconds_since,
)
from octaskly.cli.output.terminal import cut, on_one_line, print_line
from octaskly.cli.sent_files import SentFiles, SentPaths
from octaskly.cli.task_refs import resolve_ref
from octaskly.client import Session
from octaskly.client.errors import Forbidden
from octaskly.client.flows import queries, rest_calls
from octaskly.client.flows.queries import TaskFilter
from octaskly.errors import MeshError
from octaskly.rest.client_types import Task
from octaskly.rest.tasks import FoundRetry

SHOWN_TASKS = 5  #: the latest of those that would run again
SHOWN_COMMAND_COLUMNS = 40  #: of a command in the list


@click.command(epilog="Example: octaskly retry --failed --since 1h")
@click.argument(
    "refs", nargs=-1, metavar="[ID...]", shell_complete=completion.complete_tasks
)
@click.option("--failed", is_flag=True, help="All failed tasks not yet retried.")
@click.option(
    "--since",
    "since_s",
    type=Duration(),
    metavar="T",
    help="With --failed: only those that ended so recently: 90m, 24h, 7d.",
)
@click.option("--mine", is_flag=True, help="With --failed: only those you submitted.")
@click.option(
    "--array",
    metavar="ID",
    shell_complete=completion.complete_arrays,
    help="With --failed: the members of this array that did not succeed.",
)
@YES_OPTION
@JSON_OPTION
@click.pass_obj
def retry(
    context: CliContext,
    refs: Sequence[str],
    failed: bool,  # noqa: FBT001
    since_s: int | None,
    mine: bool,  # noqa: FBT001
    array: str | None,
    yes: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> int:
    """Run ended tasks again, as new tasks, and print the new ids.

    With --failed it shows how many there are, and asks.

    Retrying a task twice returns the same new task; to run it again, retry that one.
    Files that `run` or `map` have lent are sent again, if this machine still has them.
    """
    if failed == bool(refs):
        raise click.UsageError("give either ids, or --failed")
    if not failed and (since_s or mine or array):
        raise UsageProblem(
            "--since, --mine and --array need --failed",
            cause="without it, only the tasks that are named are retried",
            hint="octaskly retry --failed --since 1h",
        )
    if array and (since_s or mine):
        raise UsageProblem(
            "--array takes neither --since nor --mine",
            cause="the members of an array that did not succeed are retried together",
            hint=f"octaskly retry --failed --array {array}",
        )
    with context.connect() as client:
        if failed:
            if array:
                tasks, flags = _array_to_retry(client, array), f"--array {array}"
            else:
                tasks = _failed_to_retry(client, since_s, is_mine=mine)
                flags = f"--since {since_s}s " if since_s else ""
                flags += "--mine" if mine else ""
            if not tasks:
                note("there is nothing to retry")
                return 0
            _confirm(tasks, f"--failed {flags}".rstrip(), is_given=yes)
            refs = [task.id for task in tasks]
        return for_each_task(
            refs,
            lambda ref: _retry_one(client, ref, is_chosen=failed, as_json=as_json),
        )


def _failed_to_retry(
    client: Session, since_s: int | None, *, is_mine: bool
) -> list[Task]:
    """Return the failed tasks that were not retried yet, oldest first."""
    wanted: TaskFilter = {"status": "failed"}
    if is_mine:
        wanted["mine"] = True
    failed = list(client.iterate(queries.tasks(client.requests, wanted)))
    if since_s is not None:
        now = dt.datetime.now(dt.UTC)
        failed = [task for task in failed if _ended_within(task, since_s, now)]
    return [task for task in failed if not _is_retried(client, task)]


def _array_to_retry(client: Session, ref: str) -> list[Task]:
    """Return the array, or nothing if all its members are completed or retried.

    Raises:
        MeshError: it is a single task, or it has not ended.
    """
    task = client.send_and_decode(rest_calls.task(resolve_ref(client, ref)), Task)
    if task.array is None:
        raise MeshError(f"{task.id} is not an array", hint=f"octaskly retry {task.id}")
    if not task.is_final:
        raise MeshError(
            f"{task.id} has not ended", hint=f"octaskly wait {task.id}    waits for it"
        )
    is_over = task.array.completed == task.array.total or _is_retried(client, task)
    return [] if is_over else [task]


def _is_retried(client: Session, task: Task) -> bool:
    found = client.send_and_decode(rest_calls.found_retry(task.id), FoundRetry)
    return found.retried_as is not None


def _ended_within(task: Task, seconds: int, now: dt.datetime) -> bool:
    ago_s = seconds_since(task.completed_at, now) if task.completed_at else None
    return ago_s is not None and ago_s <= seconds


def _confirm(tasks: Sequence[Task], flags: str, *, is_given: bool) -> None:
    """Show tasks that `flags` have chosen, and ask whether to run them again."""
    if not is_given:
        now = dt.datetime.now(dt.UTC)
        for task in tasks[-SHOWN_TASKS:]:
            command = cut(on_one_line(task.command or ""), SHOWN_COMMAND_COLUMNS)
            ended = f"{_end(task)}, {age(task.completed_at, now)}"
            note(f"  {task.short_id or task.id}  {command}  ({ended})")
        if (left := len(tasks) - SHOWN_TASKS) > 0:
            note(f"  and {left} that were submitted earlier")
    require_yes(_consequence(tasks), is_given=is_given, arguments=flags)


def _consequence(tasks: Sequence[Task]) -> str:
    singles = sum(task.array is None for task in tasks)
    members = sum(t.array.total - t.array.completed for t in tasks if t.array)
    parts = [count_of(singles, "failed task")] if singles else []
    if members:
        arrays = count_of(len(tasks) - singles, "array")
        parts.append(f"{count_of(members, 'member')} of {arrays}")
    verb = "runs" if singles + members == 1 else "run"
    return f"{' and '.join(parts)} {verb} again"


def _end(task: Task) -> str:
    if task.array is not None:
        return f"{task.array.failed} of {task.array.total} failed"
    if task.reason in (None, "exit"):
        return f"exit {task.exit_code}"
    return task.reason or ""


def _retry_one(client: Session, ref: str, *, is_chosen: bool, as_json: bool) -> None:
    old = ref if is_chosen else resolve_ref(client, ref)
    task = client.send_and_decode(rest_calls.task(old), Task)
    if task.tree is not None and task.tree.lent:
        # Its node has deleted them since, and this command does not stay to lend them.
        with SentFiles(client, SentPaths()) as files:
            files.send_again(task, may_lend=False)
    try:
        reply = client.send(rest_calls.retry(old))
    except Forbidden:
        if is_chosen:
            note(f"{old} belongs to another user, so it was skipped")
            return
        raise
    new = client.decode(reply, Task)
    if new.status != "queued":
        note(f"{old} was retried as {new.id}, which is {new.status}")
    if as_json:
        print_json(reply.body)
    else:
        print_line(new.id)
