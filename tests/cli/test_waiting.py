"""`octaskly wait` and `octaskly events` against real agents."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.test_live import assert_error_form, octaskly, words
from tests.support.agents import Agent, running, until, until_nodes

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def roomy_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A node with enough slots for waiting tasks."""
    folder = tmp_path_factory.mktemp("mesh")
    with running(folder, "ash", extra=("--slots", "8")) as (agent,):
        until_nodes(agent, 1)
        yield agent


def submit(node: Agent, *commands: str) -> list[str]:
    done = octaskly(node, "submit", "-", stdin="\n".join(commands).encode())
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().split()


def held(folder: Path, code: int = 0) -> tuple[str, Callable[[], None]]:
    """Return a command that runs until the second returned function is called."""
    gate = folder / f"gate-{time.monotonic_ns()}"
    return f"until [ -e {gate} ]; do sleep 0.02; done; exit {code}", gate.touch


def begin(node: Agent, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words(node, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("command", "code"),
    [("true", 0), ("exit 3", 3), ("kill -9 $$", 137)],
)
def test_the_exit_code_is_that_of_the_task(
    roomy_agent: Agent, command: str, code: int
) -> None:
    """As with `run`; also for a task that ended long ago."""
    (task,) = submit(roomy_agent, command)

    first, again = (
        octaskly(roomy_agent, "wait", task),
        octaskly(roomy_agent, "wait", "last"),
    )

    assert (first.returncode, again.returncode) == (code, code)
    assert first.stdout == b""


def test_the_exit_code_is_that_of_the_task_for_every_name(
    roomy_agent: Agent,
) -> None:
    """A number without its zeros once missed the end, and gave 0."""
    (task,) = submit(roomy_agent, "exit 3")
    number = int(task.split("-")[1])

    refs = (f"{number}", f"task-{number}", f"task-{number:07}")
    assert [octaskly(roomy_agent, "wait", ref).returncode for ref in refs] == [3, 3, 3]


def test_a_task_is_not_confused_with_one_with_a_longer_id(
    roomy_agent: Agent,
) -> None:
    """Client-chosen ids may share a prefix: `build` failed, `build-2` did not."""
    for name, command in (("build", "exit 4"), ("build-2", "sleep 0.2")):
        body = {"id": name, "command": command}
        assert roomy_agent.call("POST", "/api/v1/tasks", body)[0] == 201

    done = octaskly(roomy_agent, "wait", "--json", "build", "build-2")

    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert [task["id"] for task in ended] == ["build", "build-2"]
    assert done.returncode == 4


def test_a_member_is_awaited_by_the_number_of_its_array(roomy_agent: Agent) -> None:
    """With or without the end of the array's id."""
    array = (
        octaskly(roomy_agent, "array", "1-2", "--", "exit {}").stdout.decode().strip()
    )
    short = array.rpartition("-")[0]

    refs = (f"{array}.2", f"{short}.2", f"{int(short.removeprefix('task-'))}.2")
    assert [octaskly(roomy_agent, "wait", ref).returncode for ref in refs] == [2, 2, 2]


def test_a_task_that_times_out_is_124(roomy_agent: Agent) -> None:
    """As with `run`."""
    done = octaskly(roomy_agent, "submit", "--timeout", "1", "--", "sleep 60")

    assert octaskly(roomy_agent, "wait", done.stdout.decode().strip()).returncode == 124


def test_all_tasks_are_awaited(roomy_agent: Agent, tmp_path: Path) -> None:
    """The first non-zero code counts, in the order of the arguments."""
    slow, release = held(tmp_path, 4)
    tasks = submit(roomy_agent, "true", slow, "exit 5")

    waiting = begin(roomy_agent, "wait", "--json", *tasks)
    assert octaskly(roomy_agent, "wait", tasks[2]).returncode == 5
    assert waiting.poll() is None
    release()
    stdout, _ = waiting.communicate(timeout=DEADLINE_S)

    assert waiting.returncode == 4
    ended = [json.loads(line) for line in stdout.decode().splitlines() if line]
    assert [task["id"] for task in ended] == tasks
    assert [task["exit_code"] for task in ended] == [0, 4, 5]


def test_any_awaits_one_task(roomy_agent: Agent, tmp_path: Path) -> None:
    """The code is that of the ended one."""
    slow, release = held(tmp_path)
    quick, unlock = held(tmp_path, 6)
    tasks = submit(roomy_agent, slow, quick)

    waiting = begin(roomy_agent, "wait", "--any", *tasks)
    unlock()
    waiting.communicate(timeout=DEADLINE_S)
    release()
    octaskly(roomy_agent, "wait", tasks[0])
    assert waiting.returncode == 6


def test_a_wait_has_a_time_limit(roomy_agent: Agent, tmp_path: Path) -> None:
    """The task goes on."""
    slow, release = held(tmp_path)
    (task,) = submit(roomy_agent, slow)

    done = octaskly(roomy_agent, "wait", "--timeout", "1", task)
    shown = json.loads(octaskly(roomy_agent, "show", "--json", task).stdout)
    release()
    octaskly(roomy_agent, "wait", task)
    assert done.returncode == 124
    assert b"0 of 1 have ended" in done.stderr
    assert shown["status"] in ("queued", "running")


def test_an_array_ends_with_its_last_member(roomy_agent: Agent) -> None:
    """Exit code 1 if a member failed, because each has its own code."""
    good, bad = (
        octaskly(roomy_agent, "array", "1-3", "--", command).stdout.decode().strip()
        for command in ("sleep 0.{}", "sleep 0.{}; exit $((3 - {}))")
    )

    all_well, failed = (
        octaskly(roomy_agent, "wait", good),
        octaskly(roomy_agent, "wait", bad),
    )

    assert (all_well.returncode, failed.returncode) == (0, 1)
    assert b"2 of 3 failed" in failed.stderr


def test_members_of_an_array_are_counted(roomy_agent: Agent, tmp_path: Path) -> None:
    """The array alone is one task, so its progress would be nothing or all."""
    gate = tmp_path / "gate"
    text = f"test {{}} -lt 3 || until test -e {gate}; do sleep 0.05; done"
    array = octaskly(roomy_agent, "array", "1-5", "--", text).stdout.decode().strip()
    for number in (1, 2):
        octaskly(roomy_agent, "wait", f"{array}.{number}")

    done = octaskly(roomy_agent, "wait", "--timeout", "1", array)
    gate.touch()
    whole = octaskly(roomy_agent, "wait", array)

    assert done.stderr == b"2 of 5 members have ended within 1 s\n"
    assert (done.returncode, whole.returncode) == (124, 0)


def test_the_output_of_an_array_is_printed_member_by_member(
    roomy_agent: Agent,
) -> None:
    """In the order of their numbers; what names them is on stderr."""
    text = "echo out {}; echo err {} >&2; test {} -ne 2"
    array = octaskly(roomy_agent, "array", "1-3", "--", text).stdout.decode().strip()
    octaskly(roomy_agent, "wait", array)

    every = octaskly(roomy_agent, "logs", array)
    failed = octaskly(roomy_agent, "logs", "--failed", "--stdout", array)
    task = octaskly(roomy_agent, "logs", "--failed", f"{array}.1")

    assert every.stdout == b"out 1\nout 2\nout 3\n"
    lines = every.stderr.decode().splitlines()
    assert [line for line in lines if line[:3] == "err"] == ["err 1", "err 2", "err 3"]
    assert [line.partition(": ")[2] for line in lines if line[:3] == "==>"] == [
        "completed, echo out 1; echo err 1 >&2; test 1 -ne 2",
        "failed (exit code 1), echo out 2; echo err 2 >&2; test 2 -ne 2",
        "completed, echo out 3; echo err 3 >&2; test 3 -ne 2",
    ]
    assert failed.stdout == b"out 2\n", failed
    assert task.returncode == 2
    assert b"--failed is for an array" in task.stderr


def test_an_unknown_task_is_3(roomy_agent: Agent) -> None:
    """At once, without a wait."""
    done = octaskly(roomy_agent, "wait", "task-999")

    assert done.returncode == 3
    assert_error_form(done.stderr)


def test_a_terminal_shows_the_progress(roomy_agent: Agent) -> None:
    """On stderr alone."""
    tasks = submit(roomy_agent, "true", "true")
    ours, theirs = pty.openpty()
    shown = b""
    try:
        done = subprocess.run(
            words(roomy_agent, "wait", *tasks),
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=DEADLINE_S,
            check=True,
        )
        os.close(theirs)
        with suppress(OSError):  # It ends with one.
            while part := os.read(ours, 4096):
                shown += part
    finally:
        os.close(ours)

    assert b"2 of 2 have ended" in shown
    assert done.stdout == b""


def test_a_quiet_terminal_shows_nothing(roomy_agent: Agent) -> None:
    """`--quiet` leaves errors alone."""
    (task,) = submit(roomy_agent, "true")
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            words(roomy_agent, "--quiet", "wait", task),
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=DEADLINE_S,
            check=True,
        )
        said = select.select([ours], [], [], 0)[0]
    finally:
        os.close(ours)
        os.close(theirs)

    assert (done.stdout, said) == (b"", [])


