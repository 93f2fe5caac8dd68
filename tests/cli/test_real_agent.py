"""The command line with a real agent: a process of its own on loopback."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pexpect
import pytest

from octaskly.cli.demo.agents import DemoAgent
from octaskly.trust import load_secret
from octaskly.trust.tokens import TokenSigner
from tests.cli.typed import typed, without_wait_reason

Call = subprocess.CompletedProcess[bytes]


def octaskly(
    agent: DemoAgent, *arguments: str, stdin: bytes = b"", cwd: Path | None = None
) -> Call:
    done = subprocess.run(
        typed("--state-dir", str(agent.state), *arguments),
        input=stdin,
        cwd=cwd,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return without_wait_reason(done)


def test_run_behaves_like_a_local_command(agent: DemoAgent) -> None:
    """Exact bytes on both streams, and the exit code of the command."""
    done = octaskly(agent, "run", "--", r"printf 'a\000\377'; echo b >&2; exit 9")

    assert (done.returncode, done.stdout, done.stderr) == (9, b"a\x00\xff", b"b\n")


@pytest.mark.parametrize("size_bytes", [0, 3, 1 << 20, (1 << 20) + 1, 9_000_000])
def test_run_passes_its_stdin_on(
    agent: DemoAgent, tmp_path: Path, size_bytes: int
) -> None:
    """A pipe or a file, from its current position, of any size."""
    data = os.urandom(size_bytes)
    (tmp_path / "file").write_bytes(b"skipped" + data)
    digest = f"{sha256(data).hexdigest()}  -\n".encode()

    from_pipe = octaskly(agent, "run", "--", "sha256sum", stdin=data)
    with (tmp_path / "file").open("rb", buffering=0) as file:
        file.seek(len(b"skipped"))
        from_file = subprocess.run(
            typed("--state-dir", str(agent.state), "run", "--", "sha256sum"),
            stdin=file,
            capture_output=True,
            timeout=60,
            check=False,
        )

    assert (from_pipe.returncode, from_pipe.stdout) == (0, digest)
    assert (from_file.returncode, from_file.stdout) == (0, digest)


def test_stdin_is_used_in_a_shell_as_that_of_a_local_command(
    agent: DemoAgent, tmp_path: Path
) -> None:
    """A tree goes there by a pipe, and a file comes back changed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "a").write_bytes(os.urandom(3_000_000))  # More than a task carries.
    (tmp_path / "bin" / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "tool").chmod(0o755)
    cli = shlex.join(map(str, typed("--state-dir", str(agent.state))))
    script = f"""
        octaskly() {{ {cli} "$@"; }}
        tar c . | octaskly run -- tar x &&
        octaskly run -- gzip < a > b
    """

    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )

    done = without_wait_reason(done)
    work = agent.state.parent / "work"
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (work / "a").read_bytes() == (tmp_path / "a").read_bytes()
    assert os.access(work / "bin" / "tool", os.X_OK)
    assert gzip.decompress((tmp_path / "b").read_bytes()) == (work / "a").read_bytes()


