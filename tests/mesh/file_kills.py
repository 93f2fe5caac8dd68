"""Rounds of commands with files, each with one fault at a moment drawn from a seed.

A round starts `run`, `map` or `submit` with `--in` and `--out` on a host whose agent is
not the dispatcher, causes a fault while it is under way, and undoes it. The tasks wait
for a gate that opens after the fault, so that nothing has ended before. A late fault
comes between the end of a task and the fetch of its outputs. The command must end with
the right outputs or with an error that says so. No wrong or partial file may ever have
the name of an output.
"""

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from tests.mesh.faults import fill, small_disk
from tests.mesh.forming import FORM_S, Task, dispatcher_of, form, is_formed
from tests.mesh.lab import ROOT, Host, Lab
from tests.mesh.netns import wait_until

HOSTS = 4
DISK_MB = 400  #: of the host that may run out of room; 256 are left for the log
HOME_MB = 40  #: of the folder that outputs come home to
MOMENT_S_MAX = 2.0  #: after the command has connected to its agent
SOON_S_MAX = 0.5  #: after its files are sent, or a task has started
OUTAGE_S = 1.5
COMMAND_S = 240.0  #: longest time until a command ends
ITEMS = 8
FILES = 30
FILE_BYTES = ((0, 20_000), (150_000, 400_000))  #: those of all items are sent, or lent
BIG_BYTES = 3 << 20  #: more than a pack holds, so a tree with it is lent
LEFT_BYTES = (0, 20_000)  #: on a full disk; outputs have more
SECRET = "mesh.key"

ENDED = ("completed", "failed", "cancelled")
GONE = "not yet sent by the client, which is not connected now"

COMMANDS = ("run", "map", "submit")
FAULTS = ("worker", "dispatcher", "submitter", "holder", "disk", "home")
LATE_FAULTS = ("worker", "dispatcher", "holder")


@dataclass
class Round:
    """One command, and what happened."""

    seed: int
    fault: str
    command: str
    is_late: bool
    client: Host
    folder: Path  #: where the command is typed
    notes: Path  #: for the gates of the tasks, and for the output of the command
    sent: Mapping[str, bytes]  #: inputs, by path
    expected: Mapping[str, bytes]  #: outputs, by path
    label: Mapping[str, str]
    words: Sequence[str]
    code: int = 0
    said: str = ""
    started_s: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        """Return what repeats the round, and how it ended."""
        took_s = time.monotonic() - self.started_s
        when = "late" if self.is_late else "early"
        return (
            f"seed {self.seed}: {self.fault}, {when}, of {self.command}"
            f" on {self.client.name}: exit {self.code} after {took_s:.1f} s"
        )

    @property
    def printed(self) -> str:
        """What the command has printed, such as the id of a task."""
        return (self.notes / "stdout").read_text().strip()

    def hosts_with_tasks(self) -> set[str]:
        """Return the names of hosts at which tasks have started."""
        return {place.name.removeprefix("on-") for place in self.notes.glob("on-*")}

    def open_gate(self, item: str = "") -> None:
        """Let the tasks go on, or only that of an item by its number, from 1."""
        (self.notes / f"gate{item}").touch()


