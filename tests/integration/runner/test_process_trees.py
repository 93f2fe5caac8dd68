"""No process outlives its task, its launcher or its agent (threats 18 and 19, B30)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason
from octaskly.runner.processes import cgroup, proc_tree
from tests.support.agents import soon_s
from tests.support.pooling import eventually, processes_with, rig, token

DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
for name in ("OCTASKLY_TASK_ID", "OCTASKLY_MARK"): os.environ.pop(name, None)
signal = __import__("signal"); signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.execvpe("env", ["env", "-i", "sleep", sys.argv[1]], os.environ)
"""

STORM = """
import os, sys, time
end = time.monotonic() + 120
while time.monotonic() < end:
    if len(os.listdir("/proc")) < int(sys.argv[2]) and os.fork() == 0:
        os.setsid()
        time.sleep(0.005)
        continue
    time.sleep(0.03)  # The kill must get a turn on a busy machine, too.
"""

#: Each is a new process every few milliseconds, in a new session. They start
#: when all are there, as hopping ones leave others few turns of two cores.
HOPPERS = """
import os, sys, time
signal = __import__("signal"); signal.signal(signal.SIGTERM, signal.SIG_IGN)
end = time.monotonic() + 120
waiting, begin = os.pipe()
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        os.close(begin)
        os.read(waiting, 1)
        while time.monotonic() < end:
            if os.fork():
                os._exit(0)
            os.setsid()
            time.sleep(float(sys.argv[3]))
        os._exit(0)
os.close(begin)
time.sleep(0.5)
open(sys.argv[4], "w").close()
time.sleep(120)
"""

#: Ways to escape, each leaving a `sleep` of this many seconds.
ESCAPES = {
    "background": "sleep {0} &",
    "setsid": "setsid sleep {0} &",
    "nohup": "nohup sleep {0} > /dev/null 2>&1 &",
    "double fork": "(setsid sh -c 'setsid sleep {0} & exit' &)",
    "without environment": "env -i setsid sleep {0} &",
    "deaf": "(trap '' TERM HUP; setsid sleep {0} &)",
    "daemon without environment": "{1} -c '" + DAEMON.replace("\n", "\n") + "' {0}",
}

MODES = pytest.mark.parametrize("with_cgroups", [True, False])


def escape(name: str, word: str) -> str:
    return ESCAPES[name].replace("{0}", word).replace("{1}", sys.executable)


@MODES
@pytest.mark.parametrize("name", ESCAPES)
async def test_the_process_tree_of_a_task_ends_with_it(
    tmp_path: Path, name: str, *, with_cgroups: bool
) -> None:
    """When the end is reported, no process is left."""
    word = token()
    async with rig(tmp_path, slots=2, with_cgroups=with_cgroups) as made:
        outcome = await made.run(f"{escape(name, word)}\nsleep 0.1")

        assert outcome.state == AttemptState.OK
        assert processes_with(word) == {}


@MODES
@pytest.mark.parametrize("name", ESCAPES)
async def test_a_timeout_kills_the_whole_tree(
    tmp_path: Path, name: str, *, with_cgroups: bool
) -> None:
    """Also a main process that ignores SIGTERM."""
    word = token()
    async with rig(tmp_path, slots=1, with_cgroups=with_cgroups) as made:
        outcome = await made.run(
            f"{escape(name, word)}\ntrap '' TERM\nsleep {word} & wait; sleep {word}",
            timeout_s=0.3,
        )

        assert (outcome.reason, outcome.exit_code) == (EndReason.TIMEOUT, 124)
        assert processes_with(word) == {}


@MODES
@pytest.mark.parametrize("name", ESCAPES)
async def test_a_stop_kills_the_whole_tree(
    tmp_path: Path, name: str, *, with_cgroups: bool
) -> None:
    """While another task goes on in the same launcher."""
    word, other_word = token(), token()
    async with rig(tmp_path, slots=2, with_cgroups=with_cgroups) as made:
        other = made.start(f"setsid sleep {other_word} & sleep {other_word}")
        await eventually(lambda: len(processes_with(f"sleep {other_word}")) == 3)
        stopped = made.start(f"{escape(name, word)}\nsleep {word}")
        await eventually(lambda: _sleepers(word) == 2)
        made.pool.stop_attempts([stopped])
        outcome = await made.end_of(stopped[0])

        assert outcome.state == AttemptState.CANCELLED
        assert len(processes_with(f"sleep {other_word}")) == 3
        if not with_cgroups and name == "daemon without environment":
            # Its owner is unknown until the other task has ended, too.
            assert made.outcome(other[0]) is None
            made.pool.stop_attempts([other])
            await made.end_of(other[0])
        assert processes_with(word) == {}


