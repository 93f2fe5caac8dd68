"""Commands that change something: submit, cancel, token."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
import pty
import shlex
import subprocess
from pathlib import Path

import pytest

from octaskly.joining.qr_code import qr_rows
from octaskly.trust import NodeKey
from octaskly.trust.tls import https_pin
from tests.cli.conftest import Run
from tests.cli.stand_in import Api
from tests.cli.test_reading import ended_task
from tests.cli.typed import typed

ID = "task-001-00000001"


def test_submit_prints_the_id_and_nothing_else(api: Api, octaskly: Run) -> None:
    """`id=$(octaskly submit ...)` works."""
    done = octaskly("submit", "--needs", "a", "--out", "b", "--", "true")

    assert (done.stdout, done.stderr) == (b"task-001-00000001\n", b"")
    assert api.bodies == [
        [
            {
                "id": ID,
                "command": "true",
                "timeout": "none",
                "inputs": ["a"],
                "outputs": ["b"],
            }
        ]
    ]


@pytest.mark.parametrize("how", ["stdin", "file"])
def test_many_lines_are_one_request(
    api: Api, octaskly: Run, tmp_path: Path, how: str
) -> None:
    """One command a line, without blanks and comments; all or nothing, ids in order.

    The mark with which editors of Windows begin a file is no part of a command.
    """
    lines = b"\xef\xbb\xbf# all\ntrue\n\n  echo 2  \n  # last\nexit 3 # not here\n"
    (tmp_path / "lines").write_bytes(lines)
    source = ["-"] if how == "stdin" else ["--file", str(tmp_path / "lines")]

    done = octaskly("submit", *source, stdin=lines)

    assert done.stdout.split() == [f"task-00{n}-0000000{n}".encode() for n in (1, 2, 3)]
    assert [item["command"] for item in api.bodies[0]] == [
        "true",
        "echo 2",
        "exit 3 # not here",
    ]
    assert len(api.bodies) == 1


def test_more_than_a_batch_is_several_requests(
    api: Api, octaskly: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API accepts 10 000 tasks at a time."""
    task = {"id": "task-001-00000001", "command": "true", "status": "queued"}
    monkeypatch.setattr(api, "submit", lambda _body: task)

    done = octaskly("submit", "-", stdin=b"true\n" * 10_001)

    assert done.stdout.count(b"\n") == 10_001
    assert [len(body) for body in api.bodies] == [10_000, 1]


