"""`octaskly ls`, `show`, `logs`, `cancel`, `explain` and `forget`."""

from __future__ import annotations

import datetime as dt
import re
import sys
from collections.abc import Sequence

import click
import msgspec

from octaskly.cli import completion
from octaskly.cli.context import CliContext
from octaskly.cli.options import (
    JSON_OPTION,
    YES_OPTION,
    Duration,
    UsageProblem,
    exclusive_flags,
    require_yes,
)
from octaskly.cli.output import task_list
from octaskly.cli.output.render import (
    EXIT_CANCELLED,
    clock_time,
    count_of,
    duration,
    for_each_task,
    note,
    print_json,
    print_table,
)
from octaskly.cli.output.task_list import ENDED_MAX, MATCHING_MAX
from octaskly.cli.output.task_view import (
    STATES,
    command_of,
    explanation_lines,
    fetch_earlier_attempts,
    fetch_missing_output,
    print_array,
    print_task,
    text_streams,
)
from octaskly.cli.output.terminal import (
    confirm,
    cut,
    is_terminal,
    on_one_line,
    print_line,
)
from octaskly.cli.task_refs import resolve_ref
from octaskly.client import Refused, Session
from octaskly.client.errors import Conflict, NotFound
from octaskly.client.flows import rest_calls
from octaskly.client.flows.rest_calls import Response
from octaskly.rest.base import SINCE_S_MAX
from octaskly.rest.client_types import Task
from octaskly.rest.tasks import Explanation, Forgotten, Reprioritized

LIMIT_MAX = 1000
SEARCH_FILTERS = ("name", "label", "text", "ended_within_s")
SHOWN_COMMAND_COLUMNS = 40  #: of a command in a question


@click.command(epilog="Example: octaskly ls --status failed --since 1h")
@click.option("--status", type=click.Choice(STATES), help="Only tasks in this state.")
@click.option(
    "--node",
    "worker_id",
    metavar="NODE",
    shell_complete=completion.complete_nodes,
    help="Only tasks that run or ran on this node.",
)
@click.option(
    "--array",
    metavar="ID",
    shell_complete=completion.complete_arrays,
    help="List the members of this array that have started.",
)
@click.option("--name", metavar="NAME", help="Only tasks with this name.")
@click.option(
    "--label",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only tasks with this label; NAME alone: with any value. Repeatable.",
)
@click.option(
    "--text", metavar="TEXT", help="Only tasks with this text in the command or name."
)
@click.option(
    "--since",
    "ended_within_s",
    type=Duration(most_s=SINCE_S_MAX),
    metavar="T",
    help="Only tasks that ended so recently, such as 90m, 24h or 7d.",
)
@click.option("--all", "is_all", is_flag=True, help="All tasks, oldest first.")
@exclusive_flags("order", oldest="Oldest first.", newest="Newest first.")
@click.option(
    *("-n", "--limit"),
    type=click.IntRange(1, LIMIT_MAX),
    metavar="N",
    help=f"Maximum number of tasks (default {MATCHING_MAX}; of ended ones "
    f"{ENDED_MAX}).",
)
@click.option(
    "--offset", type=click.IntRange(0), default=0, metavar="N", help="Skip N tasks."
)
@click.option(
    "--after",
    metavar="ID",
    shell_complete=completion.complete_tasks,
    help="Continue after this task.",
)
@JSON_OPTION
@click.pass_obj
def ls(
    context: CliContext,
    /,
    as_json: bool,  # noqa: FBT001
    is_all: bool,  # noqa: FBT001
    order: str | None,
    limit: int | None,
    offset: int,
    **filters: object,
) -> None:
    """List running, queued and recently ended tasks.

    The latest task is on the last line. An array is one line. With --status, --since,
    --name, --label or --text, only the latest tasks that match are listed. An ID is
    short: `octaskly show 41`.
    """
    query = {**filters, "offset": offset}
    is_search = any(filters[name] for name in SEARCH_FILTERS)
    has_place = order or offset or filters["after"] or filters["status"]
    if is_all and (order or offset or limit is not None):
        raise click.UsageError("--all excludes --oldest, --newest, --limit, --offset")
    with context.connect() as client:
        for name in ("array", "after"):
            if query[name] is not None:
                query[name] = resolve_ref(client, str(query[name]))
        if is_all:
            found = task_list.fetch_all(client, query)
        elif is_search or has_place:
            found = task_list.fetch_matching(
                client, query, limit=limit or MATCHING_MAX, order=order
            )
        else:
            found = task_list.fetch_overview(client, query, limit)
    if as_json:
        page = {"total": found.total, "returned": len(found.rows), "offset": offset}
        print_json(msgspec.json.encode({"tasks": found.rows, **page}))
        return
    task_list.print_list(found)
    for text in found.notes:
        note(text)


