"""`octaskly ls`, `show`, `logs`, `cancel`, `explain` and `forget`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing

import click

from octaskly.cli import completion
from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION, YES_OPTION, Duration, require_yes
from octaskly.cli.output.render import (
    data_size,
    duration,
    for_each_task,
    format_optional_duration,
    note,
    print_fields,
    print_json,
    print_table,
    size,
)
from octaskly.cli.output.task_view import (
    STATES,
    explanation_lines,
    format_pairs,
    format_progress,
    format_time_limit,
    option_fields,
    print_array,
)
from octaskly.cli.output.terminal import print_line
from octaskly.cli.task_refs import resolve_ref
from octaskly.client import Refused, Session
from octaskly.client.errors import NotFound
from octaskly.client.flows import rest_calls
from octaskly.client.flows.rest_calls import TASKS, Call
from octaskly.rest.client_types import Task, TaskPage
from octaskly.rest.tasks import Explanation, Forgotten

LIMIT_MAX = 1000


@click.command(epilog="Example: octaskly ls --status failed")
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
@click.option("--newest", is_flag=True, help="Newest first.")
@click.option(
    "--limit",
    type=click.IntRange(1, LIMIT_MAX),
    default=100,
    show_default=True,
    metavar="N",
    help="At most N.",
)
@click.option(
    "--offset", type=click.IntRange(0), default=0, metavar="N", help="Skip the first N."
)
@click.option(
    "--after",
    metavar="ID",
    shell_complete=completion.complete_tasks,
    help="Continue a search after this task.",
)
@JSON_OPTION
@click.pass_obj
def ls(
    context: CliContext,
    /,
    as_json: bool,  # noqa: FBT001
    newest: bool,  # noqa: FBT001
    offset: int,
    **filters: object,
) -> None:
    """List tasks, oldest first; an array is one line.

    With --name, --label or --text it is a search, however many tasks there are.
    """
    order = "true" if newest else None
    query = {**filters, "newest": order, "offset": offset}
    with context.connect() as client:
        for name in ("array", "after"):
            if query[name] is not None:
                query[name] = resolve_ref(client, str(query[name]))
        if as_json:
            print_json(client.send(Call("GET", TASKS, query)).body)
            return
        tasks, page = _fetch_tasks(client, query)
    heads = ["ID", "STATE", "NODE", "EXIT", "TIME", "COMMAND"]
    rows = [_row(task) for task in tasks]
    if any(task.name for task in tasks):
        heads.insert(-1, "NAME")
        for row, task in zip(rows, tasks, strict=True):
            row.insert(-1, task.name or "-")
    if any(task.timeout for task in tasks):
        heads.insert(5, "LIMIT")
        for row, task in zip(rows, tasks, strict=True):
            row.insert(5, format_time_limit(task, without="-"))
    print_table(heads, rows, state_column=1)
    shown = offset + len(tasks)
    if page.next is not None:
        note(f"{len(tasks)} shown; more: --after {page.next}")
    elif page.total is not None and shown < page.total:
        note(f"{len(tasks)} of {page.total} shown; more: --offset {shown}")


def _fetch_tasks(
    client: Session, query: Mapping[str, object]
) -> tuple[list[Task], TaskPage]:
    """Return the tasks of a page and the page; a search continues until it is full."""
    asked = dict(query)
    tasks: list[Task] = []
    while True:
        page = client.send_and_decode(Call("GET", TASKS, asked), TaskPage)
        tasks += page.tasks
        room = page.limit - len(page.tasks)
        if page.next is None or room <= 0:
            return tasks, page
        asked |= {"after": page.next, "limit": room}


def _row(task: Task) -> list[str]:
    exit_code = "-" if task.exit_code is None else str(task.exit_code)
    return [
        task.id,
        task.status,
        task.worker_id or "-" if task.array is None else format_progress(task.array),
        exit_code,
        duration(task.duration_ms),
        f"{task.command or ''}{'…' if task.command_truncated else ''}",
    ]


@click.command(epilog="Example: octaskly show last")
@click.argument("ref", metavar="ID", shell_complete=completion.complete_tasks)
@JSON_OPTION
@click.pass_obj
def show(context: CliContext, ref: str, as_json: bool) -> None:  # noqa: FBT001
    """Show all about a task: ID is its id, its number, or `last`."""
    with context.connect() as client:
        full = resolve_ref(client, ref)
        if as_json:
            print_json(client.send(rest_calls.task(full, is_exact=False)).body)
            return
        task = client.send_and_decode(rest_calls.task(full), Task)
        if task.array is not None:
            print_array(client, task)
            return
        missing = _missing_output(client, task)
    ending = None
    if task.reason not in (None, "exit"):
        signal = f" {task.signal}" if task.signal is not None else ""
        ending = f"{task.reason}{signal}"
    print_fields(
        [
            ("id", task.id),
            ("name", task.name),
            ("labels", format_pairs(task.labels)),
            ("state", task.status),
            ("command", task.command),
            ("node", task.worker_id),
            ("attempt", task.attempt),
            ("exit code", task.exit_code),
            ("ended by", ending),
            ("because", task.detail),
            *option_fields(task),
            ("created", task.created_at),
            ("started", task.started_at),
            ("ended", task.completed_at),
            ("waited", format_optional_duration(task.queue_ms)),
            ("took", format_optional_duration(task.duration_ms)),
            ("cpu time", format_optional_duration(_milliseconds(task.cpu_seconds))),
            ("memory", _memory(task.memory_peak_mb)),
            ("inputs", ", ".join(task.inputs) or None),
            ("outputs", _outputs(task)),
            ("stdout", _stream(task.stdout_bytes, missing["stdout"])),
            ("stderr", _stream(task.stderr_bytes, missing["stderr"])),
        ]
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _memory(megabytes: float | None) -> str | None:
    return None if megabytes is None else f"{size(round(megabytes * (1 << 20)))} peak"


def _outputs(task: Task) -> str | None:
    shown = []
    for output in task.outputs:
        if output.bytes is None:
            shown.append(f"{output.path} (missing)" if task.is_final else output.path)
        elif output.files is None:
            shown.append(f"{output.path} ({data_size(output.bytes)})")
        else:
            shown.append(
                f"{output.path} ({output.files} files, {data_size(output.bytes)})"
            )
    return ", ".join(shown) or None


def _missing_output(client: Session, task: Task) -> Counter[str]:
    """Return the number of bytes that are not kept, by stream.

    The task has the beginning of each stream; only its log tells what is kept of a
    longer one.
    """
    missing: Counter[str] = Counter()
    if task.stdout_truncated or task.stderr_truncated:
        # Imported here, because most tasks print less.
        from octaskly.client.flows import streams  # noqa: PLC0415

        requests = client.requests
        until = requests.deadline_after(None)
        flow = streams.logs(
            requests,
            task.id,
            follow=False,
            stream="both",
            attempt=None,
            after="",
            deadline=until,
        )
        with closing(client.iterate(flow)) as logs:
            for log in logs:
                if log.kind == "gap":
                    missing[log.details["stream"]] += log.details["bytes"]
    return missing


def _stream(count: int | None, missing: int) -> str | None:
    if not count:
        return None
    return data_size(count) + (
        f", cut: {data_size(missing)} missing" if missing else ""
    )


@click.command(epilog="Example: octaskly logs -f last")
@click.argument("ref", metavar="ID", shell_complete=completion.complete_tasks)
@click.option(
    "-f", "--follow", is_flag=True, help="Keep printing until the task has ended."
)
@click.option("--stdout", "stream", flag_value="stdout", help="Only its stdout.")
@click.option("--stderr", "stream", flag_value="stderr", help="Only its stderr.")
@click.option(
    "--attempt",
    type=click.IntRange(1),
    metavar="N",
    help="Only this attempt (default: the one that counts).",
)
@JSON_OPTION
@click.pass_obj
def logs(
    context: CliContext,
    ref: str,
    follow: bool,  # noqa: FBT001
    stream: str | None,
    attempt: int | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Print a task's stdout on stdout, and its stderr on stderr.

    With -f, keep printing while it runs; Ctrl-C leaves the task alone.
    """
    # Imported here, because `ls` and `show` do not need it.
    from octaskly.cli.output.follow import OutputPrinter  # noqa: PLC0415
    from octaskly.cli.wait_hint import explain_if_waiting  # noqa: PLC0415

    with context.connect() as client:
        full = resolve_ref(client, ref)
        if as_json:
            print_json(client.send(rest_calls.task(full, is_exact=False)).body)
            return
        following = OutputPrinter(
            client,
            full,
            stream=stream or "both",
            attempt=attempt,
            prints_state=follow,
        )
        with explain_if_waiting(context, [full] if follow else []):
            task = following.print_all(follow=follow)
        if not (task.is_final or attempt):
            # The last event has only the state of the task.
            task = client.send_and_decode(rest_calls.task(full), Task)
    if task.array is not None:
        note(f"{task.id} is an array; octaskly logs {task.id}.NUMBER shows a member's")
    elif not (task.is_final or attempt):
        more = f"octaskly logs -f {task.id} shows what follows"
        note(f"{task.id} is {task.status}; {more}")
    elif task.reason in ("lost", "poison") and not attempt:
        note(f"{task.id} was lost with its worker: it may have written more")


