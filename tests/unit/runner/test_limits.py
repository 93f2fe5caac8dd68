"""Limits by a cgroup, with files in place of the kernel's, and by `ulimit`.

These files follow the kernel's documentation (cgroup-v2.rst), because few test machines
have the controllers; `test_task_environment` uses real ones where they exist.
"""

from __future__ import annotations

import os
import signal
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
    """Return a folder like the kernel's for a group with both controllers."""
    folder = tmp_path / "a 'group'"
    folder.mkdir()
    for name in (
        *("cgroup.events", "cgroup.procs", "memory.max", "memory.swap.max"),
        *("memory.oom.group", "memory.events", "memory.peak"),
        *("pids.max", "pids.events", "cpu.stat"),
    ):
        (folder / name).touch()
    return folder


def test_a_group_limits_memory_and_processes(group: Path) -> None:
    """The other limits are set for each process before the command starts."""
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
    """Return the launcher's use of a group that the agent made."""
    group = create_limit_group(folder, ALL)
    assert group is not None
    asked = {"limits": ALL, "group": [bytes(folder), group.enforced]}
    fence = build_limit_enforcer(asked, group.fds)
    assert fence is not None
    return fence


def test_without_a_group_each_process_has_its_own_limits(tmp_path: Path) -> None:
    """Memory by address space; processes on top of the user's existing ones."""
    before = count_threads(os.getuid())
    lines = LimitEnforcer(ALL, (), None).shell_preamble().splitlines()

    assert "ulimit -v 65536 2>/dev/null" in lines
    (line,) = [line for line in lines if "-u" in line]
    most = int(line.split()[2])
    assert line == f"ulimit -u {most} 2>/dev/null || ulimit -p {most} 2>/dev/null"
    assert abs(most - 80 - before) < 80


def test_a_group_without_controllers_is_removed(tmp_path: Path) -> None:
    """It would limit nothing, so `ulimit` must."""
    assert create_limit_group(tmp_path / "new", ALL) is None
    assert not (tmp_path / "new").exists()


def test_no_group_is_made_for_other_limits(tmp_path: Path) -> None:
    """Processor time and files are limits of each process anyway."""
    assert create_limit_group(tmp_path / "new", {"cpu_s": 5}) is None
    assert not (tmp_path / "new").exists()


def test_out_of_memory_is_reported_by_the_kernel(group: Path) -> None:
    """SIGKILL alone proves nothing, because anybody may send it."""
    fence = fenced(group)

    (group / "memory.events").write_text("low 0\nmax 9\noom 0\noom_kill 0\n")
    assert fence.exceeded_limit(-signal.SIGKILL, IDLE) == ""
    (group / "memory.events").write_text("low 0\nmax 9\noom 1\noom_kill 2\n")
    assert fence.exceeded_limit(-signal.SIGKILL, IDLE) == (
        "limit memory_mb: more than 64 MiB were needed"
    )


def test_refused_processes_are_a_remark(group: Path) -> None:
    """The command decides how it handles the refusal."""
    fence = fenced(group)
    (group / "pids.events").write_text("max 0\n")
    assert fence.possible_cause(2, IDLE) == ""

    (group / "pids.events").write_text("max 12\n")
    assert fence.possible_cause(2, IDLE) == "limit processes: 12 were refused beyond 80"
    assert fence.exceeded_limit(2, IDLE) == ""


def test_the_usage_of_a_group_comes_from_its_counters(group: Path) -> None:
    """Background processes included; a higher value of rusage prevails."""
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
        (
            128 + signal.SIGXCPU,
            5000,
            "cpu_seconds",
        ),  # A shell's usage includes its command.
        (-signal.SIGXCPU, 4300, "cpu_seconds"),  # The value in ticks was higher.
        (-signal.SIGXCPU, 100, ""),  # Another process sent it.
        (-signal.SIGKILL, 9000, ""),
        (0, 9000, ""),
        (1, 9000, ""),
        (-signal.SIGXFSZ, 0, "file_mb"),
        (128 + signal.SIGXFSZ, 0, "file_mb"),
        (1, 0, ""),
    ],
)
def test_an_end_by_a_limit_is_distinguished_from_others(
    status: int, cpu_ms: int, ended_by: str
) -> None:
    """Signal and processor time must both match."""
    broken = LimitEnforcer(ALL, (), None).exceeded_limit(status, (cpu_ms, None))

    assert broken.startswith(f"limit {ended_by}" if ended_by else "")
    assert bool(broken) == bool(ended_by)


