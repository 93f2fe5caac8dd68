"""The pool and its launchers with real processes."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from octaskly.config.task_account import DEFAULT_INHERITED
from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.model.task_options import BlobRef, Requirements, Retry, TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason, OutputFile
from octaskly.runner.files.capture import OutputReader
from octaskly.runner.launch_protocol import encode_settings, pack_frame
from octaskly.runner.launcher import launcher
from octaskly.runner.launcher.attempt_process import PipeReader
from octaskly.runner.output.captured_contents import CapturedContents
from octaskly.runner.pool import launchers
from octaskly.runner.pool.launcher_process import task_environment
from octaskly.runner.pool.report_queue import COALESCE_S
from octaskly.runner.python_command import import_folders, python_argv
from tests.support.pooling import (
    STREAM,
    Rig,
    call_settings,
    eventually,
    launchers_of,
    outcome_summary,
    processes_with,
    rig,
    supply_in,
    token,
)

OK = (AttemptState.OK, EndReason.EXIT, 0, None)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("true", OK),
        ("/bin/true", OK),
        ("exit 7", (AttemptState.FAILED, EndReason.EXIT, 7, None)),
        ("kill -9 $$", (AttemptState.FAILED, EndReason.SIGNAL, 137, 9)),
        ("kill -TERM $$", (AttemptState.FAILED, EndReason.SIGNAL, 143, 15)),
        ("no-such-program a", (AttemptState.FAILED, EndReason.EXIT, 127, None)),
        ("/etc/passwd", (AttemptState.FAILED, EndReason.EXIT, 126, None)),
        ("/tmp", (AttemptState.FAILED, EndReason.EXIT, 126, None)),
        ("-c", (AttemptState.FAILED, EndReason.EXIT, 127, None)),
        ("if", (AttemptState.FAILED, EndReason.EXIT, 2, None)),
        ("a\0b", (AttemptState.FAILED, EndReason.EXIT, 126, None)),
        (": " + "x" * 200_000, (AttemptState.FAILED, EndReason.EXIT, 126, None)),
        ("echo \ud800 \N{GREEK SMALL LETTER ALPHA}", OK),
    ],
)
async def test_an_end_is_reported_as_it_happened(
    tmp_path: Path,
    command: str,
    expected: tuple[AttemptState, EndReason, int | None, int | None],
) -> None:
    """State, reason, exit code and signal follow from the process alone."""
    async with rig(tmp_path) as made:
        assert outcome_summary(await made.run(command)) == expected


async def test_a_command_that_could_not_be_executed_has_the_reason(
    tmp_path: Path,
) -> None:
    """An argument above the kernel's limit is the task's own failure."""
    async with rig(tmp_path) as made:
        outcome = await made.run(": " + "x" * 200_000)

        assert "Argument list too long" in outcome.detail


async def test_a_missing_work_directory_fails_the_task(tmp_path: Path) -> None:
    """No other node is tried: the answer names the folder and the node."""
    async with rig(tmp_path, workdir=tmp_path / "gone") as made:
        outcome = await made.run("true")

        assert outcome_summary(outcome) == (
            AttemptState.FAILED,
            EndReason.EXIT,
            126,
            None,
        )
        assert outcome.detail == (
            f"working directory {tmp_path / 'gone'} does not exist on rig"
        )


async def test_a_work_directory_with_any_name_can_be_reported(tmp_path: Path) -> None:
    """A name that is not UTF-8 stops neither launcher nor log: it is escaped."""
    folder = tmp_path / os.fsdecode(b"w\xff")
    async with rig(tmp_path, workdir=folder) as made:
        gone = await made.run("true")
        folder.mkdir()

        assert "w\\udcff does not exist" in gone.detail
        assert gone.detail.isascii()
        assert outcome_summary(await made.run("true")) == OK


async def test_inputs_that_cannot_be_checked_are_not_missing(tmp_path: Path) -> None:
    """Without a free descriptor the attempt is returned, and the slot is free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with rig(tmp_path) as made:
        (made.workdir / "a").touch()
        assert outcome_summary(await made.run("true")) == OK
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            outcome = await made.run("true", inputs=("a",))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        assert (outcome.state, outcome.reason, outcome.detail) == (
            AttemptState.RELEASED,
            EndReason.ROOM,
            "resources to check its inputs on rig (Too many open files)",
        )
        assert outcome_summary(await made.run("true", inputs=("a",))) == OK


