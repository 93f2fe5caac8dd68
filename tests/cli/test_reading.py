"""Read commands: data on stdout, messages on stderr, JSON as in the API."""

from __future__ import annotations

import datetime as dt
import json
import os
import pty
import re
import signal
import subprocess
from typing import Any

import msgspec
import pytest

from octaskly.api.problems import CATCHING_UP
from octaskly.cli.output import task_list
from octaskly.cli.output.render import EXIT_NO_DISPATCHER, print_json
from octaskly.cli.output.terminal import on_one_line
from octaskly.rest.client_types import Task
from octaskly.rest.tasks import FirstFailure, Members
from tests.cli.conftest import Run
from tests.cli.stand_in import NODE, NODES, STATS, Api
from tests.cli.typed import typed


def ended_task(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"task-{number:03}-0000000{number}",
        "command": "echo hello",
        "status": "completed",
        "worker_id": "here",
        "exit_code": 0,
        "reason": "exit",
        "timeout": None,
        "duration_ms": 1234,
        "attempt": 1,
        "created_at": "2026-02-06T11:00:00Z",
        "completed_at": "2026-02-06T12:00:00Z",
        "inputs": [],
        "outputs": [],
        "raw": (b"out\n", b"err\n"),
    } | fields


@pytest.fixture
def three_tasks(api: Api) -> Api:
    for task in (
        ended_task(1),
        ended_task(2, status="failed", exit_code=3, command="false\nfalse"),
        ended_task(3, status="queued", worker_id=None, exit_code=None, raw=(b"", b"")),
    ):
        api.tasks[task["id"]] = task
    api.tasks["task-003-00000003"]["duration_ms"] = None
    return api


def test_ls_prints_an_ended_task_whose_name_has_a_dot(api: Api, octaskly: Run) -> None:
    """Only in the id of a member does a number follow the dot."""
    api.tasks["build.v2"] = ended_task(1, id="build.v2")

    done = octaskly("ls")

    assert done.stdout.decode().splitlines()[1].startswith("build.v2 ")
    assert done.stderr == b""


def test_ls_prints_what_waits_and_then_what_ended(
    three_tasks: Api, octaskly: Run
) -> None:
    """Without a terminal: no colours, boxes, cut columns or messages on stdout."""
    done = octaskly("ls")

    assert done.stdout.decode() == (
        "ID  STATE      NODE  STARTED  TIME   EXIT  COMMAND\n"
        "3   queued     -     -        -      -     echo hello\n"
        "1   completed  here  -        1.2 s  0     echo hello\n"
        "2   failed     here  -        1.2 s  3     false ⏎ false\n"
    )
    assert done.stderr == b""


def test_ls_has_a_name_column_if_a_task_has_a_name(
    three_tasks: Api, octaskly: Run
) -> None:
    """Few tasks have one, and an empty column helps nobody."""
    three_tasks.tasks["task-002-00000002"]["name"] = "nightly"

    done = octaskly("ls")

    assert done.stdout.decode() == (
        "ID  STATE      NODE  STARTED  TIME   EXIT  NAME     COMMAND\n"
        "3   queued     -     -        -      -     -        echo hello\n"
        "1   completed  here  -        1.2 s  0     -        echo hello\n"
        "2   failed     here  -        1.2 s  3     nightly  false ⏎ false\n"
    )


CALL = "task-792312345678-3fa2c0de"
CALL_TRACE = b'Traceback:\n  File "a.py", line 1\nValueError: seed 7\n'


def make_busy(api: Api) -> Api:
    """Return a mesh with all kinds of tasks."""
    began = {"started_at": "2024-02-06T14:03:12Z", "status": "running"}
    waits = {"status": "queued", "worker_id": None, "exit_code": None}
    counts = {"range": "1-100", "total": 100, "queued": 60, "running": 4}
    failure = {"id": "task-001-00000001.17", "index": 17, "exit_code": 3}
    counts |= {"completed": 30, "failed": 6, "rate_per_s": 0.4, "eta_ms": 160_000}
    counts |= {"first_failure": failure | {"reason": "exit"}}
    runs = began | {"exit_code": None, "duration_ms": None}
    some = [
        ended_task(1, **runs, array=counts, elapsed_ms=90_000, command="./run {}"),
        ended_task(2, **runs, elapsed_ms=61_000, command="./train --lr 1e-3"),
        ended_task(3, **waits, duration_ms=None, command="./train --lr 1e-4"),
        ended_task(4, **waits, duration_ms=None, command="./train --lr 1e-5"),
        ended_task(5, started_at="2023-11-28T10:00:00Z", worker_id="пи 🍓"),
        ended_task(6, status="failed", exit_code=1, call="simulate(3, seed=7)")
        | {"created_at": "2026-02-06T11:00:01Z"},
        ended_task(7, status="cancelled", exit_code=None, command="echo שלום עולם")
        | {"created_at": "2026-02-06T11:00:02Z"},
    ]
    some[5] |= {"id": CALL, "name": "simulate", "attempt": 4}
    some[5] |= {"raw": (b"\0\1", CALL_TRACE), "workdir": "scratch", "stdin_bytes": 749}
    some[5] |= {"outputs": [{"path": "octaskly.result", "bytes": None}]}
    api.tasks |= {task["id"]: task for task in some}
    member = ended_task(1, **failure, item="b.mp4", reason="exit", status="failed")
    api.answers["/api/v1/arrays/task-001-00000001"] = some[0] | {
        "raw": None,
        "failed_members": [member | {"id": failure["id"], "raw": None}],
    }
    api.answers["/api/v1/nodes"] = busy_nodes()
    attempts: list[dict[str, Any]] = [
        {"id": some[1]["id"], "short_id": "2", "command": "./train --lr 1e-3"},
        {"id": failure["id"], "short_id": "1.17", "command": "./run b.mp4"},
        {"id": CALL, "worker_id": "pi4", "call": "simulate(3, seed=7)"},
    ]
    api.answers["/api/v1/attempts"] = {
        "now": "2026-02-06T12:00:00.000Z",
        "running": [
            {"worker_id": "here", "attempt": 1, "status": "running"} | run
            for run in attempts
        ],
    }
    lost = {"worker_id": "пи 🍓", "status": "released", "reason": "lost"}
    api.answers[f"/api/v1/tasks/{some[5]['id']}/attempts"] = {
        "id": some[5]["id"],
        "attempts": [
            {"attempt": 1, **lost},
            {"attempt": 2, **lost, "reason": "limit", "detail": "memory_mb"}
            | {"duration_ms": 61_000},
            {"attempt": 3, **lost, "reason": "returned"},
            {"attempt": 4, "worker_id": "here", "status": "failed"},
        ],
    }
    return api


