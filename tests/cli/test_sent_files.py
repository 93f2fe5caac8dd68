"""`--in`: files that go with a task, what stderr says, and what is refused before."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pexpect
import pytest

from octaskly.cli.demo.agents import DemoAgent
from octaskly.cli.sent_files import SentFiles, SentPaths
from octaskly.client import Session
from octaskly.files.local_tree import FileChanged
from octaskly.rest.client_types import Draft
from tests.cli.conftest import Run
from tests.cli.stand_in import Api
from tests.cli.typed import typed, without_wait_reason
from tests.support.agents import until

MISSING = "/api/v1/files/missing"
PACK = "/api/v1/files/pack"
LEND = "/api/v1/files/lend"
REPLICATE = "/api/v1/files/replicate"
TASKS = "/api/v1/tasks"

Call = subprocess.CompletedProcess[bytes]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the user, with a few files."""
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "greet").write_text("#!/bin/sh\ncat src/text\n")
    (folder / "greet").chmod(0o755)
    (folder / "src" / "text").write_text("hello\n")
    (folder / "a.log").write_text("")
    (folder / ".gitignore").write_text("*.log\nout/\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def octaskly(agent: DemoAgent, *arguments: str, stdin: bytes = b"") -> Call:
    done = subprocess.run(
        typed("--state-dir", str(agent.state), *arguments),
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return without_wait_reason(done)


# --- Files that go with a task -----------------------------------------------------


def test_a_command_finds_the_files_that_were_sent(
    agent: DemoAgent, project: Path
) -> None:
    """With its folders and executable bits; a second run sends only what changed."""
    (project / ".git").mkdir()
    (project / "out").mkdir()
    (project / "greet").write_text("#!/bin/sh\ncat src/*\n")  # No node has these.
    (project / "src" / "text").write_text("first\n")
    (project / ".gitignore").write_text("# mine\n*.log\nout/\n")
    first = octaskly(agent, "run", "--in", ".", "--", "./greet; ls -A")
    (project / "src" / "text").write_text("changed\n")
    second = octaskly(agent, "run", "--in", ".", "--", "./greet")

    names = b".gitignore\ngreet\nsrc\n"
    skipped = b"skipped .git and 1 folder, 1 file in .gitignore\n"
    assert (first.returncode, first.stdout) == (0, b"first\n" + names)
    assert first.stderr == "· 3 files, 44 B; sent 3 (44 B); ".encode() + skipped
    assert (second.returncode, second.stdout) == (0, b"changed\n")
    assert second.stderr == "· 3 files, 46 B; sent 1 (8 B); ".encode() + skipped


def test_named_files_have_the_place_that_the_user_chose(
    agent: DemoAgent, project: Path
) -> None:
    """Also ignored ones, and with `--in-all` everything."""
    named = octaskly(
        agent, "run", "--in", "src/text=t", "--in", "a.log", "--", "find . -type f"
    )
    everything = octaskly(agent, "run", "--in", ".", "--in-all", "--", "ls -A")

    assert sorted(named.stdout.split()) == [b"./a.log", b"./t"]
    assert everything.stdout.split() == [b".gitignore", b"a.log", b"greet", b"src"]
    assert b"skipped" not in named.stderr + everything.stderr


def test_each_command_that_hands_in_tasks_sends_files(
    agent: DemoAgent, project: Path
) -> None:
    """One tree for all tasks of a request."""
    submitted = octaskly(
        agent, "submit", "--in", ".", "-", stdin=b"./greet\nwc -c src/text\n"
    )
    array = octaskly(agent, "array", "--in", ".", "1-2", "--", "cat src/text; echo {}")
    mapped = octaskly(agent, "map", "-k", "--in", "src=.", "cat text; echo", ":::", "a")

    outputs = []
    for task in [*submitted.stdout.split(), array.stdout.strip() + b".2"]:
        octaskly(agent, "wait", task.decode())
        outputs.append(octaskly(agent, "logs", task.decode()).stdout)
    assert outputs == [b"hello\n", b"6 src/text\n", b"hello\n2\n"]
    assert (mapped.returncode, mapped.stdout) == (0, b"hello\na\n")
    assert submitted.stderr.count(b"3 files") == 1
    assert b"1 file, 6 B; sent 0\n" in mapped.stderr


def test_the_current_folder_goes_to_all_members_beside_files_of_their_own(
    agent: DemoAgent, project: Path, tmp_path: Path
) -> None:
    """Also the contents of a folder for each item, at the top of its task's folder."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text(name)
    (project / ".env").write_text("secret")
    words = ("map", "-k", "--in", ".", "--in", "{}=.", "--", "cat data src/text; : {}")

    done = octaskly(
        agent, *words, ":::", *(str(tmp_path / name) for name in ("one", "two"))
    )

    assert (done.stdout, done.returncode) == (b"onehello\ntwohello\n", 0), done.stderr
    assert done.stderr.splitlines()[0] == (
        b"warning: files that look like secrets are sent: .env"
    )


def test_files_that_look_secret_are_named(agent: DemoAgent, project: Path) -> None:
    """They are sent, since the user named their folder, but not unnoticed."""
    for name in (".env", "a.key", "b.key", "c.pem", "id_rsa"):
        (project / name).write_text(name)

    done = octaskly(agent, "run", "--in", ".", "--", "cat id_rsa")

    assert done.stdout == b"id_rsa"
    assert done.stderr.splitlines()[0] == (
        b"warning: files that look like secrets are sent: .env, a.key, b.key and 2 more"
    )


def test_files_that_look_secret_go_to_no_visitor_unasked(
    agent: DemoAgent, project: Path
) -> None:
    """`--visitors=with-env` says that visitors may see them, as for variables."""
    (project / ".env").write_text("x")

    refused = octaskly(agent, "run", "--visitors", "--in", ".", "--", "true")
    rules = []
    for option in ([], ["--visitors=with-env"]):
        sent = octaskly(agent, "submit", *option, "--in", ".", "--", "true")
        shown = octaskly(agent, "show", "--json", sent.stdout.decode().strip())
        rules.append(json.loads(shown.stdout)["visitors"])

    assert refused.returncode != 0
    assert b"visitors would get '.env', which looks like a secret" in refused.stderr
    assert b"--visitors=with-env" in refused.stderr
    assert rules == [False, True]


def test_quiet_commands_send_files_silently(agent: DemoAgent, project: Path) -> None:
    """As with every other note."""
    done = octaskly(agent, "--quiet", "run", "--in", ".", "--", "./greet")

    assert (done.stdout, done.stderr) == (b"hello\n", b"")


# --- Files that change -------------------------------------------------------------


@pytest.fixture
def session(agent: DemoAgent) -> Iterator[Session]:
    """A session with the agent, as commands have."""
    from octaskly.cli.context import CliContext

    with CliContext(state_dir=agent.state).connect() as session:
        yield session


def test_a_file_that_changed_since_the_scan_is_sent_as_it_is_now(
    session: Session, project: Path
) -> None:
    """After one retry; the connection can be used again."""
    (project / "src" / "text").write_text("text that no node has")
    files = SentFiles(session, SentPaths(["src"]))
    (project / "src" / "text").write_text("other text")

    [draft] = files.send([Draft(command="true")])

    again = SentFiles(session, SentPaths(["src"])).send([Draft(command="true")])
    assert draft.tree is not None
    assert again == [draft]


def test_a_file_that_changes_all_the_time_is_an_error(
    session: Session, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One retry, then an error that names it."""
    (project / "src" / "text").write_text("another text that no node has")
    files = SentFiles(session, SentPaths(["src"]))
    place = project / "src" / "text"
    real_open = os.open

    def open_and_change(path: str, flags: int) -> int:
        """Change the file each time before it is opened to be sent."""
        place.write_text(place.read_text() + "x")
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", open_and_change)

    with pytest.raises(FileChanged, match=r"src/text' changes while it is sent"):
        files.send([Draft(command="true")])


# --- Before anything is sent -------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["run", "--in", "../x", "--", "true"],
            125,
            (
                "error: '../x' is outside this folder, so it needs a place in the"
                " task's folder\n  hint: write ../x=x; in Python, {'../x': 'x'}\n"
            ),
        ),
        (
            ["submit", "--in", "/etc/hosts", "--", "true"],
            1,
            (
                "error: '/etc/hosts' is outside this folder, so it needs a place in"
                " the task's folder\n  hint: write /etc/hosts=hosts; in Python,"
                " {'/etc/hosts': 'hosts'}\n"
            ),
        ),
        (
            ["map", "--in", "no", "true", ":::", "a"],
            125,
            (
                "error: 'no' cannot be sent: No such file or directory\n"
                "  hint: name a file or folder that is here, and that you may read\n"
            ),
        ),
        (
            ["array", "--in", "fifo", "1-2", "--", "true"],
            1,
            (
                "error: 'PROJECT/fifo' is a FIFO, which cannot be sent\n"
                "  hint: name a file or folder\n"
            ),
        ),
        (
            ["run", "--in", "links", "--", "true"],
            125,
            (
                "error: the link 'PROJECT/links/out' points outside 'PROJECT/links',"
                " to '/etc'\n  hint: send its target to a place of its own, and "
                "exclude the link in .gitignore\n"
            ),
        ),
        (
            ["run", "--in", "greet", "--in", "src/text=greet", "--", "true"],
            125,
            (
                "error: 'PROJECT/greet' and 'PROJECT/src/text' collide at 'greet' in"
                " the task's folder\n  hint: give one of them another place in the"
                " task's folder\n"
            ),
        ),
        (
            ["run", "--in-all", "--", "true"],
            2,
            "error: --in-all needs a folder: --in DIR\n  hint: octaskly run --help\n",
        ),
        (
            ["submit", "--after-on", "any", "--in", "greet", "--", "true"],
            2,
            "error: --after-on any needs --after\n  hint: octaskly submit --help\n",
        ),
        (
            ["run", "--retry-on", "75", "--in", "greet", "--", "true"],
            2,
            "error: --retry-on 75 needs --retries\n  hint: octaskly run --help\n",
        ),
        (
            ["run", "--visitors-min", "60", "--in", "greet", "--", "true"],
            2,
            "error: --visitors-min needs --visitors\n  hint: octaskly run --help\n",
        ),
        (
            ["run", "--cwd", "src/../..", "--in", "greet", "--", "true"],
            2,
            (
                "error: --cwd src/../..: name an absolute path, or one below the"
                " worker directory\n  hint: octaskly run --help\n"
            ),
        ),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_files_that_cannot_be_sent_are_refused_first(
    api: Api,
    octaskly: Run,
    project: Path,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    """No request is made, so nothing is sent and nothing runs."""
    os.mkfifo(project / "fifo")
    (project / "links").mkdir()
    (project / "links" / "out").symlink_to("/etc")

    done = octaskly(*arguments)

    assert done.stderr.decode().replace(str(project), "PROJECT") == said
    assert (done.returncode, done.stdout, api.requests) == (code, b"", [])


def test_an_interrupt_ends_the_scan_of_a_file_of_any_size(
    api: Api, environ: dict[str, str], project: Path
) -> None:
    """A sparse file of 1 TiB takes no memory, and Ctrl-C waits for no end."""
    api.answers[MISSING] = {"missing": [], "node": "here", "quota_bytes": 1 << 41}
    with (project / "big").open("wb") as file:
        file.truncate(1 << 40)
    words = ["--node", "here", "run", "--in", "big", "--", "true"]
    with subprocess.Popen(
        [sys.executable, "-m", "octaskly", *words], env=environ, stderr=subprocess.PIPE
    ) as process:
        opened = Path(f"/proc/{process.pid}/fd")
        while not any(_leads_to(place, project / "big") for place in opened.iterdir()):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)

    assert (process.returncode, said.strip()) == (130, b"")
    assert api.requests == [f"POST {MISSING}"]


def test_a_file_that_no_node_has_room_for_is_refused_before_it_is_hashed(
    api: Api, octaskly: Run, project: Path
) -> None:
    """Hashing 1 TiB would take an hour."""
    with (project / "big").open("wb") as file:
        file.truncate(1 << 40)
    api.answers[MISSING] = {"missing": [], "node": "here", "quota_bytes": 10**10}

    done = octaskly("submit", "--in", "big", "--", "true")

    assert done.stderr.decode() == (
        "error: 'big' has 1099511627776 bytes; all files together may take"
        " 10000000000 at the agent here\n"
        "  hint: raise the --files-quota of its agent, or send a part of the file\n"
    )
    assert (done.returncode, api.requests) == (1, [f"POST {MISSING}"])


def test_a_name_that_is_not_utf8_is_refused(
    api: Api, octaskly: Run, project: Path
) -> None:
    """Other machines could not name it. A literal backslash is doubled."""
    Path(os.fsdecode(b"src/caf\xe9\\udce9")).write_text("")

    done = octaskly("run", "--in", "src", "--", "true")

    name = rb"'src/caf\xe9\\udce9'"
    assert done.stderr == b"error: the name %s is not UTF-8\n" % name
    assert (done.returncode, api.requests) == (125, [])


def test_a_terminal_shows_how_far_the_scan_is(
    api: Api, environ: dict[str, str], project: Path
) -> None:
    """And Ctrl-C ends it, before anything was sent or submitted."""
    with (project / "big").open("wb") as file:
        file.truncate(1 << 40)
    api.answers[MISSING] = {"missing": [], "node": "here"}
    run = pexpect.spawn(
        sys.executable,
        ["-m", "octaskly", "--node", "here", "run", "--in", "big", "--", "true"],
        env=environ,
        timeout=60,
        encoding="utf-8",
        dimensions=(24, 100),
    )
    run.expect(
        r"hashing 0 of 1 file, [\d.]+ [MG]B of 1100 GB, [\d.]+ [MG]B/s, \S+ left"
    )
    run.sendintr()
    run.expect(pexpect.EOF)
    run.close()

    assert (run.exitstatus, api.requests) == (130, [f"POST {MISSING}"])


# --- Safe files, and interrupts ----------------------------------------------------

LARGE = b"large" * 500_000  #: lent, or sent in pieces
WORDS = {
    "run": ("run", "--in", "FILE", "--", "sleep 1000"),
    "map": ("map", "--in", "FILE", "sleep 1000 #", ":::", "item"),
    "submit": ("submit", "--in", "FILE", "--", "true"),
    "array": ("array", "--in", "FILE", "1-2", "--", "true"),
}
WITHOUT_WAIT = pytest.mark.parametrize("command", ["submit", "array"])


def words_of(command: str, file: str = "greet") -> list[str]:
    """Return the words of a command that sends a file."""
    return [file if word == "FILE" else word for word in WORDS[command]]


def lacking(*contents: bytes) -> Callable[[Any], Any]:
    """Return how a node answers that it lacks some contents."""
    names = [sha256(content).hexdigest() for content in contents]
    return lambda body: {
        "missing": [name for name in body["sha256"] if name in names],
        "node": "n1",
    }


@WITHOUT_WAIT
def test_files_are_safe_in_the_mesh_before_their_task_is_submitted(
    api: Api, octaskly: Run, project: Path, command: str
) -> None:
    """The command does not wait for the task, so this machine may go at once."""
    api.answers |= {MISSING: lacking(), REPLICATE: {"nodes": ["n1", "n2"]}}

    done = octaskly(*words_of(command))

    assert done.returncode == 0, done.stderr
    (draft,) = api.drafts
    assert api.bodies[1] == {"sha256": draft["tree"]["sha256"], "node": "n1"}
    posted = [request for request in api.requests if request.startswith("POST")]
    assert posted == [f"POST {path}" for path in (MISSING, REPLICATE, TASKS)]


@WITHOUT_WAIT
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (507, "Not enough space for the file\n  cause: ben: the disk is full\n"),
        (
            404,
            (
                "the dispatcher could not store the files: ben: the disk is full\n"
                "  hint: octaskly nodes    shows which node that is\n"
            ),
        ),
    ],
)
def test_no_task_is_submitted_whose_files_the_mesh_did_not_store(
    api: Api, octaskly: Run, project: Path, command: str, status: int, said: str
) -> None:
    """And the error says why."""
    api.answers[MISSING] = lacking()
    api.refusal = "Not enough space for the file"
    api.refusal_hint = "ben: the disk is full"
    api.refuse = lambda _, path: (status, {}) if path == REPLICATE else None

    done = octaskly(*words_of(command))

    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"error: {said}"
    assert api.requests == [f"POST {MISSING}", f"POST {REPLICATE}"]


