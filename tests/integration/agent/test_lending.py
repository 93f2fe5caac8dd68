"""Lending: files of a client that reach a worker when it wants them, and not before."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from octaskly.cli.sent_files import SentFiles, SentPaths
from octaskly.client.command_session import Session
from octaskly.client.flows.files import (
    SendCallbacks,
    TreeContents,
    prepare_lending,
    release_file,
    upload_file,
    upload_tree,
)
from octaskly.client.flows.task_fields import InputPath
from octaskly.client.lending import Lender
from octaskly.client.local_files import LocalFiles, contents_of
from octaskly.errors import OctasklyError
from octaskly.files.local_tree import FileChanged, LocalTree
from tests.support.agents import (
    Agent,
    ending,
    finished,
    kill_agent,
    launch,
    meshed,
    start,
    submit,
    until,
)

LARGE_BYTES = 3_000_000  #: more than is sent at once


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    folder = tmp_path_factory.mktemp("lending")
    with meshed(folder, "ash", "birch", extra=("--files-quota", "8MiB")) as agents:
        yield agents


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the user."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def session(agents: list[Agent]) -> Iterator[Session]:
    """A session with the first agent."""
    with Session.at_socket(agents[0].ready()["socket"]) as session:
        yield session


def lend(
    session: Session,
    tree: LocalTree,
    sent: list[int] | None = None,
) -> Lender:
    """Return a lender of a tree to the agent of a session."""
    counted = [] if sent is None else sent
    return Lender(
        session.endpoint,
        session.requests,
        tree,
        callbacks=SendCallbacks(lambda _files, size_bytes: counted.append(size_bytes)),
    )


def scan(paths: Sequence[str]) -> LocalTree:
    return LocalFiles([InputPath(path) for path in paths], sharing="lend").scan()


def submit_with(
    agent: Agent,
    session: Session,
    tree: LocalTree,
    command: str,
    worker: Agent | None = None,
) -> str:
    """Submit a task with a lent tree, for a worker or the other node."""
    sent = session.run(prepare_lending(session.requests, contents_of(tree)))
    assert sent.is_lent
    source = {"sha256": sent.sha256, "node": sent.node, "lent": True}
    other = "birch" if agent.state.name == "ash" else "ash"
    requires = {"node": other if worker is None else worker.state.name}
    return submit(agent, command, tree=source, workdir="scratch", requires=requires)


def stored(agent: Agent) -> set[str]:
    """Return the digests of the files that an agent has stored, as a whole."""
    folder = agent.state / "files"
    return {place.name for place in folder.glob("*") if not place.suffix}


def test_a_list_of_files_larger_than_any_store_is_mapped(
    agents: list[Agent], project: Path
) -> None:
    """Each file reaches the node of its task, and makes room for the next.

    One may have to do so before its task has it; then it is sent once more.
    """
    names = [f"clip{number}" for number in range(8)]
    for name in names:
        (project / name).write_bytes(os.urandom(LARGE_BYTES))
    words = ["--state-dir", str(agents[0].state), "map", "-k", "--in", "{}"]
    done = subprocess.run(
        [sys.executable, "-m", "octaskly", *words, "sha256sum {}", ":::", *names],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    sums = [sha256((project / name).read_bytes()).hexdigest() for name in names]
    expected = [f"{digest}  {name}" for digest, name in zip(sums, names, strict=True)]
    assert done.stdout.splitlines() == expected, done.stderr
    sent = re.fullmatch(r"· 8 files, 24 MB; sent (\d+) \(\d+ MB\)\n", done.stderr)
    assert sent, done.stderr
    assert 8 <= int(sent[1]) < 16, done.stderr


def octaskly(agent: Agent, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state), *words],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_retry_of_a_map_lends_its_files_again(
    agents: list[Agent], project: Path
) -> None:
    """Also files that no node has any more, beside new ones in the same folder."""
    names = ["one", "two"]
    for name in names:
        (project / name).write_bytes(os.urandom(LARGE_BYTES))
    command = f"sha256sum {{}}; test -e {project}/go"
    first = octaskly(agents[0], "map", "--in", ".", command, ":::", *names)
    for agent in agents:
        for place in (agent.state / "files").glob("*"):
            place.unlink()
    (project / "go").touch()

    again = octaskly(agents[0], "map", "--retry-failed", "last", "-k")

    assert first.returncode == 1, first.stderr
    assert again.returncode == 0, again.stderr
    sums = [sha256((project / name).read_bytes()).hexdigest() for name in names]
    expected = [f"{digest}  {name}" for digest, name in zip(sums, names, strict=True)]
    assert again.stdout.splitlines() == expected
    assert again.stderr == "· 2 files, 6.0 MB; sent 2 (6.0 MB)\n"


def test_a_retry_sends_the_files_that_were_lent(
    agents: list[Agent], project: Path
) -> None:
    """All of them, because the command does not wait for the task."""
    (project / "clip").write_bytes(os.urandom(LARGE_BYTES))
    command = f"sha256sum clip; test -e {project}/go"
    first = octaskly(agents[0], "run", "--in", "clip", "--", command)
    for agent in agents:
        for place in (agent.state / "files").glob("*"):
            place.unlink()
    (project / "go").touch()

    again = octaskly(agents[0], "retry", "last")

    assert first.returncode == 1, first.stderr
    assert (again.returncode, again.stderr) == (
        0,
        "· 1 file, 3.0 MB; sent 1 (3.0 MB)\n",
    )
    task = again.stdout.strip()
    ended = octaskly(agents[0], "wait", task)
    assert ended.returncode == 0, octaskly(agents[0], "show", task).stdout
    digest = sha256((project / "clip").read_bytes()).hexdigest()
    assert octaskly(agents[0], "logs", task).stdout == f"{digest}  clip\n"
    # It would be kept for an hour, and other tests need the room.
    assert agents[0].call("DELETE", f"/api/v1/files/{digest}")[0] == 204


def test_a_retry_of_a_map_on_another_machine_uses_what_nodes_have(
    agents: list[Agent], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user learns why the rest may be missing."""
    (project / "small").write_text("sent\n")
    command = f"cat {{}}; test -e {project}/go"
    first = octaskly(agents[0], "map", "--in", "{}", command, ":::", "small")
    [array] = re.findall(r"--retry-failed (\S+)", first.stderr)
    (project / "go").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))

    again = octaskly(agents[0], "map", "--retry-failed", array)

    assert (again.returncode, again.stdout) == (0, "sent\n")
    assert again.stderr == (
        f"· this machine does not know the files of {array}; nodes use those that they"
        " still have\n"
    )
    both = octaskly(agents[0], "map", "--retry-failed", array, "--in", "small")
    assert both.returncode == 2
    assert "--in is not allowed" in both.stderr


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda file: file.write_bytes(b"edited"), "has changed"),
        (lambda file: file.unlink(), "cannot be read: No such file or directory"),
    ],
    ids=["edited", "gone"],
)
def test_a_retry_of_a_map_names_the_file_that_cannot_be_lent_again(
    agents: list[Agent], project: Path, spoil: Callable[[Path], object], why: str
) -> None:
    """No member runs with something else than what was sent."""
    (project / "clip").write_bytes(os.urandom(LARGE_BYTES))
    first = octaskly(agents[0], "map", "--in", "{}", "cat {} >o; exit 3", ":::", "clip")
    [array] = re.findall(r"--retry-failed (\S+)", first.stderr)
    for agent in agents:
        for place in (agent.state / "files").glob("*"):
            place.unlink()
    spoil(project / "clip")

    again = octaskly(agents[0], "map", "--retry-failed", array)

    assert (first.returncode, again.returncode) == (1, 125), again.stderr
    assert again.stderr.endswith(
        f"error: {str(project / 'clip')!r} {why}; it was sent with {array}\n"
        "  hint: restore the file and retry, or start anew with --in\n"
    ), again.stderr