def busy_nodes() -> dict[str, Any]:
    """Return a node in each state; two of them run tasks."""
    states: list[dict[str, Any]] = [
        {"name": "here", "running": 2},
        {"name": "attic"},
        {"name": "pi4", "state": "draining", "running": 1},
        {"name": "pi5", "state": "paused"},
        {"name": "nas", "short_of": "disk"},
        {"name": "laptop", "state": "lost", "last_seen": "2999-02-06T12:00:00Z"},
    ]
    shown = [
        NODE
        | {"id": f"001{number}", "role": "worker" if number > 1 else "dispatcher"}
        | {"running": 0}
        | one
        for number, one in enumerate(states, 1)
    ]
    return {"nodes": shown, "total": len(shown)}


@pytest.fixture
def busy(api: Api) -> Api:
    """A mesh with all kinds of tasks."""
    return make_busy(api)


def test_ls_shows_what_matters_now(busy: Api, octaskly: Run) -> None:
    """Running and waiting tasks first, then the latest that ended, newest last."""
    done = octaskly("ls")

    lines = done.stdout.decode().splitlines()
    assert [line.rstrip() for line in lines] == [
        "ID    STATE      NODE    STARTED     TIME   EXIT  COMMAND",
        "1     running    36/100  2024-02-06  1m30s  -     ./run {}",
        "2     running    here    2024-02-06  1m01s  -     ./train --lr 1e-3",
        "3     queued     -       -           -      -     ./train --lr 1e-4",
        "4     queued     -       -           -      -     ./train --lr 1e-5",
        "5     completed  пи 🍓   2023-11-28  1.2 s  0     echo hello",
        "3fa2  failed     here    -           1.2 s  1     simulate(3, seed=7)",
        "7     cancelled  here    -           1.2 s  -     echo שלום עולם",
    ]
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("running", "1 running, 1 failed, first .1: exit code 2"),
        ("failed", "1 of 3 failed, first .1: exit code 2"),
    ],
)
def test_an_array_says_how_many_of_its_members_failed(status: str, said: str) -> None:
    """While it runs, nobody knows of how many that will be."""
    task = msgspec.convert({"id": "a", "status": status}, Task)
    failure = FirstFailure(id="a.1", index=1, reason="exit", exit_code=2)
    counts = Members(total=3, running=1, failed=1, first_failure=failure)

    assert task_list.describe_progress(task, counts) == said


def test_ls_tells_how_many_tasks_it_leaves_out(busy: Api, octaskly: Run) -> None:
    """And how to see them."""
    few = octaskly("ls", "--limit", "1")
    oldest = octaskly("ls", "--oldest", "--limit", "2")
    newest = octaskly("ls", "--newest", "--limit", "2")
    latest = octaskly("ls", "--limit", "2", "--offset", "1")
    every = octaskly("ls", "--all")

    def ids(done: subprocess.CompletedProcess[bytes]) -> list[str]:
        return [line.split()[0] for line in done.stdout.decode().splitlines()[1:]]

    assert ids(few) == ["1", "2", "3", "4", "7"]
    assert few.stderr == (
        b"the latest 1 of 3 ended tasks; more: --limit N, --all, or --oldest\n"
    )
    assert ids(oldest) == ["1", "2"]
    assert oldest.stderr == b"2 of 7 shown; more: --oldest --after 2\n"
    assert ids(newest) == ["7", "3fa2"]
    assert ids(latest) == ["5", "3fa2"]
    assert latest.stderr == b"2 of 7 shown; more: --after 5\n"
    assert ids(every) == ["1", "2", "3", "4", "5", "3fa2", "7"]
    assert every.stderr == b""


