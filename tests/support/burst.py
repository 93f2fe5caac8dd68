"""`octaskly burst --json` as a process, and the events that it prints."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.support.agents import until

EVENT_S: Final = 90.0  #: until an event, also on a busy machine
END_S: Final = 45.0

Event = dict[str, Any]


class Burst:
    """A running burst."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[Event] = []
        self.errors: list[str] = []  #: lines on stderr
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read_events, args=(process.stdout,)),
            threading.Thread(target=self.errors.extend, args=(process.stderr,)),
        ]
        for reader in self._readers:
            reader.start()

    def _read_events(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.events.append(json.loads(line))

    def of(self, kind: str) -> list[Event]:
        """Return the events of a kind so far."""
        return [event for event in self.events if event["event"] == kind]

    def wait_for(self, kind: str, count: int = 1) -> Event:
        """Wait for so many events of a kind, and return the last of them."""

        def found() -> Event | None:
            seen = self.of(kind)
            is_over = self.process.poll() is not None
            assert len(seen) >= count or not is_over, (self.events, self.errors)
            return seen[count - 1] if len(seen) >= count else None

        event: Event = until(found, f"{count} {kind}", deadline_s=EVENT_S)
        return event

    def interrupt(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self, *, within_s: float = END_S) -> int:
        """Wait for the end, and return the exit code."""
        code = self.process.wait(within_s)
        for reader in self._readers:
            reader.join()
        return code

    def close(self) -> None:
        """End it and its commands, whatever it does."""
        if self.process.poll() is None:
            for _ in range(2):
                self.process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5.0)
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        # For the report of a failed test.
        print("--- burst", *self.events, *self.errors, sep="\n")
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextlib.contextmanager
def bursting(
    state: Path,
    *words: str,
    prefix: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Burst]:
    """Run `octaskly burst WORDS` with the agent of a state folder."""
    program = (sys.executable, "-m", "octaskly", "--state-dir", str(state))
    process = subprocess.Popen(
        [*prefix, *program, "burst", "--json", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )
    with contextlib.closing(Burst(process)) as burst:
        yield burst