def test_tasks_submitted_before_a_failure_are_printed(
    api: Api, octaskly: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user must know which tasks to wait for, and which to submit again."""
    task = {"id": "task-001-00000001", "command": "true", "status": "queued"}
    monkeypatch.setattr(api, "submit", lambda _body: task)
    api.refuse = lambda _method, _path: (422, {}) if len(api.bodies) > 1 else None

    done = octaskly("submit", "-", stdin=b"true\n" * 10_001)

    assert done.returncode == 1
    assert done.stdout.count(b"\n") == 10_000
    first, *_ = done.stderr.decode().splitlines()
    assert first == "the first 10000 of 10001 tasks were submitted"


@pytest.mark.parametrize("how", ["stdin", "file"])
def test_a_refused_line_is_named(
    api: Api, octaskly: Run, tmp_path: Path, how: str
) -> None:
    """By its number in the input, counting blank lines, not by its index in a body."""
    api.refusal, api.refusal_hint = "Invalid command format", "it contains a NUL"
    api.refusal_field = "$[1].command"
    api.refuse = lambda method, _: (400, {}) if method == "POST" else None
    lines = b"\ntrue\n\n\nfal\0se\n"
    (tmp_path / "lines").write_bytes(lines)
    source = ["-"] if how == "stdin" else ["--file", str(tmp_path / "lines")]

    done = octaskly("submit", *source, stdin=lines)

    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.decode().splitlines()[:2] == [
        "error: Invalid command format",
        "  cause: line 5: it contains a NUL",
    ]


def test_a_line_of_a_later_request_is_named(
    api: Api, octaskly: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number counts from the first line of all."""
    task = {"id": "task-001-00000001", "command": "true", "status": "queued"}
    monkeypatch.setattr(api, "submit", lambda _body: task)
    api.refusal_field = "$[1].command"
    api.refuse = lambda _method, _path: (400, {}) if len(api.bodies) > 1 else None

    done = octaskly("submit", "-", stdin=b"true\n" * 10_002)

    assert "  cause: line 10002: the test said so" in done.stderr.decode().splitlines()


def test_a_refusal_of_the_only_command_names_no_line(api: Api, octaskly: Run) -> None:
    """There are no lines."""
    api.refusal_field = "$[0].command"
    api.refuse = lambda method, _: (400, {}) if method == "POST" else None

    done = octaskly("submit", "--", "true")

    assert "  cause: command: the test said so" in done.stderr.decode().splitlines()


def test_a_line_that_is_not_text_is_named(api: Api, octaskly: Run) -> None:
    """Before anything is sent."""
    done = octaskly("submit", "-", stdin=b"true\n\nfalse \xff\n")

    assert (done.returncode, done.stdout, api.requests) == (2, b"", [])
    assert done.stderr.startswith(b"error: line 3 is not UTF-8 text\n")


DESTRUCTIVE = [
    ["forget", "--all-ended"],
    ["revoke", "ash"],
    ["rotate", "--now"],
    ["retry", "--failed"],
    ["leave"],
    ["db", "reset"],
]


@pytest.mark.parametrize("arguments", DESTRUCTIVE)
def test_questions_go_to_stderr(
    failed: Api, environ: dict[str, str], arguments: list[str]
) -> None:
    """With stdout in a file, the user would not see them; a no changes nothing."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"n\n")
        done = asking(environ, arguments, theirs)
    finally:
        os.close(ours)
        os.close(theirs)

    assert (done.returncode, done.stdout.strip()) == (130, b"")
    assert b"Continue? [y/N]" in done.stderr
    assert b"nothing was changed" in done.stderr
    assert not [asked for asked in failed.requests if asked.startswith("POST")]


@pytest.mark.parametrize("arguments", DESTRUCTIVE)
def test_what_cannot_be_undone_is_refused_without_a_terminal(
    failed: Api, environ: dict[str, str], arguments: list[str]
) -> None:
    """A script with a forgotten `--yes` must not act at its own discretion."""
    done = asking(environ, arguments, subprocess.DEVNULL)

    assert (done.returncode, done.stdout.strip()) == (2, b"")
    command = shlex.join(["octaskly", *arguments])
    assert f"error: `{command}` asks for confirmation" in done.stderr.decode()
    assert "\n  cause: " in done.stderr.decode()
    assert f"hint: {command} --yes " in done.stderr.decode()
    assert not [asked for asked in failed.requests if asked.startswith("POST")]


def asking(
    environ: dict[str, str], arguments: list[str], stdin: int
) -> subprocess.CompletedProcess[bytes]:
    """Run a command that asks, those about files for a node that does not run."""
    node = "there" if arguments[0] in ("leave", "db") else "here"
    log = Path(environ["XDG_STATE_HOME"], "octaskly", "there", "log.db")
    log.parent.mkdir(parents=True)
    log.touch()
    return subprocess.run(
        typed("--node", node, *arguments),
        stdin=stdin,
        capture_output=True,
        env=environ,
        timeout=60,
        check=False,
    )


def test_the_idempotency_key_is_sent(api: Api, octaskly: Run) -> None:
    """It makes a repetition after a lost answer idempotent."""
    octaskly("submit", "--idempotency-key", "k1", "--", "true")

    assert api.headers[0]["Idempotency-Key"] == "k1"


@pytest.mark.parametrize(
    "ref", ["last", "2", "0002", "later", "task-002", "task-002-00000002"]
)
def test_after_accepts_every_name_of_a_task(api: Api, octaskly: Run, ref: str) -> None:
    """`--after` works like every other command; the API knows ids alone."""
    octaskly("submit", "-", stdin=b"true\ntrue\n")
    api.tasks["task-002-00000002"]["name"] = "later"

    done = octaskly("submit", "--after", ref, "-", stdin=b"true\ntrue\n")

    assert done.returncode == 0
    for body in api.bodies[-1]:
        [parent] = body["after"]
        found = api.find(parent)
        assert found is not None
        assert found["id"] == "task-002-00000002"


@pytest.mark.parametrize("command", ["submit", "run", "map", "array"])
def test_from_names_a_task_and_gives_a_folder(
    api: Api, octaskly: Run, command: str
) -> None:
    """The API has the task wait for it; names that exist here need no warning."""
    octaskly("submit", "--", "true")
    words = {"map": ["cat {}", ":::", "a"], "array": ["1-2", "--", "cat x"]}

    done = octaskly(command, "--from", "1", *words.get(command, ["--", "cat x"]))

    assert b"warning" not in done.stderr
    [body] = api.drafts[1:]
    [parent] = body["outputs_of"]
    assert (api.find(parent) or {})["id"] == "task-001-00000001"
    assert body["workdir"] == "scratch"
    assert "after" not in body


def test_an_ambiguous_parent_is_refused(api: Api, octaskly: Run) -> None:
    """Nothing is submitted."""
    octaskly("submit", "-", stdin=b"true\ntrue\n")
    for task in api.tasks.values():
        task["name"] = "same"

    done = octaskly("submit", "--after", "same", "--", "true")

    assert done.returncode == 1
    assert b"matches 2 tasks" in done.stderr
    assert len(api.bodies) == 1


@pytest.mark.parametrize("command", ["submit", "run"])
def test_durability_applies_to_the_whole_request(
    api: Api, octaskly: Run, command: str
) -> None:
    """The dispatcher refuses it while there is one copy only."""
    done = octaskly(command, "--durability", "strict", "--", "true")

    assert done.returncode == 0, done.stderr
    assert api.requests[1].startswith("POST /api/v1/tasks?durability=strict")


@pytest.mark.parametrize("arguments", [[], ["--file", "/dev/null", "--", "true"]])
def test_submit_needs_exactly_one_source_of_commands(
    api: Api, octaskly: Run, arguments: list[str]
) -> None:
    """Neither and both are usage errors, found before anything is sent."""
    done = octaskly("submit", *arguments)

    assert done.returncode == 2
    assert api.requests == []


def test_cancel_of_a_running_task_needs_force(api: Api, octaskly: Run) -> None:
    """409 without it; the error shows the command with it."""
    octaskly("submit", "--", "sleep 60")

    refused = octaskly("cancel", "1")
    forced = octaskly("cancel", "1", "--force")

    assert refused.returncode == 1
    assert refused.stderr.decode() == (
        "error: Cannot cancel running task\n"
        "  hint: octaskly cancel --force task-001    also cancels a running task\n"
    )
    assert forced.returncode == 0
    assert forced.stderr == b"task-001 is cancelled\n"


def test_cancel_of_an_array_says_that_members_still_run(
    api: Api, octaskly: Run
) -> None:
    """Only the others are cancelled without `--force`."""
    counts = {"total": 40, "cancelled": 36, "running": 4}
    array = ended_task(1, status="running", array=counts) | {"raw": None}
    api.answers[f"/api/v1/tasks/{array['id']}"] = array

    done = octaskly("cancel", array["id"])

    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode() == (
        f"{array['id']} starts no more members; 4 still running;"
        f" to end them: octaskly cancel --force {array['id']}\n"
    )


@pytest.mark.parametrize("flag", ["--force", "--yes"])
def test_a_script_ends_a_running_task_without_a_question(
    api: Api, octaskly: Run, flag: str
) -> None:
    """By the word of the API, or by the one of all commands that ask."""
    octaskly("submit", "--", "sleep 60")

    done = octaskly("cancel", flag, "1")

    assert (done.returncode, done.stderr) == (0, b"task-001 is cancelled\n")


@pytest.mark.parametrize(
    ("answer", "code", "end", "states"),
    [
        ("n\ny\n", 130, "was not cancelled", ["running", "cancelled"]),
        ("y\ny\n", 0, "is cancelled", ["cancelled", "cancelled"]),
    ],
)
def test_cancel_of_a_running_task_asks_at_a_terminal(
    api: Api,
    octaskly: Run,
    environ: dict[str, str],
    answer: str,
    code: int,
    end: str,
    states: list[str],
) -> None:
    """For each task by itself, with what a person needs to know to answer."""
    octaskly("submit", "--", "sleep 61")
    octaskly("submit", "--", "sleep 62")
    first, second = api.tasks
    api.forced = {"started_at": "2024-02-06T14:03:12Z", "elapsed_ms": 90_000}
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        done = asking(environ, ["cancel", first, second], theirs)
    finally:
        os.close(ours)
        os.close(theirs)

    since = "is running on here since 2024-02-06, for 1m30s"
    assert done.returncode == code
    assert done.stderr.decode() == (
        f"{first} {since}: sleep 61. Cancel it? [y/N]: {first} {end}\n"
        f"{second} {since}: sleep 62. Cancel it? [y/N]: {second} is cancelled\n"
    )
    assert [task["status"] for task in api.tasks.values()] == states


INVITE = "octaskly://192.168.1.20:7879/112-4821-9375"
HALVES = {" ": "00", "▀": "10", "▄": "01", "█": "11"}  #: what is lit, above and below


def test_the_invite_of_a_visitor_is_a_qr_code_on_a_terminal(
    api: Api, environ: dict[str, str]
) -> None:
    """A camera can read it: all modules are there, dark ones unlit."""
    api.answers["/api/v1/invites"] = {
        "id": "112",
        "code": "112-4821-9375",
        "url": INVITE,
        "qr": [],
        "expires_at": "2026-02-06T12:00:00Z",
        "places": ["192.168.1.20:7879"],
    }
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            typed("--node", "here", "invite", "--visitor", "--stay", "2h"),
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=environ,
            timeout=60,
            check=False,
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # That is its end.
            while part := os.read(ours, 1 << 16):
                shown += part
    finally:
        os.close(ours)

    assert done.returncode == 0
    assert "for 2 h at most" in done.stderr.decode()
    command, *lines = [line for line in shown.decode().split("\r\n") if line]
    assert command.strip() == f"octaskly join --visitor {INVITE}"
    lit = [
        "".join(HALVES[char][half] for char in line)
        for line in lines
        for half in (0, 1)
    ]
    rows = qr_rows(INVITE)
    edge = (len(lit[0]) - len(rows)) // 2
    modules = [row[edge : edge + len(rows)] for row in lit[edge : edge + len(rows)]]
    assert modules == [row.translate({48: "1", 49: "0"}) for row in rows]


@pytest.mark.parametrize(
    "option", [["--force"], ["--interface", "lo"], ["--secret-file", "mesh.key"]]
)
def test_options_of_members_are_refused_for_a_visitor(
    octaskly: Run, option: list[str]
) -> None:
    """It abandons no mesh, gets no secret, and finds members on all interfaces."""
    done = octaskly("join", "--visitor", *option, "112-4821-9375")

    assert done.returncode == 2
    assert b"are for members" in done.stderr


@pytest.mark.parametrize(
    ("given", "seconds"), [("24h", 86400), ("90d", 7776000), ("45", 45), ("15m", 900)]
)
def test_token_create_prints_the_token_alone(
    api: Api, octaskly: Run, given: str, seconds: int
) -> None:
    """For use in a variable; durations are in the form that people write."""
    done = octaskly("token", "create", "--role", "client", "--expires", given)

    assert (done.stdout, done.stderr) == (f"client.{seconds}\n".encode(), b"")


def test_secret_new_prints_a_secret_that_ca_accepts(
    octaskly: Run, tmp_path: Path
) -> None:
    """Neither needs an agent: the second machine is prepared so."""
    secret = octaskly("secret", "new", node=None)
    file = tmp_path / "mesh.key"
    file.touch(mode=0o600)
    file.write_bytes(secret.stdout)

    first, second = (
        octaskly("ca", "--secret-file", str(file), node=None).stdout for _ in range(2)
    )

    assert secret.stdout.startswith(b"okm1-")
    assert first.startswith(b"-----BEGIN CERTIFICATE-----\n")
    assert first == second


def test_ca_of_a_node_prints_its_pin_alone(octaskly: Run, tmp_path: Path) -> None:
    """For `curl --pinnedpubkey "$(octaskly ca --node)"`; no secret is needed."""
    key = NodeKey.load_or_create(tmp_path)

    done = octaskly("--state-dir", str(tmp_path), "ca", "--node", node=None)

    assert (done.returncode, done.stdout.decode()) == (0, f"{https_pin(key)}\n")


def test_ca_of_a_node_without_a_key_makes_none(octaskly: Run, tmp_path: Path) -> None:
    """The agent makes it; the pin of another key would be wrong."""
    done = octaskly("--state-dir", str(tmp_path), "ca", "--node", node=None)

    assert done.returncode == 78
    assert str(tmp_path).encode() in done.stderr
    assert not list(tmp_path.glob("*.key"))


def test_webhook_key_is_one_of_the_mesh(octaskly: Run, tmp_path: Path) -> None:
    """In the form of the receivers' libraries; it needs no agent."""
    file = tmp_path / "mesh.key"
    file.touch(mode=0o600)
    file.write_bytes(octaskly("secret", "new", node=None).stdout)

    first, second = (
        octaskly("secret", "webhook-key", "--secret-file", str(file), node=None).stdout
        for _ in range(2)
    )

    assert first == second
    assert first.startswith(b"whsec_")
    assert len(base64.b64decode(first.removeprefix(b"whsec_"))) == 32


def test_ca_refuses_a_secret_that_others_can_read(
    octaskly: Run, tmp_path: Path
) -> None:
    """As the agent does: exit 78 and the name of the file."""
    file = tmp_path / "mesh.key"
    file.write_bytes(octaskly("secret", "new", node=None).stdout)
    file.chmod(0o644)

    done = octaskly("ca", "--secret-file", str(file), node=None)

    assert done.returncode == 78
    assert str(file).encode() in done.stderr


def test_ca_without_a_secret_does_not_suggest_a_new_one(
    octaskly: Run, tmp_path: Path
) -> None:
    """A new secret would belong to no mesh, and block the real one."""
    done = octaskly("ca", "--secret-file", str(tmp_path / "none"), node=None)

    assert done.returncode == 78
    assert b"--secret-file FILE" in done.stderr
    assert b"secret new" not in done.stderr
    assert done.stderr.count(b"there is no mesh secret") == 1


def test_db_reset_moves_the_log_aside(octaskly: Run, tmp_path: Path) -> None:
    """Nothing is deleted; an unreadable log may still be of use."""
    state = tmp_path / "s"
    state.mkdir()
    (state / "log.db").write_bytes(b"not a database")

    done = octaskly("--state-dir", str(state), "db", "reset", "--yes", node=None)

    [moved] = list(state.glob("log.db.2*"))
    assert done.returncode == 0
    assert moved.read_bytes() == b"not a database"
    assert not (state / "log.db").exists()
    assert str(moved).encode() in done.stderr


def test_every_flag_is_sent(
    api: Api, octaskly: Run, tmp_path: Path, environ: dict[str, str]
) -> None:
    """Each is a field; a variable without a value takes the caller's."""
    (tmp_path / "in").write_bytes(b"\0\xff")
    environ["MINE"] = "a=b"

    done = octaskly(
        *("submit", "--name", "nightly", "--label", "team=ci", "--label", "hot"),
        *("--env", "A=1=2", "--env", "MINE", "--cwd", "src", "--grace", "0"),
        *(
            "--scratch",
            "--limit",
            "memory_mb=64,processes=80",
            "--limit",
            "cpu_seconds=5",
        ),
        *("--stdin", str(tmp_path / "in"), "--timeout", "2m", "--", "true"),
    )

    assert done.returncode == 0, done.stderr
    assert api.bodies == [
        [
            {
                "id": ID,
                "command": "true",
                "timeout": 120,
                "name": "nightly",
                "labels": {"team": "ci", "hot": ""},
                "env": {"A": "1=2", "MINE": "a=b"},
                "cwd": "src",
                "workdir": "scratch",
                "stdin_base64": "AP8=",
                "grace": 0,
                "limits": {"memory_mb": 64, "processes": 80, "cpu_seconds": 5},
            }
        ]
    ]


def test_requirements_are_sent(api: Api, octaskly: Run) -> None:
    """Short flags for people, one object for the API; unset flags are omitted."""
    needs = (
        *("--cpus", "2", "--memory", "512", "--gpus", "1", "--on", "ana"),
        *("--require", "disk=ssd", "--require", "rack=a/1"),
    )

    for arguments in ((*needs, "--priority", "-5", "--fail-fast"), ()):
        done = octaskly("submit", *arguments, "--", "true")
        assert done.returncode == 0, done.stderr

    requires = {
        "cpus": 2,
        "memory_mb": 512,
        "gpus": 1,
        "node": "ana",
        "labels": {"disk": "ssd", "rack": "a/1"},
    }
    [asked, plain] = api.drafts
    assert asked == {
        "id": ID,
        "command": "true",
        "timeout": "none",
        "priority": -5,
        "requires": requires,
        "fail_fast": True,
    }
    assert plain == {
        "id": "task-002-00000002",
        "command": "true",
        "timeout": "none",
    }


@pytest.mark.parametrize(
    ("words", "visitors"),
    [
        (["--visitors", "--", "true"], True),
        (["--visitors", "true"], True),
        (["--visitors", "--priority", "0", "true"], True),
        (["--visitors=with-env", "true"], "with-env"),
        (["--visitors=no", "--", "true"], False),
        (["--name", "--visitors", "true"], None),
    ],
    ids=str,
)
def test_a_value_that_may_be_omitted_follows_an_equals_sign(
    api: Api, octaskly: Run, words: list[str], *, visitors: bool | str | None
) -> None:
    """So the next word is that of the command."""
    done = octaskly("submit", *words)

    assert done.returncode == 0, done.stderr
    [asked] = api.drafts
    assert (asked["command"], asked.get("visitors")) == ("true", visitors)


def test_a_word_after_the_command_is_not_an_option(api: Api, octaskly: Run) -> None:
    """Whoever types the command means it for the command."""
    done = octaskly("submit", "echo", "--visitors")

    assert done.returncode == 0, done.stderr
    assert [asked["command"] for asked in api.drafts] == ["echo --visitors"]
    assert "visitors" not in api.drafts[0]


def test_stdin_of_the_command_becomes_that_of_the_task(api: Api, octaskly: Run) -> None:
    """With `-`, as in other programs."""
    done = octaskly("run", "--stdin", "-", "--", "true", stdin=b"abc")

    assert done.returncode == 0, done.stderr
    assert api.drafts[0]["stdin_base64"] == "YWJj"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--env", "NO_SUCH_VARIABLE", "--", "true"], b"no such variable here"),
        (["--env", "=x", "--", "true"], b"give NAME or NAME=VALUE"),
        (["--label", "=x", "--", "true"], b"give NAME or NAME=VALUE"),
        (["--stdin", "/no/such/file", "--", "true"], b"No such file"),
        (["--stdin", "/dev/zero", "--", "true"], b"more than 1048576 bytes"),
        (["--limit", "memory=1", "--", "true"], b"use one of memory_mb, cpu_seconds"),
        (["--limit", "memory_mb=1g", "--", "true"], b"give a whole number"),
        (["--limit", f"memory_mb={'9' * 5000}", "--", "true"], b"give a whole number"),
        (["--require", "ssd", "--", "true"], b"give NAME=VALUE"),
        (["--priority", "51", "--", "true"], b"not in the range -50<=x<=50"),
        (["--stdin", "-", "-"], b"cannot provide both"),
        (["--stdin", "-", "--file", "-"], b"cannot provide both"),
        (["--env", b"A=\xff", "--", "true"], b"is not UTF-8 text"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_sent(
    api: Api, octaskly: Run, arguments: list[str], why: bytes
) -> None:
    """Usage errors, with the reason."""
    done = octaskly("submit", *arguments, stdin=b"true\n")

    assert done.returncode == 2
    assert why in done.stderr
    assert api.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--limit", f"memory_mb={'9' * 5000}"],
        ["--limit", f"{'x' * 5000}=1"],
        ["--env", "A" * 5000],
        ["--label", f"={'x ' * 2500}"],
        ["--require", "x" * 5000],
        ["--cpus", "9" * 5000],
        ["--timeout", "9" * 5000],
        ["--grace", "x" * 5000],
        [f"--{'x' * 5000}"],
        ["--after-on", "x" * 5000],
    ],
)
def test_an_error_does_not_repeat_a_long_argument(
    api: Api, octaskly: Run, arguments: list[str]
) -> None:
    """Its start names the flag, its end the allowed values."""
    done = octaskly("submit", *arguments, "--", "true")

    assert done.returncode == 2
    assert len(done.stderr.decode()) < 500
    assert done.stderr.startswith(b"error: ")
    assert arguments[0][:10].encode() in done.stderr