def test_json_of_ls_has_the_same_tasks(busy: Api, octaskly: Run) -> None:
    """As the API shows them."""
    found = json.loads(octaskly("ls", "--limit", "1", "--json").stdout)

    assert [task["short_id"] for task in found["tasks"]] == ["1", "2", "3", "4", "7"]
    assert found["tasks"][0]["array"]["rate_per_s"] == 0.4
    assert (found["total"], found["returned"]) == (7, 5)


def test_ls_and_show_display_time_limits(three_tasks: Api, octaskly: Run) -> None:
    """As `--timeout` takes them; most tasks have none, and a column needs one."""
    three_tasks.tasks["task-001-00000001"]["timeout"] = 5400
    three_tasks.tasks["task-002-00000002"]["timeout"] = 7200

    done = octaskly("ls")

    assert done.stdout.decode() == (
        "ID  STATE      NODE  STARTED  TIME   TIMEOUT  EXIT  COMMAND\n"
        "3   queued     -     -        -      -        -     echo hello\n"
        "1   completed  here  -        1.2 s  90m      0     echo hello\n"
        "2   failed     here  -        1.2 s  2h       3     false ⏎ false\n"
    )
    assert b"\ntimeout:    2h\n" in octaskly("show", "2").stdout


def test_show_says_cut_only_for_output_that_is_cut(
    three_tasks: Api, octaskly: Run
) -> None:
    """The task has the beginning of a long stream; its log has the rest."""
    three_tasks.forced = {
        "stdout_truncated": True,
        "stdout_bytes": 3_000_000,
        "stderr_truncated": True,
        "stderr_bytes": 2_000_000,
    }
    three_tasks.logs = (
        b'event: gap\nid: 1-1-2:1:0\ndata: {"stream": "stderr", "offset": 1048576,'
        b' "bytes": 500000, "reason": "why"}\n\n'
        b'event: end\nid: 1-1-2:2:0\ndata: {"id": "task-001-00000001",'
        b' "status": "completed"}\n\n'
    )

    shown = octaskly("show", "1").stdout.decode()

    assert "\nstdout:     3.0 MB\n" in shown
    assert "\nstderr:     2.0 MB, truncated: 500 kB missing\n" in shown


def test_show_prints_the_requested_options(three_tasks: Api, octaskly: Run) -> None:
    """And no others."""
    three_tasks.forced = {
        "name": "nightly",
        "labels": {"team": "ci", "hot": ""},
        "env": {"A": "1"},
        "cwd": "src",
        "workdir": "scratch",
        "stdin_bytes": 2048,
        "grace": 0,
        "limits": {"memory_mb": 64, "cpu_seconds": None},
        "requires": {"labels": {"disk": "ssd"}, "node": None, "cpus": 2},
        "priority": -5,
        "retries": 2,
        "retry_on": [7, "lost"],
        "after": ["a", "b", "c", "d", "e", "f", "g"],
        "on": "any",
        "retry_of": "task-001-00000001",
        "queue_ms": 12,
        "cpu_seconds": 61.5,
        "memory_peak_mb": 1536.0,
    }

    done = octaskly("show", "2")

    assert {
        "name:        nightly",
        "labels:      team=ci hot",
        "env:         A=1",
        "cwd:         src",
        "workdir:     scratch",
        "stdin:       2.0 kB",
        "grace:       0 s",
        "limits:      memory_mb=64",
        "needs:       label disk=ssd, cpus=2",
        "priority:    -5",
        "retries:     2, on 7, lost",
        "after:       a, b, c, d, e and 2 more, on any",
        "retry of:    task-001-00000001",
        "queued for:  12 ms",
        "cpu time:    1m02s",
        "memory:      1.5 GiB peak",
    } <= set(done.stdout.decode().splitlines())


def test_show_says_that_the_stdin_was_freed(three_tasks: Api, octaskly: Run) -> None:
    """So the task cannot be retried."""
    three_tasks.forced = {"stdin_bytes": 2048, "stdin_freed": True}

    done = octaskly("show", "2")

    assert "stdin:      2.0 kB, deleted" in done.stdout.decode().splitlines()


def test_a_completed_task_without_its_output_is_marked(api: Api, octaskly: Run) -> None:
    """As `run` and `fetch` do, which exit with 125 then."""
    octaskly("submit", "--out", "r.txt", "--", "true")
    octaskly("wait", "1")
    api.forced = {
        "attempt": 1,
        "missing_output": "r.txt",
        "outputs": [{"path": "r.txt", "bytes": None}],
        "outputs_missing": ["r.txt"],
    }

    listed, shown = octaskly("ls").stdout.decode(), octaskly("show", "last").stdout

    assert re.search(r"^1 +completed ✗ +here ", listed, re.MULTILINE), listed
    assert re.search(rb"^state: +completed, but without r.txt$", shown, re.MULTILINE)