async def test_an_attempt_that_a_node_cannot_start_now_is_not_lost(
    tmp_path: Path,
) -> None:
    """It never ran. The first is returned at once, others are tried again here."""
    async with rig(tmp_path, slots=4) as made:
        assert outcome_summary(await made.run("true")) == OK
        (pid,) = launchers_of(os.getpid())
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
        first = await made.run("true")
        others = [made.start("true")[0] for _ in range(3)]
        await asyncio.sleep(0.2)
        assert [made.outcome(task) for task in others] == [None] * 3
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

        assert (first.state, first.reason, first.detail) == (
            AttemptState.RELEASED,
            EndReason.ROOM,
            "resources to start it on rig (Too many open files)",
        )
        for task in others:
            assert outcome_summary(await made.end_of(task)) == OK


async def test_slots_may_need_more_descriptors_than_tasks_may_open(
    tmp_path: Path,
) -> None:
    """The launcher raises its limit; its tasks have the one of the agent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with rig(tmp_path, slots=100) as made:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        try:
            first = await made.run("sleep 0.5; ulimit -n")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        word = token()
        names = [made.start(f"sleep {word}") for _ in range(100)]
        await eventually(lambda: len(processes_with(word)) == 100)
        made.pool.stop_attempts(names)

    assert first.stdout == b"128\n"


async def test_a_launcher_without_descriptors_loses_no_task(tmp_path: Path) -> None:
    """Orders whose stdin does not fit are returned; none gets that of another."""
    blob_store = supply_in(tmp_path).blob_store
    inputs = {sha256(data).hexdigest(): data for data in map(b"%d".__mod__, range(60))}
    for name, data in inputs.items():
        blob_store.store_blob(name, data)
    async with rig(tmp_path, slots=1) as made:
        await _run_short_tasks(made)
        (pid,) = launchers_of(os.getpid())
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 12, hard))
        expected = {}
        for name, data in inputs.items():
            options = TaskOptions(stdin_file=BlobRef(sha256=name, node="desk"))
            expected[made.start("cat", options=options)[0]] = data
        ends = {task: await made.end_of(task) for task in expected}
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

        ran = {task: end.stdout for task, end in ends.items() if end.exit_code == 0}
        assert ran == {task: expected[task] for task in ran}
        released = {end.reason for end in ends.values() if end.exit_code is None}
        assert released <= {EndReason.ROOM, EndReason.RETURNED}
        assert launchers_of(os.getpid()) == [pid]


async def test_the_detail_of_an_end_is_bounded(tmp_path: Path) -> None:
    """Ten thousand missing inputs make no message of megabytes."""
    inputs = tuple(f"{n}/{'x' * 250}" for n in range(200))
    async with rig(tmp_path) as made:
        outcome = await made.run("true", inputs=inputs)

        assert outcome.reason is EndReason.INPUTS
        assert outcome.detail.startswith("inputs 0/xxx")
        assert len(outcome.detail) == 4096


async def test_a_work_directory_may_be_created_again(tmp_path: Path) -> None:
    """Each task enters it anew."""
    async with rig(tmp_path) as made:
        assert (await made.run("pwd")).state == AttemptState.OK
        made.workdir.rmdir()
        assert (await made.run("pwd")).state == AttemptState.FAILED
        made.workdir.mkdir()
        outcome = await made.run("pwd")

        assert outcome.stdout.decode() == f"{made.workdir}\n"


async def test_times_are_those_of_the_process(tmp_path: Path) -> None:
    """The duration is monotonic; both timestamps are wall clock."""
    async with rig(tmp_path) as made:
        before_ms = int(time.time() * 1000)
        outcome = await made.run("sleep 0.2")
        after_ms = int(time.time() * 1000)

        assert outcome.started_ms is not None
        assert outcome.ended_ms is not None
        assert before_ms <= outcome.started_ms <= outcome.ended_ms <= after_ms
        assert outcome.duration_ms is not None
        assert 200 <= outcome.duration_ms <= after_ms - before_ms + 1


async def test_output_is_kept_byte_for_byte(tmp_path: Path) -> None:
    """Neither decoding nor line ends change it (B31)."""
    data = bytes(range(256)) * 8
    async with rig(tmp_path) as made:
        (made.workdir / "data").write_bytes(data)

        assert (await made.run("cat data")).stdout == data
        assert (await made.run("cat data >&2")).stderr == data


async def test_output_beyond_the_bound_is_counted(tmp_path: Path) -> None:
    """The first bytes are kept; a full pipe never blocks the task."""
    async with rig(tmp_path, output_bytes_max=1000) as made:
        outcome = await made.run("head -c 3000001 /dev/zero; printf abc >&2")

        assert outcome.state == AttemptState.OK
        assert (outcome.stdout, outcome.stdout_bytes) == (bytes(1000), 3_000_001)
        assert (outcome.stderr, outcome.stderr_bytes) == (b"abc", 3)


@pytest.mark.slow
async def test_a_flood_on_stderr_is_read(tmp_path: Path) -> None:
    """100 MB on one stream while the other is idle do not block."""
    async with rig(tmp_path) as made:
        outcome = await made.run("head -c 100000000 /dev/zero >&2; echo done")

        assert outcome.stdout == b"done\n"
        assert len(outcome.stderr) == 1 << 20
        assert outcome.stderr_bytes == 100_000_000


def test_a_closed_pipe_is_not_watched() -> None:
    """Even if a starting process has a copy of it for a moment."""
    reader, writer = os.pipe()
    copy = os.dup(reader)
    with select.epoll() as epoll:
        sink = PipeReader(reader, 10, 0)
        sink.register(epoll)
        os.close(writer)
        sink.close()

        assert epoll.poll(0) == []

    os.close(copy)


async def test_a_writer_to_a_closed_pipe_ends(tmp_path: Path) -> None:
    """SIGPIPE has its default again, which Python changes."""
    async with rig(tmp_path) as made:
        outcome = await made.run("yes | head -n 1", timeout_s=60)

        assert (outcome.state, outcome.stdout) == (AttemptState.OK, b"y\n")


async def test_a_task_has_three_descriptors(tmp_path: Path) -> None:
    """Nothing of the launcher leaks; with its socket a task could forge results."""
    async with rig(tmp_path) as made:
        await made.run("sleep 0.05")
        direct = await made.run("ls /proc/self/fd")
        shell = await made.run("ls /proc/self/fd; readlink /proc/self/fd/0")

        # The fourth is the folder that `ls` reads.
        assert direct.stdout.split() == [b"0", b"1", b"2", b"3"]
        assert shell.stdout.split() == [b"0", b"1", b"2", b"3", b"/dev/null"]


async def test_a_task_starts_with_default_signals(tmp_path: Path) -> None:
    """None is blocked or ignored."""
    async with rig(tmp_path) as made:
        outcome = await made.run("grep -E ^Sig(Blk|Ign) /proc/self/status")
        outcome = await made.run("grep -E '^Sig(Blk|Ign)' /proc/self/status")

        masks = [int(line.split()[1], 16) for line in outcome.stdout.splitlines()]
        assert masks == [0, 0]


async def test_the_environment_is_the_agent_s_without_its_secrets(
    tmp_path: Path,
) -> None:
    """And a task gets its own ids."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": "/home/x",
        "OCTASKLY_TOKEN": "secret",
        "NOTIFY_SOCKET": "/run/x",
        "WATCHDOG_USEC": "1",
        "LISTEN_FDS": "1",
        "CREDENTIALS_DIRECTORY": "/run/c",
    }
    async with rig(tmp_path, env=env) as made:
        direct = await made.run("env")
        shell = await made.run("env | cat")

        expected = {
            f"PATH={env['PATH']}",
            "HOME=/home/x",
            f"PWD={made.workdir}",
            "OCTASKLY_NODE=rig",
            "OCTASKLY_SLOT=0",
            "OCTASKLY_ATTEMPT=1",
            *call_settings(env["PATH"]),
        }
        for outcome, task in ((direct, "task-001-rig"), (shell, "task-002-rig")):
            assert set(outcome.stdout.decode().splitlines()) == expected | {
                f"OCTASKLY_TASK_ID={task}",
                f"OCTASKLY_MARK={task}.3-{STREAM}-1-1",
            }


