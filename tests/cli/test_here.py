"""`--here`: tasks in the folder of the user, on nodes that have it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from octaskly.cli.demo.agents import DemoAgent
from octaskly.client.here_file import OLD_S, PREFIX, HereFile, current_folder
from octaskly.errors import OctasklyError
from tests.cli.conftest import Run
from tests.cli.stand_in import Api
from tests.cli.typed import typed, without_wait_reason
from tests.support.agents import until

Call = subprocess.CompletedProcess[bytes]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the user."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "Makefile").write_text("all:\n\techo made > result\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWD", str(folder))
    return folder


def octaskly(agent: DemoAgent, *arguments: str) -> Call:
    done = subprocess.run(
        typed("--state-dir", str(agent.state), *arguments),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return without_wait_reason(done)


def marks(folder: Path) -> list[Path]:
    """Return the files by which the folder is recognised."""
    return list(folder.glob(f"{PREFIX}*"))


def test_a_command_runs_in_the_folder_of_the_user(
    agent: DemoAgent, project: Path
) -> None:
    """It sees and makes files there; nothing else is left."""
    done = octaskly(agent, "run", "--here", "--", "pwd; cat Makefile > copy")
    mapped = octaskly(agent, "map", "-k", "--here", "ls {}", ":::", "Makefile", "copy")

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"{project}\n"
    assert mapped.stdout == b"Makefile\ncopy\n", mapped.stderr
    assert sorted(path.name for path in project.iterdir()) == ["Makefile", "copy"]


def test_submitted_tasks_find_the_folder_later(agent: DemoAgent, project: Path) -> None:
    """The file stays after the command, until it is old."""
    key = ("--idempotency-key", "nightly-1")
    task = octaskly(agent, "submit", "--here", *key, "--", "pwd").stdout.decode()
    again = octaskly(agent, "submit", "--here", *key, "--", "pwd")
    array = octaskly(agent, "array", "--here", "1-2", "--", "test -e Makefile")
    refs = [task.strip(), array.stdout.decode().strip()]
    waited = octaskly(agent, "wait", *refs)

    assert waited.returncode == 0, waited
    assert again.stdout.decode() == task, again.stderr
    assert octaskly(agent, "logs", refs[0]).stdout.decode() == f"{project}\n"
    assert len(marks(project)) == 2
    shown = json.loads(octaskly(agent, "show", refs[0], "--json").stdout)
    assert shown["same_folder"]["name"] in {mark.name for mark in marks(project)}


def test_files_of_this_user_are_removed_when_they_are_old(project: Path) -> None:
    """Nothing else is."""
    with HereFile() as old, HereFile() as young:
        link = project / f"{PREFIX}link"
        link.symlink_to("Makefile")
        for path in (old.path, link):
            times = (path.lstat().st_atime, path.lstat().st_mtime - OLD_S - 60)
            os.utime(path, times, follow_symlinks=False)

        with HereFile():
            assert {*marks(project)} >= {young.path, link}
            assert not old.path.exists()


def test_the_file_is_readable_whatever_the_umask(project: Path) -> None:
    """Tasks may run as another user, who can enter the folder."""
    before = os.umask(0o077)
    try:
        with HereFile() as file:
            assert file.path.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_the_folder_has_the_name_that_the_shell_shows(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other machines may have it only under that name; a wrong PWD is ignored."""
    link = project.parent / "link"
    link.symlink_to(project)
    monkeypatch.setenv("PWD", str(link))
    assert current_folder() == str(link)
    for wrong in ("/", str(project.parent), "link", f"{link}/../link", "", "/no"):
        monkeypatch.setenv("PWD", wrong)
        assert current_folder() == str(project.resolve())


@pytest.mark.skipif(os.geteuid() != 0, reason="a read-only place needs root here")
def test_a_folder_without_a_place_for_the_file_is_refused() -> None:
    """The error says what the file would be for."""
    with pytest.raises(OctasklyError, match="cannot create a file in /proc, by which"):
        HereFile("/proc")


def test_no_node_with_the_folder_is_an_error_that_says_why(
    agent: DemoAgent, project: Path
) -> None:
    """Here the file is gone, as it is for a task that is run again much later."""
    ref = octaskly(agent, "submit", "--here", "--", "true").stdout.decode().strip()
    octaskly(agent, "wait", ref)
    for mark in marks(project):
        mark.unlink()

    again = octaskly(agent, "retry", ref).stdout.decode().strip()
    waited = octaskly(agent, "wait", again)

    reason = (
        f"the folder {project} (the one on lone is another folder, or has no longer"
        " the file by which it is recognised)"
    )
    assert waited.returncode == 125
    assert waited.stderr.decode() == (
        f"error: {again} failed: no worker has its inputs or its folder, or "
        "enough disk space\n"
        f"  cause: {reason}\n  hint: octaskly show {again}\n"
    )
    shown = json.loads(octaskly(agent, "show", again, "--json").stdout)
    assert (shown["reason"], shown["detail"]) == ("inputs", reason)


def test_a_retried_map_runs_in_the_same_folder(agent: DemoAgent, project: Path) -> None:
    """The file is made again while it runs."""
    words = ["map", "--here", "test -e {}", ":::", "later", "Makefile"]
    first = octaskly(agent, *words)
    (project / "later").touch()
    again = octaskly(agent, "map", "--retry-failed", "last")

    assert (first.returncode, again.returncode) == (1, 0), again.stderr
    assert not marks(project)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_removes_the_file(
    agent: DemoAgent, project: Path, number: signal.Signals
) -> None:
    """The task is cancelled, too."""
    words = ["run", "--here", "--", "touch runs; sleep 100"]
    with subprocess.Popen(
        [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state), *words],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        until(lambda: (project / "runs").exists() or None, "the task runs")
        assert len(marks(project)) == 1
        process.send_signal(number)
        process.communicate(timeout=60)

    assert process.returncode == 130
    assert not marks(project)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--in", ".", "--"], "--in cannot be used with --here, which runs"),
        (["run", "--cwd", "/", "--"], "--cwd cannot be used with --here, which runs"),
        (
            ["submit", "--scratch", "--"],
            "--scratch cannot be used with --here, which runs",
        ),
        (
            ["map", "--out", "x", "--"],
            "--out cannot be used with --here: outputs are already in this folder",
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_options_that_contradict_it_are_refused(
    api: Api, octaskly: Run, project: Path, arguments: list[str], said: str
) -> None:
    """Before a file is made."""
    command, *rest = arguments
    done = octaskly(command, "--here", *rest, "true")

    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"error: {said}")
    assert (api.requests, marks(project)) == ([], [])


def test_read_only_goes_with_here(api: Api, octaskly: Run) -> None:
    """Alone it means nothing."""
    done = octaskly("run", "--read-only", "--", "true")

    assert done.stderr.startswith(b"error: --read-only needs --here\n")


def test_a_node_that_runs_tasks_as_another_user_says_so(
    api: Api, octaskly: Run, project: Path
) -> None:
    """Before anything runs."""
    agent = {"name": "desk", "node_id": "0", "state_dir": "/", "secret_file": "/"}
    api.answers["/api/v1/doctor"] = agent | {
        "descriptors_max": 1,
        "task_user": "octaskly-task",
    }

    said = octaskly("run", "--here", "--", "true").stderr.decode()

    expected = (
        r"on desk, tasks run as octaskly-task, not as \w+: with that user's rights to"
        r" this folder\n"
    )
    assert re.match(expected, said), said
    assert api.drafts[-1]["cwd"] == str(project)
