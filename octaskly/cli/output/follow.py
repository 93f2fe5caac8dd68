"""Live printing of the output of one task."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from octaskly.cli.output.render import data_size, note
from octaskly.cli.output.terminal import write_output
from octaskly.client.flows import streams
from octaskly.rest.client_types import Task

if TYPE_CHECKING:
    from octaskly.client import Session
    from octaskly.client.flows.streams import Log


class OutputPrinter:
    """Prints the output of one task; resumes lost connections.

    Args:
        client: Session with the node that serves the log.
        ref: The task.
        stream: `stdout`, `stderr` or `both`.
        attempt: Number of the only attempt to print.
        prints_state: Print on stderr that the task waits.
    """

    def __init__(
        self,
        client: Session,
        ref: str,
        *,
        stream: str = "both",
        attempt: int | None = None,
        prints_state: bool,
    ) -> None:
        self._client = client
        self._ref = ref
        self._stream = stream
        self._attempt = attempt
        self._prints_state = prints_state
        self._after = ""
        self._has_printed = False  #: whether output of the current attempt was printed
        self.has_gaps = (
            False  #: whether the node had lost output that was to be printed
        )

    def print_all(self, *, follow: bool) -> Task:
        """Print the output, with `follow` until the task has ended; return the task.

        A second call after an interrupt does not repeat output.

        Raises:
            ReplyLost, Unreachable: the node does not answer.
            Refused: the node refuses.
        """
        asker = self._client.requests
        flow = streams.logs(
            asker,
            self._ref,
            follow=follow,
            stream=self._stream,
            attempt=self._attempt,
            after=self._after,
            deadline=asker.deadline_after(None),
        )
        lost = self._client.reconnect_count
        with closing(self._client.iterate(flow)) as logs:
            for log in logs:
                if lost != self._client.reconnect_count and self._after:
                    note(f"the connection was lost; {self._ref} is resumed")
                lost = self._client.reconnect_count
                self._print_log(log)
                self._after = log.id or self._after
                if log.kind == "end":
                    break
        return msgspec.convert(log.details, Task)

    def _print_log(self, log: Log) -> None:
        details = log.details
        match log.kind:
            case "stdout" | "stderr":
                write_output(log.kind, log.data)
                self._has_printed = True
            case "gap":
                gap = f"{data_size(details['bytes'])} of {details['stream']}"
                note(f"{gap} is missing here: {details['reason']}")
                self.has_gaps = True
            case "attempt" if self._has_printed:
                what = f"attempt {details['attempt']} on {details['node']}"
                why = details["previous"] or "another attempt counts"
                note(f"{what}; the one before it does not count: {why}")
                self._has_printed = False
            case "state" if self._prints_state:
                note(f"{self._ref} is {details['status']}")