@pytest.mark.parametrize(
    "flag", ["--on", "--name", "--cwd", "--notify-url", "--idempotency-key"]
)
def test_a_flag_with_an_empty_value_is_refused(
    api: Api, octaskly: Run, flag: str
) -> None:
    """As `--on "$HOST"` with an unset variable: the command would run anywhere."""
    done = octaskly("submit", flag, "", "--", "true")

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: invalid value for '{flag}'".encode())
    assert api.requests == []


def test_a_cancel_of_an_ended_task_reports_the_end(api: Api, octaskly: Run) -> None:
    """The API calls it not found, by contract; people see that it exists."""
    octaskly("submit", "--", "true")
    api.refusal, api.refusal_hint = "Task not found", "it has ended: completed"
    api.refuse = lambda method, _: (404, {}) if method == "DELETE" else None

    done = octaskly("cancel", "1")

    assert done.returncode == 3
    assert done.stderr.decode() == (
        "error: Cannot cancel ended task\n"
        "  cause: it has ended: completed\n"
        "  hint: octaskly retry task-001    runs it again\n"
    )


@pytest.mark.parametrize("command", [["cancel", "--force"], ["retry"]])
def test_a_refusal_for_one_task_does_not_stop_the_others(
    api: Api, octaskly: Run, command: list[str]
) -> None:
    """`octaskly cancel A B` ends B, even if A has ended by itself."""
    octaskly("submit", "-", stdin=b"sleep 60\nsleep 60\n")
    refused = "task-001-00000001"
    api.refuse = lambda _, path: (404, {}) if f"/{refused}" in path else None
    api.answers["/api/v1/tasks/task-002/retry"] = {
        "id": "task-003-00000003",
        "command": "true",
        "status": "queued",
    }

    done = octaskly(*command, refused, "2")

    assert done.returncode == 3
    assert done.stderr.count(b"error: ") == 1
    assert f"error: {refused}: ".encode() in done.stderr
    assert any(f"/{refused}" in asked for asked in api.requests)
    last = [r.split("?")[0] for r in api.requests if not r.startswith("GET ")][-1]
    assert last.split("/")[4] == "task-002"


