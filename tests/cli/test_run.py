"""`octaskly run` behaves as if the command ran here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from octaskly.cli.context import CliContext
from octaskly.cli.wait_hint import explain_if_waiting
from octaskly.client.flows.retry import TOO_MANY_STREAMS_ERROR
from tests.cli.conftest import Run
from tests.cli.stand_in import Api
from tests.support.agents import until

ID = "task-001-00000001"


def test_output_goes_to_the_stream_that_the_task_used(api: Api, octaskly: Run) -> None:
    """Stdout and stderr of the task are those of the command; nothing is added."""
    done = octaskly("run", "--", "echo out; echo err >&2")

    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"err\n")


def test_output_is_exact_to_the_byte(api: Api, octaskly: Run) -> None:
    """JSON cannot carry every byte, so binary output has another encoding."""
    done = octaskly("run", "--", r"printf '\377\000\033x'")

    assert done.stdout == b"\xff\x00\x1bx"


@pytest.mark.parametrize("command", ["echo out; echo err >&2", "exit 3"])
def test_a_short_task_needs_no_stream(api: Api, octaskly: Run, command: str) -> None:
    """Its end comes with the answer to its submission, and its output too."""
    followed = octaskly("run", "--", command)
    api.awaits_end = True
    api.requests.clear()

    awaited = octaskly("run", "--", command)

    assert [line.partition("?")[0] for line in api.requests] == [
        "GET /api/v1/ids",
        "POST /api/v1/tasks",
    ]
    assert (awaited.returncode, awaited.stdout, awaited.stderr) == (
        followed.returncode,
        followed.stdout,
        followed.stderr,
    )


def test_output_that_the_answer_cuts_is_followed(api: Api, octaskly: Run) -> None:
    """The log of the task has the rest, or says that it is lost."""
    api.awaits_end = True
    api.logs = LOGS_WITH_A_GAP
    api.forced = {"stdout_truncated": True}

    done = octaskly("run", "--", "true")

    assert (done.returncode, done.stdout) == (125, b"begin")


GAP = (
    b'event: gap\nid: 1-1-1:2:0\ndata: {"stream": "stdout", "offset": 5,'
    b' "bytes": 2048, "reason": "why"}\n\n'
)
LOGS_WITH_A_GAP = (
    b'event: stdout\nid: 1-1-1:1:0\ndata: {"offset": 0, "data": "begin"}\n\n'
    + GAP
    + b'event: end\nid: 1-1-1:3:0\ndata: {"id": "task-001-00000001",'
    b' "status": "completed", "exit_code": 0, "reason": "exit"}\n\n'
)


def test_output_with_a_gap_is_no_success(api: Api, octaskly: Run) -> None:
    """A program that reads it must not take a part for the whole."""
    api.logs = LOGS_WITH_A_GAP

    done = octaskly("run", "--", "true")

    assert (done.returncode, done.stdout) == (125, b"begin")
    assert b"printed more than its node keeps" in done.stderr


def test_output_with_a_gap_is_no_success_as_json(api: Api, octaskly: Run) -> None:
    """The task is printed, and only its log tells that some of its output is lost."""
    api.logs = LOGS_WITH_A_GAP
    api.forced = {"stdout_truncated": True}

    done = octaskly("run", "--json", "--", "true")

    assert done.returncode == 125
    assert json.loads(done.stdout)["status"] == "completed"
    assert b"printed more than its node keeps" in done.stderr


@pytest.mark.parametrize("command", ["true", "exit 3"])
def test_long_output_without_a_gap_is_a_success_as_json(
    api: Api, octaskly: Run, command: str
) -> None:
    """A task shows only the beginning of long output; its node has kept the rest."""
    api.logs = LOGS_WITH_A_GAP.replace(GAP, b"")
    api.forced = {"stdout_truncated": True}

    done = octaskly("run", "--json", "--", command)

    assert (done.returncode, done.stderr) == (0 if command == "true" else 3, b"")


def test_output_resumes_after_a_lost_connection(api: Api, octaskly: Run) -> None:
    """Nothing is lost or repeated; stderr reports the loss."""
    api.logs_break = 1

    done = octaskly("run", "--", "echo out; echo err >&2; exit 3")

    assert (done.returncode, done.stdout) == (3, b"out\n")
    assert done.stderr.splitlines() == [
        b"the connection was lost; task-001-00000001 is resumed",
        b"err",
    ]


def test_a_node_with_too_many_streams_is_retried(api: Api, octaskly: Run) -> None:
    """The task still runs, so its exit code must not be lost."""
    left = [2]

    def refuse(_method: str, path: str) -> tuple[int, dict[str, str]] | None:
        left[0] -= path.endswith("/logs")
        is_full = path.endswith("/logs") and left[0] >= 0
        return (503, {"Retry-After": "0.1"}) if is_full else None

    api.refuse, api.refusal = refuse, TOO_MANY_STREAMS_ERROR

    done = octaskly("run", "--", "echo out; exit 3")

    assert (done.returncode, done.stdout) == (3, b"out\n")
    assert done.stderr == b"Too many event streams; waiting\n"


def test_run_gives_up_on_a_node_that_stays_away(api: Api, octaskly: Run) -> None:
    """With an exit code that no command has."""
    api.refuse = lambda _method, path: (0, {}) if path.count("/") > 3 else None

    done = octaskly("run", "--", "true")

    assert done.returncode == 125
    assert b"closed the connection" in done.stderr
    [task] = api.tasks
    message = f"no longer waiting; see it with: octaskly logs -f {task}\n"
    assert message in done.stderr.decode()


def test_several_words_are_quoted_as_a_shell_needs_them(
    api: Api, octaskly: Run
) -> None:
    """`run -- printf %s 'a b'` has two arguments there, too (decision 14)."""
    done = octaskly("run", "--", "printf", "[%s]", "a b", "$HOME")

    assert done.stdout == b"[a b][$HOME]"


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 7", 7), ("kill -9 $$", 137), ("nosuchcommand", 127), ("true", 0)],
)
def test_exit_code_is_that_of_the_task(
    api: Api, octaskly: Run, command: str, code: int
) -> None:
    """128+N for signal N, otherwise as in a shell."""
    assert octaskly("run", "--", command).returncode == code


def test_timeout_exits_with_124(api: Api, octaskly: Run) -> None:
    """As `timeout(1)` does, and stderr states the reason."""
    done = octaskly("run", "--timeout", "1", "--", "sleep 60")

    assert done.returncode == 124
    assert b"exceeded its timeout of 1s" in done.stderr
    assert api.drafts == [{"id": ID, "command": "sleep 60", "timeout": 1}]


@pytest.mark.parametrize("reason", ["inputs", "lost", "poison", "limit"])
def test_failure_of_octaskly_exits_with_125(
    api: Api, octaskly: Run, reason: str
) -> None:
    """It must not look like the command's own end."""
    api.forced = {"status": "failed", "reason": reason, "exit_code": None}

    done = octaskly("run", "--", "true")

    assert done.returncode == 125
    assert done.stderr.startswith(b"error: task-001-00000001 failed: ")


