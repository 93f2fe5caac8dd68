"""The environment that tasks request, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from octaskly.core.model.task_options import Requirements, TaskLimits, TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason
from octaskly.runner.launcher import spawn
from octaskly.runner.launcher.attempt_process import StartOrder
from octaskly.runner.launcher.slots import SlotAllocator
from octaskly.runner.processes import cgroup, limits
from tests.support.agents import ending, finished, start, submit
from tests.support.pooling import (
    STREAM,
    call_settings,
    eventually,
    launchers_of,
    processes_with,
    rig,
    stranger,
    token,
)

MIB = 1 << 20


async def test_env_is_added_and_the_agent_s_own_names_win(tmp_path: Path) -> None:
    """A program started directly and one in a shell see the same."""
    env = (("A", "1=2\n"), ("OCTASKLY_NODE", "x"), ("PATH", "/bin"), ("PWD", "/"))
    base = {"PATH": os.environ["PATH"], "HOME": "/home/x"}
    async with rig(tmp_path, env=base) as made:
        direct = await made.run("/usr/bin/env -0", options=TaskOptions(env=env))
        shell = await made.run("env -0 | cat", options=TaskOptions(env=env))

        for outcome, task in ((direct, "task-001-rig"), (shell, "task-002-rig")):
            assert set(outcome.stdout.decode().split("\0")[:-1]) == {
                "HOME=/home/x",
                "A=1=2\n",
                "PATH=/bin",
                f"PWD={made.workdir}",
                "OCTASKLY_NODE=rig",
                "OCTASKLY_SLOT=0",
                "OCTASKLY_ATTEMPT=1",
                f"OCTASKLY_TASK_ID={task}",
                f"OCTASKLY_MARK={task}.3-{STREAM}-1-1",
                *call_settings(base["PATH"]),
            }


async def test_path_of_the_task_finds_its_programs(tmp_path: Path) -> None:
    """As `PATH=... command` would."""
    program = tmp_path / "bin" / "octaskly-hello"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    options = TaskOptions(env=(("PATH", f"{program.parent}:/bin"),))
    async with rig(tmp_path) as made:
        outcome = await made.run("octaskly-hello", options=options)

        assert outcome.stdout == b"hello\n"


async def test_a_large_environment_does_not_hide_the_mark_of_a_process(
    tmp_path: Path,
) -> None:
    """The mark precedes a MiB of variables."""
    env = tuple((f"V{n:02}", "x" * 100_000) for n in range(10))
    word = token()
    async with rig(tmp_path, with_cgroups=False) as made:
        outcome = await made.run(
            f"setsid sleep {word} & exit 0", options=TaskOptions(env=env)
        )

        assert outcome.state is AttemptState.OK
        await eventually(lambda: processes_with(word) == {})


@pytest.mark.parametrize("command", ["pwd", "/bin/pwd", "printenv PWD"])
async def test_cwd_is_below_the_worker_directory_or_absolute(
    tmp_path: Path, command: str
) -> None:
    """Links on the way are followed: a task may change folders anyway."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with rig(tmp_path) as made:
        (made.workdir / "a" / "b").mkdir(parents=True)
        (made.workdir / "link").symlink_to(elsewhere)
        for cwd, folder in (
            ("a/b", made.workdir / "a" / "b"),
            (str(elsewhere), elsewhere),
            ("link", elsewhere),
        ):
            outcome = await made.run(command, options=TaskOptions(cwd=cwd))

            assert outcome.stdout.decode() == f"{folder}\n"


async def test_a_launcher_does_not_stay_in_a_task_s_folder(
    tmp_path: Path,
) -> None:
    """The disk of an ended task could not be unmounted."""
    async with rig(tmp_path) as made:
        options = TaskOptions(cwd=str(tmp_path))
        await made.run("true", options=options)
        await made.run("/no/such", options=options)
        (launcher,) = launchers_of(os.getpid())

        assert Path(f"/proc/{launcher}/cwd").readlink() == Path("/")


async def test_a_cwd_that_cannot_be_entered_fails_the_task(tmp_path: Path) -> None:
    """With 126, and the folder and the node in the answer.

    No other node is tried (B32).
    """
    async with rig(tmp_path) as made:
        (made.workdir / "file").touch()
        for cwd, detail in (
            ("/no/such", "cwd /no/such does not exist on rig"),
            ("a/b", "cwd a/b does not exist on rig"),
            ("file", "cwd file is not a folder on rig"),
            ("a\0b", "cwd a\0b cannot be entered (it contains a NUL character)"),
            ("x" * 300, f"cwd {'x' * 300} cannot be entered (File name too long)"),
        ):
            outcome = await made.run("true", options=TaskOptions(cwd=cwd))

            assert (outcome.state, outcome.reason) == (
                AttemptState.FAILED,
                EndReason.EXIT,
            )
            assert (outcome.exit_code, outcome.signal) == (126, None)
            assert outcome.detail.startswith(detail)