def test_python_variables_of_the_agent_reach_tasks() -> None:
    """Only variables for the agent alone are removed."""
    assert task_environment({"PYTHONPATH": "/x", "OCTASKLY_X": "1"}) == {
        "PYTHONPATH": "/x"
    }


def test_tasks_do_not_see_the_agent_s_virtual_environment(tmp_path: Path) -> None:
    """Not even by a link: their `python3` and `pip` are those of the machine."""
    venv, link, other = tmp_path / "venv", tmp_path / "link", tmp_path / "other"
    (venv / "bin").mkdir(parents=True)
    link.symlink_to(venv)
    theirs = {"PATH": f"{other}/bin::/bin", "VIRTUAL_ENV": str(other)}

    for mine in (venv, link):
        activated = {
            "PATH": f"{mine}/bin:/bin:{mine}/bin/:{mine}",
            "VIRTUAL_ENV": str(mine),
            "VIRTUAL_ENV_PROMPT": "venv",
            "PYTHONHOME": "/usr",
            "HOME": "/home/me",
        }
        assert task_environment(activated, str(venv)) == {
            "PATH": f"/bin:{mine}",
            "HOME": "/home/me",
        }
        assert task_environment({"PATH": f"{mine}/bin"}, str(venv)) == {}
    assert task_environment(theirs, str(venv)) == theirs
    assert task_environment({"PATH": f"{venv}/bin"}, None) == {"PATH": f"{venv}/bin"}


