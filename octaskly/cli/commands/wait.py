"""`octaskly wait` and `octaskly events`: live events of the mesh."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from octaskly.cli import completion
from octaskly.cli.commands.run import exit_code_of_task, exits_as_task
from octaskly.cli.context import CliContext
from octaskly.cli.options import Duration
from octaskly.cli.output.render import (
    EXIT_NOT_FOUND,
    EXIT_TIMEOUT,
    JSON_VERSION,
    is_quiet,
    note,
    print_json,
)
from octaskly.cli.output.task_view import count_ended
from octaskly.cli.output.terminal import ProgressLine, print_line
from octaskly.cli.task_refs import resolve_id, resolve_ref
from octaskly.cli.wait_hint import explain_if_waiting
from octaskly.client.errors import TimedOut
from octaskly.client.flows import rest_calls, streams
from octaskly.rest.client_types import FINAL, Task

if TYPE_CHECKING:
    from octaskly.client import Session
    from octaskly.client.flows.sse import Event
    from octaskly.rest.tasks import Members


@click.command(epilog="Example: octaskly wait --any --timeout 10m 12 13")
@exits_as_task(EXIT_NOT_FOUND)
@click.argument(
    "refs",
    nargs=-1,
    required=True,
    metavar="ID...",
    shell_complete=completion.complete_tasks,
)
@click.option(
    "--any", "is_any", is_flag=True, help="Return once one of them has ended."
)
@click.option(
    "--timeout",
    type=Duration(),
    metavar="S",
    help="Wait at most this long: 90, 15m, 2h.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the ended tasks.")
@click.pass_obj
def wait(
    context: CliContext,
    refs: Sequence[str],
    is_any: bool,  # noqa: FBT001
    timeout: int | None,
    as_json: bool,  # noqa: FBT001
) -> int:
    """Wait until tasks have ended; Ctrl-C does not stop them.

    Of an array, the members are counted.

    The exit code is the first one that is not 0, as from `octaskly run`; 124 after the
    timeout, 125 if Octaskly failed, 3 if there is no such task.
    """
    with context.connect() as client:
        full = [resolve_id(client, ref) for ref in refs]
        waiting = _TaskWaiter(client, full)
        try:
            with explain_if_waiting(context, full):
                waiting.wait(limit_s=timeout, is_any=is_any)
        except TimedOut:
            note(f"{waiting.progress} within {timeout} s")
            return EXIT_TIMEOUT
        finally:
            waiting.end_line()
        if as_json:
            for task in waiting.ended:
                print_json(client.send(rest_calls.task(task.id, is_exact=False)).body)
    codes = [exit_code_of_task(task, is_cancelled=False) for task in waiting.ended]
    return next((code for code in codes if code), 0)


@click.command(epilog="Example: octaskly events --types task --json")
@click.option(
    "--types",
    metavar="TYPES",
    default="task,node",
    show_default=True,
    help="Kinds of events: task, node.",
)
@click.option(
    "--task",
    "ref",
    metavar="ID",
    shell_complete=completion.complete_tasks,
    help="Only events of this task.",
)
@click.option(
    "--after", metavar="EVENT", default="", help="Continue after this event id."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.pass_obj
def events(
    context: CliContext,
    types: str,
    ref: str | None,
    after: str,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Print events of tasks and nodes, until Ctrl-C."""
    with context.connect() as client:
        flow = streams.events(
            client.requests,
            types=types.split(","),
            task=None if ref is None else resolve_ref(client, ref),
            after=after,
            deadline=client.requests.deadline_after(None),
        )
        for event in client.iterate(flow):
            if as_json:
                line = {"event": event.kind, "id": event.id or None, "data": event.data}
                print_line(json.dumps({"v": JSON_VERSION, **line}))
            else:
                print_line(_line(event))


class _TaskWaiter:
    """The tasks to wait for, by id; of an array, its members are counted."""

    def __init__(self, client: Session, ids: Sequence[str]) -> None:
        self._client = client
        self._tasks: dict[str, Task | None] = dict.fromkeys(ids)
        self._arrays: dict[str, Members] = {}
        self._ended_members: Counter[str] = Counter()  #: since `_arrays` was read
        self._progress_line = ProgressLine(is_quiet=is_quiet())

    @property
    def ended(self) -> list[Task]:
        """The ended tasks, in the order of the arguments."""
        return [task for task in self._tasks.values() if task is not None]

    @property
    def progress(self) -> str:
        """The progress as text."""
        ended = total = 0
        for ref, task in self._tasks.items():
            counts = self._arrays.get(ref)
            size = 1 if counts is None else counts.total
            total += size
            if task is not None:
                ended += size
            elif counts is not None:
                known = count_ended(counts) + self._ended_members[ref]
                ended += min(known, size)
        one = len(self._tasks) == 1
        noun = "members " if self._arrays and one else ""
        return f"{ended} of {total} {noun}have ended"

    def wait(self, *, limit_s: int | None, is_any: bool) -> None:
        """Wait until all tasks have ended, or one.

        Raises:
            TimedOut: they do not end within `limit_s`.
        """
        asker = self._client.requests
        flow = streams.as_ended(
            asker,
            self._tasks,
            deadline=asker.deadline_after(limit_s),
            on_waiting=self._note_counts,
            on_change=self._count_member,
        )
        try:
            with closing(self._client.iterate(flow)) as ended:
                for task in ended:
                    self._tasks[task.id] = task
                    if task.array is not None:
                        self._arrays[task.id] = task.array
                    self._progress_line.show(self.progress)
                    if is_any:
                        return
        except TimedOut:
            for ref in [ref for ref in self._arrays if self._tasks[ref] is None]:
                # Events may have come twice, or not yet.
                call = rest_calls.task(ref)
                self._note_counts(self._client.send_and_decode(call, Task))
            raise

    def _note_counts(self, task: Task) -> None:
        if task.array is not None:
            self._arrays[task.id] = task.array
            del self._ended_members[task.id]
            self._progress_line.show(self.progress)

    def _count_member(self, change: Mapping[str, Any]) -> None:
        array, _, number = change["id"].rpartition(".")
        if array in self._arrays and number and change["status"] in FINAL:
            self._ended_members[array] += 1
            self._progress_line.show(self.progress)

    def end_line(self) -> None:
        """End the progress line."""
        self._progress_line.end()


def _line(event: Event) -> str:
    """Return an event as text."""
    data: dict[str, Any] = event.data
    if event.kind == "task":
        parts = [data["at"], data["id"], data["status"]]
        if data["worker_id"]:
            parts.append(f"on {data['worker_id']}")
        if data["exit_code"] is not None:
            parts.append(f"exit code {data['exit_code']}")
        if data["reason"] not in (None, "exit"):
            parts.append(f"({data['reason']})")
    elif event.kind == "node":
        parts = ["node", data["name"], data["state"], data["role"]]
    else:
        parts = [event.kind, data.get("message", "")]
    return "  ".join(str(part) for part in parts)
