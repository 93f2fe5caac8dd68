"""Controls `discovery_node.py` from a test, in this or another network namespace."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCRIPT = Path(__file__).with_name("discovery_node.py")
WAIT_S = 45.0  #: a busy machine is slow to start it

Line = dict[str, Any]


class DiscoveryProcess:
    """A process that collects the lines of output, with bounded waits."""

    def __init__(self, *args: str, prefix: Sequence[str] = ()) -> None:
        self.lines: list[Line] = []
        self._queue: queue.Queue[Line | None] = queue.Queue()
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(SCRIPT), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def send_command(self, line: str) -> None:
        """Send a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait_for(
        self, kind: str, matches: Callable[[Line], bool] = lambda _: True
    ) -> Line:
        """Return the first line of this kind that matches, also among the past ones."""
        deadline_s = time.monotonic() + WAIT_S
        known = 0
        while True:
            for line in self.lines[known:]:
                if line["kind"] == kind and matches(line):
                    return line
            known = len(self.lines)
            try:
                fresh = self._queue.get(
                    timeout=max(0.01, deadline_s - time.monotonic())
                )
            except queue.Empty:
                raise AssertionError(f"no {kind} among {self.lines}") from None
            assert fresh is not None, f"it ended without {kind}: {self.lines}"
            self.lines.append(fresh)

    def wait_for_node(self, node: str) -> Line:
        """Return the first line that reports this node."""
        return self.wait_for("seen", lambda line: bool(line["node"] == node))

    def state(self) -> Line:
        """Return its current state."""
        before = sum(line["kind"] == "state" for line in self.lines)
        self.send_command("state")
        count = iter(range(before + 1))
        return self.wait_for("state", lambda _: next(count) == before)

    def seen_nodes(self) -> set[str]:
        """Return all nodes that it has reported."""
        return {line["node"] for line in self.lines if line["kind"] == "seen"}

    def close(self) -> None:
        """Close it with a goodbye, and collect its last lines."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(WAIT_S) == 0
        self._reader.join()
        while (line := self._queue.get()) is not None:
            self.lines.append(line)

    def kill(self) -> None:
        """Kill it without a goodbye."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                stream.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(json.loads(line))
        self._queue.put(None)