async def test_python_of_a_task_is_not_the_agent_s(tmp_path: Path) -> None:
    """With the environment that runs these tests activated as for a shell."""
    ours = Path(sys.prefix) / "bin"
    env = {"PATH": f"{ours}:{os.environ['PATH']}", "VIRTUAL_ENV": sys.prefix}
    assert sys.prefix != sys.base_prefix
    assert (ours / "python3").exists()
    async with rig(tmp_path, env=env) as made:
        outcome = await made.run("command -v python3; echo ${VIRTUAL_ENV-none}")
        program, venv = outcome.stdout.decode().splitlines()

        assert Path(program).parent.resolve() != ours.resolve()
        assert venv == "none"
        called = await made.run('"$OCTASKLY_PYTHON" -c "import cloudpickle"')
        assert called.exit_code == 0, called.stderr


async def test_tasks_are_killed_before_their_agent_without_memory(
    tmp_path: Path,
) -> None:
    """The kernel kills the highest score first; a higher one is kept."""
    mine = Path("/proc/self/oom_score_adj")
    async with rig(tmp_path) as made:
        outcome = await made.run("cat /proc/self/oom_score_adj")
        assert outcome.stdout == b"500\n"
        assert int(mine.read_text()) < 500

    score = mine.read_text()
    mine.write_text("700")
    try:
        async with rig(tmp_path) as made:
            outcome = await made.run("cat /proc/self/oom_score_adj")
            assert outcome.stdout == b"700\n"
    finally:
        mine.write_text(score)


async def test_stdin_is_empty(tmp_path: Path) -> None:
    """A command that reads it ends at once."""
    async with rig(tmp_path) as made:
        assert (await made.run("cat")).state == AttemptState.OK


async def test_a_grandchild_with_stdout_does_not_delay_the_end(
    tmp_path: Path,
) -> None:
    """The exit of the main process is the end; the rest is killed (B30)."""
    word = token()
    async with rig(tmp_path) as made:
        outcome = await made.run(f"setsid sleep {word} & echo begun")

        assert outcome_summary(outcome) == OK
        assert outcome.stdout == b"begun\n"
        assert processes_with(word) == {}


async def test_a_grandchild_that_floods_does_not_delay_the_end(
    tmp_path: Path,
) -> None:
    """The remaining process writes into the pipe without end."""
    async with rig(tmp_path) as made:
        outcome = await made.run("setsid yes & sleep 0.1")

        assert outcome.state == AttemptState.OK


async def test_a_timeout_ends_with_124(tmp_path: Path) -> None:
    """Whatever the process did with the signal."""
    async with rig(tmp_path) as made:
        gentle = made.start(
            "trap 'echo bye; exit 0' TERM; sleep 60 & wait",
            timeout_s=3,
            options=TaskOptions(grace_s=60),
        )
        deaf = made.start("trap '' TERM; sleep 61; sleep 62", timeout_s=1)
        outcome = await made.end_of(gentle[0])
        other = await made.end_of(deaf[0])

        timeout = (AttemptState.FAILED, EndReason.TIMEOUT, 124, None)
        assert outcome_summary(outcome) == timeout
        assert outcome.stdout == b"bye\n"
        assert outcome_summary(other) == timeout
        assert other.duration_ms is not None
        assert 1300 <= other.duration_ms < 61_000


async def test_a_stopped_process_can_be_ended(tmp_path: Path) -> None:
    """SIGTERM alone would wait for SIGCONT."""
    command = f"kill -STOP $$; : {token()}"
    async with rig(tmp_path, kill_grace_s=600) as made:
        task, attempt = made.start(command)
        await eventually(lambda: _state_of_shells(command) == ["T"])
        made.pool.stop_attempts([(task, attempt)])

        outcome = await made.end_of(task)
        assert outcome_summary(outcome) == (
            AttemptState.CANCELLED,
            EndReason.CANCELLED,
            143,
            signal.SIGTERM,
        )


def _state_of_shells(word: str) -> list[str]:
    return [
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        for pid in processes_with(word)
    ]