def test_run_without_stdin_waits_for_nothing(agent: DemoAgent) -> None:
    """A device or a closed stdin is not passed on."""
    words = [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state)]
    words += ["run", "--", "wc -c"]
    for closing in ("</dev/null", "<&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$@" {closing}', "sh", *words],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, b"0\n"), done


def test_run_says_that_a_device_is_not_passed_on(agent: DemoAgent) -> None:
    """It may have no end. Without a word, it would seem to be empty."""
    with Path("/dev/zero").open("rb", buffering=0) as device:
        done = subprocess.run(
            typed("--state-dir", str(agent.state), "run", "--", "wc -c"),
            stdin=device,
            capture_output=True,
            timeout=60,
            check=False,
        )

    assert (done.returncode, done.stdout) == (0, b"0\n"), done
    assert without_wait_reason(done).stderr == (
        b"warning: stdin is neither a pipe nor a file, so the command gets none;"
        b" cat DEVICE | octaskly run ...    passes it on\n"
    )


def test_run_says_that_it_reads_a_pipe_that_stays_open(agent: DemoAgent) -> None:
    """Somebody who did not expect it would wait for ever; Ctrl-C ends it."""
    words = ["--state-dir", str(agent.state), "run", "--", "cat"]
    reading = subprocess.Popen(
        [sys.executable, "-m", "octaskly", *words],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with reading:
        assert reading.stderr is not None
        assert reading.stderr.readline() == (
            b"reading stdin to its end before the command starts; with </dev/null it"
            b" gets none\n"
        )
        reading.send_signal(signal.SIGINT)
        assert reading.wait(60) == 130


@pytest.mark.parametrize(("code", "how"), [(0, "✓ {} done"), (9, "✗ {} exit 9")])
def test_run_prints_node_and_duration_on_a_terminal(
    agent: DemoAgent, code: int, how: str
) -> None:
    """Only there; it is the last line."""
    words = ["--state-dir", str(agent.state), "run", "--", f"echo hi; exit {code}"]
    run = pexpect.spawn(
        sys.executable, ["-m", "octaskly", *words], encoding="utf-8", timeout=60
    )
    said = run.read().replace("\r", "")
    run.close()

    assert run.exitstatus == code
    end = how.format("task-[0-9]{3}-[0-9a-f]{8}")
    said = re.sub(r"^queued: .*\n", "", said)  # It depends on the agent's speed.
    assert re.fullmatch(rf"hi\n{end} on lone in [\d.]+ m?s\n", said), said


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--", "kill -TERM $$"], 143),
        (["--timeout", "1", "--", "sleep 30"], 124),
        (["--", "no-such-command-anywhere"], 127),
        (["--needs", "no-such-file", "--", "true"], 125),
        (["--", " "], 2),
    ],
)
def test_exit_codes_of_run(agent: DemoAgent, arguments: list[str], code: int) -> None:
    """As docs/reference/exit-codes.md lists them."""
    done = octaskly(agent, "run", *arguments)

    assert done.returncode == code, done.stderr


def test_a_task_runs_with_the_requested_environment(agent: DemoAgent) -> None:
    """From the flags through the log to the process, and back in `show`."""
    (agent.state.parent / "work" / "sub").mkdir()
    done = octaskly(
        agent,
        *("run", "--env", "A=1 2", "--cwd", "sub", "--stdin", "-", "--name", "all of"),
        *("--label", "team=ci", "--grace", "3", "--"),
        'echo "$A"; basename "$PWD"; cat',
        stdin=b"\0\xff",
    )

    assert (done.returncode, done.stdout) == (0, b"1 2\nsub\n\0\xff"), done.stderr
    shown = json.loads(octaskly(agent, "show", "last", "--json").stdout)
    assert (shown["name"], shown["labels"]) == ("all of", {"team": "ci"})
    assert (shown["env"], shown["cwd"]) == ({"A": "1 2"}, "sub")
    assert (shown["stdin_bytes"], shown["grace"]) == (2, 3)


def test_a_missing_cwd_fails_the_task_without_a_retry(agent: DemoAgent) -> None:
    """The error names the folder and the node."""
    done = octaskly(agent, "run", "--cwd", "/no/such", "--", "true")

    assert (done.returncode, done.stderr) == (
        126,
        b"cwd /no/such does not exist on lone\n",
    )
    shown = json.loads(octaskly(agent, "show", "last", "--json").stdout)
    assert (shown["status"], shown["reason"], shown["attempt"]) == ("failed", "exit", 1)


def test_a_task_with_scratch_keeps_only_its_outputs(
    agent: DemoAgent, tmp_path: Path
) -> None:
    """Its input is there, and its declared outputs are kept."""
    work = agent.state.parent / "work"
    (work / "given").write_text("in\n")
    done = octaskly(
        agent,
        *("run", "--scratch", "--needs", "given", "--out", "made", "--"),
        "pwd; cp given made; touch litter",
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.decode().strip())
    assert folder.parent == agent.state / "scratch"
    shown = json.loads(octaskly(agent, "show", "last", "--json").stdout)
    assert shown["outputs"] == [{"path": "made", "bytes": 3, "files": None}]
    assert shown["workdir"] == "scratch"
    assert not (work / "litter").exists()
    deadline = time.monotonic() + 60
    while folder.exists():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_an_end_by_a_limit_names_the_limit(agent: DemoAgent) -> None:
    """The exit code is that of the signal; the task is not retried."""
    done = octaskly(
        agent, "run", "--limit", "file_mb=1", "--", "head -c 2000000 /dev/zero >big"
    )

    assert done.returncode == 128 + signal.SIGXFSZ
    assert b"it exceeded a limit\n  cause: limit file_mb: " in done.stderr
    shown = json.loads(octaskly(agent, "show", "last", "--json").stdout)
    assert (shown["status"], shown["reason"]) == ("failed", "limit")
    assert shown["limits"]["file_mb"] == 1