def test_show_says_why_a_task_is_queued(three_tasks: Api, octaskly: Run) -> None:
    """Such as a call for a version of Python that no node has."""
    three_tasks.forced = {"status": "queued", "call": "f(3)", "attempt": 1}
    three_tasks.stall = "no node has Python 3.11 for calls"

    done = octaskly("show", "2")

    assert re.search(
        rb"^queued because: +no node has Python 3.11 for calls$",
        done.stdout,
        re.MULTILINE,
    )


def test_ls_filters_by_state_and_node(three_tasks: Api, octaskly: Run) -> None:
    """The filters are those of the API."""
    done = octaskly("ls", "--status", "failed", "--node", "here", "--json")

    assert [task["id"] for task in json.loads(done.stdout)["tasks"]] == [
        "task-002-00000002"
    ]


def test_ls_since_asks_for_what_ended_recently(three_tasks: Api, octaskly: Run) -> None:
    """The node knows when each ended, so it filters."""
    octaskly("ls", "--status", "failed", "--since", "1h")

    query = three_tasks.requests[-1].partition("?")[2].split("&")
    too_long = octaskly("ls", "--since", "91d")

    assert {"status=failed", "ended_within_s=3600", "newest=true"} <= set(query)
    assert too_long.returncode == 2
    assert too_long.stderr.decode() == (
        "error: invalid value for '--since': '91d' is too long; at most 90d\n"
        "  hint: octaskly ls --help\n"
    )


def test_show_prints_all_known_fields(three_tasks: Api, octaskly: Run) -> None:
    """Unknown fields are omitted."""
    three_tasks.forced = {
        "outputs": [{"path": "a.txt", "bytes": 2048}, {"path": "b.txt", "bytes": None}]
    }

    done = octaskly("show", "2")

    assert done.stdout.decode() == (
        "id:         task-002-00000002\n"
        "state:      failed\n"
        "command:    false\n"
        "            false\n"
        "node:       here\n"
        "attempt:    1\n"
        "exit code:  3\n"
        "timeout:    none\n"
        "submitted:  2026-02-06T11:00:00Z\n"
        "ended:      2026-02-06T12:00:00Z\n"
        "took:       1.2 s\n"
        "outputs:    a.txt (2.0 kB), b.txt (missing)\n"
        "stdout:     4 B\n"
        "stderr:     4 B\n"
    )


@pytest.mark.parametrize("ref", ["task-001-00000001", "task-001", "1"])
def test_a_task_is_named_by_id_or_number(
    three_tasks: Api, octaskly: Run, ref: str
) -> None:
    """The number alone is quick to type."""
    done = octaskly("show", ref, "--json")

    assert json.loads(done.stdout)["id"] == "task-001-00000001"


def test_last_is_the_newest_task(three_tasks: Api, octaskly: Run) -> None:
    """Lists are oldest first, so it is the last of the last page."""
    done = octaskly("show", "last", "--json")

    assert json.loads(done.stdout)["id"] == "task-003-00000003"


def test_ls_lists_members_by_any_name_of_their_array(
    three_tasks: Api, octaskly: Run
) -> None:
    """The API knows ids alone."""
    octaskly("ls", "--array", "last", "--limit", "7")

    asked = ["array=task-003-00000003" in each for each in three_tasks.requests[-5:]]
    assert asked == [True] * 5


def test_last_in_an_empty_mesh_is_an_error(api: Api, octaskly: Run) -> None:
    """No task exists; the hint submits one."""
    done = octaskly("logs", "last")

    assert done.returncode == 1
    assert done.stderr == (
        b"error: there is no task yet\n  hint: octaskly run -- echo hello\n"
    )


def test_logs_are_the_raw_streams(three_tasks: Api, octaskly: Run) -> None:
    """Each goes to the stream that the task wrote to."""
    done = octaskly("logs", "1")

    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


@pytest.mark.parametrize(
    ("flags", "stdout", "stderr"),
    [
        (["--stdout"], b"out\n", b""),
        (["--stderr"], b"", b"err\n"),
        (["-f"], b"out\n", b"err\n"),
        (["-f", "--stderr"], b"", b"err\n"),
    ],
)
def test_logs_of_one_stream_can_be_requested(
    three_tasks: Api, octaskly: Run, flags: list[str], stdout: bytes, stderr: bytes
) -> None:
    """Of an ended task only its end is left to follow."""
    done = octaskly("logs", *flags, "1")

    assert (done.returncode, done.stdout, done.stderr) == (0, stdout, stderr)


def test_logs_of_a_call_are_what_it_printed(busy: Api, octaskly: Run) -> None:
    """The stdout of its process is not text: it is the pickled value."""
    call = busy.tasks[CALL]
    failed = octaskly("logs", "3fa2")
    call |= {"status": "completed", "exit_code": 0, "raw": (b"\0\1", b"seed 7\n")}

    done = octaskly("logs", "3fa2")

    assert (failed.stdout, failed.stderr) == (b"", CALL_TRACE)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode().splitlines() == [
        "seed 7",
        "its value: result() of the future, in the program that made the call",
    ]