async def test_stop_cancels_running_and_waiting_attempts(tmp_path: Path) -> None:
    """Also one that had no time to start."""
    async with rig(tmp_path, slots=1) as made:
        names = [made.start("sleep 60") for _ in range(3)]
        made.pool.stop_attempts([*names, names[0], (TaskId("unknown"), names[0][1])])
        ends = [await made.end_of(task) for task, _ in names]

        assert {end.state for end in ends} == {AttemptState.CANCELLED}
        assert {end.reason for end in ends} == {EndReason.CANCELLED}
        assert ends[2].started_ms is None


async def test_success_is_never_reported_after_a_stop(tmp_path: Path) -> None:
    """Even if the process exits with 0 because of SIGTERM."""
    async with rig(tmp_path, slots=1, kill_grace_s=60) as made:
        polite = made.start("trap 'exit 0' TERM; echo > ready; sleep 60 & wait")
        await eventually((made.workdir / "ready").exists)
        made.pool.stop_attempts([polite])
        outcome = await made.end_of(polite[0])

        cancelled = (AttemptState.CANCELLED, EndReason.CANCELLED, 0, None)
        assert outcome_summary(outcome) == cancelled


async def test_an_attempt_is_started_once(tmp_path: Path) -> None:
    """A repeated message does not run it twice."""
    async with rig(tmp_path) as made:
        item = made.item("echo x >> log; sleep 0.2")
        made.pool.start_attempts([item, item])
        made.pool.start_attempts([item])
        await made.end_of(item[1].id)

        assert (made.workdir / "log").read_text() == "x\n"


async def test_sixty_four_slots_in_one_launcher(tmp_path: Path) -> None:
    """They run concurrently: none ends before all have started."""
    async with rig(tmp_path, slots=64) as made:
        command = ": > $OCTASKLY_TASK_ID.on; while ! [ -e go ]; do sleep 0.2; done"
        names = [made.start(command) for _ in range(64)]
        await eventually(lambda: len(list(made.workdir.glob("*.on"))) == 64)
        (made.workdir / "go").touch()
        ends = [await made.end_of(task) for task, _ in names]

        assert {outcome_summary(end) for end in ends} == {OK}


async def test_no_more_than_the_slots_run_at_once(tmp_path: Path) -> None:
    """The tasks count themselves."""
    async with rig(tmp_path, slots=3, launchers=2) as made:
        command = "echo + >> log; sleep 0.02; echo - >> log"
        await made.run_all([command] * 30)

        running = most = 0
        for line in (made.workdir / "log").read_text().split():
            running += 1 if line == "+" else -1
            most = max(most, running)
        assert most <= 3


async def test_attempts_behind_long_ones_are_returned(tmp_path: Path) -> None:
    """Another node may have room; here they would wait for seconds."""
    async with rig(tmp_path, slots=2, launchers=2) as made:
        long = [made.start("sleep 600") for _ in range(2)]
        task, _ = made.start("echo short")
        outcome = await made.end_of(task)

        assert outcome.state == AttemptState.RELEASED
        assert outcome.reason == EndReason.RETURNED
        assert made.outcome(long[0][0]) is None


async def test_attempts_that_a_launcher_returns_keep_their_order(
    tmp_path: Path,
) -> None:
    """Otherwise the members of an array that follow short tasks start in reverse."""
    async with rig(tmp_path, slots=1) as made:
        await made.run_all(["true"] * 40)
        items = [made.item("sleep 600"), *(made.item("true") for _ in range(20))]
        made.reports.clear()
        made.pool.start_attempts(items)
        for _, spec in items[1:]:
            await made.end_of(spec.id)

        returned = [report.task for report in made.reports]
        assert returned == [spec.id for _, spec in items[1:]]


async def test_a_short_attempt_never_waits_behind_a_long_one(tmp_path: Path) -> None:
    """Waiting attempts of a launcher use any free slot."""
    async with rig(tmp_path, slots=2, launchers=2) as made:
        await made.run_all(["true"] * 40)
        items = [made.item("sleep 600"), *(made.item("true") for _ in range(20))]
        made.pool.start_attempts(items)
        for _, spec in items[1:]:
            assert outcome_summary(await made.ended(spec)) == OK

        assert made.outcome(items[0][1].id) is None


async def test_reports_are_batched_under_load(tmp_path: Path) -> None:
    """One call for several, but at once for the first, or when none waits."""
    async with rig(tmp_path, slots=2, launchers=2) as made:
        await made.run_all(["true"] * 20)
        made.calls = 0
        begin_s = time.monotonic()
        items = [made.item("true") for _ in range(200)]
        made.pool.start_attempts(items)
        for _, spec in items:
            await made.end_of(spec.id)

        assert made.calls < 50 + (time.monotonic() - begin_s) / COALESCE_S


