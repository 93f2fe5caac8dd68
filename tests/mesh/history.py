"""What clients asked of a mesh and were told, and what its hosts really ran.

Clients and readers are threads of the test. Each client submits with an
`Idempotency-Key` and repeats the key, through the next host, until it is accepted, as
a careful program does. Each task appends a line to a file of its host, so that
executions are counted by nobody whose faults are being tested.
"""

import http.client
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count, pairwise
from typing import Any, NamedTuple

from tests.mesh.agents import Answer
from tests.mesh.lab import Host, Lab

API_PORT = 3000  #: the default, which is free on every host
ANSWER_S = 20.0  #: well above the time for which a request is held
RETRY_S = 0.05
PAUSE_S = 0.08  #: of a client between two tasks
RUNS = "runs.log"
FINAL = ("completed", "failed", "cancelled")


class Outcome(StrEnum):
    """What a client knows of its request."""

    OK = "ok"
    FAIL = "fail"  #: refused: it was not carried out
    UNKNOWN = "unknown"  #: no answer, or one that leaves it open


class Operation(NamedTuple):
    """One request of a client."""

    key: str
    host: str
    began_s: float
    ended_s: float
    outcome: Outcome
    status: int  #: 0: no answer
    task: str = ""
    replicas: int = 0
    dispatcher: str = ""  #: that accepted it


class Read(NamedTuple):
    """What a host answered about an accepted task."""

    task: str
    host: str
    began_s: float
    ended_s: float
    status: int
    state: str = ""


@dataclass
class Blindness:
    """A time in which nobody can know all: hosts apart, or too many of them down.

    What was accepted in it within a group must still be found within that group.
    """

    began_s: float
    groups: tuple[frozenset[str], ...]
    ended_s: float = math.inf

    def excuses(self, read: Read, accepted: Operation) -> bool:
        """Whether a host may not know an accepted task at this time."""
        if read.ended_s < self.began_s or read.began_s > self.ended_s:
            return False
        return accepted.began_s < self.began_s or not any(
            {read.host, accepted.host} <= group for group in self.groups
        )


class Run(NamedTuple):
    """One start of a task's command, as the command itself wrote it down."""

    task: str
    attempt: int
    node: str
    pid: int


class History:
    """Everything that clients of one case did; threads may write at once."""

    def __init__(self, lab: Lab) -> None:
        self.operations: list[Operation] = []
        self.reads: list[Read] = []
        self.blind: list[Blindness] = []
        self.accepted: dict[str, str] = {}  #: by key, the id of the task
        self.asked: dict[str, str] = {}  #: by key, the command
        self.silences: list[str] = []  #: who gave no answer, after how long, and why
        self._token = lab.hosts[0].token()

    def ask(self, host: Host, method: str, path: str, **more: Any) -> Answer | None:
        """Send a request to a host; None: it gave no answer."""
        began_s = time.monotonic()
        try:
            return host.http(
                *(method, path),
                token=self._token,
                port=API_PORT,
                timeout_s=ANSWER_S,
                **more,
            )
        except (OSError, http.client.HTTPException) as error:
            after_s = time.monotonic() - began_s
            self.silences.append(f"{host.name} after {after_s:.1f} s: {error!r}")
            return None

    def submit(self, host: Host, key: str, body: str = "") -> Operation:
        """Ask a host once for the task of a key; `body` is what it runs."""
        command = self.asked.setdefault(key, command_of(key, body))
        began_s = time.monotonic()
        answer = self.ask(
            *(host, "POST", "/api/v1/tasks"),
            json={"command": command},
            headers={"Idempotency-Key": key},
        )
        made = _operation(key, host, began_s, answer)
        if made.outcome is Outcome.OK:
            first = self.accepted.setdefault(key, made.task)
            assert first == made.task, f"G8: {key} is {first} and {made.task}"
        self.operations.append(made)
        return made

    def read(self, host: Host, task: str) -> None:
        """Ask a host for an accepted task, and remember the answer if there is one."""
        began_s = time.monotonic()
        answer = self.ask(host, "GET", f"/api/v1/tasks/{task}")
        if answer is not None:
            assert answer.status != 503 or "Retry-After" in answer.headers, answer
            state = answer.json["status"] if answer.status == 200 else ""
            times = (began_s, time.monotonic())
            self.reads.append(Read(task, host.name, *times, answer.status, state))

    def denied(self) -> list[Read]:
        """Return where an accepted task was 404 without an excuse."""
        made = {o.task: o for o in self.operations if o.outcome is Outcome.OK}
        return [
            read
            for read in self.reads
            if read.status == 404
            and not any(each.excuses(read, made[read.task]) for each in self.blind)
        ]

    def unsettled(self) -> list[str]:
        """Return the keys of which no client knows whether they were accepted."""
        return [key for key in self.asked if key not in self.accepted]

    def longest_gap_s(self) -> float:
        """Return the longest time between two accepted tasks."""
        times = sorted(o.ended_s for o in self.operations if o.outcome is Outcome.OK)
        return max((b - a for a, b in pairwise(times)), default=0.0)

    def handed_over_s(self, moment_s: float, old: str) -> float:
        """Return how long nobody accepted when a dispatcher went away at a moment.

        From that moment, or from the last task that the old dispatcher accepted while
        it stopped, to the first one that another accepted.
        """
        done = [o for o in self.operations if o.outcome is Outcome.OK]
        late = [o for o in done if o.ended_s > moment_s]
        first_s = min(o.ended_s for o in late if o.dispatcher != old)
        last_s = max((o.ended_s for o in late if o.dispatcher == old), default=moment_s)
        return first_s - min(last_s, first_s)