def test_a_priority_may_be_negative(api: Api, octaskly: Run) -> None:
    """It is no option, wherever it stands."""
    octaskly("submit", "-", stdin=b"true\ntrue\n")
    for number in (1, 2):
        task = f"task-00{number}"
        path = f"/api/v1/tasks/{task}/reprioritize"
        api.answers[path] = {"id": f"{task}-0000000{number}", "priority": -5}

    done = octaskly("reprioritize", "1", "2", "-5")
    as_json = octaskly("reprioritize", "1", "-5", "--json")

    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == (
        b"task-001-00000001 has priority -5 now\n"
        b"task-002-00000002 has priority -5 now\n"
    )
    assert json.loads(as_json.stdout) == {
        "v": 1,
        "id": "task-001-00000001",
        "priority": -5,
    }


def test_a_priority_out_of_range_is_refused_before_a_request(
    api: Api, octaskly: Run
) -> None:
    """The message names the range."""
    done = octaskly("reprioritize", "1", "51")

    assert (done.returncode, api.requests) == (2, [])
    assert done.stderr == (
        b"error: invalid value for 'N': 51 is not in the range -50<=x<=50\n"
        b"  hint: octaskly reprioritize --help\n"
    )


def test_a_missing_priority_is_named(api: Api, octaskly: Run) -> None:
    """Not the id, which is there."""
    done = octaskly("reprioritize", "last")

    assert (done.returncode, api.requests) == (2, [])
    assert done.stderr == (
        b"error: missing argument 'N', the new priority\n"
        b"  hint: octaskly reprioritize --help\n"
    )


