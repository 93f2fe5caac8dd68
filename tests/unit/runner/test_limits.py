"""Limits by a cgroup, with files in place of the kernel's, and by `ulimit`.

No machine of ours has the controllers, so what the kernel does with these files is
told by its documentation (cgroup-v2.rst); `test_surroundings` asks a real one, where
there is one.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from pathlib import Path

import pytest

from octaskly.runner.processes import cgroup
from octaskly.runner.processes.limits import (
    LimitEnforcer,
    build_limit_enforcer,
    count_threads,
    create_limit_group,
)

ALL = {"memory_mb": 64, "cpu_s": 5, "file_mb": 7, "processes": 80}
IDLE = (10, None)


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A folder as the kernel makes it in a group that passes both controllers on."""
    folder = tmp_path / "a 'group'"
    folder.mkdir()
    for name in (
        *("cgroup.events", "cgroup.procs", "memory.max", "memory.swap.max"),
        *("memory.oom.group", "memory.events", "memory.peak"),
        *("pids.max", "pids.events", "cpu.stat"),
    ):
        (folder / name).touch()
    return folder


def test_a_group_holds_memory_and_processes(group: Path) -> None:
    """The others are limits of each process, set before the command runs."""
    fence = fenced(group)

    assert fence.group is not None
    assert {
        name: (group / name).read_text()
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max")
    } == {
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "80",
    }
    assert fence.shell_preamble().splitlines() == [
        "ulimit -S -c 0 2>/dev/null",
        "ulimit -S -t 5 2>/dev/null",
        "ulimit -H -t 7 2>/dev/null",
        "ulimit -f 14336 2>/dev/null",
        "read -r _ <&9 || exit 126",
        "exec 9<&-",
        'exec /bin/sh "$@"',
    ]


def fenced(folder: Path) -> LimitEnforcer:
    """Return what a launcher makes of a group that the agent made."""
    group = create_limit_group(folder, ALL)
    assert group is not None
    asked = {"limits": ALL, "group": [bytes(folder), group.enforced, len(group.fds)]}
    fence = build_limit_enforcer(asked, deque(group.fds))
    assert fence is not None
    return fence


def test_without_a_group_each_process_is_held(tmp_path: Path) -> None:
    """Memory by address space; processes beyond those that the user has already."""
    before = count_threads(os.getuid())
    lines = LimitEnforcer(ALL, (), None).shell_preamble().splitlines()

    assert "ulimit -v 65536 2>/dev/null" in lines
    (line,) = [line for line in lines if "-u" in line]
    most = int(line.split()[2])
    assert line == f"ulimit -u {most} 2>/dev/null || ulimit -p {most} 2>/dev/null"
    assert abs(most - 80 - before) < 80


def test_a_group_without_controllers_is_not_kept(tmp_path: Path) -> None:
    """Then it would hold nothing, and `ulimit` must."""
    assert create_limit_group(tmp_path / "new", ALL) is None
    assert not (tmp_path / "new").exists()


def test_no_group_is_made_for_what_it_cannot_hold(tmp_path: Path) -> None:
    """Processor time and files are limits of each process anyway."""
    assert create_limit_group(tmp_path / "new", {"cpu_s": 5}) is None
    assert not (tmp_path / "new").exists()


def test_out_of_memory_is_told_by_the_kernel(group: Path) -> None:
    """Not guessed from SIGKILL, which anybody may send."""
    fence = fenced(group)

    (group / "memory.events").write_text("low 0\nmax 9\noom 0\noom_kill 0\n")
    assert fence.exceeded_limit(-signal.SIGKILL, IDLE) == ""
    (group / "memory.events").write_text("low 0\nmax 9\noom 1\noom_kill 2\n")
    assert fence.exceeded_limit(-signal.SIGKILL, IDLE) == (
        "limit memory_mb: more than 64 MiB were needed"
    )


def test_refused_processes_are_a_remark(group: Path) -> None:
    """They end nothing: what the command does about it is its own."""
    fence = fenced(group)
    (group / "pids.events").write_text("max 0\n")
    assert fence.possible_cause(2, IDLE) == ""

    (group / "pids.events").write_text("max 12\n")
    assert fence.possible_cause(2, IDLE) == "limit processes: 12 were refused beyond 80"
    assert fence.exceeded_limit(2, IDLE) == ""


