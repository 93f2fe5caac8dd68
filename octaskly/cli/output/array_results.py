"""Live printing of the results of an array."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final

from octaskly.cli.output.follow import OutputPrinter
from octaskly.cli.output.render import duration, is_quiet, note
from octaskly.cli.output.terminal import ProgressLine, write_output
from octaskly.client.flows import arrays, rest_calls
from octaskly.rest.client_types import Task

if TYPE_CHECKING:
    from octaskly.client import Session

NAMED_MAX: Final = 20  #: failed members named on stderr


class ResultPrinter:
    """Prints the output of each ended member in one piece; resumes lost connections.

    Args:
        client: Session with the node that serves the results.
        array: Id of the array.
        items: The items of the members, if known here.
        total: Number of members.
        is_by_number: Print members in array order, not as they end.
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
        on_ended: Callable[[Task], None] | None = None,
    ) -> None:
        self._client = client
        self._array = array
        self._items = items
        self._is_by_number = is_by_number
        self._on_ended = on_ended
        self._ended = 0
        self._failed = 0
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
        self._ended += 1
        if task.status == "failed":
            self._failed += 1
            self._print_failure(task)
        if self._on_ended is not None:
            self._on_ended(task)
        self._progress.show(self._ended, self._failed)

    def _print_output(self, task: Task) -> None:
        if task.stdout_truncated or task.stderr_truncated:
            long = OutputPrinter(self._client, task.id, prints_state=False)
            long.print_all(follow=False)
            return
        for stream in ("stdout", "stderr"):
            if data := task.output_bytes(stream):
                write_output(stream, data)

    def _print_failure(self, task: Task) -> None:
        """Name a failed member on stderr, up to a maximum number."""
        if self._failed > NAMED_MAX:
            return
        item = f" ({task.item[:60]})" if self._items and task.item else ""
        why = task.detail or task.reason
        if task.reason == "exit" and task.exit_code is not None:
            why = f"exit code {task.exit_code}"
        elif task.signal is not None and not task.detail:
            why = f"signal {task.signal}"
        note(f"{task.id}{item} failed: {why}")
        if self._failed == NAMED_MAX:
            note(f"for more: octaskly ls --array {self._array} --status failed")


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
            left_ms = took_s / ended * (self._total - ended) * 1000
            share = f"{100 * ended // self._total}%"
            parts = [f"{ended}/{self._total}", share, *parts]
            parts.append(f"{duration(left_ms)} left")
        else:  # The answer to a retry does not count the members.
            parts = [f"{ended} ended", *parts]
        self._line.show(", ".join(parts))