def test_a_task_that_runs_already_keeps_its_priority(api: Api, octaskly: Run) -> None:
    """The others get theirs."""
    octaskly("submit", "-", stdin=b"true\ntrue\n")
    api.refusal = "Cannot change the priority of this task"
    api.refusal_hint = "it runs already; a priority counts only while a task waits"
    api.refuse = lambda _, path: (409, {}) if "task-001" in path else None
    api.answers["/api/v1/tasks/task-002/reprioritize"] = {"id": "t2", "priority": 9}

    done = octaskly("reprioritize", "1", "2", "9")

    assert done.returncode == 1
    assert done.stderr.decode() == (
        "error: 1: Cannot change the priority of this task\n"
        "  cause: it runs already; a priority counts only while a task waits\n"
        "  hint: octaskly ls    lists what waits\n"
        "t2 has priority 9 now\n"
    )


def test_a_repeated_retry_gives_the_same_task(api: Api, octaskly: Run) -> None:
    """`id=$(octaskly retry ID)` has an id, however often it runs."""
    octaskly("submit", "--", "true")
    repeated = {"id": "task-002-00000002", "command": "true", "status": "completed"}
    api.answers["/api/v1/tasks/task-001/retry"] = repeated

    done, as_json = octaskly("retry", "1"), octaskly("retry", "--json", "1")

    assert done.stdout == b"task-002-00000002\n"
    assert done.stderr == (
        b"task-001 was retried as task-002-00000002, which is completed\n"
    )
    assert json.loads(as_json.stdout) == {"v": 1, **repeated}


