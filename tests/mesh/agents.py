"""`octaskly agent` processes of tests, and answers of their local APIs."""

import functools
import json
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mesh.netns import wait_until
from tests.support.fork_server import ForkedProcess

START_S = 90.0  #: seconds until an agent is ready, with many on a busy machine
STOP_S = 45.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a local API."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Agent:
    """An `octaskly agent` that was started on a host."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes] | ForkedProcess",
        folder: Path,
        name: str,
    ) -> None:
        self.process = process
        self.folder = folder
        self.name = name
        self.state = folder / "state"
        self.work = folder / "work"
        self.log_file = folder / "agent.log"

    @property
    def pid(self) -> int:
        """Process id of the agent itself."""
        return self.process.pid

    @property
    def log(self) -> str:
        """Its output so far."""
        return self.log_file.read_text(errors="replace")

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """Its `agent.json`, which exists once the agent is ready."""
        path = self.state / "agent.json"

        def look() -> dict[str, Any] | None:
            code = self.process.poll()
            assert code is None, f"agent {self.name} ended with {code}:\n{self.log}"
            try:
                described: dict[str, Any] = json.loads(path.read_text())
            except FileNotFoundError:
                return None
            return described if described["pid"] == self.pid else None

        found = wait_until(f"agent {self.name} is ready", look, within_s=START_S)
        assert found is not None
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent alone."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """Stop it, and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended; return its exit code."""
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end:\n{self.log}") from None

    def kill(self) -> None:
        """Kill it, as a power cut would."""
        self.process.kill()
        self.process.wait()