def test_show_describes_a_call_and_not_how_it_travels(busy: Api, octaskly: Run) -> None:
    """Its arguments, its folder and its pickled value are Octaskly's; JSON has all."""
    raw = json.loads(octaskly("show", "--json", "3fa2").stdout)
    failed = octaskly("show", "3fa2").stdout.decode()
    result = {"path": "octaskly.result", "bytes": 2_000_000, "files": 1}
    busy.tasks[CALL] |= {"status": "completed", "exit_code": 0, "outputs": [result]}

    completed = octaskly("show", "3fa2").stdout.decode()

    assert {"command", "stdin_bytes", "outputs", "workdir"} <= raw.keys()
    for shown in (failed, completed):
        assert not re.search("^(command|outputs|std|workdir)", shown, re.MULTILINE)
        assert re.search(r"^printed: +52 B$", shown, re.MULTILINE)
    assert "\nvalue:" not in failed
    assert re.search(r"^value: +2.0 MB, from result\(\)", completed, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("logs --stdout --stderr 3fa2", "--stdout excludes --stderr"),
        ("ls --newest --oldest", "--oldest excludes --newest"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(
    busy: Api, octaskly: Run, words: str, said: str
) -> None:
    """The last one does not win silently."""
    done = octaskly(*words.split())

    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"error: {said}\n")


def test_stdout_of_a_call_is_not_shown_at_a_terminal(
    busy: Api, octaskly: Run, environ: dict[str, str]
) -> None:
    """A program gets its bytes; a terminal would take some of them for commands."""
    saved = octaskly("logs", "--stdout", "3fa2")
    ours, theirs = pty.openpty()
    try:
        shown = subprocess.run(
            typed("--node", "here", "logs", "--stdout", "3fa2"),
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=environ,
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)

    assert saved.stdout == b"\0\1"
    assert shown.returncode == 2
    assert shown.stderr.decode().splitlines() == [
        "error: the stdout of simulate(3, seed=7) is its pickled value, not text",
        "  cause: everything that a Python call prints is on its stderr",
        "  hint: octaskly logs 3fa2    prints that",
    ]


def test_logs_report_missing_output_and_reruns(three_tasks: Api, octaskly: Run) -> None:
    """On stderr: stdout has the bytes alone."""
    said = [
        # No earlier attempt was seen, so the reader sees no rerun.
        ("attempt", {"attempt": 2, "node": "ash", "previous": "inputs"}),
        ("stdout", {"offset": 0, "data": "b"}),
        ("attempt", {"attempt": 3, "node": "pi4", "previous": "lost"}),
        ("stdout", {"offset": 0, "data": "a"}),
        ("gap", {"stream": "stdout", "offset": 1, "bytes": 2048, "reason": "why"}),
        ("stdout", {"offset": 2049, "data": "/w==", "encoding": "base64"}),
        ("end", {"id": "task-001-00000001", "status": "completed"}),
    ]
    three_tasks.logs = "".join(
        f"event: {kind}\nid: 1-1-2:{n}:0\ndata: {json.dumps(data)}\n\n"
        for n, (kind, data) in enumerate(said)
    ).encode()

    done = octaskly("logs", "1")

    assert done.stdout == b"ba\xff"
    assert done.stderr.decode().splitlines() == [
        "attempt 3 on pi4; the one before it does not count: lost",
        "2.0 kB of stdout is missing here: why",
    ]


def test_logs_of_one_attempt_are_requested_by_its_number(
    three_tasks: Api, octaskly: Run
) -> None:
    """The node knows all attempts, including superseded ones."""
    done = octaskly("logs", "--attempt", "2", "3")

    assert "attempt=2" in three_tasks.requests[-1]
    assert (done.returncode, done.stderr) == (0, b"")


def test_logs_of_a_lost_task_warn_of_missing_output(
    three_tasks: Api, octaskly: Run
) -> None:
    """Its worker is gone: no message would look like an empty output."""
    three_tasks.tasks["task-001-00000001"] |= {"status": "failed", "reason": "lost"}

    done = octaskly("logs", "1")

    assert b"was lost with its worker: it may have written more" in done.stderr


def test_logs_report_that_there_is_no_output_yet(
    three_tasks: Api, octaskly: Run
) -> None:
    """No message would look like an empty output."""
    done = octaskly("logs", "3")

    assert done.stdout == b""
    assert b"task-003-00000003 is queued" in done.stderr


def test_nodes_prints_one_line_for_each_node(api: Api, octaskly: Run) -> None:
    """The whole mesh."""
    done = octaskly("nodes")

    head, line = done.stdout.decode().splitlines()
    assert head.split("  ", 1) == [
        *("NODE", "STATE  ROLE        TASKS  CPU  MEMORY       DISK FREE  VERSION  NOW")
    ]
    assert line == (
        "here  ready  dispatcher  1/2    12%  1.0/4.0 GiB  42 GB      0.1.0"
        "    1 task running"
    )


def test_nodes_says_what_runs_and_why_a_node_takes_no_work(
    busy: Api, octaskly: Run
) -> None:
    """Which machine is free, and which is in trouble, shows at a glance."""
    began = (dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)).isoformat()
    for run in busy.answers["/api/v1/attempts"]["running"]:
        run["assigned_at"] = began

    done = octaskly("nodes")

    rows = [re.split("  +", line) for line in done.stdout.decode().splitlines()]
    assert [
        (row[0], row[1], row[3], re.sub(r"\d+m", "m", row[-1])) for row in rows
    ] == [
        ("NODE", "STATE", "TASKS", "NOW"),
        ("here", "ready", "2/2", "./train --lr 1e-3 (2hm) and 1 more"),
        ("attic", "ready", "0/2", "free"),
        ("pi4", "draining", "1/2", "simulate(3, seed=7) (2hm)"),
        ("pi5", "paused", "0/2", "-"),
        ("nas", "short of disk", "0/2", "-"),
        ("laptop", "lost", "0/2", "last seen now"),
    ]
    assert done.stderr.decode().splitlines() == [
        "pi4: takes no new tasks; to change that: octaskly resume pi4",
        "pi5: its tasks are stopped; to continue: octaskly resume pi5",
        "nas: takes no new tasks until its disk has room",
        "laptop: is it on and connected? then type there: octaskly doctor",
    ]


