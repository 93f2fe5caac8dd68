"""History of a mesh: the requests and answers of clients, and the runs on hosts.

Clients and readers are threads of the test. Each client submits with an
`Idempotency-Key`. It repeats the key through the next host until the task is accepted,
as a careful program does. Each run of a task appends a line with a new random number to
a file of its host, so runs are counted without the mesh under test. The number is also
the output of the run, so another outcome of the same task is visible.
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
PAUSE_S = 0.08  #: a client's pause between two tasks
RUNS = "runs.log"
RANDOM = "/proc/sys/kernel/random/uuid"  #: a new one at each read, without a process
FINAL = ("completed", "failed", "cancelled")


class Outcome(StrEnum):
    """The result of a client's request."""

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
    dispatcher: str = ""  #: the node that accepted it


class Read(NamedTuple):
    """A host's answer about an accepted task."""

    task: str
    host: str
    began_s: float
    ended_s: float
    status: int
    state: str = ""
    output: str | None = None  #: the number of the run whose outcome is shown

    @property
    def outcome(self) -> tuple[str, str | None] | None:
        """The final state with the output; None: the task had not ended."""
        return (self.state, self.output) if self.state in FINAL else None


@dataclass
class Partition:
    """A period in which no host can know all tasks: a split, or too many hosts down.

    A task accepted within a group in that period must still be found within that group.
    """

    began_s: float
    groups: tuple[frozenset[str], ...]
    ended_s: float = math.inf

    def excuses(self, read: Read, accepted: Operation) -> bool:
        """Return True if a host may lack an accepted task at this time."""
        if read.ended_s < self.began_s or read.began_s > self.ended_s:
            return False
        return accepted.began_s < self.began_s or not any(
            {read.host, accepted.host} <= group for group in self.groups
        )


@dataclass
class Split:
    """A period in which a part of the mesh was cut off, be it in one direction."""

    began_s: float
    ended_s: float = math.inf  #: when the mesh was whole again

    def excuses(self, accepted_s: float, changed_s: float) -> bool:
        """Return True if a task may have run on both sides before its change."""
        return self.began_s <= changed_s and accepted_s <= self.ended_s


class Run(NamedTuple):
    """One start of a task's command, as the command itself recorded it."""

    task: str
    attempt: int
    node: str
    pid: int
    number: str  #: random, and the output of the run