def _sleepers(word: str) -> int:
    return len([text for text in processes_with(word).values() if text[:3] == "sle"])


@MODES
async def test_a_storm_of_forks_ends(tmp_path: Path, *, with_cgroups: bool) -> None:
    """Processes that fork into new sessions while they are being killed."""
    word = token()
    (tmp_path / "storm.py").write_text(STORM)
    async with rig(tmp_path, slots=2, with_cgroups=with_cgroups) as made:
        # Including processes that others start or end meanwhile.
        most = len(list(Path("/proc").iterdir())) + 80
        storm = f"{sys.executable} {tmp_path}/storm.py {word} {most}"
        task, attempt = made.start(storm)
        await eventually(lambda: len(processes_with(word)) > 20)
        made.pool.stop_attempts([(task, attempt)])
        await made.end_of(task)

        assert processes_with(word) == {}


@MODES
@pytest.mark.parametrize(("count", "rest_s"), [(40, 0.002), (20, 0)])
async def test_a_constantly_forking_process_is_killed(
    tmp_path: Path, count: int, rest_s: float, *, with_cgroups: bool
) -> None:
    """Its pid is gone by the time that the process table is read."""
    word = token()
    (tmp_path / "hoppers.py").write_text(HOPPERS)
    ready = tmp_path / "ready"
    options = TaskOptions(grace_s=0)
    async with rig(tmp_path, with_cgroups=with_cgroups) as made:
        hoppers = f"{tmp_path}/hoppers.py {word} {count} {rest_s} {ready}"
        task = made.start(f"{sys.executable} {hoppers}", options=options)
        await eventually(ready.exists, within_s=100)
        made.pool.stop_attempts([task])
        outcome = await made.end_of(task[0], within_s=100)

        assert (outcome.signal, outcome.detail) == (9, "")
        assert processes_with(word) == {}


async def test_a_daemon_of_a_running_task_stays_alive(tmp_path: Path) -> None:
    """The end of another task in the same launcher does not kill it."""
    word = token()
    async with rig(tmp_path, slots=2, with_cgroups=False) as made:
        made.start(f"(setsid sleep {word} &); sleep {word}")
        await eventually(lambda: _sleepers(word) == 2)
        for _ in range(5):
            await made.run("setsid sleep 9 & sleep 0.02")

        assert _sleepers(word) == 2


async def test_ended_processes_do_not_stay_as_zombies(tmp_path: Path) -> None:
    """The launcher reaps adopted processes."""
    async with rig(tmp_path) as made:
        for _ in range(5):
            await made.run("for i in 1 2 3; do setsid sleep 9 & done; (true &)")
        await made.run("true")
        launcher = _launcher()
        await eventually(lambda: not proc_tree.children_of(launcher))