def test_nodes_shows_all_about_one_node(busy: Api, octaskly: Run) -> None:
    """Also what only the node itself knows: its disk, and how long it has been up."""
    busy.answers["/api/v1/nodes/here"] = busy.answers["/api/v1/nodes"]["nodes"][0]
    busy.answers["/api/v1/nodes/0011/storage"] = {
        "name": "here",
        "files_bytes": 5_000_000,
        "files_quota_bytes": 1 << 30,
        "outputs_bytes": 2_000_000,
        "logs_bytes": 1_000_000,
        "items": [],
        "output_quota_bytes": 1 << 30,
        "free_bytes": 42_000_000_000,
        "total": 0,
        "disk_bytes": 250_000_000_000,
        "uptime_seconds": 7200,
    }

    shown = octaskly("nodes", "here").stdout.decode()

    assert shown.splitlines() == [
        "name:            here",
        "id:              0011",
        "state:           ready",
        "role:            dispatcher",
        "tasks:           2 of 2 at a time",
        "running:         2  ./train --lr 1e-3",
        "                 1.17  ./run b.mp4",
        "cpu:             12%, load 0.0",
        "memory:          1.0 of 4.0 GiB used",
        "disk:            42 GB free of 250 GB",
        "stored files:    5.0 MB",
        "stored outputs:  3.0 MB",
        "agent up:        2h00m",
        "labels:          room=attic",
        "version:         0.1.0",
        "addresses:       127.0.0.1:7878",
    ]
    assert json.loads(octaskly("nodes", "--json", "here").stdout)["id"] == "0011"


SAFE: dict[str, Any] = {
    "term": 4,
    "epoch": {"term": 4, "node": "0011"},
    "replicas": 2,
    "standbys": [
        {"name": "ben", "id": "0012", "state": "level", "lag": 3},
        {"name": "cy", "id": "0013", "state": "joining", "lag": 1200},
    ],
    "last_failover": {
        "at": "2026-02-06T12:00:00Z",
        "duration_ms": 412,
        "reason": "dispatcher lost",
    },
}