@pytest.fixture
def failed(api: Api) -> Api:
    """Three failed tasks: one retried before, one of long ago, and one of now."""
    now = dt.datetime.now(dt.UTC)
    for number, days in ((1, 0), (2, 30), (3, 0)):
        task = ended_task(number, status="failed", exit_code=number)
        task["completed_at"] = (now - dt.timedelta(days=days)).isoformat()
        api.tasks[task["id"]] = task
        path = f"/api/v1/tasks/{task['id']}/retry"
        retry = {"id": f"task-9{number}", "command": "false", "status": "queued"}
        is_retried = number == 1
        api.answers[path] = retry | {"retried_as": "task-90" if is_retried else None}
    return api


@pytest.mark.parametrize(
    ("flags", "retried"),
    [
        ([], ["task-92", "task-93"]),
        (["--since", "7d"], ["task-93"]),
        (["--mine"], ["task-92", "task-93"]),
    ],
)
def test_retry_failed_retries_what_was_not_retried_before(
    failed: Api, octaskly: Run, flags: list[str], retried: list[str]
) -> None:
    """It prints only new ids, so `octaskly wait $(...)` waits for all of them."""
    done = octaskly("retry", "--failed", "--yes", *flags)

    assert (done.returncode, done.stdout.decode().split()) == (0, retried)
    [listing] = [asked for asked in failed.requests if "/tasks?" in asked]
    assert ("mine=true" in listing) == ("--mine" in flags)