@click.command(epilog="Example: octaskly show last")
@click.argument("ref", metavar="ID", shell_complete=completion.complete_tasks)
@JSON_OPTION
@click.pass_obj
def show(context: CliContext, ref: str, as_json: bool) -> None:  # noqa: FBT001
    """Show a task in full: ID is its id, its number, or `last`."""
    with context.connect(waits_for_logs=False) as client:
        full = resolve_ref(client, ref)
        if as_json:
            print_json(client.send(rest_calls.task(full, is_exact=False)).body)
            return
        task = client.send_and_decode(rest_calls.task(full), Task)
        if task.array is not None:
            print_array(client, task)
            return
        attempts = fetch_earlier_attempts(client, task)
        missing = fetch_missing_output(client, task)
        why_queued = None
        if task.status == "queued":
            found = client.send_and_decode(rest_calls.explain(full), Explanation)
            # It may have started meanwhile.
            why_queued = found.summary if found.status == "queued" else None
    print_task(task, attempts, missing, why_queued)


@click.command(epilog="Example: octaskly logs -f last")
@click.argument("ref", metavar="ID", shell_complete=completion.complete_tasks)
@click.option(
    "-f", "--follow", is_flag=True, help="Keep printing until the task has ended."
)
@exclusive_flags("stream", stdout="Only its stdout.", stderr="Only its stderr.")
@click.option(
    "--attempt",
    type=click.IntRange(1),
    metavar="N",
    help="Only this attempt (default: the one that counts).",
)
@click.option(
    "--failed", "only_failed", is_flag=True, help="Of an array: only failed members."
)
@JSON_OPTION
@click.pass_obj
def logs(
    context: CliContext,
    ref: str,
    follow: bool,  # noqa: FBT001
    stream: str | None,
    attempt: int | None,
    only_failed: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Print a task's stdout on stdout, and its stderr on stderr.

    For an array, print what its members wrote, one after the other. With -f, keep
    printing while it runs; Ctrl-C does not stop the task.

    For a Python call, print what it printed, on stderr; --stdout is its pickled value.
    """
    # Imported here, because `ls` and `show` do not need it.
    from octaskly.cli.output.array_results import print_member_logs  # noqa: PLC0415
    from octaskly.cli.output.follow import OutputPrinter  # noqa: PLC0415
    from octaskly.cli.wait_hint import explain_if_waiting  # noqa: PLC0415

    with context.connect(waits_for_logs=False) as client:
        full = resolve_ref(client, ref)
        if as_json:
            print_json(client.send(rest_calls.task(full, is_exact=False)).body)
            return
        task = client.send_and_decode(rest_calls.task(full), Task)
        _require_log_options_fit(task, attempt, only_failed=only_failed)
        if stream == "stdout" and task.call and is_terminal():
            raise _value_is_no_text(task, ref)
        if follow and task.array is not None and not (only_failed or task.is_final):
            _print_members(client, task.id, task.array.total, stream)
            return
        stream = stream or text_streams(task)
        following = OutputPrinter(
            client, full, stream=stream, attempt=attempt, prints_state=follow
        )
        with explain_if_waiting(context, [full] if follow else []):
            task = following.print_all(follow=follow)
        if not (task.is_final or attempt):
            # The last event has only the state of the task.
            task = client.send_and_decode(rest_calls.task(full), Task)
        if task.array is not None:
            print_member_logs(client, task.id, stream=stream, only_failed=only_failed)
            return
    if not attempt:
        _note_what_is_missing(task, stream)


def _require_log_options_fit(
    task: Task, attempt: int | None, *, only_failed: bool
) -> None:
    """Raise UsageError if an option does not fit a task, or an array."""
    if only_failed and task.array is None:
        raise click.UsageError(f"--failed is for an array; {task.id} is a task")
    if attempt and task.array is not None:
        raise click.UsageError(
            f"--attempt is for a task; name a member of the array {task.id}"
        )


def _note_what_is_missing(task: Task, stream: str) -> None:
    """Say where the rest of a task's output is, or the value of a Python call."""
    if not task.is_final:
        more = f"octaskly logs -f {task.id} shows what follows"
        note(f"{task.id} is {task.status}; {more}")
    elif task.reason in ("lost", "poison"):
        note(f"{task.id} was lost with its worker: it may have written more")
    elif task.call and task.status == "completed" and stream != "stdout":
        note("its value: result() of the future, in the program that made the call")


def _value_is_no_text(task: Task, ref: str) -> UsageProblem:
    return UsageProblem(
        f"the stdout of {task.call} is its pickled value, not text",
        cause="everything that a Python call prints is on its stderr",
        hint=f"octaskly logs {ref}    prints that",
    )


def _print_members(client: Session, array: str, total: int, stream: str | None) -> None:
    """Print what the members of a running array write, as they end."""
    from octaskly.cli.output.array_results import ResultPrinter  # noqa: PLC0415

    results = ResultPrinter(
        client, array, items=(), total=total, is_by_number=False, stream=stream
    )
    results.print_all()


@click.command(epilog="Example: octaskly cancel --force 12 13")
@click.argument(
    "refs",
    nargs=-1,
    required=True,
    metavar="ID...",
    shell_complete=completion.complete_tasks,
)
@click.option(
    "--force",
    "--yes",
    "force",
    is_flag=True,
    help="Also end running tasks, without asking; required without a terminal.",
)
@JSON_OPTION
@click.pass_obj
def cancel(
    context: CliContext,
    refs: Sequence[str],
    force: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> int:
    """Cancel tasks, and ask before ending one that is running."""
    kept: list[str] = []
    with context.connect(waits_for_logs=False) as client:

        def cancel_one(ref: str) -> None:
            full = resolve_ref(client, ref)
            reply = _cancel(client, full, is_asked=not force)
            if reply is None:
                note(f"{full} was not cancelled")
                kept.append(full)
            elif as_json:
                print_json(reply.body)
            else:
                running = 0 if force else _running_members(client, full)
                note(_describe_cancelled(full, running))

        code = for_each_task(refs, cancel_one)
    return code or (EXIT_CANCELLED if kept else 0)


def _cancel(client: Session, ref: str, *, is_asked: bool) -> Response | None:
    """Cancel a task, also a running one if the user wants that; None if not.

    Args:
        client: Session with a node.
        ref: The task.
        is_asked: Ask before a running task is ended.

    Raises:
        Conflict: it is running, and there is no terminal to ask at.
        Refused: it has ended, or the node refuses.
    """
    try:
        return client.send(rest_calls.cancel(ref, force=not is_asked))
    except Conflict:
        if not (is_asked and sys.stdin.isatty()):
            raise
    except NotFound as error:
        if not (error.hint or "").startswith("it has ended"):
            raise
        raise Refused(
            "Cannot cancel ended task",
            status=error.status,
            hint=error.hint,
            task=error.task,
        ) from None
    task = client.send_and_decode(rest_calls.task(ref), Task)
    if not confirm(on_one_line(f"{ref} {_describe_running(task)}. Cancel it?")):
        return None
    return _cancel(client, ref, is_asked=False)


class _PriorityCommand(click.Command):
    """A command whose last argument may be a negative number."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep negative numbers from being taken for options."""
        numbers = [word for word in args if re.fullmatch(r"-\d+", word)]
        if numbers and "--" not in args:
            rest = [word for word in args if word not in numbers]
            args = [*rest, "--", *numbers]
        words = [word for word in args if not word.startswith("-")]
        if len(words) == 1 and not (numbers or ctx.resilient_parsing):
            raise click.UsageError("missing argument 'N', the new priority", ctx)
        return super().parse_args(ctx, args)


@click.command(cls=_PriorityCommand, epilog="Example: octaskly reprioritize 12 20")
@click.argument(
    "refs",
    nargs=-1,
    required=True,
    metavar="ID...",
    shell_complete=completion.complete_tasks,
)
@click.argument("priority", type=click.IntRange(-50, 50), metavar="N")
@JSON_OPTION
@click.pass_obj
def reprioritize(
    context: CliContext,
    refs: Sequence[str],
    priority: int,
    as_json: bool,  # noqa: FBT001
) -> int:
    """Change the priority of waiting tasks and arrays.

    N is from -50 to 50; a higher one runs first. What runs already goes on, also the
    running members of an array.
    """
    with context.connect(waits_for_logs=False) as client:

        def change_one(ref: str) -> None:
            call = rest_calls.reprioritize(resolve_ref(client, ref), priority)
            reply = client.send(call)
            if as_json:
                print_json(reply.body)
            else:
                done = rest_calls.decode_body(reply, Reprioritized, "the node")
                note(f"{done.id} has priority {done.priority} now")

        return for_each_task(refs, change_one)


def _running_members(client: Session, ref: str) -> int:
    """Return the number of members that go on although their array was cancelled."""
    task = client.send_and_decode(rest_calls.task(ref), Task)
    return 0 if task.array is None or task.is_final else task.array.running


def _describe_cancelled(ref: str, running: int) -> str:
    if not running:
        return f"{ref} is cancelled"
    end = f"to end them: octaskly cancel --force {ref}"
    return f"{ref} starts no more members; {running} still running; {end}"


def _describe_running(task: Task) -> str:
    command = cut(command_of(task), SHOWN_COMMAND_COLUMNS)
    since = clock_time(task.started_at, dt.datetime.now(dt.UTC))
    time = f"since {since}, for {duration(task.elapsed_ms)}: {command}"
    if task.array is not None:
        return f"has {count_of(task.array.running, 'running member')} {time}"
    return f"is running on {task.worker_id} {time}"


@click.command(epilog="Example: octaskly explain last")
@click.argument("ref", metavar="ID", shell_complete=completion.complete_tasks)
@JSON_OPTION
@click.pass_obj
def explain(context: CliContext, ref: str, as_json: bool) -> None:  # noqa: FBT001
    """Explain, node by node, why a task is not running."""
    with context.connect(waits_for_logs=False) as client:
        full = resolve_ref(client, ref)
        reply = client.send(rest_calls.explain(full))
    if as_json:
        print_json(reply.body)
        return
    found = client.decode(reply, Explanation)
    for line in explanation_lines(found):
        print_line(line)
    if found.placement:
        print_line(f"placed there: {found.placement}")
    if found.nodes:
        rows = [
            [node.name, node.state, "; ".join(why.message for why in node.reasons)]
            for node in found.nodes
        ]
        print_table(["NODE", "STATE", "WHY NOT THERE"], rows, state_column=1)


@click.command(epilog="Example: octaskly forget --older-than 1d --yes")
@click.option(
    "--older-than",
    "older_than_s",
    type=Duration(),
    metavar="T",
    help="Tasks that ended at least this long ago, such as 7d or 12h.",
)
@click.option("--all-ended", is_flag=True, help="All tasks that have ended.")
@YES_OPTION
@JSON_OPTION
@click.pass_obj
def forget(
    context: CliContext,
    older_than_s: int | None,
    all_ended: bool,  # noqa: FBT001
    yes: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Delete ended tasks and their output now, on all nodes.

    Each node of the mesh deletes their output files within minutes. Queued and running
    tasks are kept. Tasks are deleted in the order of submission, so one that ended
    later also keeps all tasks submitted after it.
    """
    if all_ended == (older_than_s is not None):
        raise click.UsageError("either --older-than T, or --all-ended")
    when = f" over {duration(older_than_s * 1000)} ago" if older_than_s else ""
    require_yes(
        f"all tasks that ended{when} are deleted on all nodes, with their output",
        is_given=yes,
        arguments=f"--older-than {older_than_s}s" if older_than_s else "--all-ended",
    )
    with context.connect() as client:
        reply = client.send(
            rest_calls.post_once("/api/v1/forget", {"older_than_s": older_than_s or 0})
        )
    if as_json:
        print_json(reply.body)
        return
    forgotten = client.decode(reply, Forgotten).forgotten
    if forgotten is None:
        note("still in progress, because there are many: see `octaskly stats`")
    else:
        note(f"{forgotten} {'task' if forgotten == 1 else 'tasks'} forgotten")