async def test_missing_inputs_return_the_attempt(tmp_path: Path) -> None:
    """Nothing is started; the detail lists the missing ones."""
    async with rig(tmp_path) as made:
        (made.workdir / "there").touch()
        (made.workdir / "folder").mkdir()
        lacking = await made.run(
            "touch ran", inputs=("there", "nope", "folder", "../x")
        )
        having = await made.run("cat there", inputs=("there", "folder"))

        assert lacking.state == AttemptState.RELEASED
        assert lacking.reason == EndReason.INPUTS
        assert lacking.detail == "inputs nope, ../x"
        assert not (made.workdir / "ran").exists()
        assert having.state == AttemptState.OK


async def test_declared_outputs_are_captured(tmp_path: Path) -> None:
    """Also of a failed task; a missing one does not change its state."""
    async with rig(tmp_path) as made:
        task, attempt = made.start(
            "mkdir -p d; printf hello > d/out; mkfifo pipe; exit 3",
            outputs=("d/out", "pipe", "nope", "../etc/passwd", "d"),
        )
        outcome = await made.end_of(task)

        assert outcome.exit_code == 3
        assert outcome.outputs == (
            OutputFile("d/out", 5),
            OutputFile("pipe", None),
            OutputFile("nope", None),
            OutputFile("../etc/passwd", None),
            OutputFile("d", 5, 1),
        )
        reader = OutputReader(tmp_path / "outputs", CapturedContents())
        tree = reader.read_tree(task, attempt)
        file = tree.file_path("d/out")
        assert file is not None
        assert file.read_text() == "hello"


@pytest.mark.parametrize(
    ("reason", "retry", "is_kept"),
    [
        (EndReason.CANCELLED, None, True),
        (EndReason.DRAINING, None, False),
        (EndReason.DRAINING, Retry(on_lost=False), True),
    ],
)
async def test_outputs_of_a_stopped_attempt_are_kept_if_it_is_the_last(
    tmp_path: Path, reason: EndReason, retry: Retry | None, *, is_kept: bool
) -> None:
    """An attempt that runs again elsewhere is reported at once instead."""
    async with rig(tmp_path) as made:
        name = made.start(
            "printf partly > out; touch ready; sleep 60",
            outputs=("out",),
            options=TaskOptions(retry=retry),
        )
        await eventually((made.workdir / "ready").exists)
        made.pool.stop_attempts([name], reason)
        outcome = await made.end_of(name[0])

        assert outcome.reason is reason
        assert outcome.outputs == ((OutputFile("out", 6),) if is_kept else ())


async def test_closing_releases_unfinished_attempts(tmp_path: Path) -> None:
    """Another node runs them; no process is left here."""
    word = token()
    async with rig(tmp_path, slots=1) as made:
        runs = made.start(f"sleep {word}")
        waits = made.start("true")
        await eventually(lambda: processes_with(word))
        await made.pool.close()
        late = made.start("true")
        await eventually(lambda: made.outcome(late[0]))

        for task, _ in (runs, waits, late):
            outcome = made.outcome(task)
            assert outcome is not None
            assert outcome.state == AttemptState.RELEASED
        assert processes_with(word) == {}


async def test_a_killed_launcher_loses_only_its_tasks(
    tmp_path: Path,
) -> None:
    """They are released as lost, their trees are killed, and a new one starts."""
    word = token()
    async with rig(tmp_path, slots=2, launchers=2) as made:
        first, _ = made.start(f"setsid sleep {word} & env -i sleep {word}")
        await eventually(lambda: len(processes_with(f"sleep {word}")) >= 2)
        other = token()
        second, _ = made.start(f"while ! [ -e go ]; do sleep 0.05; done; : {other}")
        await eventually(lambda: processes_with(other))
        launcher = _parent_of(min(processes_with(f"sleep {word} & env")))
        os.kill(launcher, signal.SIGKILL)
        outcome = await made.end_of(first)

        assert outcome.state == AttemptState.RELEASED
        assert outcome.reason == EndReason.LOST
        await eventually(lambda: not processes_with(f"sleep {word}"))
        (made.workdir / "go").touch()
        after = await made.run_all(["true"] * 4)
        assert {o.state for o in after} <= {AttemptState.OK, AttemptState.RELEASED}
        assert (await made.end_of(second)).state == AttemptState.OK
        assert (await made.run("echo again")).stdout == b"again\n"


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_tasks_of_a_killed_launcher_hold_their_slots_until_they_are_killed(
    tmp_path: Path,
) -> None:
    """However long that takes: here no descriptor is free to find them."""
    word = token()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with rig(tmp_path, slots=1, with_cgroups=False) as made:
        first, _ = made.start(f"sleep {word}")
        await eventually(lambda: processes_with(word))
        (pid,) = launchers_of(os.getpid())
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(1.5)
            second, _ = made.start("true")
            await asyncio.sleep(0.1)
            assert made.outcome(first) is made.outcome(second) is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        assert (await made.end_of(first)).reason is EndReason.LOST
        assert processes_with(word) == {}
        assert (await made.end_of(second)).reason in (
            EndReason.EXIT,
            EndReason.RETURNED,
        )