def test_only_what_a_worker_wants_is_sent(
    agents: list[Agent], session: Session, project: Path
) -> None:
    """And nothing twice, if the node has it."""
    for name in ("all/used", "items/unused"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_bytes(os.urandom(LARGE_BYTES))
    tree = scan(["."])
    sent: list[int] = []
    with lend(session, tree, sent=sent):
        shown = session.run(prepare_lending(session.requests, contents_of(tree)))
        source = {"sha256": shown.sha256, "node": shown.node, "lent": True}
        for node in ("ash", "birch"):
            task = submit(
                agents[0],
                "wc -c < used; ls",
                tree=source | {"folders": ["all"]},
                workdir="scratch",
                requires={"node": node},
            )
            ended = finished(agents[0], task)
            assert ended["stdout"].split() == [str(LARGE_BYTES), "used"], ended

    assert sum(sent) == LARGE_BYTES


def test_a_lender_that_comes_back_goes_on(
    agents: list[Agent], session: Session, project: Path
) -> None:
    """Its tasks have waited for it, and say so."""
    (project / "data").write_bytes(os.urandom(LARGE_BYTES))
    tree = scan(["data"])
    task = submit_with(agents[0], session, tree, "wc -c < data")

    def awaited() -> str | None:
        _, found = agents[0].call("GET", f"/api/v1/tasks/{task}/explain")
        return (found["inputs"] or {}).get("awaited")

    text = until(awaited, "a worker waits for the files")
    assert text == (
        f"the files of node {agents[0].state.name}: 1 of them not yet sent by the"
        " client, which is not connected now"
    )

    with lend(session, tree):
        ended = finished(agents[0], task)

    assert ended["stdout"].strip() == str(LARGE_BYTES), ended


def test_a_waiting_task_can_be_cancelled(
    agents: list[Agent], session: Session, project: Path
) -> None:
    """At once, although it has no process."""
    (project / "data").write_bytes(os.urandom(LARGE_BYTES))
    task = submit_with(agents[0], session, scan(["data"]), "true")
    until(
        lambda: agents[0].call("GET", f"/api/v1/tasks/{task}")[1]["worker_id"],
        "a worker waits for the files",
    )
    agents[0].call("DELETE", f"/api/v1/tasks/{task}?force=true")

    assert finished(agents[0], task)["status"] == "cancelled"


def test_a_file_that_was_only_touched_is_lent(
    agents: list[Agent], session: Session, project: Path
) -> None:
    """Its bytes are those that were hashed, so the task gets them."""
    (project / "data").write_bytes(os.urandom(LARGE_BYTES))
    tree = scan(["data"])
    os.utime(project / "data", (1, 1))
    with lend(session, tree) as lender:
        task = submit_with(agents[0], session, tree, "wc -c < data")
        ended = finished(agents[0], task)

    assert ended["stdout"].strip() == str(LARGE_BYTES), ended
    assert lender.failure is None


def test_a_file_that_changes_before_it_is_wanted_ends_the_command(
    agents: list[Agent], session: Session, project: Path
) -> None:
    """The error names it, and the task is cancelled."""
    (project / "data").write_bytes(os.urandom(LARGE_BYTES))
    files = SentFiles(session, SentPaths(["data"]))
    from octaskly.rest.client_types import Draft

    with files:
        [draft] = files.send([Draft(command="true")])
        (project / "data").write_bytes(os.urandom(LARGE_BYTES))
        task = submit(agents[0], "true", tree=draft.tree, workdir="scratch")
        files.cancel_on_failure(task)
        ended = finished(agents[0], task)
        with pytest.raises(FileChanged, match="data' changes while it is sent"):
            files.finish()

    assert ended["status"] == "cancelled"
    assert sha256((project / "data").read_bytes()).hexdigest() not in stored(agents[0])


def test_an_upload_goes_on_after_a_restart_of_the_agent(tmp_path: Path) -> None:
    """From where it stopped; what has arrived is on disk."""
    data = os.urandom(24 << 20)
    name, part = sha256(data).hexdigest(), 1 << 20
    read: list[int] = []
    with ExitStack() as stack:
        first = start(tmp_path, "lone")
        stack.enter_context(ending(first))
        place = first.ready()["socket"]

        def read_and_restart(_name: str, at: int) -> Iterator[bytes]:
            for begin in range(at, len(data), part):
                if at == 0 and begin == 16 * part:
                    kill_agent(first)
                    secret = tmp_path / "mesh.key"
                    again = launch(first.state, secret, "--name", "lone")
                    stack.enter_context(ending(again))
                    again.ready()
                read.append(begin)
                yield data[begin : begin + part]

        tree = TreeContents("0" * 64, {name: len(data)}, read_and_restart)
        with Session.at_socket(place, retry_timeout_s=60.0) as session:
            sent = session.run(upload_tree(session.requests, tree))
            stored = session.run(upload_file(session.requests, name, b""))

    assert (sent.files_sent, stored.bytes) == (1, len(data))
    assert len(read) < 2 * len(data) / part - 12, read


@pytest.mark.soak
def test_a_client_whose_node_restarts_lends_again(
    tmp_path: Path, project: Path
) -> None:
    """The worker has waited, and what had arrived is not sent again."""
    (project / "data").write_bytes(os.urandom(8 * LARGE_BYTES))
    tree = scan(["data"])
    sent: list[int] = []
    with ExitStack() as stack:
        ash, birch = stack.enter_context(meshed(tmp_path, "ash", "birch"))
        place = ash.ready()["socket"]
        session = stack.enter_context(Session.at_socket(place, retry_timeout_s=90.0))

        def on_sent(_files: int, size_bytes: int) -> None:
            sent.append(size_bytes)
            if len(sent) == 16:
                kill_agent(ash)
                secret = tmp_path / "mesh.key"
                again = launch(ash.state, secret, "--name", ash.state.name)
                stack.enter_context(ending(again))
                again.ready()

        callbacks = SendCallbacks(on_sent)
        with Lender(session.endpoint, session.requests, tree, callbacks=callbacks):
            task = submit_with(birch, session, tree, "wc -c < data", worker=birch)
            ended = finished(birch, task)

    assert ended["stdout"].strip() == str(8 * LARGE_BYTES), ended["detail"]
    assert sum(size for size in sent if size > 0) < 12 * LARGE_BYTES


def test_a_lender_whose_thread_fails_says_so(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its tasks would wait for files that no client sends."""
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    lender = lend(session, scan(["file"]))

    def fail() -> None:
        raise MemoryError("no room for the draft")

    monkeypatch.setattr(lender, "_lend", fail)
    with pytest.raises(OctasklyError, match="no room for the draft"):
        lender.open()
    lender.close()


# --- No room, and Ctrl-C -----------------------------------------------------------


@pytest.fixture
def full_agent(agents: list[Agent]) -> Iterator[Agent]:
    """The first agent, whose store has no room for a file of this test.

    Copies for the attempts of other tests are released just after those have ended.
    """
    data = os.urandom(6_000_000)
    name = sha256(data).hexdigest()
    wait_for_room = SendCallbacks(on_no_room=lambda _refusal: None)
    with Session.at_socket(agents[0].ready()["socket"]) as session:
        session.run(upload_file(session.requests, name, data, wait_for_room))
        yield agents[0]
        session.run(release_file(session.requests, name))


@contextmanager
def run_octaskly(agent: Agent, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command of the user; kill it if the test leaves it running."""
    with subprocess.Popen(
        [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    """Return the next line of its stderr."""
    assert process.stderr is not None
    return process.stderr.readline()


def explained(agent: Agent) -> str:
    """Return what is said of the newest task."""
    newest = agent.call("GET", "/api/v1/tasks?newest=true")[1]["tasks"][0]["id"]
    return json.dumps(agent.call("GET", f"/api/v1/tasks/{newest}/explain")[1])


NO_ROOM = "not enough space for 3000000 more bytes of files on this node"


@pytest.mark.parametrize(("command", "worker"), [("run", 0), ("run", 1), ("submit", 0)])
def test_a_client_waits_for_room_and_says_so(
    agents: list[Agent], full_agent: Agent, project: Path, command: str, worker: int
) -> None:
    """Ctrl-C ends the wait, and no task is left that would wait for the files."""
    (project / "data").write_bytes(os.urandom(LARGE_BYTES))
    before = len(full_agent.call("GET", "/api/v1/tasks?newest=true")[1]["tasks"])
    words = (command, "--on", agents[worker].state.name, "--in", "data", "--", "true")
    with run_octaskly(full_agent, *words) as process:
        said = next_line(process)
        if command == "run":  # The task of `submit` follows its files.
            until(lambda: NO_ROOM in explained(full_agent), "explain says so, too")
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]

    assert said == (
        f"waiting for free space on the node: {NO_ROOM};"
        " a file may be deleted an hour after its last use, or a minute after"
        " octaskly forget;"
        " raise the agent's --files-quota, or free disk space\n"
    )
    assert process.returncode == 130, rest
    tasks = full_agent.call("GET", "/api/v1/tasks?newest=true")[1]["tasks"]
    new = [task["status"] for task in tasks[: len(tasks) - before]]
    assert new == (["cancelled"] if command == "run" else [])


@pytest.mark.parametrize(("command", "code"), [("run", 125), ("submit", 1)])
def test_files_that_no_quota_can_hold_are_refused(
    agents: list[Agent], project: Path, command: str, code: int
) -> None:
    """Each of them would fit; a wait for room would have no end."""
    for name in ("one", "two", "three"):
        (project / name).write_bytes(os.urandom(LARGE_BYTES))
    with run_octaskly(agents[0], command, "--in", ".", "--", "true") as process:
        said = process.communicate(timeout=60)[1]

    assert re.search("(9000000|90[0-9]{5}) bytes.* (quota|all files together)", said)
    assert (process.returncode, "waiting for" in said) == (code, False), said


def test_a_client_goes_on_when_there_is_room(
    full_agent: Agent, session: Session, project: Path
) -> None:
    """The wait ends with the need for the other file."""
    (project / "data").write_bytes(os.urandom(LARGE_BYTES))
    names = stored(full_agent)
    with run_octaskly(full_agent, "run", "--in", "data", "--", "wc -c data") as process:
        assert next_line(process).startswith("waiting for free space on the node: ")
        for name in names:
            session.run(release_file(session.requests, name))
        out, rest = process.communicate(timeout=60)

    assert (process.returncode, out) == (0, f"{LARGE_BYTES} data\n"), rest
