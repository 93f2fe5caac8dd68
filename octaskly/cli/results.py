"""What the members of an array wrote, on the terminal as they end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import msgspec

from octaskly.cli.following import FULL, LOST_MAX, Following, pause_s
from octaskly.cli.render import duration, is_quiet, note
from octaskly.client import Members, Refused, ReplyLost, Task, Unreachable

if TYPE_CHECKING:
    from octaskly.client import Client

NAMED_MAX: Final = 20  #: failed members that are named on stderr


class Results:
    """Prints what members write, each whole, through lost connections.

    Args:
        client: Tells how members end.
        aside: Another client, for output that is too long for a result.
        array: Id of the array.
        items: What its members were given, as far as known here.
        total: How many members it has.
        is_by_number: Whether they are printed in their order, not as they end.
    """

    def __init__(
        self,
        client: Client,
        aside: Client,
        array: str,
        *,
        items: Sequence[str],
        total: int,
        is_by_number: bool,
    ) -> None:
        self._client = client
        self._aside = aside
        self._array = array
        self._items = items
        self._is_by_number = is_by_number
        self._seen = bytearray(-(-total // 8))  #: a bit for each position
        self._next = 0  #: the first position that was not seen
        self._ended = 0
        self._failed = 0
        self._lost = 0
        self._bar = _Bar(total)

    def to_the_end(self) -> Task:
        """Print all results; return the array as it ended.

        Raises:
            ReplyLost, Unreachable: the node stays away.
            Refused: it refuses.
        """
        try:
            while True:
                array = self._until_lost()
                if array is not None:
                    return array
                self._lost += 1
                time.sleep(pause_s(self._lost))
        finally:
            self._bar.clear()

    def _until_lost(self) -> Task | None:
        """Read one stream; None: it ended before the array, or told too little."""
        try:
            return self._read()
        except (ReplyLost, Unreachable):
            # The agent may be restarting; the results are safe with the dispatcher.
            if self._lost >= LOST_MAX:
                raise
        except Refused as error:
            if str(error) != FULL:
                raise
            self._lost = 0  # It lives, and has room once others have ended.
        return None

    def _read(self) -> Task | None:
        found = self._client.results(
            self._array, offset=self._next, is_by_number=self._is_by_number
        )
        with closing(found) as events:
            for event in events:
                if event.kind == "end":
                    array = msgspec.convert(event.data, Task)
                    counts = array.array or Members()
                    is_all = self._ended >= counts.completed + counts.failed
                    return array if is_all else None
                if event.kind == "result":
                    self._lost = 0
                    self._take(event.data)
        return None

    def _take(self, data: dict[str, Any]) -> None:
        position = data["position"]
        byte, bit = position >> 3, 1 << (position & 7)
        if self._seen[byte] & bit:
            return
        self._seen[byte] |= bit
        while self._is_seen(self._next):
            self._next += 1
        task = msgspec.convert(data, Task)
        if task.status == "cancelled":
            return
        self._bar.clear()
        self._print(task)
        self._ended += 1
        if task.status == "failed":
            self._failed += 1
            self._name(task, position)
        self._bar.show(self._ended, self._failed)

    def _is_seen(self, position: int) -> bool:
        byte = position >> 3
        if byte >= len(self._seen):
            return False
        return bool(self._seen[byte] & 1 << (position & 7))

    def _print(self, task: Task) -> None:
        if task.stdout_truncated or task.stderr_truncated:
            long = Following(self._aside, task.id, says_state=False)
            long.to_the_end(follow=False)
            return
        for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            if data := task.output_bytes(name):
                stream.flush()
                stream.buffer.write(data)
                stream.buffer.flush()

    def _name(self, task: Task, position: int) -> None:
        """Say which member failed, unless many did."""
        if self._failed > NAMED_MAX:
            return
        item = f" ({self._items[position][:60]})" if self._items else ""
        why = task.detail or task.reason
        if task.reason == "exit" and task.exit_code is not None:
            why = f"exit code {task.exit_code}"
        note(f"{task.id}{item} failed: {why}")
        if self._failed == NAMED_MAX:
            note(f"more of them: octaskly ls --array {self._array} --status failed")


class _Bar:
    """One line of progress on a terminal; none elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._is_shown = sys.stderr.isatty() and not is_quiet()
        self._began_s = time.monotonic()
        self._width = 0

    def show(self, ended: int, failed: int) -> None:
        """Draw how far it is."""
        if not self._is_shown:
            return
        took_s = time.monotonic() - self._began_s
        left_ms = took_s / ended * (self._total - ended) * 1000
        parts = [f"{ended}/{self._total}", f"{100 * ended // self._total}%"]
        parts += [f"{failed} failed"] if failed else []
        line = f"{', '.join(parts)}, {duration(left_ms)} left"
        sys.stderr.write(f"\r{line}")
        sys.stderr.flush()
        self._width = len(line)

    def clear(self) -> None:
        """Make room for output."""
        if self._width:
            sys.stderr.write(f"\r{'':{self._width}}\r")
            sys.stderr.flush()
            self._width = 0