@pytest.mark.parametrize("follow", [["run"], ["run", "--json"]])
def test_a_long_wait_is_explained_once(
    api: Api, environ: dict[str, str], tmp_path: Path, follow: list[str]
) -> None:
    """A typo in --on could look like a slow command."""
    api.stall = "no node is called pi5"
    command = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    process = subprocess.Popen(
        [*COMMAND, *follow, "--on", "pi5", "--", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
    )
    assert process.stderr is not None
    message = process.stderr.readline()
    (tmp_path / "go").touch()
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert message + rest == (
        b"queued: no node is called pi5; details: octaskly explain task-001-00000001\n"
    )


def test_a_wait_that_begins_later_is_explained(
    api: Api, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The node of a task may be lost; each reason is given once, also to a script."""
    context = CliContext(node="here", environ=environ)

    with explain_if_waiting(context, ["task-1"], after_s=0.01, period_s=0.01):
        for reason in ("", "pi4 is lost", "9 come first", "8 come first", "", "again"):
            api.stall = reason
            # The first of these may have been asked before.
            until(partial(has_asked, api, len(api.requests) + 2), "it was checked")

    details = "details: octaskly explain task-1\n"
    assert capsys.readouterr().err == "".join(
        f"queued: {reason}; {details}"
        for reason in ("pi4 is lost", "9 come first", "again")
    )


def has_asked(api: Api, count: int) -> bool:
    """Return True once commands have sent more than so many requests."""
    return len(api.requests) > count


def test_quiet_hides_the_explanation_of_a_wait(api: Api, octaskly: Run) -> None:
    """It is a message, not an error."""
    api.stall = "no node is called pi5"
    assert octaskly("--quiet", "run", "--", "sleep 2").stderr == b""


def test_json_prints_the_task_instead_of_its_output(api: Api, octaskly: Run) -> None:
    """Stdout is then one JSON object, as in the API."""
    done = octaskly("run", "--json", "--", "echo hi; exit 3")

    assert done.returncode == 3
    assert json.loads(done.stdout)["stdout"] == "hi\n"


def test_without_an_agent_the_error_says_how_to_start_one(octaskly: Run) -> None:
    """A new user sees it first; each hint is a command to paste."""
    done = octaskly("run", "--", "echo", "hello", node=None)

    if Path("/run/octaskly").exists():
        pytest.skip("an agent is installed on this machine")
    assert done.returncode == 5
    assert done.stdout == b""
    assert done.stderr.decode() == (
        "error: no Octaskly agent is running on this machine\n"
        "  hint: octaskly agent                try it now, in this terminal\n"
        "  hint: octaskly service install      keep it running, also after a reboot\n"
        "  hint: octaskly --state-dir DIR ...  use the agent that"
        " `agent --state-dir DIR` started\n"
    )


def test_a_missing_dispatcher_exits_with_5_after_waiting(
    api: Api, octaskly: Run
) -> None:
    """It waits as the node requests, says so once, and gives up after 10 s."""
    api.refusal = "No dispatcher is elected"
    api.refusal_hint = "an election takes a few seconds; try again"
    api.refuse = lambda _method, _path: (503, {"Retry-After": "6"})

    done = octaskly("run", "--", "true")

    assert done.returncode == 5
    assert done.stderr.decode() == (
        "No dispatcher is elected; waiting\n"
        "error: No dispatcher is elected\n"
        "  cause: an election takes a few seconds; try again\n"
        "  hint: octaskly doctor    finds out why nodes do not connect\n"
    )
    assert len(api.requests) == 2


def test_a_wait_resumes_after_a_lost_connection(api: Api, octaskly: Run) -> None:
    """The task is safe with the dispatcher; an agent may restart meanwhile."""
    lost: list[str] = []

    def lose_first_wait(method: str, _path: str) -> tuple[int, dict[str, str]] | None:
        if method == "GET" and len(lost) < 2:
            lost.append(method)
            return 0, {}
        return None

    api.refuse = lose_first_wait

    done = octaskly("run", "--", "echo still here")

    assert (done.returncode, done.stdout) == (0, b"still here\n")


@pytest.mark.parametrize("key", [[], ["--idempotency-key", "k"]])
def test_a_lost_submission_is_repeated_with_its_key(
    api: Api, octaskly: Run, key: list[str]
) -> None:
    """It may have been accepted: the key prevents a second task."""
    answers: Iterator[tuple[int, dict[str, str]]] = iter([(0, {})])
    api.refuse = lambda method, _path: next(answers, None) if method == "POST" else None

    done = octaskly("run", *key, "--", "echo", "once")

    posts = [
        headers["Idempotency-Key"]
        for headers, request in zip(api.headers, api.requests, strict=True)
        if request.startswith("POST")
    ]
    assert (done.returncode, done.stdout) == (0, b"once\n")
    assert len(posts) == 2
    assert len(set(posts)) == 1
    assert [draft.get("id") for draft in api.drafts] == 2 * ([None] if key else [ID])


def test_a_submission_to_an_older_node_is_not_repeated(api: Api, octaskly: Run) -> None:
    """An older node reserves no ids, and ids from keys have long numbers."""
    api.gives_ids = False
    api.refuse = lambda method, _path: (0, {}) if method == "POST" else None

    done = octaskly("run", "--", "true")

    assert done.returncode == 125
    assert sum(request.startswith("POST") for request in api.requests) == 1
    assert b"hint: octaskly ls" in done.stderr


COMMAND = (sys.executable, "-m", "octaskly", "--node", "here")


def start(environ: dict[str, str], command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "run", "--", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
    )


def wait_until_asked(api: Api, what: str, *, after: str = "") -> None:
    deadline = time.monotonic() + 60
    while True:
        asked = list(api.requests)
        first = next((i for i, text in enumerate(asked) if after in text), len(asked))
        if any(what in text for text in asked[first:]):
            return
        assert time.monotonic() < deadline, asked
        os.sched_yield()


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, b"Ctrl-C"), (signal.SIGTERM, b"SIGTERM")]
)
def test_the_first_interrupt_cancels_the_task_and_waits(
    api: Api, environ: dict[str, str], number: signal.Signals, name: bytes
) -> None:
    """Ctrl-C means the command, wherever it runs; SIGTERM does the same."""
    process = start(environ, "sleep 60")
    wait_until_asked(api, "/logs")

    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert b"cancelling task-001-00000001; %s again to stop" % name in stderr
    [task] = api.tasks.values()
    assert task["status"] == "cancelled"


@pytest.mark.parametrize("is_full", [False, True])
def test_a_closed_reader_cancels_the_task(
    api: Api, environ: dict[str, str], is_full: bool
) -> None:
    """As `octaskly run -- yes | head -1` does, and a full disk."""
    api.logs = b'event: stdout\nid: 1-1-1:2:0\ndata: {"offset": 0, "data": "y\\n"}\n\n'
    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    with os.fdopen(writing, "wb") as pipe, os.fdopen(full, "wb") as disk:
        done = subprocess.run(
            [*COMMAND, "run", "--", "sleep 60"],
            stdout=disk if is_full else pipe,
            stderr=subprocess.PIPE,
            env=environ,
            timeout=60,
            check=False,
        )

    assert done.returncode == 125
    assert (b"cannot write" in done.stderr) == is_full
    [task] = api.tasks.values()
    assert task["status"] == "cancelled"


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_drops_its_output(
    api: Api, environ: dict[str, str], closed: int
) -> None:
    """As `octaskly run ... >&-`: no traceback, and the task's own exit code."""
    words = [*COMMAND, "run", "--", "echo out; echo err >&2; exit 4"]
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}>&-', "sh", *words],
        capture_output=True,
        env=environ,
        timeout=60,
        check=False,
    )

    out, err = (b"", b"err\n") if closed == 1 else (b"out\n", b"")
    assert (done.returncode, done.stdout, done.stderr) == (4, out, err)


