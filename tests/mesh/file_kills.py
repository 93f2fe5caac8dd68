"""Rounds of commands with files, each with one kill at a moment drawn from a seed.

A round starts `run`, `map` or `submit` with `--in` and `--out` on a host whose agent is
not the dispatcher, causes a fault while it is under way, and undoes it. The command
must end with the right outputs or with an error that says so. No wrong or partial file
may ever have the name of an output.
"""

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.mesh.faults import fill, small_disk
from tests.mesh.forming import FORM_S, dispatcher_of, form, is_formed
from tests.mesh.lab import ROOT, Host, Lab
from tests.mesh.netns import wait_until

HOSTS = 4
DISK_MB = 400  #: of the host that may run out of room; 256 are left for the log
HOME_MB = 40  #: of the folder that outputs come home to
MOMENT_S_MAX = 2.0  #: after the command has connected to its agent
OUTAGE_S = 1.5
COMMAND_S = 240.0  #: longest time until a command ends
ITEMS = 8
FILES = 30
FILE_BYTES_MAX = (20_000, 400_000)  #: those of all items are sent at once, or lent
BIG_BYTES = 3 << 20  #: more than a pack holds, so a tree with it is lent
SECRET = "mesh.key"

ABANDONED_S = 30.0  #: until the tasks of a killed command have ended, usually
ENDED = ("completed", "failed", "cancelled")

COMMANDS = ("run", "map", "submit")
FAULTS = ("worker", "dispatcher", "submitter", "holder", "disk", "home")