def test_a_wait_continues_with_the_next_dispatcher(tmp_path: Path) -> None:
    """After the failover of the dispatcher that it started with."""
    with running(tmp_path, "ash") as (ash,):
        until_nodes(ash, 1)
        with running(tmp_path, "birch") as (birch,):
            until_nodes(birch, 2)
            until(
                lambda: birch.call("GET", "/api/v1/nodes")[1].get("replicas") == 2,
                "two copies",
            )
            slow, release = held(tmp_path, 7)
            other, unlock = held(tmp_path)
            tasks = submit(birch, slow, other)
            waiting = begin(birch, "wait", *tasks)
            watching = begin(birch, "events", "--types", "task", "--json")
            assert watching.stdout is not None
            said = submit(birch, "true")
            while not select.select([watching.stdout], [], [], 1.0)[0]:
                said += submit(birch, "true")  # It does not listen yet.
            line = watching.stdout.readline()
            assert json.loads(line)["data"]["id"] in said
            ash.process.kill()
            release()
            unlock()
            _, stderr = waiting.communicate(timeout=DEADLINE_S)
            last: dict[str, str] = {}
            while set(last.values()) != {"completed", "failed"}:
                event = json.loads(watching.stdout.readline())
                assert event["event"] == "task"
                if event["data"]["id"] in tasks:
                    last[event["data"]["id"]] = event["data"]["status"]
            watching.send_signal(signal.SIGINT)
            watching.communicate(timeout=DEADLINE_S)

    assert waiting.returncode == 7, stderr
    assert last == dict(zip(tasks, ("failed", "completed"), strict=True))
    assert watching.returncode == 130


def test_events_are_printed_for_people(roomy_agent: Agent) -> None:
    """One line each: the nodes first, then the events."""
    watching = begin(roomy_agent, "events")
    assert watching.stdout is not None
    first = watching.stdout.readline().decode().split()
    (task,) = submit(roomy_agent, "exit 3")
    lines: list[str] = []
    while len(lines) < 3:  # Other events may come, too.
        line = watching.stdout.readline().decode()
        lines += [line] if task in line else []
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=DEADLINE_S)

    assert first == ["node", "ash", "ready", "dispatcher"]
    assert [line.split()[1:] for line in lines] == [
        [task, "queued"],
        [task, "running", "on", "ash"],
        [task, "failed", "on", "ash", "exit", "code", "3"],
    ]
