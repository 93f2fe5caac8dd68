"""A real pool under test: starts commands, waits for their ends, reads /proc."""

from __future__ import annotations

import asyncio
import itertools
import random
import resource
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from octaskly.config.task_account import Account
from octaskly.core.model.ids import AttemptId, Moment, StreamId, TaskId
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.core.protocol.messages import Report
from octaskly.ports.store import Clock
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.blobs.lenders import Lenders
from octaskly.runner.interpreters import call_variables
from octaskly.runner.output.output_archive import OutputArchive
from octaskly.runner.pool.pool import Pool
from octaskly.runner.processes.proc_tree import children_of
from tests.support.agents import WAIT_S_MAX

#: Random, so that no other run of these tests on this machine ends our processes.
STREAM = StreamId(random.SystemRandom().getrandbits(62) + 1)

_tokens = itertools.count(1)


def call_settings(search_path: str) -> tuple[str, ...]:
    """Return the settings for calls in each task's environment, as `env` shows them."""
    return tuple(f"{name}={path}" for name, path in call_variables(search_path).items())


class MachineClock:
    """The clocks of this machine."""

    def now(self) -> Moment:
        """Return both clocks."""
        return Moment(time.monotonic(), int(time.time() * 1000))

    def draw(self) -> float:
        """Return always the same number."""
        return 0.5


def token() -> str:
    """Return a number of seconds to sleep that no other process has as an argument."""
    return f"3{time.time_ns() % 10_000_000:07}{next(_tokens):03}"


def processes_with(word: str) -> dict[int, str]:
    """Return the living processes with this word in their command line.

    A process that has been killed counts as dead: it runs no instruction of its own any
    more, but on a busy machine it is listed until the kernel has ended it.
    """
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            status = (folder / "status").read_text()
        except OSError:
            continue
        text = b" ".join(words).decode(errors="replace")
        if word in text and not _is_dead(status):
            found[int(folder.name)] = text
    return found


def _is_dead(status: str) -> bool:
    """Return True if a process is a zombie, or SIGKILL is pending: see proc(5)."""
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    is_killed = bool(pending >> (signal.SIGKILL - 1) & 1)
    return is_killed or fields["State"].startswith("Z")


def launchers_of(pid: int) -> list[int]:
    """Return the children of a process that run tasks; others may come and go."""
    found = []
    for child in children_of(pid):
        with suppress(OSError):  # It has ended.
            if b"launcher.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


async def eventually(
    condition: Callable[[], object], within_s: float = WAIT_S_MAX
) -> None:
    """Return once the condition holds; fail if it does not in time."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        await asyncio.sleep(0.002)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let no file be opened within a block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def archive_in(
    folder: Path,
    *,
    bytes_max: int = 8 << 20,
    quota_bytes: int = 1 << 30,
    retention_s: float = 86_400.0,
    clock: Clock | None = None,
) -> OutputArchive:
    """Return an archive below a folder."""
    return OutputArchive(
        folder / "transcripts",
        outputs_dir=folder / "outputs",
        bytes_max=bytes_max,
        quota_bytes=quota_bytes,
        retention_s=retention_s,
        clock=clock or MachineClock(),
    )


def supply_in(
    folder: Path, tls: Callable[[], ssl.SSLContext] = ssl.create_default_context
) -> BlobFetcher:
    """Return a fetcher of files below a folder that knows no other node."""
    blob_store = BlobStore(folder / "files", clock=MachineClock())
    return BlobFetcher(
        blob_store,
        tls,
        lambda *_: (),
        (),
        Lenders(blob_store, MachineClock()),
    )


def stranger(uid: int = 64321) -> Account:
    """Return a user who owns no file of this machine."""
    return Account(name="stranger", uid=uid, gid=uid, home="/", login_shell="/bin/sh")


class Rig:
    """A pool and its reports."""

    def __init__(self, pool: Pool, reports: list[Report], workdir: Path) -> None:
        self.pool = pool
        self.reports = reports
        self.calls = 0
        self.workdir = workdir
        self._ids = itertools.count(1)

    def item(self, command: str, **fields: Any) -> tuple[AttemptId, TaskSpec]:
        """Return an attempt of a new task."""
        task = TaskId(f"task-{next(self._ids):03}-rig")
        spec = TaskSpec(id=task, command=command, **fields)
        return AttemptId(3, STREAM, 1, 1), spec

    def start(self, command: str, **fields: Any) -> tuple[TaskId, AttemptId]:
        """Start a command; return its name."""
        attempt, spec = self.item(command, **fields)
        self.pool.start_attempts([(attempt, spec)])
        return spec.id, attempt

    def outcome(self, task: TaskId) -> Outcome | None:
        """Return a task's outcome, None before its end."""
        ends = [report.outcome for report in self.reports if report.task == task]
        assert len(ends) <= 1, "an attempt is reported once"
        return ends[0] if ends else None

    async def end_of(self, task: TaskId, within_s: float = WAIT_S_MAX) -> Outcome:
        """Wait for the end of a task."""
        await eventually(lambda: self.outcome(task), within_s)
        outcome = self.outcome(task)
        assert outcome is not None
        return outcome

    async def run(self, command: str, **fields: Any) -> Outcome:
        """Run a command to its end."""
        task, _ = self.start(command, **fields)
        return await self.end_of(task)

    async def run_all(self, commands: Sequence[str]) -> list[Outcome]:
        """Run commands to their ends, all submitted at once."""
        items = [self.item(command) for command in commands]
        self.pool.start_attempts(items)
        return [await self.ended(spec) for _, spec in items]

    async def ended(self, spec: TaskSpec) -> Outcome:
        """Wait for the end of one of many attempts; one that is given back runs again.

        A waiting attempt also runs again if nothing has ended for a moment, as a
        dispatcher would do.
        """
        outcome = await self.end_of(spec.id)
        while outcome.reason is EndReason.RETURNED:
            outcome = await self.run(spec.command, options=spec.options)
        return outcome


@asynccontextmanager
async def rig(folder: Path, **options: Any) -> AsyncIterator[Rig]:
    """Open a pool with two slots in one launcher, by default."""
    workdir = folder / "work"
    workdir.mkdir(exist_ok=True)
    reports: list[Report] = []

    def on_ended(ended: tuple[Report, ...]) -> None:
        assert ended
        made.calls += 1
        reports.extend(ended)

    settings: dict[str, Any] = {
        "slots": 2,
        "launchers": 1,
        "workdir": workdir,
        "scratch_dir": folder / "scratch",
        "archive": archive_in(folder),
        "blob_fetcher": supply_in(folder),
        "node_name": "rig",
        "clock": MachineClock(),
        "on_ended": on_ended,
        "kill_grace_s": 0.3,
    }
    pool = Pool(**settings | options)
    made = Rig(pool, reports, workdir)
    try:
        yield made
    finally:
        await pool.close()


def outcome_summary(
    outcome: Outcome,
) -> tuple[AttemptState, EndReason, int | None, int | None]:
    """Return state, reason, exit code and signal."""
    return outcome.state, outcome.reason, outcome.exit_code, outcome.signal