def test_an_interrupt_ends_the_task(agent: DemoAgent) -> None:
    """Ctrl-C of `run` is Ctrl-C of the command, wherever it runs."""
    marker = agent.state.parent / "work" / "running"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "octaskly", "--state-dir", str(agent.state)),
            *("run", "--", "touch running; exec sleep 3601"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not marker.exists():
        assert time.monotonic() < deadline
        os.sched_yield()

    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130, stderr
    shown = json.loads(octaskly(agent, "show", "last", "--json").stdout)
    assert shown["status"] == "cancelled"


def test_submitted_lines_are_listed_and_shown(agent: DemoAgent) -> None:
    """submit, ls, show, logs: by id, by number and as `last`."""
    ids = octaskly(agent, "submit", "-", stdin=b"echo 1\necho 2; exit 4\n").stdout
    first, second = ids.decode().split()
    with agent.client() as client:
        ended = [client.wait(ref, deadline_s=60) for ref in (first, second)]
    listed = json.loads(octaskly(agent, "ls", "--json", "--status", "failed").stdout)

    assert [task.exit_code for task in ended] == [0, 4]
    assert second in [task["id"] for task in listed["tasks"]]
    assert octaskly(agent, "logs", second.split("-")[1]).stdout == b"2\n"
    assert octaskly(agent, "logs", "last").stdout == b"2\n"
    assert b"exit code:   4" in octaskly(agent, "show", second).stdout


def test_an_array_is_submitted_shown_and_repeated(agent: DemoAgent) -> None:
    """One id for all numbers; `{}` stays a placeholder among quoted words."""
    done = octaskly(
        agent,
        *("array", "--max-fails", "5", "1-4", "--"),
        *("sh", "-c", 'echo "$1 $2"; test "$1" -ne 3', "_", "{}", "a b"),
    )
    array = done.stdout.decode().strip()
    with agent.client() as client:
        assert client.wait(array, deadline_s=60).status == "failed"

    shown = octaskly(agent, "show", array).stdout.decode()
    assert "completed:     3\n" in shown
    assert f"failures:      {array}.3: exit code 1\n" in shown
    assert octaskly(agent, "logs", f"{array}.2").stdout == b"2 a b\n"
    of_all = octaskly(agent, "logs", array)
    assert (of_all.returncode, of_all.stdout) == (
        0,
        b"1 a b\n2 a b\n3 a b\n4 a b\n",
    )
    listed = octaskly(agent, "ls", "--array", array, "--json").stdout
    ids = [task["id"] for task in json.loads(listed)["tasks"]]
    assert ids == [f"{array}.{number}" for number in range(1, 5)]
    assert b" 4 members " in octaskly(agent, "ls").stdout
    again = octaskly(agent, "retry", array).stdout.decode().strip()
    with agent.client() as client:
        repeated = client.wait(again, deadline_s=60).array
    assert repeated is not None
    assert repeated.total == 1


def test_multiline_commands_cannot_forge_fields(agent: DemoAgent) -> None:
    """A command cannot fake another state."""
    command = "false\nstate: completed\nexit 3"
    task = octaskly(agent, "submit", "--", command).stdout.decode().strip()
    octaskly(agent, "wait", task)

    shown = octaskly(agent, "show", task).stdout.decode()

    assert "state:       failed\n" in shown
    assert f"false\n{' ' * 13}state: completed\n{' ' * 13}exit 3\n" in shown


def test_map_prints_the_output_of_items(agent: DemoAgent) -> None:
    """From arguments or from stdin; failures are reported and set the exit code."""
    command = ["test {} != y && echo got {}", ":::", "x", "y", "a b"]
    done = octaskly(agent, "map", "-k", *command)
    assert (done.returncode, done.stdout) == (1, b"got x\ngot a b\n")
    said = f".1 (y) failed on {agent.name}: exit code 1\n1 of 3 failed\n"
    assert said.encode() in done.stderr
    mark = b"\xef\xbb\xbf"  # Editors of Windows begin a file with it.
    done = octaskly(agent, "map", "-k", "printf", "%s|", stdin=mark + b"1\n\n2 3\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1|2 3|", b"")
    done = octaskly(agent, "map", "echo {}", stdin=b"")
    assert done.returncode == 0
    assert b"there are no items" in done.stderr


def test_nodes_and_stats_show_the_mesh(agent: DemoAgent) -> None:
    """For people and for programs."""
    nodes = json.loads(octaskly(agent, "nodes", "--json").stdout)
    assert [(n["name"], n["role"]) for n in nodes["nodes"]] == [("lone", "dispatcher")]
    assert b"lone  ready  dispatcher" in octaskly(agent, "nodes").stdout
    lines = octaskly(agent, "stats").stdout.split(b"\n")
    assert lines[0].split()[:3] == [b"workers:", b"1", b"total,"]


def test_an_unknown_task_is_exit_3(agent: DemoAgent) -> None:
    """The error names it, the hint lists existing tasks."""
    done = octaskly(agent, "show", "task-999999-00000000")

    assert done.returncode == 3
    assert done.stderr.startswith(b"error: Task not found\n  cause: ")
    assert b"\n  hint: octaskly ls" in done.stderr


def test_a_refused_value_is_reported_with_its_option(agent: DemoAgent) -> None:
    """`from 1 to 86400` alone could be any of twenty options."""
    done = octaskly(agent, "run", "--timeout", "25h", "--", "true")

    assert done.returncode == 2
    assert b"\n  cause: timeout: " in done.stderr


def test_a_token_grants_its_role_over_http(agent: DemoAgent) -> None:
    """A viewer reads; a forbidden action is exit 4."""
    token = octaskly(agent, "token", "create", "--role", "viewer").stdout.decode()
    description = agent.description()
    assert description is not None
    environ = {**os.environ, "OCTASKLY_TOKEN": token.strip()}
    remote = typed("--url", description["api_url"])

    reads, submits = (
        subprocess.run(
            [*remote, *words], capture_output=True, env=environ, timeout=60, check=False
        )
        for words in (["nodes"], ["submit", "--", "true"])
    )

    assert reads.returncode == 0, reads.stderr
    assert submits.returncode == 4, submits.stderr


NEW_TOKEN = "`octaskly token create --role client` on a node prints a new one"


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("wrong", f"the token is incomplete, or not of this mesh; {NEW_TOKEN}"),
        ("expired", f"the token has expired; {NEW_TOKEN}"),
        (
            "missing",
            (
                "missing bearer token; send `Authorization: Bearer <TOKEN>`; "
                "`octaskly token create --role client` on a node prints one"
            ),
        ),
    ],
)
def test_a_refused_token_has_error_cause_and_hint(
    agent: DemoAgent, kind: str, cause: str
) -> None:
    """Each cause in its own words, before anything is done."""
    description = agent.description()
    assert description is not None
    signer = TokenSigner(load_secret(agent.state.parent / "mesh.key"))
    past_s = time.time() - 3600
    tokens = {
        "wrong": "x.y.z",
        "expired": signer.sign_token(
            subject="a", role="client", expires_s=60, now_s=past_s, jti="1"
        ),
    }
    environ = {**os.environ, "OCTASKLY_TOKEN": tokens.get(kind, "")}

    done = subprocess.run(
        typed("--url", description["api_url"], "submit", "--", "true"),
        capture_output=True,
        env=environ,
        timeout=60,
        check=False,
    )

    assert done.returncode == 4
    assert done.stderr.decode() == (
        "error: Missing or invalid authentication token\n"
        f"  cause: {cause}\n"
        "  hint: export OCTASKLY_TOKEN=...    with a token of this mesh\n"
    )