class History:
    """The history of all clients of one case; threads may write at once."""

    def __init__(self, token: str) -> None:
        self.operations: list[Operation] = []
        self.reads: list[Read] = []
        self.partitions: list[Partition] = []
        self.splits: list[Split] = []
        #: periods in which no host could accept, such as a power cut
        self.outages: list[tuple[float, float]] = []
        self.accepted: dict[str, str] = {}  #: the id of the task, by key
        self.asked: dict[str, str] = {}  #: the command, by key
        #: hosts without an answer, after how long, and why
        self.silences: list[str] = []
        self._token = token

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
        """Submit the task of a key through a host once; `body` is its command."""
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
        """Request an accepted task from a host, and record any answer."""
        began_s = time.monotonic()
        answer = self.ask(host, "GET", f"/api/v1/tasks/{task}")
        if answer is not None:
            assert answer.status != 503 or "Retry-After" in answer.headers, answer
            times = (began_s, time.monotonic())
            shown = answer.json if answer.status == 200 else {}
            fields = (shown.get("status", ""), shown.get("stdout"))
            self.reads.append(Read(task, host.name, *times, answer.status, *fields))

    def denied(self) -> list[Read]:
        """Return the 404 answers for accepted tasks without an excuse."""
        made = {o.task: o for o in self.operations if o.outcome is Outcome.OK}
        return [
            read
            for read in self.reads
            if read.status == 404
            and not any(each.excuses(read, made[read.task]) for each in self.partitions)
        ]

    def changed(self) -> list[tuple[Read, Read]]:
        """Return for each task the first two reads that show different outcomes."""
        first: dict[str, Read] = {}
        found: dict[str, tuple[Read, Read]] = {}
        for read in self.reads:
            if read.outcome is not None:
                before = first.setdefault(read.task, read)
                if before.outcome != read.outcome:
                    found.setdefault(read.task, (before, read))
        return list(found.values())

    def changed_without_split(self) -> list[tuple[Read, Read]]:
        """Return the changes of outcomes without an excuse (G4)."""
        accepted_s = {o.task: o.began_s for o in self.operations}
        return [
            (before, after)
            for before, after in self.changed()
            if not any(
                split.excuses(accepted_s.get(after.task, -math.inf), after.ended_s)
                for split in self.splits
            )
        ]

    def unsettled(self) -> list[str]:
        """Return the keys for which no client knows whether they were accepted."""
        return [key for key in self.asked if key not in self.accepted]

    def longest_gap_s(self) -> float:
        """Return the longest time between two accepted tasks, without outages."""
        times = sorted(o.ended_s for o in self.operations if o.outcome is Outcome.OK)
        return max((self._able_s(a, b) for a, b in pairwise(times)), default=0.0)

    def _able_s(self, from_s: float, to_s: float) -> float:
        """Return how long a host could accept between two times."""
        out_s = sum(
            max(0.0, min(to_s, ended_s) - max(from_s, began_s))
            for began_s, ended_s in self.outages
        )
        return to_s - from_s - out_s

    def handed_over_s(self, moment_s: float, old: str) -> float:
        """Return the time without accepted tasks when a dispatcher left at a moment.

        It starts at that moment, or at the last task that the old dispatcher accepted
        while it stopped, and ends at the first task that another one accepted.
        """
        done = [o for o in self.operations if o.outcome is Outcome.OK]
        late = [o for o in done if o.ended_s > moment_s]
        first_s = min(o.ended_s for o in late if o.dispatcher != old)
        last_s = max((o.ended_s for o in late if o.dispatcher == old), default=moment_s)
        return first_s - min(last_s, first_s)


def command_of(key: str, body: str = "") -> str:
    """Return a command that records its start, then runs `body`.

    It writes a random number of the run to the record and to its output. The key comes
    first, because lists cut long commands.
    """
    run = "$OCTASKLY_TASK_ID $OCTASKLY_ATTEMPT $OCTASKLY_NODE $$ $number"
    noted = f'read number < {RANDOM}; echo "{run}" >> {RUNS}; echo $number'
    return f"# {key}\n{noted}; {body or ':'}"


def key_of(command: str) -> str:
    """Return the key of a command."""
    return command.partition("\n")[0].removeprefix("# ")


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
    dispatcher = answer.headers["Octaskly-Dispatcher"]
    return Operation(*known, Outcome.OK, 201, answer.json["id"], replicas, dispatcher)


@dataclass(frozen=True)
class Pace:
    """The rate and kind of requests to a mesh."""

    clients: int = 4
    readers: int = 1
    pause_s: float = PAUSE_S
    body: str = ""  #: the command of each task
    #: True: each client asks its own host first, so one that waits holds up no other
    is_local: bool = False


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
        """The number of accepted tasks of its clients."""
        return len(self._accepted)

    def read_at(self, host: Host) -> None:
        """From now on, also read this load's tasks of other hosts from a host."""
        thread = threading.Thread(
            target=self._guard, args=(self._read_on, 0, (host,)), daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """End all threads; fail if one of them has failed."""
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
            if self._pace.is_local:
                hosts = count(client)
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
    """Return every run on every host, in the order of each host."""
    found = []
    for path in sorted(lab.folder.glob(f"*/*/work/{RUNS}")):
        for line in path.read_text().splitlines():
            task, attempt, node, pid, number = line.split()
            found.append(Run(task, int(attempt), node, int(pid), number))
    return found