@contextmanager
def agent(folder: Path, *arguments: str) -> Iterator[tuple[int, list[int]]]:
    """Run a stand-in for an agent; yield its pid and those of its launchers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.agent_stand_in", folder, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.pid, [int(pid) for pid in process.stdout.readline().split()]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("with_cgroups", ["yes", "no"])
@pytest.mark.parametrize("slots", ["1", "6"])
async def test_the_trees_of_a_killed_agent_end(
    tmp_path: Path, slots: str, with_cgroups: str
) -> None:
    """Within a second no task or launcher is left."""
    word = token()
    commands = [f"{escape(name, word)}\nsleep {word}" for name in list(ESCAPES)]
    chosen = commands[: int(slots)] if slots != "1" else commands[-1:]
    with agent(tmp_path, slots, with_cgroups, *chosen) as (pid, launchers):
        await eventually(lambda: _sleepers(word) == 2 * int(slots))
        os.kill(pid, signal.SIGKILL)
        await eventually(
            lambda: not processes_with(word) and not _living(launchers),
            within_s=soon_s(1.0),
        )


def _living(pids: list[int]) -> list[int]:
    processes = map(proc_tree.read_process, pids)
    return [p.pid for p in processes if p is not None and p.state != "Z"]


@pytest.mark.parametrize("with_cgroups", ["yes", "no"])
async def test_a_killed_launcher_leaves_nothing(
    tmp_path: Path, with_cgroups: str
) -> None:
    """The agent, a subreaper too, finds its processes and kills them."""
    word = token()
    command = f"{escape('setsid', word)}\nexec env -i sleep {word}"
    with agent(tmp_path, "1", with_cgroups, command) as (pid, launchers):
        await eventually(lambda: _sleepers(word) == 2)
        # The launcher reports running processes only if they live for a moment.
        await eventually(lambda: _age_s(word) > 0.2)
        for launcher in launchers:
            os.kill(launcher, signal.SIGKILL)
        await eventually(lambda: not _sleepers(word), within_s=soon_s(2.0))

        assert _living([pid]) == [pid]
        await eventually(lambda: not proc_tree.children_of(pid), within_s=soon_s(2.0))


ORPHANS = 300
LAUNCHERS = "octaskly.runner.pool.launchers"


async def test_orphans_of_a_hostile_task_leave_no_zombies(tmp_path: Path) -> None:
    """It kills its launcher, so the agent adopts all that it has left behind."""
    command = f"""
        for _ in $(seq {ORPHANS}); do (setsid env -i sh -c 'read x' <{tmp_path}/go &)
        done
        kill -9 $PPID
        sleep 60
    """
    os.mkfifo(tmp_path / "go")
    with agent(tmp_path, "1", "no", command) as (pid, launchers):
        gate = os.open(tmp_path / "go", os.O_RDWR)
        await eventually(lambda: not _living(launchers))
        await eventually(lambda: len(proc_tree.children_of(pid)) >= ORPHANS)
        os.write(gate, b"\n" * ORPHANS)
        os.close(gate)

        await eventually(lambda: not _living(list(proc_tree.children_of(pid))))
        await eventually(lambda: not proc_tree.children_of(pid))
        assert _living([pid]) == [pid]


def _age_s(word: str) -> float:
    ticks = os.sysconf("SC_CLK_TCK")
    processes = filter(None, map(proc_tree.read_process, processes_with(word)))
    newest = max((p.start_ticks for p in processes), default=0) / ticks
    return time.clock_gettime(time.CLOCK_BOOTTIME) - newest


@pytest.mark.skipif(
    (own := cgroup.own_group_folder()) is None or not os.access(own, os.W_OK),
    reason="no cgroup can be created here",
)
async def test_groups_are_removed_with_the_pool(tmp_path: Path) -> None:
    """The next agent removes those of a killed one."""
    folder = cgroup.own_group_folder()
    assert folder is not None
    word = token()
    with agent(tmp_path, "4", "yes", f"sleep {word}") as (pid, launchers):
        await eventually(lambda: _sleepers(word))
        for victim in (*launchers, pid):
            os.kill(victim, signal.SIGSTOP)
        for victim in (pid, *launchers):
            os.kill(victim, signal.SIGKILL)
    # None is left if an agent of another test has removed them already.
    assert _sleepers(word) <= 1
    async with rig(tmp_path) as made:
        await made.run("true")
        await eventually(lambda: not _sleepers(word))
        await eventually(lambda: not _groups(folder, pid))
        assert _groups(folder, os.getpid()) != []

    assert _groups(folder, os.getpid()) == []


@pytest.mark.skipif(
    (own := cgroup.own_group_folder()) is None or not os.access(own, os.W_OK),
    reason="no cgroup can be created here",
)
async def test_a_launcher_that_cannot_start_leaves_no_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again every second while attempts wait."""
    folder = cgroup.own_group_folder()
    assert folder is not None
    monkeypatch.setattr(f"{LAUNCHERS}.RESTART_S", 0.05)
    monkeypatch.setattr(f"{LAUNCHERS}.NO_LAUNCHER_WAIT_S", 0.5)
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    async with rig(tmp_path) as made:
        assert (await made.run("true")).reason is EndReason.RETURNED

    assert _groups(folder, os.getpid()) == []