OPTIONS_HINT = "octaskly --help    and octaskly COMMAND --help list the options"


@pytest.mark.parametrize(
    ("arguments", "cause", "hint"),
    [
        (
            ["--name", "gpj\u202egnp"],
            (
                "name: remove the character U+202E RIGHT-TO-LEFT OVERRIDE;"
                " expected 1 to 128 printable characters"
            ),
            OPTIONS_HINT,
        ),
        (
            ["--name", "tab\there"],
            (
                "name: remove the character U+0009;"
                " expected 1 to 128 printable characters"
            ),
            OPTIONS_HINT,
        ),
        (
            ["--on", "my pc"],
            "requires.node: invalid word; expected a node, by name or id",
            "octaskly nodes    lists the nodes",
        ),
        (
            ["--on", "👨\u200d👩\u200d👧"],
            "requires.node: invalid word; expected a node, by name or id",
            "octaskly nodes    lists the nodes",
        ),
    ],
)
def test_an_unusable_name_has_error_cause_and_hint(
    agent: DemoAgent, arguments: list[str], cause: str, hint: str
) -> None:
    """A reader cannot see some characters, so the cause names them."""
    done = octaskly(agent, "submit", *arguments, "--", "true")

    assert done.returncode == 2
    assert done.stderr.decode() == (
        f"error: Invalid parameter value\n  cause: {cause}\n  hint: {hint}\n"
    )