def command_of(key: str, body: str = "") -> str:
    """Return a command that writes down its start, then runs `body`."""
    noted = f'echo "$OCTASKLY_TASK_ID $OCTASKLY_ATTEMPT $OCTASKLY_NODE $$" >> {RUNS}'
    return f"{noted}; {body or ':'} # {key}"


def key_of(command: str) -> str:
    """Return the key that a command was made for."""
    return command.rpartition("# ")[2]


def _operation(
    key: str, host: Host, began_s: float, answer: Answer | None
) -> Operation:
    ended_s = time.monotonic()
    known = (key, host.name, began_s, ended_s)
    if answer is None:
        return Operation(*known, Outcome.UNKNOWN, 0)
    if answer.status != 201:
        is_open = b"may have been carried out" in answer.body
        outcome = Outcome.UNKNOWN if is_open else Outcome.FAIL
        return Operation(*known, outcome, answer.status)
    replicas = int(answer.headers["Octaskly-Replicas"])
    head = answer.headers["Octaskly-Dispatcher"]
    return Operation(*known, Outcome.OK, 201, answer.json["id"], replicas, head)


@dataclass(frozen=True)
class Pace:
    """How much is asked of a mesh."""

    clients: int = 4
    readers: int = 1
    pause_s: float = PAUSE_S
    body: str = ""  #: what each task runs


class Load:
    """Clients and readers that keep some hosts busy until they are stopped."""

    def __init__(
        self, name: str, history: History, hosts: Sequence[Host], pace: Pace
    ) -> None:
        self.name = name
        self._history = history
        self._hosts = tuple(hosts)
        self._pace = pace
        self._is_over = threading.Event()
        self._failures: list[BaseException] = []
        self._accepted: list[str] = []
        works: list[tuple[Callable[..., None], int]]
        works = [(self._submit_on, n) for n in range(pace.clients)]
        works += [(self._read_on, n) for n in range(pace.readers)]
        self._threads = [
            threading.Thread(target=self._guard, args=work, daemon=True)
            for work in works
        ]
        for thread in self._threads:
            thread.start()

    @property
    def accepted(self) -> int:
        """How many tasks its clients were promised so far."""
        return len(self._accepted)

    def read_at(self, host: Host) -> None:
        """Ask a host for what this load was promised through others, from now on."""
        thread = threading.Thread(
            target=self._guard, args=(self._read_on, 0, (host,)), daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """End all threads; fails if one of them has failed."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(ANSWER_S * 2)
            assert not thread.is_alive(), f"a client of {self.name} hangs"
        if self._failures:
            raise self._failures[0]

    def _guard(
        self, work: Callable[..., None], number: int, *more: Sequence[Host]
    ) -> None:
        try:
            work(number, *more)
        except BaseException as error:  # noqa: BLE001  shown by `stop`
            self._failures.append(error)

    def _submit_on(self, client: int) -> None:
        hosts = count(client)
        for turn in count():
            key = f"{self.name}-{client}-{turn}"
            while not self._is_over.is_set():
                host = self._hosts[next(hosts) % len(self._hosts)]
                made = self._history.submit(host, key, self._pace.body)
                if made.outcome is Outcome.OK:
                    self._accepted.append(made.task)
                    break
                self._is_over.wait(RETRY_S)
            if self._is_over.wait(self._pace.pause_s):
                return

    def _read_on(self, reader: int, hosts: Sequence[Host] = ()) -> None:
        draw = random.Random(f"{self.name}-{reader}")
        while not self._is_over.wait(self._pace.pause_s):
            if self._accepted:
                task = draw.choice(self._accepted)
                self._history.read(draw.choice(hosts or self._hosts), task)


def runs(lab: Lab) -> list[Run]:
    """Return every execution on every host, in the order of each host."""
    found = []
    for path in sorted(lab.folder.glob(f"*/*/work/{RUNS}")):
        for line in path.read_text().splitlines():
            task, attempt, node, pid = line.split()
            found.append(Run(task, int(attempt), node, int(pid)))
    return found