def interrupted_at(
    path: str, api: Api, environ: dict[str, str], words: list[str]
) -> tuple[int, str]:
    """Interrupt a command that waits for an answer; return its exit code and stderr."""
    is_asked, may_answer = threading.Event(), threading.Event()

    def hold(_method: str, asked: str) -> None:
        if asked == path:
            is_asked.set()
            may_answer.wait(60)

    api.refuse = hold
    with subprocess.Popen(
        [sys.executable, "-m", "octaskly", "--node", "here", *words],
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert is_asked.wait(60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        may_answer.set()
    return process.returncode, said.strip()


@pytest.mark.parametrize(
    ("phase", "command"),
    [
        *itertools.product(("asking", "sending"), WORDS),
        *itertools.product(("a piece", "storing"), ("submit", "array")),
        *itertools.product(("offering",), ("run", "map")),
    ],
)
def test_an_interrupt_while_files_are_sent_leaves_no_task(
    api: Api, environ: dict[str, str], project: Path, phase: str, command: str
) -> None:
    """The node deletes what has arrived later, as any unused file."""
    small = (project / "greet").read_bytes()
    is_large = phase in ("a piece", "offering")
    (project / "large").write_bytes(LARGE)
    api.answers[MISSING] = lacking(*(() if phase == "storing" else (small, LARGE)))
    path = {
        "asking": MISSING,
        "sending": PACK,
        "a piece": f"/api/v1/files/{sha256(LARGE).hexdigest()}",
        "storing": REPLICATE,
        "offering": LEND,
    }[phase]

    words = words_of(command, "large" if is_large else "greet")
    ended = interrupted_at(path, api, environ, words)

    assert (ended, api.tasks) == ((130, ""), {})
    assert api.requests[-1] == f"POST {path}"


def test_a_wait_for_room_for_a_large_file_is_reported_once(
    api: Api, environ: dict[str, str], project: Path
) -> None:
    """Each try reads a part of the file, although none of it is stored."""
    (project / "large").write_bytes(LARGE)
    upload = f"/api/v1/files/{sha256(LARGE).hexdigest()}"
    api.answers[MISSING] = lambda body: {"missing": body["sha256"], "node": "n1"}
    api.refusal = "Not enough space for the file"
    api.refuse = lambda _, path: (507, {}) if path == upload else None
    words = ["--node", "here", *words_of("submit", "large")]

    with subprocess.Popen(
        [sys.executable, "-m", "octaskly", *words], env=environ, stderr=subprocess.PIPE
    ) as process:
        until(lambda: api.requests.count(f"POST {upload}") > 2, "it was tried again")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]

    assert said.count(b"waiting for free space") == 1, said


@pytest.mark.parametrize(("command", "file"), [("submit", "greet"), ("run", "large")])
def test_a_command_waits_for_room_for_the_list_of_files(
    api: Api, environ: dict[str, str], project: Path, command: str, file: str
) -> None:
    """As for a file; it ends by Ctrl-C, without a task."""
    (project / "large").write_bytes(LARGE)
    there = sha256((project / "greet").read_bytes()).hexdigest()
    api.answers[MISSING] = lambda body: {
        "missing": [name for name in body["sha256"] if name != there],
        "node": "n1",
    }
    api.refusal = "Not enough space for the file"
    api.refusal_hint = "it is full"
    api.refuse = lambda _, path: (507, {}) if path == PACK else None

    with subprocess.Popen(
        [sys.executable, "-m", "octaskly", "--node", "here", *words_of(command, file)],
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

    assert said == "waiting for free space on the node: it is full\n"
    assert (process.returncode, api.tasks) == (130, {})


def test_an_interrupt_while_a_lent_file_is_sent_cancels_its_task(
    api: Api, environ: dict[str, str], project: Path
) -> None:
    """The worker wanted it, so the task had been submitted; nothing goes on."""
    (project / "large").write_bytes(LARGE)
    name = sha256(LARGE).hexdigest()
    wanted = f'event: wanted\ndata: {{"sha256": ["{name}"]}}\n\n'
    api.answers |= {MISSING: lacking(LARGE), LEND: wanted.encode()}
    path = f"/api/v1/files/{name}"

    code, said = interrupted_at(path, api, environ, words_of("run", "large"))

    assert (code, said) == (
        130,
        (
            "cancelling task-001-00000001; Ctrl-C again to stop waiting for it\n"
            "· 1 file, 2.5 MB; sent 0\n"
            "task-001-00000001 was cancelled"
        ),
    )
    assert [task["status"] for task in api.tasks.values()] == ["cancelled"]
    assert api.drafts[0]["tree"]["lent"] is True


def _leads_to(link: Path, place: Path) -> bool:
    try:
        return link.readlink() == place
    except FileNotFoundError:  # It was closed in the meantime.
        return False


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "--", "cat", "src/text"], "src/text"),
        (["run", "--", "./greet"], "./greet"),
        (["run", "--", "wc -l <src/text"], "src/text"),
        (["run", "--", "true --file=src/text"], "src/text"),
        (["run", "--", "true; ls 'a.log'"], "a.log"),
        (["run", "--", "ls src"], "src"),
        (["run", "--", "just"], "justfile ."),
        (["run", "--", "CC=cc just -j4 && true"], "justfile ."),
        (["map", "just {}", ":::", "x"], "justfile ."),
        (["run", "--", "make"], None),
        (["run", "--", "echo just"], None),
        (["run", "--in", "src", "--", "just"], None),
        (["map", "-k", "true", ":::", "x", "a.log"], "a.log {}"),
        (["map", "-k", "true $OCTASKLY_ITEM", ":::", "x", "a.log"], "a.log {}"),
        (["map", "cat {}.log", ":::", "x", "a"], "a.log {}.log"),
        (["map", "cat src/text", ":::", "x"], "src/text"),
        (["map", "--out", "{.}.log", "./g {.}.log", ":::", "a.c"], None),
        (["run", "--", "greet"], None),
        (["run", "--", "true", "-", ".", "..", "/etc/hosts", "no"], None),
        (["run", "--", "echo 'open"], None),
        (["run", "--needs", "src/text", "--", "cat", "src/text"], None),
        (["run", "--cwd", "/", "--", "true", "src/text"], None),
        (["submit", "--", "cat", "src/text"], None),
        (["map", "--dry-run", "true", ":::", "a.log"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_names_local_files_warns_before_it_runs(
    api: Api, octaskly: Run, project: Path, arguments: list[str], named: str | None
) -> None:
    """Tasks do not run in the user's folder; only `run` and `map` look as if."""
    (project / "justfile").touch()
    said_before: list[str] = []  #: each request
    with (project.parent / "stderr").open("w+b") as stderr:

        def note(_method: str, _path: str) -> None:
            said_before.append(os.pread(stderr.fileno(), 1 << 16, 0).decode())

        api.refuse = note
        octaskly(*arguments, stderr=stderr)
        said = os.pread(stderr.fileno(), 1 << 16, 0).decode()

    name, _, sent_as = (named or "").partition(" ")
    warning = (
        f"warning: {name} is in this folder, but tasks run in the worker directory of"
        f" their node; --in {shlex.quote(sent_as or name)} sends it along, --here runs"
        " in this folder on nodes that have it\n"
    )
    assert said.startswith(warning) if named else "warning" not in said
    assert said.count("warning") == (1 if named else 0)
    assert not named or said_before[0] == warning


def test_a_warning_about_several_files_names_one(
    api: Api, octaskly: Run, project: Path
) -> None:
    """A list of thousands helps nobody."""
    said = octaskly("run", "--", "diff src/text a.log").stderr.decode()

    assert said == (
        "warning: src/text and others are in this folder, but tasks run in the worker"
        " directory of their node; --in src/text sends that along, --here runs in this"
        " folder on nodes that have it\n"
    )


# --- Files of the items of an array ------------------------------------------------


def test_each_member_of_an_array_gets_its_own_files(
    agent: DemoAgent, project: Path
) -> None:
    """By placeholders, beside those that all members get; also in a retried array."""
    for name in ("a=1.txt", "b.txt", "deep/b.txt"):
        (project / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "clips" / name).write_text(f"{name}\n")
    items = ["clips/a=1.txt", "clips/b.txt", "clips/deep/b.txt"]
    sent = ["--in", "{}", "--in", "{}=own/{/}", "--in", "src/text=common"]
    command = "cat {} common; echo $(find . -type f | sort); test -e no"

    done = octaskly(agent, "map", "-k", *sent, command, ":::", *items)
    failed = octaskly(agent, "ls", "--limit", "1", "--json")
    again = octaskly(agent, "map", "-k", "--retry-failed", "last")

    expected = "".join(
        f"{item.removeprefix('clips/')}\nhello\n"
        f"./{item} ./common ./own/{Path(item).name}\n"
        for item in items
    )
    assert done.stdout.decode() == expected, done.stderr
    assert failed.returncode == 0
    assert again.stdout == done.stdout, again.stderr


def test_the_example_of_map_compresses_local_files(
    agent: DemoAgent, project: Path
) -> None:
    """One line sends each file, and brings home what its task made of it."""
    (project / "b c.log").write_text("of b\n")
    words = ["map", "--in", "{}", "--out", "{}.gz", "gzip -k {}", ":::"]

    done = octaskly(agent, *words, "a.log", "b c.log")

    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert gzip.decompress((project / "b c.log.gz").read_bytes()) == b"of b\n"
    assert gzip.decompress((project / "a.log.gz").read_bytes()) == b""


def test_numbers_are_items_of_files(agent: DemoAgent, project: Path) -> None:
    """`octaskly array` fills placeholders, too."""
    for number in (1, 3):
        (project / f"part-{number}").write_text(f"part {number}\n")

    array = octaskly(agent, "array", "--in", "part-{}=part", "1-3:2", "--", "cat part")
    ended = octaskly(agent, "wait", array.stdout.decode().strip())
    outputs = [
        octaskly(agent, "logs", f"{array.stdout.decode().strip()}.{number}").stdout
        for number in (1, 3)
    ]

    assert (ended.returncode, outputs) == (0, [b"part 1\n", b"part 3\n"])


def test_an_item_may_be_among_the_files_of_all(agent: DemoAgent, project: Path) -> None:
    """What is the same is sent once; an item may be a folder, too."""
    (project / "empty").mkdir()
    (project / "link").symlink_to("greet")
    words = ["map", "--in", ".", "--in", "{}", "test -e {} && find . | LC_ALL=C sort"]

    done = octaskly(agent, *words, ":::", "greet", "src", "empty", "src/text")

    found = [".", "./.gitignore", "./empty", "./greet", "./link", "./src", "./src/text"]
    assert done.stdout.decode().splitlines() == found * 4, done.stderr
    assert b" 3 files, " in done.stderr


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (["{}"], "'no' cannot be sent: No such file or directory"),
        (["src/{/.}=x"], "'src/greet' of the item 'greet' cannot be sent: No such"),
        (
            ["/{}"],
            "the item 'greet': '/greet' is outside this folder, so it needs a place",
        ),
        (
            ["src", "src/text=src/text/{}"],
            "a file for all tasks and one of an item collide at 'src/text/greet' in",
        ),
        (
            ["greet", "src={/}"],
            "a file for all tasks and one of an item collide at 'greet/text' in the",
        ),
        (
            ["src", "greet={.}=src"],
            "'greet=greet' of the item 'greet' cannot be sent: No such file or",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_files_of_items_that_cannot_be_sent_are_refused_first(
    api: Api, octaskly: Run, project: Path, sent: list[str], said: str
) -> None:
    """For each item, before any of them runs."""
    named = [word for path in sent for word in ("--in", path)]

    done = octaskly("map", *named, "true", ":::", "greet", "no")

    assert done.stderr.decode().splitlines()[0].startswith(f"error: {said}")
    assert (done.returncode, api.requests) == (125, [])
