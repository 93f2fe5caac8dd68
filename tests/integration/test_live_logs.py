"""Output while tasks run, on whole agents: line by line, whoever dies meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octaskly.client import Client, Draft, Event
from tests.agents import Agent, running, until_nodes

TEXT = """\
echo begin $OCTASKLY_ATTEMPT
for step in middle end; do
    file={folder}/$OCTASKLY_TASK_ID-$step-$OCTASKLY_ATTEMPT
    while ! [ -e $file ]; do sleep 0.02; done
    echo $step $OCTASKLY_ATTEMPT
done
"""


def client_of(agent: Agent) -> Client:
    return Client.at_socket(agent.ready()["socket"])


def line_of(events: Iterator[Event]) -> str:
    """Return the next line on stdout."""
    text = ""
    while not text.endswith("\n"):
        text += until_kind(events, "stdout").data["data"]
    return text.strip()


def until_kind(events: Iterator[Event], kind: str) -> Event:
    for event in events:
        if event.kind == kind:
            return event
    raise AssertionError(f"no {kind} came")


def go_on(folder: Path, task: str, attempt: int, *steps: str) -> None:
    """Let a task print its next lines."""
    for step in steps:
        (folder / f"{task}-{step}-{attempt}").touch()


def nodes(agent: Agent) -> dict[str, Any]:
    return {n["name"]: n for n in agent.call("GET", "/api/v1/nodes")[1]["nodes"]}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_follower_sees_all_whoever_dies(tmp_path: Path) -> None:
    """First the dispatcher, then the worker; the node that it asks is the third.

    Nothing comes twice, nothing is left out, and each attempt begins from its start.
    """
    names = ("ash", "birch", "cedar")
    with running(tmp_path, *names, extra=("--slots", "1")) as agents:
        by_name = dict(zip(names, agents, strict=True))
        until_nodes(agents[0], 3)
        command = TEXT.format(folder=tmp_path)
        with client_of(agents[0]) as client:
            tasks = client.submit([Draft(command=command)] * 3)
            deadline = time.monotonic() + 20
            workers: dict[str, str] = {}
            while len(workers) < 3:
                assert time.monotonic() < deadline
                shown = [client.task(task.id) for task in tasks]
                workers = {t.worker_id: t.id for t in shown if t.worker_id}
        dispatcher = next(
            name for name, n in nodes(agents[0]).items() if n["role"] == "dispatcher"
        )
        worker, front = (name for name in names if name != dispatcher)
        task = workers[worker]
        with client_of(by_name[front]) as client:
            events = client.logs(task, follow=True)
            assert line_of(events) == "begin 1"

            by_name[dispatcher].process.send_signal(signal.SIGKILL)
            until_nodes(by_name[front], 2)
            go_on(tmp_path, task, 1, "middle")
            assert line_of(events) == "middle 1"

            # There is one slot, so its own task has to end first.
            go_on(tmp_path, workers[front], 1, "middle", "end")
            by_name[worker].process.send_signal(signal.SIGKILL)
            begin = until_kind(events, "attempt").data
            assert (begin["node"], begin["previous"]) == (front, "lost")
            n = begin["attempt"]
            assert line_of(events) == f"begin {n}"
            for step in ("middle", "end"):
                go_on(tmp_path, task, n, step)
                assert line_of(events) == f"{step} {n}"
            end = until_kind(events, "end")
            assert end.data["status"] == "completed"
            assert end.data["attempt"] == n


@pytest.mark.slow
def test_the_command_line_follows_and_detaches(tmp_path: Path) -> None:
    """`octaskly logs -f` prints lines as they come; Ctrl-C leaves the task alone."""
    with running(tmp_path, "ash") as (agent,):
        until_nodes(agent, 1)
        with client_of(agent) as client:
            [task] = client.submit([Draft(command=TEXT.format(folder=tmp_path))])
        words = [
            *(sys.executable, "-m", "octaskly", "--state-dir", str(agent.state)),
            *("logs", "-f", task.id),
        ]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "begin 1\n":
            assert line == ""
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "Traceback" not in stderr

        go_on(tmp_path, task.id, 1, "middle", "end")
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=20
        )
        assert (done.returncode, done.stdout) == (0, "begin 1\nmiddle 1\nend 1\n")
        shown = agent.call("GET", f"/api/v1/tasks/{task.id}")[1]
        assert shown["status"] == "completed"


@pytest.mark.slow
def test_run_shows_lines_as_they_come(tmp_path: Path) -> None:
    """As if the command ran here."""
    with running(tmp_path, "ash") as (agent,):
        until_nodes(agent, 1)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "octaskly", "--state-dir", str(agent.state)),
                *("run", "--", TEXT.format(folder=tmp_path) + "exit 3"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begin 1\n"
        task = agent.call("GET", "/api/v1/tasks")[1]["tasks"][0]["id"]
        go_on(tmp_path, task, 1, "middle")
        assert process.stdout.readline() == "middle 1\n"
        go_on(tmp_path, task, 1, "end")
        rest, _ = process.communicate(timeout=20)
        assert (process.returncode, rest) == (3, "end 1\n")