async def test_an_absolute_cwd_needs_no_worker_directory(tmp_path: Path) -> None:
    """Only the requested folder is entered."""
    async with rig(tmp_path, workdir=tmp_path / "gone") as made:
        outcome = await made.run("pwd", options=TaskOptions(cwd="/"))

        assert outcome.stdout == b"/\n"


def test_a_missing_shell_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127, as for any missing program (B32)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spawn, "SHELL", "/no/such/sh")
    pad = spawn.SpawnContext(
        limits=spawn.DescriptorLimits.for_slots(1),
        workdir=str(tmp_path),
        node="pi4",
        output_bytes_max=1,
        has_ctype=False,
    )
    order = StartOrder(1, "t", "1", "t.1.1.1", b"no-such-program", 60, queued_s=0.0)
    slot = SlotAllocator(0, 1, None).acquire_slot(None)

    with pytest.raises(spawn.SpawnRefused, match="/no/such/sh") as caught:
        pad.spawn_attempt(order, slot, begin_s=0.0, begin_ms=0)

    assert (caught.value.code, caught.value.is_final) == (127, True)
    assert "on pi4" in str(caught.value)


async def test_stdin_arrives_byte_for_byte(tmp_path: Path) -> None:
    """Up to a MiB, for a program that reads it, and one that opens it again."""
    data = bytes(range(256)) * (MIB // 256)
    async with rig(tmp_path, output_bytes_max=2 * MIB) as made:
        for command in ("cat", "cat; cat", "cat /dev/stdin", "cat <&0"):
            outcome = await made.run(command, options=TaskOptions(stdin=data))

            assert outcome.stdout == data

        assert (await made.run("cat")).stdout == b""


async def test_a_task_that_does_not_read_stdin_delays_no_other(tmp_path: Path) -> None:
    """No pipe can be full: others go on in the same launcher."""
    options = TaskOptions(stdin=bytes(MIB))
    async with rig(tmp_path, slots=4) as made:
        deaf = [made.start("sleep 60", options=options) for _ in range(3)]
        outcome = await made.run("head -c 1", options=options)

        assert outcome.stdout == b"\0"
        made.pool.stop_attempts(deaf)


async def test_stdin_cannot_be_written_to(tmp_path: Path) -> None:
    """It is open for reading, as with a shell's `<`."""
    async with rig(tmp_path) as made:
        outcome = await made.run("echo x >&0", options=TaskOptions(stdin=b"data"))

        assert outcome.exit_code != 0


async def test_a_task_with_stdin_has_three_descriptors(tmp_path: Path) -> None:
    """Its file is open once."""
    async with rig(tmp_path) as made:
        outcome = await made.run("ls /proc/self/fd", options=TaskOptions(stdin=b"x"))

        # The fourth is the folder that `ls` reads.
        assert outcome.stdout.split() == [b"0", b"1", b"2", b"3"]


async def test_a_task_has_its_own_grace_period(tmp_path: Path) -> None:
    """Shorter or longer than the node's."""
    async with rig(tmp_path, kill_grace_s=60) as made:
        deaf = "trap '' TERM; sleep 61; sleep 62"
        outcome = await made.run(deaf, timeout_s=1, options=TaskOptions(grace_s=0))

        assert outcome.reason is EndReason.TIMEOUT


async def test_the_usage_of_a_task_is_reported(tmp_path: Path) -> None:
    """Processor time with child processes, and the peak memory of one process."""
    hog = f"{sys.executable} -S -c 'len(str(1) * (90 << 20))'"
    busy = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"
    async with rig(tmp_path) as made:
        idle = await made.run("sleep 0.3")
        spun = await made.run(f"sh -c '{busy}'; exit 3")
        grown = await made.run(hog)

        assert idle.cpu_ms is not None
        assert idle.cpu_ms < 200
        assert idle.memory_max_kb is None  # Less than the launcher has itself.
        assert spun.cpu_ms is not None
        assert spun.cpu_ms > idle.cpu_ms
        assert grown.memory_max_kb is not None
        assert 90 << 10 <= grown.memory_max_kb < 140 << 10


HOG = f"{sys.executable} -S -c 'len(str(1) * (300 << 20))'"
SPIN = "while :; do :; done"


@pytest.mark.timeout(400)
async def test_processor_time_beyond_its_limit_ends_a_task(tmp_path: Path) -> None:
    """By SIGXCPU, which the end reports; a shell may report it for its command."""
    options = TaskOptions(limits=TaskLimits(cpu_s=1))
    async with rig(tmp_path, slots=3) as made:
        own = made.start(SPIN, options=options)
        nested = made.start(f"sh -c '{SPIN}'; exit $?", options=options)
        deaf = made.start(f"trap '' XCPU; {SPIN}", options=options)
        names = (own, nested, deaf)
        # They need seconds of a processor, which others may be using.
        ends = [await made.end_of(task, within_s=120) for task, _ in names]

        why = "limit cpu_seconds"
        results = f"{why}: a process used more than 1 s"
        assert [(end.state, end.reason, end.detail) for end in ends] == [
            (AttemptState.FAILED, EndReason.LIMIT, results),
            (AttemptState.FAILED, EndReason.LIMIT, results),
            (
                AttemptState.FAILED,
                EndReason.SIGNAL,
                f"{why}: SIGKILL comes 2 s after 1 s",
            ),
        ]
        assert [(end.exit_code, end.signal) for end in ends] == [
            (128 + signal.SIGXCPU, signal.SIGXCPU),
            (128 + signal.SIGXCPU, None),
            (128 + signal.SIGKILL, signal.SIGKILL),
        ]


async def test_a_file_beyond_its_limit_ends_a_task(tmp_path: Path) -> None:
    """The part within the limit is written."""
    options = TaskOptions(limits=TaskLimits(file_mb=1))
    async with rig(tmp_path) as made:
        outcome = await made.run("head -c 3000000 /dev/zero >large", options=options)
        fine = await made.run("head -c 1048576 /dev/zero >small", options=options)

        assert (outcome.reason, outcome.exit_code) == (
            EndReason.LIMIT,
            128 + signal.SIGXFSZ,
        )
        assert outcome.detail == "limit file_mb: a file got larger than 1 MiB"
        assert (made.workdir / "large").stat().st_size == MIB
        assert fine.state is AttemptState.OK
        assert (made.workdir / "small").stat().st_size == MIB


async def test_memory_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    """By address space, so the program itself decides how it ends."""
    async with rig(tmp_path, with_cgroups=False) as made:
        tight = TaskOptions(limits=TaskLimits(memory_mb=100))
        roomy = TaskOptions(limits=TaskLimits(memory_mb=2000))
        refused = await made.run(HOG, options=tight)
        fine = await made.run(HOG, options=roomy)

        assert b"MemoryError" in refused.stderr
        assert (refused.reason, refused.exit_code) == (EndReason.EXIT, 1)
        assert fine.state is AttemptState.OK


@pytest.mark.skipif(os.getuid() != 0, reason="only root may run tasks as another user")
async def test_processes_beyond_their_limit_are_refused() -> None:
    """A fork bomb of a user stops there, and others go on meanwhile (threat 18)."""
    # A user whose processes no other test counts at the same time.
    other = stranger(100_000 + os.getpid())
    options = TaskOptions(limits=TaskLimits(processes=20))
    bomb = "for n in $(seq 80); do sleep 30 & echo $n; done"
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Pytest's own folder is closed to the other user.
        async with rig(folder, account=other, with_cgroups=False) as made:
            outcome = await made.run(bomb, options=options)

            assert b"fork" in outcome.stderr
            assert 10 < len(outcome.stdout.split()) <= 20
            assert outcome.exit_code not in (0, None)
            assert (await made.run("echo fine")).stdout == b"fine\n"


async def test_a_task_with_limits_is_otherwise_like_any_other(tmp_path: Path) -> None:
    """Its shell, its arguments, its codes, its descriptors, its stdin."""
    options = TaskOptions(limits=TaskLimits(cpu_s=60, file_mb=100), stdin=b"in")
    async with rig(tmp_path) as made:
        for command, code, stdout in (
            ("cat; echo \"$# '$1'\"", 0, b"in0 ''\n"),
            ("-c", 127, b""),
            ("no-such-program", 127, b""),
            ("/etc/passwd", 126, b""),
            ("kill -9 $$", 137, b""),
            ("ls /proc/self/fd", 0, b"0\n1\n2\n3\n"),
            ("ulimit -c; ulimit -t; ulimit -H -t", 0, b"0\n60\n62\n"),
        ):
            outcome = await made.run(command, options=options)

            assert (outcome.exit_code, outcome.stdout) == (code, stdout)
            assert outcome.reason in (EndReason.EXIT, EndReason.SIGNAL)


def _has_controllers() -> bool:
    """Return True if this process can create sibling groups with memory limits."""
    own = cgroup.own_group_folder()
    if own is None or own.name != cgroup.AGENT or not os.access(own.parent, os.W_OK):
        return False
    return "memory" in (own.parent / "cgroup.controllers").read_text().split()


@pytest.mark.skipif(
    not _has_controllers(),
    reason="no cgroup with the memory controller can be made here: run it as a service"
    " with Delegate=yes and DelegateSubgroup=agent",
)
async def test_memory_beyond_the_limit_of_a_group_ends_a_task(tmp_path: Path) -> None:
    """The kernel reports it; the peak is that of all its processes."""
    options = TaskOptions(limits=TaskLimits(memory_mb=64))
    async with rig(tmp_path) as made:
        outcome = await made.run(f"{HOG}; echo survived", options=options)

        assert outcome.detail == "limit memory_mb: more than 64 MiB were needed"
        assert (outcome.reason, outcome.stdout) == (EndReason.LIMIT, b"")
        assert outcome.memory_max_kb is not None
        assert outcome.memory_max_kb <= 64 << 10


@pytest.mark.skipif(os.getuid() != 0, reason="only root may run tasks as another user")
@pytest.mark.skipif(
    (own := cgroup.own_group_folder()) is None or not os.access(own, os.W_OK),
    reason="no cgroup can be created here",
)
@pytest.mark.parametrize("slots", [1, 3])
async def test_another_user_can_neither_leave_its_group_nor_lift_its_limit(
    monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    """The agent makes the group.

    Its process enters it through a file that is open already. Every kernel has the
    limit used here: controllers need a service of systemd.
    """
    monkeypatch.setattr(
        limits, "_GROUP_FILES", {"processes": ("cgroup.max.descendants", 1)}
    )
    options = TaskOptions(limits=TaskLimits(processes=5))
    tell = (
        "sed -n 's/^0:://p' /proc/self/cgroup; cd /sys/fs/cgroup/*/$(sed -n"
        " 's/^0:://p' /proc/self/cgroup); cat cgroup.max.descendants;"
        " (echo 9 >cgroup.max.descendants; echo $$ >../home/cgroup.procs;"
        " echo $$ >../../cgroup.procs; echo 1 >cgroup.kill; mkdir x) 2>&1"
        " | grep -c 'ermission denied'; ls /proc/self/fd"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Pytest's own folder is closed to the other user.
        async with rig(folder, account=stranger(), slots=slots) as made:
            outcomes = [await made.run(tell, options=options) for _ in range(2)]
            groups = f"octaskly-{os.getpid()}-*/limits-*"
            await eventually(lambda: own is None or not list(own.glob(groups)))

    for outcome in outcomes:
        place, *rest = outcome.stdout.decode().split()
        assert Path(place).name.startswith("limits-")
        assert rest == ["5", "5", "0", "1", "2", "3"]


INTRUSION = """\
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void intrude(void)
{
    for (int fd = 3; fd < 64; fd++)
        dprintf(fd, "%s", getenv("VICTIM"));
}
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may run tasks as another user")
@pytest.mark.skipif(
    (own := cgroup.own_group_folder()) is None or not os.access(own, os.W_OK),
    reason="no cgroup can be created here",
)
async def test_a_task_cannot_put_others_into_its_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even by a library that is loaded before its limits are set.

    The kernel checks who opened the file, so with a descriptor of the agent a task
    could have moved the agent itself, and had it killed for lack of memory.
    """
    monkeypatch.setattr(
        limits, "_GROUP_FILES", {"processes": ("cgroup.max.descendants", 1)}
    )
    victim = subprocess.Popen(["/bin/sleep", "60"])
    before = _group_of(victim.pid)
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        library = folder / "intrusion.so"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)],
            input=INTRUSION.encode(),
            check=True,
        )
        env = {"LD_PRELOAD": str(library), "VICTIM": str(victim.pid)}
        options = TaskOptions(limits=TaskLimits(processes=5), env=tuple(env.items()))
        try:
            async with rig(folder, account=stranger()) as made:
                outcome = await made.run("echo ran", options=options)
            after = _group_of(victim.pid)
        finally:
            victim.kill()
            victim.wait()

    assert outcome.stdout == b"ran\n"
    assert after == before


