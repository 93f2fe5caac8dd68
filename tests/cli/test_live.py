"""Each command against a real mesh of two, through the node without the role."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.typed import typed, without_wait_reason
from tests.support.agents import Agent, running, until_nodes

Done = subprocess.CompletedProcess[bytes]


@pytest.fixture(scope="module")
def forwarding_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A node that forwards."""
    with running(tmp_path_factory.mktemp("mesh"), "ash", "birch") as agents:
        until_nodes(agents[0], len(agents))
        _, body = agents[0].call("GET", "/api/v1/nodes")
        roles = {found["name"]: found["role"] for found in body["nodes"]}
        yield next(a for a in agents if roles[a.state.name] != "dispatcher")


def words(node: Agent, *arguments: str | bytes) -> list[str | bytes]:
    program = (sys.executable, "-m", "octaskly", "--state-dir", str(node.state))
    return [*program, *arguments]


def octaskly(node: Agent, *arguments: str | bytes, stdin: bytes = b"") -> Done:
    """Run a command without a terminal."""
    done = subprocess.run(
        typed("--state-dir", str(node.state), *arguments),
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return without_wait_reason(done)


def assert_error_form(stderr: bytes) -> None:
    """Check for `error`, perhaps `cause`, and a hint, without colour or traceback.

    The reason why a task waits may come before.
    """
    texts = stderr.decode().splitlines()
    lines = [line for line in texts if not line.startswith("queued: ")]
    assert re.fullmatch(r"error: \S.*", lines[0]), stderr
    assert all(re.match(r"  (cause|hint): \S", line) for line in lines[1:]), stderr
    assert lines[-1].startswith("  hint: "), stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "--", ""], 2),
        (["run", "--", b"echo \xff"], 2),
        (["run", "--timeout", "2d", "--", "true"], 2),
        (["run", "--timeout", "0", "--", "true"], 2),
        (["run", "--out", "../x", "--", "true"], 2),
        (["run", "--needs", "missing", "--", "true"], 125),
        (["run"], 2),
        (["submit"], 2),
        (["submit", "--file", "/nowhere"], 2),
        (["ls", "--limit", "0"], 2),
        (["show", "a/b"], 3),
        (["show", "nope"], 3),
        (["logs", "99999999"], 3),
        (["cancel", "nope"], 3),
        (["token", "create", "--role", "viewer", "--expires", "91d"], 2),
        (["bogus"], 2),
    ],
)
def test_every_error_has_a_hint_and_its_code(
    forwarding_agent: Agent, arguments: list[str | bytes], code: int
) -> None:
    """Stdout is empty, and stderr says what to do."""
    done = octaskly(forwarding_agent, *arguments)

    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    assert_error_form(done.stderr)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--url", "http://127.0.0.1:1"], 5),
        (["--state-dir", "/nowhere"], 5),
        (["--url", "ftp://localhost"], 78),
    ],
)
def test_the_hint_for_an_unreachable_agent_starts_one(
    options: list[str], code: int
) -> None:
    """Exit 5 tells scripts that they may try again later."""
    done = subprocess.run(
        [sys.executable, "-m", "octaskly", *options, "ls"],
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == code
    assert_error_form(done.stderr)


@pytest.mark.parametrize("arguments", [["-"], ["--file", "-"]])
def test_lines_that_are_not_text_are_refused_together(
    forwarding_agent: Agent, arguments: list[str]
) -> None:
    """The good line before the bad one is not submitted either."""
    before = json.loads(octaskly(forwarding_agent, "ls", "--json").stdout)["total"]
    done = octaskly(forwarding_agent, "submit", *arguments, stdin=b"true\n\xff\n")

    assert done.returncode == 2
    assert_error_form(done.stderr)
    assert (
        json.loads(octaskly(forwarding_agent, "ls", "--json").stdout)["total"] == before
    )


@pytest.mark.parametrize(
    ("arguments", "code", "stdout"),
    [
        (["run", "--", "echo out; echo err >&2; exit 7"], 7, b"out\n"),
        (["run", "--", "echo", "a  b", "$HOME"], 0, b"a  b $HOME\n"),
        (["run", "--", "kill -KILL $$"], 137, b""),
        (["run", "--timeout", "1", "--", "setsid sleep 4721 & sleep 4721"], 124, b""),
        (["run", "--", r"printf '\000\377'"], 0, b"\x00\xff"),
    ],
)
def test_run_works_through_a_forwarding_node(
    forwarding_agent: Agent, arguments: list[str], code: int, stdout: bytes
) -> None:
    """As if the command ran here."""
    done = octaskly(forwarding_agent, *arguments)

    assert (done.returncode, done.stdout) == (code, stdout), done.stderr


def test_long_output_is_printed_whole(forwarding_agent: Agent) -> None:
    """The worker sends the part that the log lacks; `logs` prints the same."""
    ran = octaskly(forwarding_agent, "run", "--", "sleep 0.1; seq 400000")
    logged = octaskly(forwarding_agent, "logs", "last")

    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout == b"".join(b"%d\n" % n for n in range(1, 400_001))
    assert (logged.stdout, logged.stderr) == (ran.stdout, ran.stderr)


def test_every_read_command_prints_json(forwarding_agent: Agent) -> None:
    """One document on stdout, the same as the API's answer."""
    octaskly(forwarding_agent, "run", "--", "echo hi")
    keys = {
        ("ls",): "tasks",
        ("show", "last"): "stdout",
        ("logs", "last"): "stdout",
        ("nodes",): "nodes",
        ("stats",): "workers",
    }
    for command, key in keys.items():
        done = octaskly(forwarding_agent, *command, "--json")
        assert (done.returncode, done.stderr) == (0, b"")
        assert key in json.loads(done.stdout), command


def test_a_node_is_shown_with_its_disk_and_what_it_runs(
    forwarding_agent: Agent,
) -> None:
    """The node itself answers for its disk; every node answers for what runs."""
    command = ["run", "--on", "birch", "--", "echo begun; sleep 4723"]
    with subprocess.Popen(
        words(forwarding_agent, *command), stdout=subprocess.PIPE
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == b"begun\n"
            shown = re.compile(r"^birch +ready .* [GM]B  .* 4723 \(", re.MULTILINE)
            deadline = time.monotonic() + 60
            # The node measures its load, and its disk, once a second or so.
            while not shown.search(octaskly(forwarding_agent, "nodes").stdout.decode()):
                assert time.monotonic() < deadline
            one = octaskly(forwarding_agent, "nodes", "birch").stdout.decode()
        finally:
            running.send_signal(signal.SIGINT)

    assert re.search(r"^running: +\d+  echo begun; sleep 4723 \(", one, re.MULTILINE)
    assert re.search(r"^disk: +[0-9.]+ .B free of \d+ GB$", one, re.MULTILINE)


def test_a_second_interrupt_does_not_affect_the_task(forwarding_agent: Agent) -> None:
    """The first cancels it; the second ends only the wait, however soon it comes."""
    process = subprocess.Popen(
        words(
            forwarding_agent,
            "run",
            "--",
            "trap 'sleep 2; exit' TERM; touch begun; sleep 4722 & wait",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    begun = [
        forwarding_agent.state.parent / name / "work" / "begun"
        for name in ("ash", "birch")
    ]
    deadline = time.monotonic() + 60
    while not any(path.exists() for path in begun):
        assert time.monotonic() < deadline
        time.sleep(0.02)

    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"cancelling task-")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    assert process.returncode == 130
    shown = json.loads(octaskly(forwarding_agent, "show", "last", "--json").stdout)
    assert shown["status"] == "cancelled"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ls"], 1),
        (["logs", "last"], 1),
        (["nodes", "--json"], 1),
        (["run", "--", "echo hi"], 125),
        (["run", "--json", "--", "true"], 125),
        (["map", "echo {}", ":::", "3"], 125),
        (["wait", "--json", "last"], 125),
    ],
)
def test_a_failed_write_of_output_is_an_error(
    forwarding_agent: Agent, arguments: list[str], code: int
) -> None:
    """A full disk is reported without a traceback; 1 may be a task's own exit code."""
    octaskly(forwarding_agent, "run", "--", "echo hi")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            words(forwarding_agent, *arguments),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )

    assert done.returncode == code
    *_notes, error, hint = done.stderr.splitlines(keepends=True)
    assert_error_form(error + hint)


def test_a_pipe_that_closes_early_is_no_error(forwarding_agent: Agent) -> None:
    """`octaskly ls | head -1` prints nothing on stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            words(forwarding_agent, "ls"),
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert done.stderr == b""


def test_a_repeated_submission_with_a_key_is_idempotent(
    forwarding_agent: Agent,
) -> None:
    """Same lines, same key, same ids; other lines are refused."""
    again = [
        octaskly(forwarding_agent, "submit", "--idempotency-key", "k", "-", stdin=lines)
        for lines in (b"echo 1\necho 2\n", b"echo 1\necho 2\n", b"echo 1\n")
    ]

    assert [done.returncode for done in again] == [0, 0, 1]
    assert again[0].stdout == again[1].stdout
    assert_error_form(again[2].stderr)