def test_a_kill_that_may_come_from_a_limit_is_a_remark() -> None:
    """Anybody may send SIGKILL, so the reason stays the signal."""
    fence = LimitEnforcer({"cpu_s": 5}, (), None)

    assert fence.possible_cause(-signal.SIGKILL, (100, None)) == ""
    assert fence.possible_cause(1, (9000, None)) == ""
    assert fence.possible_cause(-signal.SIGKILL, (6900, None)) == (
        "limit cpu_seconds: SIGKILL comes 2 s after 5 s"
    )


def test_an_ineffective_limit_is_reported(group: Path) -> None:
    """The kernel does not limit the processes of root."""
    limits = {"processes": 80}
    message = "limit processes: not held, as the agent is root without a cgroup"

    assert LimitEnforcer(limits, (), None).possible_cause(0, IDLE) == (
        message if os.getuid() == 0 else ""
    )
    assert fenced(group).possible_cause(0, IDLE) == ""
    assert LimitEnforcer({"cpu_s": 1}, (), None).possible_cause(0, IDLE) == ""


@pytest.mark.parametrize(
    ("controllers", "last"), [("memory pids", "+pids"), ("cpu memory pids", "+cpu")]
)
def test_controllers_are_delegated_from_an_empty_group(
    tmp_path: Path, controllers: str, last: str
) -> None:
    """From the service's group, with the agent in a child group made by systemd."""
    own = service(tmp_path, "octaskly.service/agent", controllers)

    assert cgroup.prepare_parent_group(own) == own.parent
    # Each write adds one; the file keeps the last.
    assert (own.parent / "cgroup.subtree_control").read_text() == last


def test_tasks_have_a_smaller_cpu_weight_than_their_agent(
    kernel: Path,
) -> None:
    """T18: the agent's group has the kernel's default of 100."""
    folder = cgroup.create_launcher_group(kernel, 1)

    assert folder is not None
    assert (folder / "cpu.weight").read_text() == "10"
    # Tasks have equal weights: their groups get memory and processes alone.
    assert (folder / "cgroup.subtree_control").read_text() == "+pids"


def test_a_kernel_without_cpu_weights_changes_nothing(kernel: Path) -> None:
    """If that controller is not delegated, its file is missing."""
    for weight in kernel.rglob("cpu.weight"):
        weight.unlink()
        weight.mkdir()

    folder = cgroup.create_launcher_group(kernel, 1)

    assert folder is not None
    assert (folder / "cgroup.subtree_control").read_text() == "+pids"


def test_an_agent_that_is_alone_moves_into_a_child_group(tmp_path: Path) -> None:
    """For versions of systemd without DelegateSubgroup."""
    own = service(tmp_path, "octaskly.service", "memory")
    (own / "agent").mkdir()
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n")

    assert cgroup.prepare_parent_group(own) == own
    assert (own / "agent" / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory"


def test_an_agent_beside_other_processes_moves_none(tmp_path: Path) -> None:
    """The group is a user's session, or a container's."""
    own = service(tmp_path, "session", "memory pids")
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")

    assert cgroup.prepare_parent_group(own) == own
    assert (own / "cgroup.subtree_control").read_text() == ""


def test_without_controllers_nothing_changes(tmp_path: Path) -> None:
    """Example: the old hierarchy uses them."""
    own = service(tmp_path, "octaskly.service/agent", "")

    assert cgroup.prepare_parent_group(own) == own


@pytest.mark.parametrize("status", [126, 127, 139, -signal.SIGSEGV])
def test_a_program_that_failed_to_load_may_have_lacked_memory(status: int) -> None:
    """The loader's message does not name the limit."""
    fence = LimitEnforcer({"memory_mb": 1}, (), None)
    message = "limit memory_mb: 1 MiB for each process may be too little"

    assert fence.possible_cause(status, IDLE) == message
    assert fence.possible_cause(1, IDLE) == ""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """Create a service's group with the kernel's files for a launcher."""
    service(tmp_path, "octaskly.service/agent", "cpu memory pids")
    parent = tmp_path / "octaskly.service"
    folder = service(parent, f"octaskly-{os.getpid()}-1", "cpu memory pids")
    (folder / "cpu.weight").write_text("100\n")
    return parent


def service(root: Path, name: str, controllers: str) -> Path:
    """Create a service's group, and a child group if its name has two parts."""
    own = root / name
    own.mkdir(parents=True)
    for folder in {own, root / name.partition("/")[0]}:
        (folder / "cgroup.controllers").write_text(f"{controllers}\n")
        for file in ("cgroup.subtree_control", "cgroup.procs", "cgroup.events"):
            (folder / file).touch()
    return own
