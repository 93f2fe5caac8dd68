"""Live output on whole agents, through the death of any node."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octaskly import Client, Log
from tests.support.agents import (
    WAIT_S_MAX,
    Agent,
    finished,
    meshed,
    replicas,
    running,
    submit,
    until,
    until_nodes,
)
from tests.support.sse_client import Event, Stream, stream

TEXT = """\
echo begin $OCTASKLY_ATTEMPT
for step in middle end; do
    file={folder}/$OCTASKLY_TASK_ID-$step-$OCTASKLY_ATTEMPT
    while ! [ -e $file ]; do sleep 0.02; done
    echo $step $OCTASKLY_ATTEMPT
done
"""


def client_of(agent: Agent) -> Client:
    return Client(state_dir=agent.state)


class Lines:
    """The lines of stdout, as they come."""

    def __init__(self, events: Iterator[Log]) -> None:
        self._events = events
        self._text = ""

    def next(self) -> str:
        """Return the next line."""
        while "\n" not in self._text:
            self._text += until_kind(self._events, "stdout").text
        line, _, self._text = self._text.partition("\n")
        return line


def until_kind(events: Iterator[Log], kind: str) -> Log:
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
def test_a_follower_gets_all_output_whichever_node_dies(tmp_path: Path) -> None:
    """First the dispatcher, then the worker; the client uses the third.

    Nothing repeats, nothing is missing, and each attempt starts at its start.
    """
    names = ("ash", "birch", "cedar")
    with running(tmp_path, *names, extra=("--slots", "1")) as agents:
        by_name = dict(zip(names, agents, strict=True))
        until_nodes(agents[0], 3)
        command = TEXT.format(folder=tmp_path)
        with client_of(agents[0]) as client:
            tasks = client.submit_many([command] * 3)
            deadline = time.monotonic() + WAIT_S_MAX
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
            lines = Lines(events)
            assert lines.next() == "begin 1"

            by_name[dispatcher].process.send_signal(signal.SIGKILL)
            until_nodes(by_name[front], 2)
            go_on(tmp_path, task, 1, "middle")
            assert lines.next() == "middle 1"

            # There is one slot, so its own task and the dispatcher's have to end first.
            for other in (workers[front], workers[dispatcher]):
                for n in range(1, 9):
                    go_on(tmp_path, other, n, "middle", "end")
            by_name[worker].process.send_signal(signal.SIGKILL)
            start = until_kind(events, "attempt").details
            assert start["node"] == front
            # Both nodes that knew the first attempt may be the two dead ones.
            assert start["previous"] in ("lost", None)
            n = start["attempt"]
            go_on(tmp_path, task, n, "middle", "end")
            found = [lines.next() for _ in range(3)]
            assert found == [f"{step} {n}" for step in ("begin", "middle", "end")]
            end = until_kind(events, "end")
            assert end.details["status"] == "completed"
            assert end.details["attempt"] == n


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_broken_stream_resumes_at_another_node_after_a_failover(
    tmp_path: Path,
) -> None:
    """`Last-Event-ID` has the position for every node, also after the end."""
    names = ("ash", "birch", "cedar")
    with meshed(tmp_path, *names, extra=("--slots", "1")) as (head, front, worker):
        until(lambda: replicas(head) == 3, "all keep copies")
        command = TEXT.format(folder=tmp_path)
        task = submit(head, command, requires={"node": worker.state.name})
        path = f"/api/v1/tasks/{task}/logs?stream=stdout&follow=true"
        with stream(head, path) as events:
            read_until(events, "begin 1\n")
        head.process.kill()
        head.process.wait()
        until_nodes(front, 2)
        go_on(tmp_path, task, 1, "middle")
        with stream(front, path, last_id=events.last_id) as more:
            assert read_until(more, "middle 1\n") == "middle 1\n"
        go_on(tmp_path, task, 1, "end")
        assert finished(front, task)["status"] == "completed"
        for agent, last_id, text in (
            (worker, more.last_id, "end 1\n"),
            (front, events.last_id, "middle 1\nend 1\n"),
            (front, "", "begin 1\nmiddle 1\nend 1\n"),
        ):
            with stream(agent, path, last_id=last_id) as rest:
                assert said_by(list(rest)) == text


def read_until(events: Stream, end: str) -> str:
    """Return the stdout of a stream until it ends so."""
    found: list[Event] = []
    for event in events:
        found.append(event)
        if said_by(found).endswith(end):
            return said_by(found)
    raise AssertionError(f"the stream ended with {found}")


def said_by(events: list[Event]) -> str:
    return "".join(event.data["data"] for event in events if event.name == "stdout")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running(tmp_path_factory.mktemp("logs"), "ash") as (agent,):
        until_nodes(agent, 1)
        yield agent


@pytest.mark.slow
def test_the_command_line_follows_and_detaches(agent: Agent, tmp_path: Path) -> None:
    """`octaskly logs -f` prints lines as they come; Ctrl-C does not stop the task."""
    with client_of(agent) as client:
        task = client.submit(TEXT.format(folder=tmp_path))
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
    _, stderr = process.communicate(timeout=WAIT_S_MAX)
    assert process.returncode == 130
    assert "Traceback" not in stderr

    go_on(tmp_path, task.id, 1, "middle", "end")
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=WAIT_S_MAX
    )
    assert (done.returncode, done.stdout) == (0, "begin 1\nmiddle 1\nend 1\n")
    shown = agent.call("GET", f"/api/v1/tasks/{task.id}")[1]
    assert shown["status"] == "completed"


@pytest.mark.slow
def test_run_shows_lines_as_they_come(agent: Agent, tmp_path: Path) -> None:
    """As if the command ran here."""
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
    # Lists show durable states, which may be behind the live output.
    [task] = until(
        lambda: [
            task["id"]
            for task in agent.call("GET", "/api/v1/tasks?status=running")[1]["tasks"]
        ],
        "it is listed",
    )
    go_on(tmp_path, task, 1, "middle")
    assert process.stdout.readline() == "middle 1\n"
    go_on(tmp_path, task, 1, "end")
    rest, _ = process.communicate(timeout=WAIT_S_MAX)
    assert (process.returncode, rest) == (3, "end 1\n")


@pytest.mark.slow
def test_a_flood_of_output_stays_within_its_bounds(tmp_path: Path) -> None:
    """On the disk, in the agent's memory, and in the log (B31, threat 17).

    For five gigabytes, and the API's latency meanwhile: `python -m benchmarks logs`.
    """
    size = 150_000_000
    with running(tmp_path, "ash") as (agent,):
        until_nodes(agent, 1)
        before = resident_most_bytes(agent)
        with client_of(agent) as client:
            ended = client.run(f"yes | head -c {size}", deadline_s=50)
            kept = list(client.logs(ended))
        grown = resident_most_bytes(agent) - before
        [file] = (agent.state / "transcripts").iterdir()

    assert (ended.exit_code, ended.stdout_bytes) == (0, size)
    assert ended.stdout_truncated
    assert file.stat().st_size <= 64 << 20
    assert grown < 40 << 20
    [gap] = [log.details for log in kept if log.kind == "gap"]
    assert gap["offset"] == 1 << 20
    assert size - gap["bytes"] > 60 << 20


def resident_most_bytes(agent: Agent) -> int:
    """Return the peak memory of an agent."""
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