@click.command(epilog="Example: octaskly cancel --force 12 13")
@click.argument(
    "refs",
    nargs=-1,
    required=True,
    metavar="ID...",
    shell_complete=completion.complete_tasks,
)
@click.option("--force", is_flag=True, help="Also end running tasks.")
@JSON_OPTION
@click.pass_obj
def cancel(
    context: CliContext,
    refs: Sequence[str],
    force: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> int:
    """Cancel queued tasks; with --force, running ones too."""
    with context.connect() as client:

        def cancel_one(ref: str) -> None:
            full = resolve_ref(client, ref)
            try:
                reply = client.send(rest_calls.cancel(full, force=force))
            except NotFound as error:
                if not (error.hint or "").startswith("it has ended"):
                    raise
                raise Refused(
                    "Cannot cancel ended task", status=error.status, hint=error.hint
                ) from None
            if as_json:
                print_json(reply.body)
            else:
                note(f"{full} is cancelled")

        return for_each_task(refs, cancel_one)


@click.command(epilog="Example: octaskly explain last")
@click.argument("ref", metavar="ID", shell_complete=completion.complete_tasks)
@JSON_OPTION
@click.pass_obj
def explain(context: CliContext, ref: str, as_json: bool) -> None:  # noqa: FBT001
    """Explain, node by node, why a task is not running."""
    with context.connect() as client:
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
    tasks stay. Tasks are deleted in the order of submission, so one that ended later
    keeps all that were submitted after it.
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