class FileKills:
    """A mesh of hosts with separate folders, and rounds of commands with files."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._disks = contextlib.ExitStack()
        self._home = lab.folder / "home"
        self._victim = lab.hosts[-1]  #: has a small disk
        self.rounds: list[Round] = []

    def __enter__(self) -> Self:
        """Mount the disks and form the mesh."""
        state = self._victim.folder / self._victim.name / "state"
        self._disks.enter_context(small_disk(state, DISK_MB))
        self._disks.enter_context(small_disk(self._home, HOME_MB))
        form(self._lab)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._disks.close()

    def run_round(self, seed: int, fault: str, command: str = "") -> Round:
        """Run one round; fail if it ends neither right nor with an error."""
        draw = random.Random(seed)
        one = self._prepare(draw, seed, fault, command or draw.choice(COMMANDS))
        self.rounds.append(one)
        with self._tasks_elsewhere(one):
            process = self._start(one, draw)
            try:
                with self._fault(one, process, draw):
                    self._end(one, process)
            finally:
                process.kill()
        print(one, flush=True)
        wait_until("one mesh", lambda: is_formed(self._lab.hosts), within_s=FORM_S)
        if fault == "submitter":
            self._check_abandoned(one)
        elif one.code or fault == "home":
            self._fetch_afterwards(one)
        else:
            self._check(one)
        self._end_rest(one)
        return one

    # --- the command -----------------------------------------------------------------

    def _prepare(
        self, draw: random.Random, seed: int, fault: str, command: str
    ) -> Round:
        dispatcher = self._dispatcher()
        others = [h for h in self._lab.hosts if h not in (dispatcher, self._victim)]
        folder = self._home / f"{len(self.rounds)}"
        notes = self._lab.folder / f"notes{len(self.rounds)}"
        (folder / "src").mkdir(parents=True)
        notes.mkdir()
        sizes = draw.choice(FILE_BYTES)
        contents = {
            f"src/{number}": draw.randbytes(draw.randint(*sizes))
            for number in range(FILES)
        }
        contents["src/big"] = draw.randbytes(BIG_BYTES)
        for path, data in contents.items():
            (folder / path).write_bytes(data)
        label = {"round": f"{len(self.rounds)}"}
        flags = ["--label", f"round={label['round']}"]
        if fault == "disk":
            flags += ["--on", self._victim.name]
        # A task whose own disk is full leaves no output half written.
        wait = (
            f"set -e; touch {notes}/on-$OCTASKLY_NODE {notes}/item{{#}};"
            f" until test -e {notes}/gate -o -e {notes}/gate{{#}}; do sleep 0.05; done"
        )
        if command == "map":
            sent = {
                f"src/{number}": contents[f"src/{number}"] for number in range(ITEMS)
            }
            expected = {f"{item}.out": data * 2 for item, data in sent.items()}
            work = f"{wait}; cat {{}} {{}} >made; mv made {{}}.out"
            paths = ["--in", "{}", "--out", "{}.out"]
            words = ["map", *flags, *paths, work, ":::", *sent]
        else:
            sent = contents
            whole = b"".join(contents[path] for path in sorted(contents))
            expected = {"out/all": whole, "out/big": contents["src/big"]}
            work = (
                f"{wait}; mkdir made; cp src/big made;"
                " find src -type f | LC_ALL=C sort | xargs cat >made/all; mv made out"
            )
            words = [command, *flags, "--in", "src", "--out", "out/", "--", work]
        return Round(
            seed=seed,
            fault=fault,
            command=command,
            is_late=fault in LATE_FAULTS and draw.random() < 0.4,
            client=draw.choice(others),
            folder=folder,
            notes=notes,
            sent=sent,
            expected=expected,
            label=label,
            words=words,
        )

    def _start(self, one: Round, draw: random.Random) -> "subprocess.Popen[bytes]":
        program = ["octaskly"]
        if one.fault == "submitter":
            total = sum(map(len, one.sent.values()))
            program = ["tests.mesh.dying_client", f"{draw.randint(1, total)}"]
        with (one.notes / "stdout").open("wb") as stdout:
            process = subprocess.Popen(
                [*one.client.prefix, *_cli(one.client, *program), *one.words],
                cwd=one.folder,
                env=one.client.environ(one.client.name) | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
            )
        self._lab.processes.append(process)
        return process

    def _octaskly(self, one: Round, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [*one.client.prefix, *_cli(one.client), *words],
            cwd=one.folder,
            env=one.client.environ(one.client.name) | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        return done.returncode, done.stderr

    def _end(self, one: Round, process: "subprocess.Popen[bytes]") -> None:
        """Wait for the end of the command, and fetch what `submit` has made."""
        _, said = process.communicate(timeout=COMMAND_S)
        one.code, one.said = process.returncode, said.decode()
        if one.command == "submit" and one.code == 0:
            one.code, one.said = self._octaskly(one, "wait", one.printed)
            if one.code == 0:
                one.code, one.said = self._octaskly(one, "fetch", one.printed)

    # --- the fault -------------------------------------------------------------------

    @contextlib.contextmanager
    def _tasks_elsewhere(self, one: Round) -> Iterator[None]:
        """Let the worker that is killed be another host than that of the command."""
        if one.fault != "worker":
            yield
            return
        path = f"/api/v1/nodes/{one.client.name}"
        assert one.client.http("POST", f"{path}/drain").status == 200
        yield
        wait_until(
            "tasks may start there again",
            lambda: one.client.http("POST", f"{path}/resume").status == 200,
            within_s=FORM_S,
        )

    @contextlib.contextmanager
    def _fault(
        self, one: Round, process: "subprocess.Popen[bytes]", draw: random.Random
    ) -> Iterator[None]:
        """Cause the fault of a round at its moment; undo it.

        The block, which waits for the end of the command, runs after that, but in a
        full folder of the user.
        """
        wait_until("it connects", lambda: _is_connected(process), within_s=COMMAND_S)
        if one.fault == "submitter":
            # It kills itself.
            assert process.wait(COMMAND_S) == -signal.SIGKILL, one
            one.open_gate()
            yield
            return
        is_stopped = one.is_late and self._await_outputs(one, process)
        if not one.is_late:
            self._await_moment(one, process, draw)
        is_under_way = process.poll() in (
            (None, 0) if one.command == "submit" else (None,)
        )
        assert is_under_way, f"{one}: it had ended"
        undo = self._cause(one, draw)
        one.open_gate()
        if is_stopped:
            process.send_signal(signal.SIGCONT)
        if one.fault != "home":
            time.sleep(OUTAGE_S)
            undo()
        yield
        if one.fault == "home":
            undo()

    def _await_moment(
        self, one: Round, process: "subprocess.Popen[bytes]", draw: random.Random
    ) -> None:
        """Wait until there is what the fault takes away, then for a moment."""
        delay_s = draw.uniform(0.0, SOON_S_MAX)
        match one.fault:
            case "worker":
                wait_until("a task runs", one.hosts_with_tasks, within_s=COMMAND_S)
            case "holder":
                names = {sha256(data).hexdigest() for data in one.sent.values()}
                store = one.client.first.state / "files"
                wait_until(
                    "files are sent",
                    lambda: any(place.name in names for place in store.iterdir()),
                    within_s=COMMAND_S,
                    every_s=0.01,
                )
            case _:
                delay_s = draw.uniform(0.0, MOMENT_S_MAX)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay_s)

    def _await_outputs(self, one: Round, process: "subprocess.Popen[bytes]") -> bool:
        """Wait until a task has ended whose outputs are not all here.

        Returns:
            True if the command is stopped, so that it does not fetch them yet.
        """
        wait_until("a task runs", one.hosts_with_tasks, within_s=COMMAND_S)
        if one.command == "map":
            # Not that of the first item: it may wait for a slot that another one has.
            number = min(one.notes.glob("item*")).name.removeprefix("item")
            one.open_gate(number)
            wait_until(
                "its output is here",
                (one.folder / list(one.expected)[int(number) - 1]).exists,
                within_s=COMMAND_S,
                every_s=0.01,
            )
            return False
        if one.command == "run":
            process.send_signal(signal.SIGSTOP)
        one.open_gate()
        wait_until(
            "it has ended",
            lambda: [t for t in self._tasks(one) if t["status"] in ENDED],
            within_s=COMMAND_S,
        )
        return one.command == "run"

    def _cause(self, one: Round, draw: random.Random) -> Callable[[], None]:
        """Cause the fault of a round; return what undoes it."""
        match one.fault:
            case "disk" | "home":
                is_home = one.fault == "home"
                full = self._home if is_home else self._victim.first.state
                ballast = fill(full, left_bytes=draw.choice(LEFT_BYTES))
                return ballast.unlink
            case "dispatcher":
                victim = self._dispatcher()
            case "holder":
                victim = one.client  # Its agent got the files.
            case _:
                names = one.hosts_with_tasks() - {one.client.name}
                victim = draw.choice([h for h in self._lab.hosts if h.name in names])
        victim.first.signal(signal.SIGKILL)
        victim.first.wait()
        return lambda: self._restart(victim)

    def _restart(self, host: Host) -> None:
        secret = self._lab.folder / SECRET
        host.agent("", "--slots", "2", secret=secret, is_awaited=False)

    def _dispatcher(self) -> Host:
        def look() -> Host | None:
            name = dispatcher_of(self._lab.hosts[0])
            return next((host for host in self._lab.hosts if host.name == name), None)

        found = wait_until("a dispatcher", look, within_s=FORM_S)
        assert found is not None
        return found

    # --- checks ----------------------------------------------------------------------

    def _check(self, one: Round) -> None:
        found = {
            path: (one.folder / path).read_bytes()
            for path in one.expected
            if (one.folder / path).exists()
        }
        wrong = [path for path, data in found.items() if data != one.expected[path]]
        assert not wrong, f"{one}: wrong or partial {wrong}\n{one.said}"
        left = [
            str(path.relative_to(one.folder))
            for path in one.folder.rglob("*octaskly-*")
        ]
        if one.code == 0:
            lacks = one.expected.keys() - found.keys()
            assert not lacks, f"{one}: nothing said about missing {lacks}\n{one.said}"
            assert not left, f"{one}: left {left}"
        elif one.fault != "submitter":
            said = one.said.lower()
            is_said = any(word in said for word in ("error:", "failed", "no output"))
            # The exit code is that of the task, which could not write to its disk.
            own = [task["exit_code"] for task in self._tasks(one)]
            assert is_said or own == [one.code], f"{one}: no error\n{one.said}"

    def _fetch_afterwards(self, one: Round) -> None:
        """Fetch the outputs of tasks that succeeded, but whose command did not.

        A full folder of the user has room again, and a killed agent has restarted.
        """
        if one.fault == "home":
            assert one.code != 0, f"{one}: the disk had room"
            assert "the disk of this machine has no space for" in one.said, f"{one}"
        self._check(one)
        for task in self._tasks(one):
            if task["status"] == "completed":
                code, said = self._octaskly(one, "fetch", task["id"])
                assert code == 0, f"{one}: {said}"
                self._check(replace(one, code=code, said=said))

    def _check_abandoned(self, one: Round) -> None:
        """Check the tasks of a command that was killed while it sent their files.

        `submit` had accepted nothing. What was lent is awaited, which is said, unless a
        task got all of its files.
        """
        tasks = self._tasks(one)
        if one.command == "submit":
            assert (one.printed, tasks) == ("", []), one
        for task in tasks:
            members = self._members(one, task) if task["array"] else [task]
            for member in members:
                wait_until(
                    "it has ended, or says that its files were not sent",
                    partial(self._is_explained, one, member),
                    within_s=FORM_S,
                )
            ended = [t for t in members if self._status(one, t) == "completed"]
            for member in ended[:1]:
                code, said = self._octaskly(one, "fetch", member["id"])
                assert code == 0, f"{one}: {said}"
        self._check(one)

    def _members(self, one: Round, array: Task) -> list[Task]:
        """Return the members of an array that have started."""
        path = f"/api/v1/tasks?array={array['id']}&limit=100"
        members = one.client.http("GET", path).json["tasks"]
        return [member for member in members if member["worker_id"]]

    def _status(self, one: Round, task: Task) -> str:
        return str(one.client.http("GET", f"/api/v1/tasks/{task['id']}").json["status"])

    def _is_explained(self, one: Round, task: Task) -> bool:
        if self._status(one, task) in ENDED:
            return True
        path = f"/api/v1/tasks/{task['id']}/explain"
        inputs = one.client.http("GET", path).json["inputs"] or {}
        return GONE in (inputs.get("awaited") or "")

    def _end_rest(self, one: Round) -> None:
        """Cancel what a killed command has left, and free its room."""
        for task in self._tasks(one):
            if task["status"] not in ENDED:
                path = f"/api/v1/tasks/{task['id']}?force=true"
                one.client.http("DELETE", path)
        for place in sorted(one.folder.rglob("*"), reverse=True):
            place.rmdir() if place.is_dir() else place.unlink()

    def _tasks(self, one: Round) -> list[Task]:
        """Return the task or the array of a round, if it was accepted."""

        def ask() -> dict[str, Any] | None:
            answer = one.client.http("GET", "/api/v1/tasks?limit=1000&newest=true")
            return dict(answer.json) if answer.status == 200 else None

        page = wait_until("a dispatcher", ask, within_s=FORM_S)
        assert page is not None
        return [task for task in page["tasks"] if task["labels"] == one.label]


def _cli(host: Host, *program: str) -> list[str]:
    words = program or ("octaskly",)
    return [sys.executable, "-m", *words, "--state-dir", str(host.first.state)]


def _is_connected(process: "subprocess.Popen[bytes]") -> bool:
    """Return True if a command has a socket, or has ended."""
    if process.poll() is not None:
        return True
    try:
        links = [link.readlink() for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    except OSError:  # A descriptor was closed in the meantime.
        return False
    return any(str(link).startswith("socket:") for link in links)


def seeds_of(first: int, count: int) -> Iterator[tuple[int, str]]:
    """Yield seeds with the fault of each; every fault comes equally often."""
    for seed in range(first, first + count):
        yield seed, FAULTS[seed % len(FAULTS)]