@pytest.mark.parametrize("words", ["run --stdin - -- cat", "submit -", "map cat"])
def test_a_closed_stdin_is_empty(api: Api, environ: dict[str, str], words: str) -> None:
    """As `octaskly run --stdin - ... <&-`: no traceback."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, *words.split()],
        capture_output=True,
        env=environ,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("stdin", ["a pipe", "a file"])
def test_stdin_that_no_node_has_room_for_is_refused(
    api: Api, environ: dict[str, str], tmp_path: Path, stdin: str
) -> None:
    """The disk of this machine is not filled with a pipe that has no end."""
    api.answers["/api/v1/files/missing"] = {
        "missing": [],
        "node": "here",
        "quota_bytes": 10_000_000,
    }
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    line = 'yes | "$@"' if stdin == "a pipe" else '"$@" < large'
    done = subprocess.run(
        ["/bin/sh", "-c", line, "sh", *COMMAND, "run", "--", "head", "-1"],
        capture_output=True,
        cwd=tmp_path,
        env=environ,
        timeout=60,
        check=False,
    )

    assert done.returncode == 125
    assert b"all files together may take 10000000 at the agent here" in done.stderr
    assert api.requests == ["POST /api/v1/files/missing"]


def test_an_interrupt_before_the_answer_cancels_too(
    api: Api, environ: dict[str, str]
) -> None:
    """The task may run before its id arrives; it must not run on."""
    may_answer = threading.Event()

    def hold(method: str, _path: str) -> None:
        if method == "POST":
            may_answer.wait(60)

    api.refuse = hold
    process = start(environ, "sleep 60")
    wait_until_asked(api, "POST")

    process.send_signal(signal.SIGINT)
    may_answer.set()
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert b"cancelling task-001-00000001" in stderr
    assert [task["status"] for task in api.tasks.values()] == ["cancelled"]


def test_a_second_interrupt_exits_and_says_where_to_look(
    api: Api, environ: dict[str, str]
) -> None:
    """A task that does not end must not block the terminal."""
    process = start(environ, "sleep 60")
    wait_until_asked(api, "/logs")
    # The node accepts the cancel, but the task does not end.
    api.refuse = lambda method, _path: (200, {}) if method == "DELETE" else None

    process.send_signal(signal.SIGINT)
    wait_until_asked(api, "DELETE")
    wait_until_asked(api, "/logs", after="DELETE")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert b"octaskly logs -f task-001-00000001" in stderr


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["printf", "[%s]", "--timeout", "5"], b"[--timeout][5]"),
        (["printf", "%s", "-la"], b"-la"),
        (["--name", "x", "printf", "%s", "--name"], b"--name"),
        (["--", "printf", "%s", "--name"], b"--name"),
        (["printf", "%s", "--"], b"--"),
        (["printf", "[%s]", "-h", "--help"], b"[-h][--help]"),
    ],
)
def test_options_end_at_the_first_word_of_the_command(
    api: Api, octaskly: Run, words: list[str], output: bytes
) -> None:
    """As with ssh, sudo and docker: the rest is for the command."""
    done = octaskly("run", *words)

    assert (done.returncode, done.stdout) == (0, output)
    [task] = api.drafts
    assert task.get("name") == ("x" if words[0] == "--name" else None)
    assert task["timeout"] == "none"


@pytest.mark.parametrize(
    "words",
    [
        ["1-3", "--name", "x", "./sim", "--name", "y"],
        ["--name", "x", "1-3", "--", "./sim", "--name", "y"],
        ["--name", "x", "1-3", "./sim", "--name", "y"],
    ],
)
def test_options_of_an_array_may_follow_its_numbers(
    api: Api, octaskly: Run, words: list[str]
) -> None:
    """They end at the first word of the command, too."""
    octaskly("array", *words)

    [task] = api.drafts
    assert (task["name"], task["command"]) == ("x", "./sim --name y")
    assert task["array"] == {"range": "1-3"}


@pytest.mark.parametrize(
    ("words", "is_mentioned"),
    [
        (["echo", "--timeout", "5"], True),
        (["echo", "--timeout=5"], True),
        (["--", "echo", "--timeout", "5"], False),
        (["echo", "--colour", "5"], False),
    ],
)
def test_an_option_after_the_command_is_mentioned(
    api: Api, octaskly: Run, words: list[str], *, is_mentioned: bool
) -> None:
    """It may be meant for Octaskly; `--` says that it is not."""
    done = octaskly("run", *words)

    assert (b"warning: echo gets --timeout" in done.stderr) == is_mentioned
