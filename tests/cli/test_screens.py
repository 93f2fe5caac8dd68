"""What each command shows, word for word: in a pipe, and on terminals of two widths.

The sessions are files in `screens`. After a change that is meant to show, write them
anew, and read the difference before it is committed:
OCTASKLY_SCREENS=write .venv/bin/pytest tests/cli/test_screens.py
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import pexpect
import pytest

from octaskly.cli.doctor.command import format_findings
from octaskly.cli.doctor.diagnosis import make_findings
from octaskly.cli.doctor.observations import Symptoms, TakenPort
from octaskly.cli.output.terminal import format_text, width
from octaskly.errors import ConfigError
from tests.cli.stand_in import Api
from tests.cli.test_reading import ended_task, make_busy
from tests.docs.commands_page import commands, named
from tests.unit.cli.test_doctor_findings import OUTSIDER, of_mesh

SCREENS = Path(__file__).parent / "screens"
NODES_IN_TROUBLE = ("pi4", "pi5", "nas", "laptop")
WAIT_S = 60
CALLS = (
    ["--version"],
    ["ls"],
    ["ls", "--status", "failed"],
    ["ls", "--limit", "2"],
    ["ls", "--json", "--limit", "1"],
    ["show", "1"],
    ["show", "2"],
    ["show", "last"],
    ["show", "0000"],
    ["show", "99"],
    ["show", "--json", "1"],
    ["logs", "1"],
    ["logs", "--stderr", "2"],
    ["wait", "1", "2"],
    ["run", "--", "echo out; echo err >&2; exit 3"],
    ["run", "--json", "--timeout", "never", "--", "true"],
    ["cancel", "1"],
    ["--quiet", "drain", "here"],
    ["drain", "here"],
    ["nodes"],
    ["nodes", "--json"],
    ["stats"],
    ["explain", "1"],
    ["events"],
    ["token", "list"],
    ["audit"],
    ["requests"],
    ["invite", "--ttl", "90s"],
    ["rotate", "--status"],
    ["config"],
    ["config", "check", "draft.toml"],
    ["map", "--dry-run", "gzip -k {}", ":::", "a.log", "b c.log"],
    ["map", "--dry-run"],
    ["ls", "--state", "failed"],
    ["ls", "--node"],
    ["lss"],
    ["forget"],
    ["token", "create"],
    ["submit"],
    ["--no-color", "nodes"],  # Last, as it is for the process.
)
#: Mistakes in typing. Each gets the error, its cause and a hint, and does nothing.
MISTAKES = (
    ["lss"],
    ["kill", "3"],
    ["rm", "3"],
    ["get", "3"],
    ["stop"],
    ["sh", "-c", "date"],
    ["frobnicate"],
    ["--timeout", "5", "run", "true"],
    ["--bogus", "ls"],
    ["run", "--node", "here", "true"],
    ["run", "--colour", "ls"],
    ["run", "-la"],
    ["array", "--count", "9", "date"],
    ["approve", "pi4", "--yes"],
    ["run"],
    ["run", "--", "--in", ".", "make", "-j4"],
    ["array", "1-3", "--", "--timeout", "5", "./sim"],
    ["array", "1-3", "--", "--bogus", "./sim"],
    ["run", "echo", "--timeout", "5"],
    ["run", "--", "echo it's"],
    ["run", "--", 'echo "never closed'],
    ["run", "ls -la", "/tmp"],
    ["map", "gzip -k", "{}", ":::", "a"],
    ["map", "echo '{}'", ":::", "b c"],
    ["map", ":::", "a"],
    ["map", "--out", "{}.gz", "gzip {}", ":::", "a", "/etc/hosts"],
    ["map", "--out", "{//}", "true {}", ":::", "a"],
    ["map", "--in", "{}", "cat {}", ":::", "/etc/hosts"],
    ["map", "--in", "no-{}", "cat {}", ":::", "a"],
    ["submit", "--file", "nothing.txt"],
    ["show"],
    ["revoke", "attic"],
    ["rotate", "--now"],
    ["forget", "--older-than", "2h"],
    ["retry", "--failed"],
    ["retry", "--mine", "1"],
    ["join"],
    ["approve", "pi4"],
    ["agent", "--name", "my pc"],
    ["agent", "--name", "👨\u200d👩\u200d👧"],
    ["agent", "--name", "שלום"],
    ["agent", "--name", "x" * 64],
)
API = "/api/v1"
ANSWERS = {
    f"{API}/tasks/task-001/explain": {
        "id": "task-001-00000001",
        "status": "queued",
        "summary": "no node that is there has what it requires",
        "nodes": [
            {
                "name": name,
                "state": "ready",
                "reasons": [
                    {"code": "gpus", "message": "it needs 1 GPU, and there is none"},
                    {"code": "labels", "message": "it has no label room=attic"},
                ],
            }
            for name in ("here", "a-machine-with-a-name-that-is-long")
        ],
    },
    f"{API}/tasks/task-002-00000002/retry": {"retried_as": None},
    f"{API}/events": b"".join(
        b"event: %s\nid: 1-1:%d\ndata: %s\n\n" % (kind, number, data)
        for number, (kind, data) in enumerate(
            [
                (
                    b"task",
                    json.dumps(
                        {
                            "at": "2026-02-06T12:00:00Z",
                            "id": "task-001-00000001",
                            "status": "failed",
                            "worker_id": "here",
                            "exit_code": 124,
                            "reason": "timeout",
                        }
                    ).encode(),
                ),
                (b"node", b'{"name": "attic", "state": "lost", "role": "worker"}'),
            ]
        )
    ),
    f"{API}/tokens": {
        "tokens": [
            {
                "name": name,
                "state": state,
                "role": "client",
                "subject": "build server",
                "issued_at": "2999-02-06T12:00:00Z",
                "issued_by": "ana",
                "expires_at": "2026-03-06T12:00:00Z",
                "id": "0f" * 16,
            }
            for name, state in (("ci", "good"), ("ci-of-last-year", "revoked"))
        ]
    },
    f"{API}/audit": {
        "entries": [
            {
                "at": "2026-02-06T12:00:00Z",
                "subject": subject,
                "role": role,
                "source": "192.168.1.20",
                "node": "here",
                "allowed": status < 400,
                "status": status,
                "count": count,
                "action": "POST /api/v1/tasks",
                "target": None,
                "tasks": ["task-001-00000001"] if status < 400 else [],
                "task_count": 3 if status < 400 else 0,
            }
            for subject, role, status, count in (
                ("ana", "admin", 201, 1),
                (None, None, 401, 250),
            )
        ],
        "next": "1",
        "returned": 2,
    },
    f"{API}/requests": {
        "requests": [
            {
                "name": "pi4",
                "node_id": "0011",
                "fingerprint": "otter-lemon-anvil",
                "address": "192.168.1.21",
            }
        ]
    },
    f"{API}/invites": {
        "code": "7-4821-9375",
        "expires_at": "2026-02-06T12:01:30Z",
        "places": ["192.168.1.20:7879"],
    },
    f"{API}/rotation": {
        "phase": "spreading",
        "generation": 1,
        "newest": 2,
        "since": "2026-02-06T12:00:00Z",
        "due": "2026-02-07T12:00:00Z",
        "confirmed": ["here"],
        "awaited": ["attic"],
        "revoked": [],
    },
}
#: So `octaskly config` prints the same on each machine.
SETTINGS = {
    "OCTASKLY_NAME": "here",
    "OCTASKLY_SLOTS": "2",
    "XDG_STATE_HOME": "/state",
    "XDG_CONFIG_HOME": "/config",
    "CONFIGURATION_DIRECTORY": "/config",
}
DRAFT = "slots = 'many'\nsloths = 2\n"
SESSION = """\
import shlex, sys
from octaskly.cli import main
for call in {calls!r}:
    print("$", shlex.join(["octaskly", *call]), flush=True)
    code = main(["--node", "here", *call])
    sys.stdout.flush()
    if code:
        print(f"[exit code {{code}}]", flush=True)