@pytest.mark.skipif(
    (own := cgroup.own_group_folder()) is None or not os.access(own, os.W_OK),
    reason="no cgroup can be created here",
)
async def test_a_launcher_with_one_slot_ends_trees_from_outside_their_group(
    tmp_path: Path,
) -> None:
    """It is back in its own group when the next task starts, at no cost."""
    folder = cgroup.own_group_folder()
    assert folder is not None
    word = token()
    async with rig(tmp_path, slots=1) as made:
        await made.run(f"setsid sleep {word} & (trap '' TERM; setsid sleep {word} &)")
        assert not _sleepers(word)
        launcher = _launcher()
        (group,) = _groups(folder, os.getpid())
        home = group / "home" / "cgroup.procs"
        task, _ = made.start(f"sleep {word}")
        await eventually(lambda: _sleepers(word))

        inside = {launcher, *processes_with(word)}
        assert set(map(int, home.read_text().split())) == inside
        made.pool.set_frozen(is_frozen=True)
        await eventually(lambda: str(launcher) not in home.read_text().split())
        assert made.outcome(task) is None


def _launcher() -> int:
    """Return the one launcher of this process, which may have other children."""
    for pid in proc_tree.children_of(os.getpid()):
        if b"launcher.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("no launcher")


def _groups(folder: Path, pid: int) -> list[Path]:
    return list(folder.glob(f"{cgroup.PREFIX}{pid}-*"))


async def test_a_process_is_distinguished_from_a_later_one_with_its_pid() -> None:
    """Its identity includes the start time."""
    process = subprocess.Popen(["sleep", "60"])
    seen = proc_tree.read_process(process.pid)
    assert seen is not None
    seen.start_ticks += 1
    proc_tree.signal_process(seen, signal.SIGKILL)
    assert process.poll() is None
    seen.start_ticks -= 1
    proc_tree.signal_process(seen, signal.SIGKILL)

    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    "line",
    [b"", b"1 (a", b"1 (a) S 2", b"x (a) S " + b"1 " * 30, b"1 a S " + b"1 " * 30],
)
def test_a_damaged_line_of_the_process_table_is_refused(line: bytes) -> None:
    """The parser does not guess."""
    with pytest.raises(ValueError, match=r"."):
        proc_tree.parse_stat(line)


def test_a_process_may_have_any_name() -> None:
    """Spaces and parentheses in it do not shift the fields."""
    fields = b" ".join(str(n).encode() for n in range(4, 52))
    process = proc_tree.parse_stat(b"7 (a) S 1 (b) ) R 3 " + fields)

    assert (process.pid, process.state, process.parent) == (7, "R", 3)
    assert (process.session, process.start_ticks) == (5, 21)


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        ("30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup"),
        ("30 20 0:26 / /a\\040b rw shared:9 - cgroup2 none rw", "/a b"),
        ("30 20 0:26 /part /sys/fs/cgroup rw - cgroup2 cgroup2 rw", None),
        ("30 20 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_the_mount_of_the_whole_hierarchy_is_found(
    line: str, mount: str | None
) -> None:
    """Version 2 only, and not a part of it that was mounted into a container."""
    assert cgroup.parse_mounts(f"1 0 8:1 / / rw - ext4 root rw\n{line}\n") == mount


UNKILLABLE = """
import os, subprocess, sys
from types import SimpleNamespace
from octaskly.runner.launcher.process_tracker import ProcessTracker
from octaskly.runner.processes import proc_tree

def refuse(*_):
    raise PermissionError

end = os.kill
os.kill = proc_tree.signal.pidfd_send_signal = refuse  # as for another user's process
tracker = ProcessTracker({}, lambda: None)
slot = SimpleNamespace(group=None)
first, later = SimpleNamespace(pid=1, slot=slot), SimpleNamespace(pid=2, slot=slot)
with subprocess.Popen(["sleep", "60"]) as left:
    print(tracker.kill_remaining(first), tracker.kill_remaining(later))
    tracker.give_up(first)
    print(tracker.kill_remaining(later))
    end(left.pid, 9)
"""


def test_no_task_waits_for_an_earlier_one_that_left_an_unkillable_process() -> None:
    """The earlier one says so itself."""
    done = subprocess.run(
        [sys.executable, "-c", UNKILLABLE], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["False", "False", "True"]