def test_what_a_group_used_is_what_it_counted(group: Path) -> None:
    """Also by what was left in the background; where it counts less, rusage stands."""
    fence = fenced(group)
    (group / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 2000000\n")
    (group / "memory.peak").write_text(f"{50 << 20}\n")

    assert fence.measured_usage((1000, None)) == (2500, 50 << 10)
    assert fence.measured_usage((3000, 99)) == (3000, 50 << 10)
    (group / "memory.peak").unlink()  # Before Linux 5.19.
    assert fence.measured_usage((1000, 99)) == (2500, 99)


@pytest.mark.parametrize(
    ("status", "cpu_ms", "ended_by"),
    [
        (-signal.SIGXCPU, 5000, "cpu_seconds"),
        (128 + signal.SIGXCPU, 5000, "cpu_seconds"),  # A shell tells of its command.
        (-signal.SIGXCPU, 4300, "cpu_seconds"),  # By ticks it was more.
        (-signal.SIGXCPU, 100, ""),  # Somebody sent it.
        (-signal.SIGKILL, 9000, ""),
        (0, 9000, ""),
        (1, 9000, ""),
        (-signal.SIGXFSZ, 0, "file_mb"),
        (128 + signal.SIGXFSZ, 0, "file_mb"),
        (1, 0, ""),
    ],
)
def test_an_end_by_a_limit_is_told_from_any_other(
    status: int, cpu_ms: int, ended_by: str
) -> None:
    """Signal and processor time must both fit."""
    broken = LimitEnforcer(ALL, (), None).exceeded_limit(status, (cpu_ms, None))

    assert broken.startswith(f"limit {ended_by}" if ended_by else "")
    assert bool(broken) == bool(ended_by)


def test_a_kill_that_a_limit_may_have_sent_is_a_remark() -> None:
    """Anybody may send SIGKILL, so the reason stays the signal."""
    fence = LimitEnforcer({"cpu_s": 5}, (), None)

    assert fence.possible_cause(-signal.SIGKILL, (100, None)) == ""
    assert fence.possible_cause(1, (9000, None)) == ""
    assert fence.possible_cause(-signal.SIGKILL, (6900, None)) == (
        "limit cpu_seconds: SIGKILL comes 2 s after 5 s"
    )


def test_a_limit_that_is_not_held_is_told(group: Path) -> None:
    """The kernel holds root to no number of processes."""
    limits = {"processes": 80}
    told = "limit processes: not held, as the agent is root without a cgroup"

    assert LimitEnforcer(limits, (), None).possible_cause(0, IDLE) == (
        told if os.getuid() == 0 else ""
    )
    assert fenced(group).possible_cause(0, IDLE) == ""
    assert LimitEnforcer({"cpu_s": 1}, (), None).possible_cause(0, IDLE) == ""


@pytest.mark.parametrize(
    ("controllers", "last"), [("memory pids", "+pids"), ("cpu memory pids", "+cpu")]
)
def test_controllers_are_passed_on_from_where_no_process_is(
    tmp_path: Path, controllers: str, last: str
) -> None:
    """From the group of the service, where systemd put the agent into one below."""
    own = service(tmp_path, "octaskly.service/agent", controllers)

    assert cgroup.prepare_parent_group(own) == own.parent
    # Each write adds one; a file keeps the last.
    assert (own.parent / "cgroup.subtree_control").read_text() == last


def test_tasks_have_a_smaller_share_of_processors_than_their_agent(
    kernel: Path,
) -> None:
    """T18: the kernel gives the agent's group 100, as any that says nothing."""
    folder = cgroup.create_launcher_group(kernel, 1)

    assert folder is not None
    assert (folder / "cpu.weight").read_text() == "10"
    # Beside each other they are alike: what is below gets memory and processes alone.
    assert (folder / "cgroup.subtree_control").read_text() == "+pids"


def test_a_kernel_that_weighs_no_processors_changes_nothing(kernel: Path) -> None:
    """As where that controller is not delegated: there is no such file."""
    for weight in kernel.rglob("cpu.weight"):
        weight.unlink()
        weight.mkdir()

    folder = cgroup.create_launcher_group(kernel, 1)

    assert folder is not None
    assert (folder / "cgroup.subtree_control").read_text() == "+pids"


def test_an_agent_that_is_alone_makes_room(tmp_path: Path) -> None:
    """As a version of systemd does not that knows no DelegateSubgroup."""
    own = service(tmp_path, "octaskly.service", "memory")
    (own / "agent").mkdir()
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n")

    assert cgroup.prepare_parent_group(own) == own
    assert (own / "agent" / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory"


def test_an_agent_among_others_moves_nobody(tmp_path: Path) -> None:
    """The group is a user's session, or a container's."""
    own = service(tmp_path, "session", "memory pids")
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")

    assert cgroup.prepare_parent_group(own) == own
    assert (own / "cgroup.subtree_control").read_text() == ""


def test_where_there_are_no_controllers_nothing_changes(tmp_path: Path) -> None:
    """As where the old hierarchy holds them."""
    own = service(tmp_path, "octaskly.service/agent", "")

    assert cgroup.prepare_parent_group(own) == own


@pytest.mark.parametrize("status", [126, 127, 139, -signal.SIGSEGV])
def test_a_program_that_did_not_get_loaded_may_have_lacked_memory(status: int) -> None:
    """What the loader says of it does not name the limit."""
    fence = LimitEnforcer({"memory_mb": 1}, (), None)
    told = "limit memory_mb: 1 MiB for each process may be too little"

    assert fence.possible_cause(status, IDLE) == told
    assert fence.possible_cause(1, IDLE) == ""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """The group of a service, with what the kernel puts into a launcher's folder."""
    service(tmp_path, "octaskly.service/agent", "cpu memory pids")
    parent = tmp_path / "octaskly.service"
    folder = service(parent, f"octaskly-{os.getpid()}-1", "cpu memory pids")
    (folder / "cpu.weight").write_text("100\n")
    return parent


def service(root: Path, name: str, controllers: str) -> Path:
    """Make the group of a service, and one below it if its name has two parts."""
    own = root / name
    own.mkdir(parents=True)
    for folder in {own, root / name.partition("/")[0]}:
        (folder / "cgroup.controllers").write_text(f"{controllers}\n")
        for file in ("cgroup.subtree_control", "cgroup.procs", "cgroup.events"):
            (folder / file).touch()
    return own