async def test_closing_kills_what_a_dead_launcher_left(tmp_path: Path) -> None:
    """Even if it could not be killed before."""
    word = token()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with rig(tmp_path, slots=1, with_cgroups=False) as made:
        made.start(f"sleep {word}")
        await eventually(lambda: processes_with(word))
        (pid,) = launchers_of(os.getpid())
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await made.pool.close()

        assert processes_with(word) == {}


async def _run_short_tasks(made: Rig) -> None:
    """Run some, so that later ones wait in the launcher."""
    for _ in range(5):
        await made.run_all(["true"] * 50)


async def test_attempts_that_waited_in_a_killed_launcher_are_not_lost(
    tmp_path: Path,
) -> None:
    """They run in the next one, like those that had not been sent to a launcher."""
    async with rig(tmp_path, slots=1) as made:
        await _run_short_tasks(made)
        before = [made.item("true") for _ in range(50)]
        killer = made.item("kill -9 $PPID; sleep 60")
        after = [made.item("echo after") for _ in range(50)]
        made.pool.start_attempts([*before, killer, *after])
        assert (await made.ended(killer[1])).reason is EndReason.LOST

        for _, spec in after:
            assert (await made.ended(spec)).stdout == b"after\n"


async def test_results_do_not_wait_behind_an_attempt_that_is_repeated(
    tmp_path: Path,
) -> None:
    """It may have killed a launcher before, and would take them along."""
    async with rig(tmp_path, slots=2) as made:
        await _run_short_tasks(made)
        before = [made.item("true") for _ in range(50)]
        first, spec = made.item("sleep 0.02; kill -9 $PPID; sleep 60")
        killer = AttemptId(first.term, first.stream, first.seq, 2), spec
        after = [made.item("true") for _ in range(50)]
        made.pool.start_attempts([*before, killer, *after])
        assert (await made.ended(spec)).reason is EndReason.LOST

        ends = [await made.ended(each) for _, each in [*before, *after]]
        # One of them may have run when the launcher was killed.
        assert sum(end.reason is EndReason.LOST for end in ends) <= 1


async def test_launchers_start_with_the_first_attempt(tmp_path: Path) -> None:
    """An idle node has none."""
    async with rig(tmp_path) as made:
        assert launchers_of(os.getpid()) == []
        assert (await made.run("true")).state == AttemptState.OK
        assert len(launchers_of(os.getpid())) == 1


async def test_the_loop_is_never_blocked_for_long(tmp_path: Path) -> None:
    """Heartbeats are sent while outputs of many megabytes are copied.

    The best round counts, and waits of the loop for a core do not.
    """
    async with rig(tmp_path) as made:
        longest = []
        for _ in range(6):
            longest.append(await _longest_gap_s(made))
            if longest[-1] < 0.3:
                break

        assert min(longest) < 0.3


async def _longest_gap_s(made: Rig) -> float:
    """Return the longest time between two turns of the loop while output is copied."""
    gaps = []
    task, _ = made.start("head -c 200000000 /dev/zero > big", outputs=("big",))
    while made.outcome(task) is None:
        begin_s, waited_s = time.monotonic(), _waited_s()
        await asyncio.sleep(0.005)
        gaps.append(time.monotonic() - begin_s - (_waited_s() - waited_s))
    outcome = made.outcome(task)
    assert outcome is not None
    assert outcome.outputs == (OutputFile("big", 200_000_000),)
    return max(gaps)


def _waited_s() -> float:
    """Return the time that this thread was ready and had no core."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


async def test_many_large_outputs_at_once(tmp_path: Path) -> None:
    """A launcher with a full socket continues later."""
    async with rig(tmp_path, slots=32) as made:
        outcomes = await made.run_all(["head -c 2000000 /dev/zero"] * 32)

        assert {(o.state, len(o.stdout), o.stdout_bytes) for o in outcomes} == {
            (AttemptState.OK, 1 << 20, 2_000_000)
        }


async def test_attempts_survive_a_launcher_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for a second try, and are released when the pool is closed."""
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    async with rig(tmp_path) as made:
        task, _ = made.start("true")
        await made.pool.close()

        outcome = made.outcome(task)
        assert outcome is not None
        assert outcome.state == AttemptState.RELEASED