"""


@pytest.fixture
def tasks(api: Api) -> Api:
    """Three ended tasks, one with a name, one with a long command."""
    long = f"convert {' '.join(f'input-{number}.png' for number in range(12))} out.pdf"
    for task in (
        ended_task(1),
        ended_task(2, status="failed", exit_code=3, command="false\nfalse"),
        ended_task(3, command=long, name="album"),
    ):
        api.tasks[task["id"]] = task
    api.answers |= ANSWERS

    def end_the_second_stream(
        _method: str, path: str
    ) -> tuple[int, dict[str, str]] | None:
        is_again = (
            sum("/events" in asked for asked in api.requests) > 2
        )  # `wait` had one
        return (404, {}) if path == f"{API}/events" and is_again else None

    api.refuse = end_the_second_stream
    return api


def session(
    columns: int | None,
    environ: dict[str, str],
    folder: Path,
    calls: Sequence[Sequence[str]] = CALLS,
) -> str:
    """Return the output of a terminal of that width, or of a pipe."""
    environ = environ | SETTINGS
    (folder / "draft.toml").write_text(DRAFT)
    program = [sys.executable, "-c", SESSION.format(calls=calls)]
    if columns is None:
        done = subprocess.run(
            program,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=WAIT_S,
            check=True,
        )
        return done.stdout.decode()
    coloured = {name: text for name, text in environ.items() if name != "NO_COLOR"}
    terminal = pexpect.spawn(
        program[0],
        program[1:],
        cwd=str(folder),
        env=coloured | {"TERM": "xterm"},
        timeout=WAIT_S,
        encoding="utf-8",
        dimensions=(24, columns),
    )
    shown = terminal.read()
    terminal.close()
    assert terminal.exitstatus == 0
    return shown.replace("\r\n", "\n")


AILING = replace(
    OUTSIDER,
    secret_error=ConfigError(
        "/home/ana/mesh.key is for its owner alone", hint="chmod 600 /home/ana/mesh.key"
    ),
    mdns_error=OSError(errno.EADDRINUSE, "Address already in use"),
    mdns_port_owner="avahi-daemon",
    probed_nodes=(
        replace(of_mesh("192.168.1.21:7878"), probe_result="untrusted"),
        replace(
            of_mesh("192.168.1.22:7878"), name="pi4", mesh=None, probe_result="silent"
        ),
    ),
    taken_ports=(TakenPort(flag="--api-port", port=3000, owner="grafana (pid 812)"),),
    free_bytes=1 << 20,
    descriptors_max=256,
)


@pytest.mark.parametrize(("name", "seen"), [("well", OUTSIDER), ("ailing", AILING)])
def test_the_report_of_the_doctor_matches_its_recording(
    name: str, seen: Symptoms
) -> None:
    """Its machine is made up, so the report is always the same; lines have no width."""
    found = make_findings(seen)
    plain, coloured = (
        "".join(
            f"{format_text(*line, has_colour=has_colour)}\n"
            for line in format_findings(found)
        )
        for has_colour in (False, True)
    )

    file = SCREENS / f"doctor-{name}.txt"
    if os.environ.get("OCTASKLY_SCREENS") == "write":
        file.write_text(plain)
    assert plain == file.read_text()
    assert click.unstyle(coloured) == plain


@pytest.mark.slow
@pytest.mark.parametrize("columns", [None, 80, 120])
def test_screens_match_their_recordings(
    tasks: Api, environ: dict[str, str], columns: int | None, tmp_path: Path
) -> None:
    """Every difference must be intended and reviewed."""
    text = session(columns, environ, tmp_path)

    check_recording(text, f"{columns or 'pipe'}.txt")
    assert columns is not None or "\x1b" not in text


def check_recording(text: str, name: str) -> None:
    text = re.sub(r"\d+h\d\dm ago", "AGE ago", text)
    text = re.sub(r"(octaskly) \d+\.\d+\.\d+\S*", r"\1 VERSION", text)
    file = SCREENS / name
    if os.environ.get("OCTASKLY_SCREENS") == "write":
        file.write_bytes(text.encode())

    assert text == file.read_bytes().decode()  # A carriage return stays one.


def test_mistakes_are_answered_with_their_cause_and_a_hint(
    tasks: Api, environ: dict[str, str], tmp_path: Path
) -> None:
    """Word for word; only the command with a warning reaches a node."""
    text = session(None, environ, tmp_path, MISTAKES)

    check_recording(text, "mistakes.txt")
    assert [task["command"] for task in tasks.drafts] == ["echo --timeout 5"]


@pytest.mark.parametrize("columns", [40, 100])
def test_lists_of_a_busy_mesh_match_their_recordings(
    api: Api, environ: dict[str, str], columns: int, tmp_path: Path
) -> None:
    """Also on a narrow terminal, and with names that are wide or from right to left."""
    make_busy(api)
    calls = [["ls"], ["nodes"], ["show", "1"], ["show", "3fa2"]]

    text = session(columns, environ, tmp_path, calls)

    check_recording(text, f"lists-{columns}.txt")
    lists = text[: text.index("$ octaskly show")].splitlines()
    notes = [line for line in lists if line.split(":")[0] in NODES_IN_TROUBLE]
    assert len(notes) == len(NODES_IN_TROUBLE)
    assert (
        max(width(click.unstyle(one)) for one in lists if one not in notes) <= columns
    )


@pytest.mark.parametrize(("words", "command"), list(commands()), ids=named)
def test_help_fits_a_terminal_of_80_columns(words: str, command: click.Command) -> None:
    """Click wraps text; this finds text that it cannot wrap."""
    with click.Context(command, info_name=f"octaskly {words}") as context:
        wide = [
            line for line in command.get_help(context).splitlines() if len(line) > 80
        ]

    assert wide == []