def test_retry_failed_retries_nothing_without_a_terminal_to_ask_at(
    failed: Api, octaskly: Run
) -> None:
    """It shows what it would retry, and the command that does."""
    done = octaskly("retry", "--failed", "--since", "60d")

    assert (done.returncode, done.stdout) == (2, b"")
    assert "cause: 2 failed tasks run again" in done.stderr.decode()
    assert "octaskly retry --failed --since 5184000s --yes" in done.stderr.decode()
    assert not [asked for asked in failed.requests if asked.startswith("POST")]


@pytest.mark.parametrize(
    ("count", "text"), [(1, "1 task forgotten"), (2, "2 tasks forgotten")]
)
def test_forget_prints_the_count(
    api: Api, octaskly: Run, count: int, text: str
) -> None:
    """With correct singular and plural."""
    api.answers["/api/v1/forget"] = {"forgotten": count}

    done = octaskly("forget", "--all-ended", "--yes")

    assert done.stderr.decode() == f"{text}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "1 stays in use until all nodes know it"),
        (["--now", "--yes"], "1 becomes invalid within 5 s"),
    ],
)
def test_rotate_prints_the_end_of_the_old_secret(
    api: Api, octaskly: Run, arguments: list[str], text: str
) -> None:
    """With --now it waits for no node."""
    names: list[str] = []
    api.answers["/api/v1/rotation"] = {
        "generation": 1,
        "newest": 2,
        "oldest": 1,
        "phase": "spreading",
        "since": None,
        "due": None,
        **dict.fromkeys(("confirmed", "awaited", "revoked"), names),
    }

    done = octaskly("rotate", *arguments)

    assert f"generation 2 is accepted; {text}" in done.stdout.decode()