@pytest.mark.parametrize(
    "name", ["nightly build", "👨\u200d👩\u200d👧 run", "בנייה לילית", "Ana's job"]
)
def test_a_task_may_have_any_name_that_people_read(agent: DemoAgent, name: str) -> None:
    """With spaces, emoji, quotation marks, or in a script from right to left."""
    octaskly(agent, "submit", "--name", name, "--", "true")

    shown = octaskly(agent, "show", name)

    assert shown.returncode == 0, shown.stderr
    line = rf"^name: +{re.escape(name)}$"
    assert re.search(line, shown.stdout.decode(), re.MULTILINE)


def test_an_https_url_is_trusted_by_the_ca_of_the_mesh(
    agent: DemoAgent, tmp_path: Path
) -> None:
    """A machine outside the mesh needs only `octaskly ca` and a token.

    The command uses the secret file that the agent was started with, wherever that is.
    """
    description = agent.description()
    assert description is not None
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(octaskly(agent, "ca").stdout)
    token = octaskly(agent, "token", "create", "--role", "client").stdout.decode()
    port = description["lan_url"].rpartition(":")[2].strip("/")

    url = f"https://127.0.0.1:{port}"
    remote = [sys.executable, "-m", "octaskly", "--url", url, "--ca-file", str(ca_file)]
    done = subprocess.run(
        [*remote, "run", "--", "echo over tls"],
        capture_output=True,
        env={**os.environ, "OCTASKLY_TOKEN": token},
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, b"over tls\n"), done.stderr


def test_an_agent_uses_the_folder_named_before_the_command(
    agent: DemoAgent,
) -> None:
    """All other commands find the agent of `octaskly --state-dir DIR agent`."""
    second = octaskly(agent, "agent", "--interface", "lo", "--name", "second")

    assert second.returncode == 78
    assert os.fsencode(agent.state) in second.stderr


def test_outputs_can_be_fetched(agent: DemoAgent) -> None:
    """Declared outputs are kept for every holder of the task id."""
    with agent.client() as client:
        task = client.run("printf kept > made.txt", outputs=["made.txt"], check=True)

        assert b"".join(client.output(task, "made.txt")) == b"kept"


def test_db_reset_refuses_a_log_in_use(agent: DemoAgent) -> None:
    """Moving it away from a running agent would lose acknowledged tasks."""
    done = octaskly(agent, "db", "reset", "--yes")

    assert done.returncode != 0
    assert (agent.state / "log.db").exists()


@pytest.fixture
def near() -> Iterator[Path]:
    """Yield a folder with a short name, because socket paths are bounded."""
    with tempfile.TemporaryDirectory(prefix="near-") as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_ends_by_itself_and_leaves_nothing(near: Path) -> None:
    """Three agents form a mesh, share tasks and end: no process, no file."""
    done = demo(near)
    output, _ = done.communicate(timeout=280)

    assert done.returncode == 0, output
    assert b"All 40 outputs were fetched" in output
    assert b"tasks per second" in output
    assert left_behind(near) == ([], [])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(near: Path, number: signal.Signals) -> None:
    """Ctrl-C stops the agents and removes the files."""
    process = demo(near)
    deadline = time.monotonic() + 60
    while not list(near.glob("octaskly-demo-*/*.log")):
        assert time.monotonic() < deadline
        os.sched_yield()

    process.send_signal(number)
    process.communicate(timeout=60)

    assert process.returncode == 130
    assert left_behind(near) == ([], [])


def demo(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "octaskly", "demo", "--modules", "40"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def left_behind(folder: Path) -> tuple[list[str], list[str]]:
    """Return files of a demo, and processes with its folder in their arguments."""
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue  # It ended during the scan.
        if os.fsencode(folder) in line:
            processes.append(line.decode(errors="replace"))
    return [path.name for path in folder.iterdir()], processes