def _group_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line for line in lines if line.startswith("0::"))


async def test_attempts_that_run_at_once_have_different_slots(tmp_path: Path) -> None:
    """From 0 to the number of slots less one, over all launchers of the node."""
    tell = "echo $OCTASKLY_SLOT >$OCTASKLY_TASK_ID; exec sleep 60"
    async with rig(tmp_path, slots=5, launchers=2) as made:
        for _ in range(2):
            names = [made.start(tell) for _ in range(5)]
            results = [await _read_text(made.workdir / task) for task, _ in names]

            assert sorted(results) == ["0", "1", "2", "3", "4"]
            made.pool.stop_attempts(names)
            for task, _ in names:
                await made.end_of(task)


async def _read_text(file: Path) -> str:
    await eventually(lambda: file.exists() and file.read_text())
    return file.read_text().strip()


async def test_the_slot_of_an_attempt_that_could_not_start_is_free(
    tmp_path: Path,
) -> None:
    """Also with limits; a launcher would run out of slots otherwise."""
    options = TaskOptions(cwd="/no/such", limits=TaskLimits(cpu_s=5))
    async with rig(tmp_path, slots=1) as made:
        for _ in range(3):
            assert (await made.run("true", options=options)).exit_code == 126

        assert (await made.run("printenv OCTASKLY_SLOT")).stdout == b"0\n"