def test_nodes_shows_standbys_and_the_last_failover(
    api: Api, octaskly: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The progress of a standby, and the end of the previous dispatcher."""
    others = [
        {"name": "ben", "id": "0012", "role": "standby", "state": "ready"},
        {"name": "cy", "id": "0013", "role": "standby", "state": "ready"},
        {"name": "dee", "id": "0014", "role": "worker", "state": "ready"},
    ]
    monkeypatch.setitem(NODES, "nodes", [NODE, *others])
    for key, value in SAFE.items():
        monkeypatch.setitem(NODES, key, value)

    done = octaskly("nodes")

    lines = done.stdout.decode().splitlines()
    assert [line[13:29].strip() for line in lines] == [
        *("ROLE", "dispatcher", "standby in sync", "standby joining", "worker")
    ]
    assert re.fullmatch(
        rb"last failover: \d+h\d\dm ago, took 412 ms \(dispatcher lost\)\n", done.stderr
    )


@pytest.mark.parametrize(
    ("standbys", "said"),
    [
        ([], b"no other node keeps copies: is --no-electable set on all of them?"),
        (SAFE["standbys"][1:], b"cy is joining, 1200 entries behind"),
    ],
)
def test_nodes_warns_if_there_is_only_one_copy(
    api: Api,
    octaskly: Run,
    monkeypatch: pytest.MonkeyPatch,
    standbys: list[Any],
    said: bytes,
) -> None:
    """Other nodes exist, so a reader could believe that tasks are safe."""
    cy = {"name": "cy", "id": "0013", "role": "worker", "state": "ready"}
    monkeypatch.setitem(NODES, "nodes", [NODE, cy])
    monkeypatch.setitem(NODES, "replicas", 1)
    monkeypatch.setitem(NODES, "standbys", standbys)

    done = octaskly("nodes")

    assert done.stderr == b"warning: new tasks have one copy only; " + said + b"\n"


def test_a_lone_node_is_not_warned_about(
    api: Api, octaskly: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot have another copy; a lost node does not count."""
    gone = NODE | {"name": "cy", "id": "0013", "role": "worker", "state": "lost"}
    monkeypatch.setitem(NODES, "nodes", [NODE, gone])
    monkeypatch.setitem(NODES, "replicas", 1)

    done = octaskly("nodes")

    assert b"copy" not in done.stderr
    assert done.stderr.startswith(b"cy: is it on and connected?")
    assert done.stdout.splitlines()[-1].split()[4:6] == [b"-", b"-"]


def test_stats_shows_the_safety_of_a_new_task(
    api: Api, octaskly: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies, their nodes, and the last change of dispatcher."""
    monkeypatch.setitem(STATS, "mesh", SAFE)

    lines = octaskly("stats").stdout.decode().splitlines()

    assert lines[2:4] == [
        "copies of a new task:       2",
        f"{'standbys:':27} ben is in sync; cy is joining, 1200 entries behind",
    ]
    assert lines[4].startswith("last failover:")


def test_stats_summarises_the_mesh(api: Api, octaskly: Run) -> None:
    """For people; programs use --json."""
    done = octaskly("stats")

    assert done.stdout.decode() == (
        "workers:                    3 total, 2 active, 1 idle\n"
        "tasks:                      5 queued, 2 running, 150 completed, 3 failed, "
        "0 cancelled\n"
        "dispatcher's agent up:      1m30s\n"
        "dispatcher's agent memory:  512 MB\n"
        "dispatcher's machine CPU:   25.5 %\n"
        "log and its journal:        15 MB\n"
    )


@pytest.mark.parametrize(("command", "answer"), [("nodes", NODES), ("stats", STATS)])
def test_json_is_the_answer_of_the_api(
    api: Api, octaskly: Run, command: str, answer: dict[str, Any]
) -> None:
    """Only a format version is added: see the REST reference."""
    done = octaskly(command, "--json")

    assert done.stdout.startswith(b'{"v":1,')
    assert json.loads(done.stdout) == {"v": 1} | answer
    assert done.stderr == b""


NASTY = "gone\x1b[2J\x1b]0;title\x07\u202etxt.exe\r\u2066\u009b31m\nforged  completed"
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


@pytest.mark.parametrize(
    "line", [("ls",), ("show", "1"), ("nodes",), ("stats",), ("wait", "1")]
)
def test_foreign_control_characters_do_not_reach_the_terminal(
    three_tasks: Api,
    octaskly: Run,
    line: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In commands, tasks, labels, nodes, subjects and reasons."""
    task = three_tasks.tasks["task-001-00000001"]
    task.update(command=NASTY, name=NASTY, labels={"a": NASTY}, detail=NASTY)
    task.update(worker_id=NASTY, submitted_by=NASTY)
    nasty = NODE | dict.fromkeys(("name", "version", "os", "arch"), NASTY)
    nasty["labels"] = {NASTY: NASTY}
    monkeypatch.setitem(NODES, "nodes", [nasty])

    done = octaskly(*line)

    shown = (done.stdout + done.stderr).decode()
    assert "gone" in shown or line in (("stats",), ("wait", "1"))
    assert not UNSEEN.search(shown)
    assert not re.search(r"^forged", shown, re.MULTILINE)


def test_json_on_a_terminal_has_no_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """JSON escapes only some: not those above one byte, nor text-direction marks."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        print_json(json.dumps({"target": NASTY}, ensure_ascii=False).encode())
        monkeypatch.undo()
        shown = os.read(ours, 4096).decode()
    os.close(ours)

    assert not UNSEEN.search(shown.replace("\r\n", "\n"))
    assert json.loads(shown) == {"v": 1, "target": NASTY}


def test_foreign_text_starts_no_line_of_its_own() -> None:
    """A path in a stranger's request could look like a line of the audit log."""
    assert on_one_line("/x\n2026-11-25  root") == "/x ⏎ 2026-11-25  root"


@pytest.mark.parametrize("ref", ["3fa2", "3fa2c0de", "simulate"])
def test_a_task_is_found_by_its_name_or_the_first_digits_of_its_id(
    busy: Api, octaskly: Run, ref: str
) -> None:
    """People have these at hand; they work if they are unique."""
    done = octaskly("show", ref)

    assert done.returncode == 0, done.stderr
    assert b"task-792312345678-3fa2c0de" in done.stdout


def test_ambiguous_digits_name_the_tasks_that_may_be_meant(
    busy: Api, octaskly: Run
) -> None:
    """A guess could cancel the wrong one."""
    other = busy.tasks["task-792312345678-3fa2c0de"] | {"call": None}
    busy.tasks["task-811112345678-3fa29999"] = other | {
        "id": "task-811112345678-3fa29999"
    }

    done = octaskly("cancel", "3fa2")

    assert done.returncode == 1
    assert done.stderr.decode() == (
        "error: '3fa2' matches 2 tasks:\n"
        "    3fa2  failed  simulate(3, seed=7)\n"
        "    3fa2  failed  echo hello\n"
        "  hint: octaskly show 3fa2\n"
    )


@pytest.mark.parametrize(
    "name", ["12", "task-force", "task-12-x", "nightly build", "сборка 🐙", "a/b"]
)
def test_a_name_that_looks_like_an_id_is_found(
    three_tasks: Api, octaskly: Run, name: str
) -> None:
    """No task has such a number or id, so only the name can be meant."""
    three_tasks.tasks["task-002-00000002"]["name"] = name

    done = octaskly("show", name)

    assert done.returncode == 0, done.stderr
    assert b"task-002-00000002" in done.stdout


def test_a_client_chosen_id_that_looks_like_a_number_is_found(
    three_tasks: Api, octaskly: Run
) -> None:
    """Its client chose it."""
    three_tasks.tasks["12"] = three_tasks.tasks["task-002-00000002"] | {"id": "12"}

    done = octaskly("show", "12")

    assert done.returncode == 0, done.stderr
    assert b"id:         12" in done.stdout


@pytest.mark.parametrize(
    ("ref", "code", "message"),
    [
        ("nightly", 1, b"'nightly' matches 2 tasks:\n    3  queued"),
        ("02", 3, b"Task not found"),
        ("002", 0, b""),
        ("no-such", 3, b"Task not found"),
        ("no such name", 3, b"no task is called no such name\n"),
        ("x" * 5000, 3, b"no task is called " + b"x" * 79 + "…\n".encode()),
        ("", 3, b"an empty id names no task\n"),
    ],
)
def test_an_ambiguous_name_is_refused(
    three_tasks: Api, octaskly: Run, ref: str, code: int, message: bytes
) -> None:
    """A guess could cancel the wrong task; digits alone are a number."""
    for number in (1, 3):
        three_tasks.tasks[f"task-00{number}-0000000{number}"]["name"] = "nightly"
    if ref == "02":
        del three_tasks.tasks["task-002-00000002"]

    done = octaskly("show", ref)

    assert done.returncode == code
    assert message in done.stderr


@pytest.mark.parametrize("command", ["show", "logs", "cancel", "explain"])
def test_a_task_that_is_not_known_yet_is_said_at_once(
    api: Api, octaskly: Run, command: str
) -> None:
    """The dispatcher has just taken over, so it cannot tell whether the task exists."""
    not_known_yet(api)

    done = octaskly(command, "task-009-00000009")

    assert done.returncode == EXIT_NO_DISPATCHER
    assert done.stderr.decode() == (
        "error: Task not known here yet\n"
        "  cause: a missing node may know it\n"
        "  hint: octaskly nodes    shows which nodes are lost\n"
    )
    assert len(api.requests) == 1


def test_a_task_that_is_not_known_yet_keeps_no_other_from_being_cancelled(
    three_tasks: Api, octaskly: Run
) -> None:
    """Each task has its own error."""
    not_known_yet(three_tasks)

    done = octaskly("cancel", "--force", "task-009-00000009", "task-002-00000002")

    assert done.returncode == EXIT_NO_DISPATCHER
    assert b"error: task-009-00000009: Task not known here yet" in done.stderr
    assert any("task-002-00000002" in request for request in three_tasks.requests)


def not_known_yet(api: Api) -> None:
    """Let the node be catching up, so that it may not know task 9."""
    api.refusal, api.refusal_hint = CATCHING_UP, "a missing node may know it"
    api.refuse = lambda _method, path: (
        (503, {"Retry-After": "1"}) if "00000009" in path else None
    )


def test_an_empty_list_of_tokens_says_that_some_are_unlisted(
    api: Api, octaskly: Run
) -> None:
    """The owner of a new unnamed token could think that it failed."""
    done = octaskly("token", "list")

    assert done.stdout == b""
    assert done.stderr == (b"no named tokens (unnamed tokens are not listed)\n")


def test_the_error_of_a_refused_task_names_the_nodes_command(
    api: Api, octaskly: Run
) -> None:
    """The name in --on may be mistyped."""
    api.refuse = lambda method, _path: (422, {}) if method == "POST" else None
    api.refusal = "No node can run the task"

    done = octaskly("run", "--on", "pi5", "--fail-fast", "--", "true")

    assert b"hint: octaskly nodes " in done.stderr


def test_a_followed_audit_log_may_begin_without_an_entry(
    api: Api, environ: dict[str, str]
) -> None:
    """Each poll asks from the same moment on until there is one."""
    empty: dict[str, Any] = {"entries": [], "next": None, "returned": 0}
    entry = {
        "at": "2026-02-06T12:00:00Z",
        "subject": "ana",
        "role": "admin",
        "source": "local",
        "node": "here",
        "allowed": True,
        "status": 201,
        "action": "POST /api/v1/tasks",
    }
    later = {"entries": [entry], "next": "1-a", "returned": 1}
    pages = [empty, empty, later, empty]
    api.answers["/api/v1/audit"] = lambda _: pages.pop(0) if pages[1:] else empty

    words = typed("--node", "here", "audit", "--since", "1h", "--follow")
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        head, shown = process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)

    asked = [r for r in api.requests if "/audit" in r][:3]
    since_s = [int(request.rpartition("since_s=")[2]) for request in asked]
    assert head.startswith(b"AT")
    assert shown.startswith(b"2026-02-06T12:00:00Z  ana  admin")
    assert since_s[0] == 3600
    assert all(later_s > 3600 for later_s in since_s[1:])
