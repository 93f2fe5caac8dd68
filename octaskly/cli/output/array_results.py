"""Live printing of the results of an array."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final

from octaskly.cli.output.follow import OutputPrinter
from octaskly.cli.output.render import is_quiet, note, time_left
from octaskly.cli.output.task_view import (
    command_of,
    format_rate,
    item_text,
    text_streams,
)
from octaskly.cli.output.terminal import ProgressLine, write_output
from octaskly.client.flows import arrays, queries, rest_calls
from octaskly.client.flows.queries import TaskFilter
from octaskly.core.end_text import end_text
from octaskly.rest.client_types import Task

if TYPE_CHECKING:
    from octaskly.client import Session

NAMED_MAX: Final = 20  #: failed members named on stderr
NAMED_CHARS: Final = 60  #: of their items and commands


class ResultPrinter:
    """Prints the output of each ended member in one piece; resumes lost connections.

    Args:
        client: Session with the node that serves the results.
        array: Id of the array.
        items: The items of the members, if known here.
        total: Number of members.
        is_by_number: Print members in array order, not as they end.
        stream: Only this stream; by default, those that people read.
        on_ended: Is called with each member after its output was printed.
    """

    def __init__(
        self,
        client: Session,
        array: str,
        *,
        items: Sequence[str],
        total: int,
        is_by_number: bool,
        stream: str | None = None,
        on_ended: Callable[[Task], None] | None = None,
    ) -> None:
        self._client = client
        self._array = array
        self._items = items
        self._is_by_number = is_by_number
        self._stream = stream
        self._on_ended = on_ended
        self.ended = 0  #: members that were printed, and passed to `on_ended`
        self._failed = 0
        self.has_gaps = False  #: some of the output was not kept, so it was not printed
        self._progress = _Progress(total)

    def print_all(self) -> Task:
        """Print all results; return the ended array.

        Raises:
            ReplyLost, Unreachable: the node does not answer.
            Refused: the node refuses.
        """
        asker = self._client.requests
        flow = arrays.results(
            asker,
            self._array,
            ordered=self._is_by_number,
            deadline=asker.deadline_after(None),
            items=self._items,
        )
        try:
            with closing(self._client.iterate(flow)) as members:
                for member in members:
                    if member.status != "cancelled":
                        self._handle_member(member)
        finally:
            self._progress.clear()
        return self._client.send_and_decode(rest_calls.task(self._array), Task)

    def _handle_member(self, task: Task) -> None:
        self._progress.clear()
        self._print_output(task)
        if task.status == "failed":
            self._failed += 1
            self._print_failure(task)
        if self._on_ended is not None:
            self._on_ended(task)
        self.ended += 1
        self._progress.show(self.ended, self._failed)

    def _print_output(self, task: Task) -> None:
        streams = self._stream or text_streams(task)
        if task.stdout_truncated or task.stderr_truncated:
            long = OutputPrinter(
                self._client, task.id, stream=streams, prints_state=False
            )
            long.print_all(follow=False)
            self.has_gaps = self.has_gaps or long.has_gaps
            return
        for stream in ("stdout", "stderr"):
            if streams in ("both", stream) and (data := task.output_bytes(stream)):
                write_output(stream, data)

    def _print_failure(self, task: Task) -> None:
        """Name a failed member on stderr, up to a maximum number."""
        if self._failed > NAMED_MAX:
            return
        item = item_text(task.item if self._items else self._read_item(task.id))
        why = end_text(task.reason, task.exit_code, task.signal, task.detail)
        where = f" on {task.worker_id}" if task.worker_id else ""
        note(f"{task.id}{item} failed{where}: {why}")
        if self._failed == NAMED_MAX:
            note(f"for more: octaskly ls --array {self._array} --status failed")

    def _read_item(self, member: str) -> str | None:
        """Return the item of a member; None if that is its number."""
        task = self._client.send_and_decode(rest_calls.task(member), Task)
        env = task.env or {}
        item = env.get("OCTASKLY_ITEM")
        return None if item == env.get("OCTASKLY_INDEX") else item


def print_member_logs(
    client: Session, array: str, *, stream: str, only_failed: bool
) -> None:
    """Print the output of the members that have started, one after the other.

    Args:
        client: Session with a node.
        array: Id of the array.
        stream: `stdout`, `stderr` or `both`.
        only_failed: Print only those that failed.
    """
    filters: TaskFilter = {"array": array}
    if only_failed:
        filters["status"] = "failed"
    flow = queries.tasks(client.requests, filters)
    with closing(client.iterate(flow)) as found:
        members = list(found)
    for member in members:
        note(f"==> {member.short_id or member.id}: {_state_of(member)}")
        logs = OutputPrinter(client, member.id, stream=stream, prints_state=False)
        logs.print_all(follow=False)
    if not members:
        note(f"no member of {array} has {'failed' if only_failed else 'started'} yet")


def _state_of(member: Task) -> str:
    if member.status != "failed":
        return f"{member.status}, {command_of(member)[:NAMED_CHARS]}"
    how = end_text(member.reason, member.exit_code, member.signal, member.detail)
    return f"{member.status} ({how}), {command_of(member)[:NAMED_CHARS]}"


class _Progress:
    """The progress of the array, on a terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._line = ProgressLine(is_quiet=is_quiet())
        self._began_s = time.monotonic()
        self.clear = self._line.clear

    def show(self, ended: int, failed: int) -> None:
        """Draw the progress."""
        took_s = time.monotonic() - self._began_s
        parts = [f"{failed} failed"] if failed else []
        if self._total:
            parts = [f"{ended} of {self._total}", *parts]
            if left := self._total - ended:
                parts.append(format_rate(ended / took_s))
                parts.append(time_left(took_s / ended * left * 1000))
        else:  # The answer to a retry does not count the members.
            parts = [f"{ended} ended", *parts]
        self._line.show(", ".join(parts))