@dataclass
class Round:
    """One command, and what happened."""

    seed: int
    fault: str
    command: str
    moment_s: float
    client: Host
    folder: Path
    expected: Mapping[str, bytes]  #: outputs, by path
    words: Sequence[str]
    code: int = 0
    said: str = ""
    started_s: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        """Return what repeats the round, and how it ended."""
        took_s = time.monotonic() - self.started_s
        return (
            f"seed {self.seed}: {self.fault} at {self.moment_s:.2f} s of {self.command}"
            f" on {self.client.name}: exit {self.code} after {took_s:.1f} s"
        )


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
        name = command or draw.choice(COMMANDS)
        one = self._prepare(draw, seed, fault, name)
        self.rounds.append(one)
        process = self._start(one)
        try:
            wait_until("it connects", lambda: _is_connected(process), within_s=FORM_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(one.moment_s)
            undo = self._cause(one, process, draw)
            time.sleep(OUTAGE_S)
            undo()
            _, said = process.communicate(timeout=COMMAND_S)
            one.code, one.said = process.returncode, said.decode()
        finally:
            process.kill()
        print(one, flush=True)
        wait_until("one mesh", lambda: is_formed(self._lab.hosts), within_s=FORM_S)
        if name == "submit" and one.code == 0:
            self._fetch_submitted(one)
        if fault == "submitter":
            self._check_abandoned(one)
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
        (folder / "src").mkdir(parents=True)
        bytes_max = draw.choice(FILE_BYTES_MAX)
        contents = {
            f"src/{number}": draw.randbytes(draw.randint(0, bytes_max))
            for number in range(FILES)
        }
        contents["src/big"] = draw.randbytes(BIG_BYTES)
        for path, data in contents.items():
            (folder / path).write_bytes(data)
        label = ("--label", f"round={len(self.rounds)}")
        if command == "map":
            items = [f"src/{number}" for number in range(ITEMS)]
            expected = {f"{item}.out": contents[item] * 2 for item in items}
            work = "sleep 0.4; cat {} {} >{}.out"
            words = [
                "map",
                *label,
                "--in",
                "{}",
                "--out",
                "{}.out",
                work,
                ":::",
                *items,
            ]
        else:
            whole = b"".join(contents[path] for path in sorted(contents))
            expected = {"out/all": whole, "out/big": contents["src/big"]}
            work = (
                "mkdir out; cp src/big out; sleep 0.7;"
                " find src -type f | LC_ALL=C sort | xargs cat >out/all"
            )
            words = [command, *label, "--in", "src", "--out", "out/", "--", work]
        return Round(
            seed=seed,
            fault=fault,
            command=command,
            moment_s=draw.uniform(0.0, MOMENT_S_MAX),
            client=draw.choice(others),
            folder=folder,
            expected=expected,
            words=words,
        )

    def _start(self, one: Round) -> "subprocess.Popen[bytes]":
        with (one.folder / "stdout").open("wb") as stdout:
            process = subprocess.Popen(
                [*one.client.prefix, *self._cli(one.client), *one.words],
                cwd=one.folder,
                env=one.client.environ(one.client.name) | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
            )
        self._lab.processes.append(process)
        return process

    def _cli(self, host: Host) -> list[str]:
        state = str(host.first.state)
        return [sys.executable, "-m", "octaskly", "--state-dir", state]

    def _octaskly(self, one: Round, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [*one.client.prefix, *self._cli(one.client), *words],
            cwd=one.folder,
            env=one.client.environ(one.client.name) | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        return done.returncode, done.stderr

    def _fetch_submitted(self, one: Round) -> None:
        """Wait for the end of a submitted task, then fetch its outputs."""
        ref = (one.folder / "stdout").read_text().strip()
        assert ref, one
        one.code, one.said = self._octaskly(one, "wait", ref)
        if one.code == 0:
            one.code, one.said = self._octaskly(one, "fetch", ref)

    # --- the fault -------------------------------------------------------------------

    def _cause(
        self, one: Round, process: "subprocess.Popen[bytes]", draw: random.Random
    ) -> Callable[[], None]:
        """Cause the fault of a round; return what undoes it."""
        match one.fault:
            case "submitter":
                process.send_signal(signal.SIGKILL)
                return lambda: None
            case "disk" | "home":
                is_home = one.fault == "home"
                full = self._home if is_home else self._victim.first.state
                ballast = fill(full, left_bytes=draw.choice((0, 200_000)))
                return ballast.unlink
            case "dispatcher":
                victim = self._dispatcher()
            case "holder":
                victim = one.client  # Its agent got the files.
            case _:
                victim = self._worker(one, draw)
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

    def _worker(self, one: Round, draw: random.Random) -> Host:
        """Return a host that runs a task now, else any; not that of the client."""
        busy = {task["worker_id"] for task in self._tasks(one, "running")}
        hosts = [host for host in self._lab.hosts if host is not one.client]
        return draw.choice([host for host in hosts if host.name in busy] or hosts)

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
            assert is_said, f"{one}: no error\n{one.said}"

    def _check_abandoned(self, one: Round) -> None:
        """Check the tasks of a command that was killed: no task has wrong outputs.

        What `submit` has accepted is safe.
        """
        label = {"round": str(self.rounds.index(one))}

        def ended() -> list[dict[str, Any]] | None:
            answer = one.client.http("GET", "/api/v1/tasks?limit=1000&newest=true")
            found = [t for t in answer.json["tasks"] if t["labels"] == label]
            is_over = all(t["status"] in ENDED for t in found)
            return found or [{}] if is_over else None

        with contextlib.suppress(AssertionError):  # It may wait for its files.
            wait_until("its tasks have ended", ended, within_s=ABANDONED_S)
        for task in (ended() or [])[:1]:
            if task.get("status") == "completed":
                code, said = self._octaskly(one, "fetch", task["id"])
                assert code == 0, f"{one}: {said}"
            is_accepted = (one.folder / "stdout").read_text().strip() != ""
            if one.command == "submit" and is_accepted:
                assert task.get("status") == "completed", f"{one}: {task}"

    def _end_rest(self, one: Round) -> None:
        """Cancel what a killed command has left, and free its room."""
        for status in ("queued", "running"):
            for task in self._tasks(one, status):
                path = f"/api/v1/tasks/{task['id']}?force=true"
                one.client.http("DELETE", path)
        for place in sorted(one.folder.rglob("*"), reverse=True):
            place.rmdir() if place.is_dir() else place.unlink()

    def _tasks(self, one: Round, status: str) -> list[dict[str, Any]]:
        answer = one.client.http("GET", f"/api/v1/tasks?status={status}&limit=100")
        return list(answer.json["tasks"]) if answer.status == 200 else []


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
