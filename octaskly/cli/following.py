"""What a task writes, on the terminal as it comes."""

from __future__ import annotations

import base64
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec

from octaskly.cli.render import note, size
from octaskly.client import Refused, ReplyLost, Task, Unreachable

if TYPE_CHECKING:
    from octaskly.client import Client

LOST_MAX = 8  #: times in a row without any event between
PAUSE_S_MAX = 2.0
FULL = "Too many event streams"
"""How a node words it."""


def pause_s(lost: int) -> float:
    """Return how long to wait after so many lost connections in a row."""
    return min(PAUSE_S_MAX, 0.05 * 2.0**lost)


class Following:
    """Prints the output of one task, through lost connections.

    Args:
        client: The node that is asked.
        ref: The task.
        stream: `stdout`, `stderr` or `both`.
        attempt: Number of the only one that is printed.
        says_state: Whether to say on stderr that the task waits.
    """

    def __init__(
        self,
        client: Client,
        ref: str,
        *,
        stream: str = "both",
        attempt: int | None = None,
        says_state: bool,
    ) -> None:
        self._client = client
        self._ref = ref
        self._stream = stream
        self._attempt = attempt
        self._says_state = says_state
        self._last_id = ""
        self._lost = 0
        self._has_printed = False  #: of the attempt before, if another one begins

    def to_the_end(self, *, follow: bool) -> Task:
        """Print all there is, with `follow` until it has ended; return the task.

        May be called again after an interrupt: nothing is printed twice.

        Raises:
            ReplyLost, Unreachable: the node stays away.
            Refused: it refuses.
        """
        while True:
            try:
                if (task := self._read(follow=follow)) is not None:
                    return task
            except (ReplyLost, Unreachable):
                # The agent may be restarting; the task is safe with the dispatcher.
                if self._lost >= LOST_MAX:
                    raise
            except Refused as error:
                if str(error) != FULL:
                    raise
                self._lost = 0  # It lives, and has room once others have ended.
            self._lost += 1
            time.sleep(pause_s(self._lost))

    def _read(self, *, follow: bool) -> Task | None:
        """Read one stream; return None if it ended before the task's end."""
        found = self._client.logs(
            self._ref,
            stream=self._stream,
            follow=follow,
            attempt=self._attempt,
            last_id=self._last_id,
        )
        with closing(found) as events:
            for event in events:
                if self._lost and self._last_id:
                    note(f"the connection was lost; {self._ref} is resumed")
                self._lost = 0
                if event.kind == "end":
                    return msgspec.convert(event.data, Task)
                self._take(event.kind, event.data)
                self._last_id = event.id
        return None

    def _take(self, kind: str, data: dict[str, Any]) -> None:
        match kind:
            case "stdout" | "stderr":
                stream = sys.stdout if kind == "stdout" else sys.stderr
                stream.flush()
                stream.buffer.write(_bytes(data))
                stream.buffer.flush()
                self._has_printed = True
            case "gap":
                what = f"{size(data['bytes'])} of {data['stream']} are missing here"
                note(f"{what}: {data['reason']}")
            case "attempt" if self._has_printed:
                what = f"attempt {data['attempt']} on {data['node']}"
                why = data["previous"] or "another one counts"
                note(f"{what}; the one before it does not count: {why}")
                self._has_printed = False
            case "state" if self._says_state:
                note(f"{self._ref} is {data['status']}")


def _bytes(data: dict[str, Any]) -> bytes:
    text: str = data["data"]
    return base64.b64decode(text) if "encoding" in data else text.encode()