async def test_a_launcher_that_dies_unready_does_not_count_against_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Example: the program was replaced under its agent.

    Three such deaths are no poison. Its attempts run in the next launcher, and one that
    was cancelled meanwhile is cancelled.
    """
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('made by another version')")
    sound = launcher.__file__
    monkeypatch.setattr(launchers, "RESTART_S", 0.05)
    monkeypatch.setattr(launcher, "__file__", str(broken))
    async with rig(tmp_path) as made:
        task, _ = made.start("echo ran")
        other, attempt = made.start("true")
        await eventually(lambda: made.pool.attempt_stats.launcher_crashes >= 4)
        made.pool.stop_attempts([(other, attempt)])
        monkeypatch.setattr(launcher, "__file__", sound)

        assert (await made.end_of(task)).stdout == b"ran\n"
        assert (await made.end_of(other)).reason is EndReason.CANCELLED


async def test_a_node_without_launchers_reports_it_until_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets no attempts meanwhile, and tries by itself."""
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('made by another version')")
    sound = launcher.__file__
    monkeypatch.setattr(launchers, "RESTART_S", 0.05)
    monkeypatch.setattr(launchers, "PROBE_S", 0.05)
    monkeypatch.setattr(launcher, "__file__", str(broken))
    async with rig(tmp_path) as made:
        assert made.pool.check_launchers()
        task, attempt = made.start("true")
        await eventually(lambda: not made.pool.check_launchers())
        made.pool.stop_attempts([(task, attempt)])
        monkeypatch.setattr(launcher, "__file__", sound)

        await eventually(made.pool.check_launchers)


async def test_a_launcher_that_does_not_respond_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while it enters a folder on a file server that does not answer."""
    hung = tmp_path / "hung.py"
    hung.write_text(
        "import socket, time\n"
        f"socket.socket(fileno=3).sendall({pack_frame([['ready', 0]])!r})\n"
        "time.sleep(600)\n"
    )
    sound = launcher.__file__
    monkeypatch.setattr(launcher, "__file__", str(hung))
    async with rig(tmp_path) as made:
        task, _ = made.start("echo ran")
        await eventually(lambda: made.pool.count_attempts()[0])
        monkeypatch.setattr(launcher, "__file__", sound)

        def is_ended() -> bool:
            made.pool.check_launchers()
            return made.outcome(task) is not None

        await eventually(is_ended)

        assert (await made.end_of(task)).stdout == b"ran\n"


def test_a_launcher_whose_agent_died_exits_silently(
    tmp_path: Path,
) -> None:
    """Its stderr is the agent's log."""
    agent, control = socket.socketpair()
    settings = {
        "workdir": str(tmp_path),
        "node": "oak",
        "output_bytes_max": 1 << 20,
        "transcript_bytes_max": 1 << 20,
        "kill_grace_s": 10.0,
        "has_ctype": False,
        "user": None,
        "cgroup": "",
        "first_slot": 0,
        "slots": 1,
        **DEFAULT_INHERITED._asdict(),
    }
    with control, TemporaryFile() as begun:
        begun.write(bytes(8))
        begun.flush()
        agent.close()
        fds = control.fileno(), begun.fileno()
        words = [
            *(*python_argv(launcher.__file__), *map(str, fds)),
            *(encode_settings(settings), *import_folders()),
        ]
        done = subprocess.run(words, pass_fds=fds, capture_output=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


async def test_attempts_are_returned_if_no_launcher_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No attempt stays for ever on a node that cannot start it."""
    monkeypatch.setattr(launchers, "NO_LAUNCHER_WAIT_S", 0.1)
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    async with rig(tmp_path) as made:
        outcome = await made.run("true")

    assert (outcome.state, outcome.reason) == (
        AttemptState.RELEASED,
        EndReason.RETURNED,
    )


async def test_a_task_with_several_slots_keeps_others_from_running(
    tmp_path: Path,
) -> None:
    """The tasks count the slots in use, which never exceed the total."""
    async with rig(tmp_path, slots=4, launchers=2) as made:
        items = []
        for n in range(24):
            weight = 1 + n % 3
            command = f"echo +{weight} >> log; sleep 0.02; echo -{weight} >> log"
            options = TaskOptions(requires=Requirements(cpus=weight))
            items.append(made.item(command, options=options))
        made.pool.start_attempts(items)
        for _, spec in items:
            assert outcome_summary(await made.ended(spec)) == OK

        running = most = 0
        for line in (made.workdir / "log").read_text().split():
            running += int(line)
            most = max(most, running)
        assert 2 < most <= 4