async def test_gpus_are_given_to_one_task_at_a_time(tmp_path: Path) -> None:
    """With their CUDA names; they are free again after the end."""
    async with rig(tmp_path, slots=4, gpus=("0", "2", "GPU-5d")) as made:
        two = TaskOptions(requires=Requirements(gpus=2))
        one = TaskOptions(
            requires=Requirements(gpus=1), env=(("CUDA_VISIBLE_DEVICES", "7"),)
        )
        tell = "echo $CUDA_VISIBLE_DEVICES >$OCTASKLY_TASK_ID; exec sleep 60"
        first, second = made.start(tell, options=two), made.start(tell, options=one)
        third = made.start(tell, options=two)

        assert await _read_text(made.workdir / first[0]) == "0,2"
        assert await _read_text(made.workdir / second[0]) == "GPU-5d"
        made.pool.stop_attempts([second])
        await made.end_of(second[0])
        assert not (made.workdir / third[0]).exists()
        made.pool.stop_attempts([first])
        assert await _read_text(made.workdir / third[0]) == "0,2"
        made.pool.stop_attempts([third])


async def test_gpus_of_a_dead_launcher_are_free_again(tmp_path: Path) -> None:
    """Once its processes are gone; a task without GPUs sees none."""
    async with rig(tmp_path, gpus=("0",), env={"PATH": os.environ["PATH"]}) as made:
        options = TaskOptions(requires=Requirements(gpus=1))
        kill = "kill -9 $PPID; sleep 60"
        assert (await made.run(kill, options=options)).reason is EndReason.LOST

        tell = "echo =$CUDA_VISIBLE_DEVICES="
        assert (await made.run(tell, options=options)).stdout == b"=0=\n"
        assert (await made.run(tell)).stdout == b"==\n"


async def test_a_task_with_too_many_gpus_is_returned_at_once(tmp_path: Path) -> None:
    """Others must not wait behind a task that can never start."""
    async with rig(tmp_path, gpus=("0",)) as made:
        asked = TaskOptions(requires=Requirements(gpus=2))
        never = await made.run("true", options=asked)

        assert (never.state, never.reason) == (
            AttemptState.RELEASED,
            EndReason.RETURNED,
        )
        assert (await made.run("true")).state is AttemptState.OK


def test_an_agent_assigns_its_gpus_and_reports_the_usage(tmp_path: Path) -> None:
    """From the flag of the agent to the environment, and back in `show`."""
    agent = start(tmp_path, "solo", "--slots", "2", "--gpu", "7")
    with ending(agent):
        command = f"{HOG}; echo $CUDA_VISIBLE_DEVICES"
        ended = finished(agent, submit(agent, command, requires={"gpus": 1}))

        assert (ended["status"], ended["stdout"]) == ("completed", "7\n")
        assert ended["memory_peak_mb"] >= 300
        assert ended["cpu_seconds"] > 0
        assert ended["queue_ms"] >= 0
