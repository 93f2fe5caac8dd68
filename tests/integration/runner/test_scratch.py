"""Scratch folders: attempts in fresh folders, and their removal."""

from __future__ import annotations

import errno
import os
import resource
import signal
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

import pytest

from octaskly.core.model.task_options import (
    BlobRef,
    InputTree,
    Requirements,
    TaskOptions,
)
from octaskly.core.model.tasks import AttemptState, EndReason, OutputFile
from octaskly.files.manifest import Manifest
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.blobs.fetch import FilesAwaited
from octaskly.runner.files.capture import OutputReader
from octaskly.runner.files.scratch_folder import remove_tree
from octaskly.runner.output.captured_contents import CapturedContents
from octaskly.runner.pool.launch_messages import preparation_failed
from tests.support.agents import ending, start, submit, until
from tests.support.pooling import (
    Rig,
    archive_in,
    eventually,
    launchers_of,
    rig,
    supply_in,
)

SCRATCH = TaskOptions(is_scratch=True)
DEEP = 1100  #: more than the recursion limit


def yes() -> bool:
    return True


def left(folder: Path) -> list[str]:
    """Return the existing folders of attempts."""
    scratch = folder / "scratch"
    return [place.name for place in scratch.iterdir()] if scratch.exists() else []


async def lines_of(made: Rig, command: str, **fields: Any) -> list[str]:
    """Run a command in a scratch folder; return its output."""
    outcome = await made.run(command, **{"options": SCRATCH} | fields)
    assert outcome.state is AttemptState.OK, outcome
    return outcome.stdout.decode().splitlines()


async def test_each_attempt_has_a_fresh_folder_that_is_removed_with_it(
    tmp_path: Path,
) -> None:
    """Private, even with much content; the worker directory does not change."""
    async with rig(tmp_path) as made:
        (made.workdir / "mine").touch()
        command = "pwd; printenv PWD; stat -c %a .; ls -A; mkdir -p a/b; touch a/b/c x"
        first = await lines_of(made, command)
        second = await lines_of(made, command)

        for lines in (first, second):
            assert lines == [lines[0], lines[0], "700"]
            assert Path(lines[0]).parent == tmp_path / "scratch"
        assert first[0] != second[0]
        assert list(made.workdir.iterdir()) == [made.workdir / "mine"]
        await eventually(lambda: left(tmp_path) == [])


async def test_inputs_are_links(tmp_path: Path) -> None:
    """Files and folders; an input inside another input folder is not linked twice."""
    async with rig(tmp_path) as made:
        (made.workdir / "data" / "deep").mkdir(parents=True)
        (made.workdir / "data" / "deep" / "file").write_text("in\n")
        (made.workdir / "other").mkdir()
        (made.workdir / "other" / "file").write_text("other\n")
        inputs = ("data/deep/file", "data/deep", "data/deep", "other/file")
        lines = await lines_of(
            made, "cat data/deep/file other/file; ls; rm -r data other", inputs=inputs
        )

        assert lines == ["in", "other", "data", "other"]
        assert (made.workdir / "data" / "deep" / "file").read_text() == "in\n"
        missing = await made.run("true", inputs=("gone",), options=SCRATCH)
        assert (missing.reason, missing.detail) == (EndReason.INPUTS, "input gone")
        await eventually(lambda: left(tmp_path) == [])
        assert (made.workdir / "data" / "deep" / "file").read_text() == "in\n"


async def test_outputs_are_captured_from_the_scratch_folder(tmp_path: Path) -> None:
    """Before its removal; a file of that name elsewhere does not count."""
    async with rig(tmp_path) as made:
        (made.workdir / "out").mkdir()
        (made.workdir / "out" / "r").write_text("wrong")
        name = made.start(
            "printf right >out/r", outputs=("out/r", "no"), options=SCRATCH
        )
        outcome = await made.end_of(name[0])

        assert outcome.outputs == (OutputFile("out/r", 5), OutputFile("no", None))
        reader = OutputReader(tmp_path / "outputs", CapturedContents())
        file = reader.read_tree(*name).file_path("out/r")
        assert file is not None
        assert file.read_text() == "right"


async def test_outputs_are_relative_to_the_folder_where_the_command_runs(
    tmp_path: Path,
) -> None:
    """A folder of a fresh one, of the worker directory, or any other."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with rig(tmp_path) as made:
        (made.workdir / "sub").mkdir()
        for options in (
            TaskOptions(is_scratch=True, cwd="a/b"),
            TaskOptions(cwd="sub"),
            TaskOptions(cwd=str(elsewhere)),
        ):
            outcome = await made.run(
                "mkdir -p d; echo x >d/1; echo y >2",
                outputs=("d", "2"),
                options=options,
            )

            assert outcome.outputs == (OutputFile("d", 2, 1), OutputFile("2", 2))
            assert outcome.detail == ""


async def test_folders_above_outputs_exist_at_the_start(tmp_path: Path) -> None:
    """Not the output itself, nothing above a wildcard, and nothing behind a link."""
    async with rig(tmp_path) as made:
        (made.workdir / "given").mkdir()
        lines = await lines_of(
            made,
            "find . -mindepth 1 | sort",
            inputs=("given",),
            outputs=("a/b/c", "d/e*/f", "given/new/g", "single", "**/any"),
            options=TaskOptions(is_scratch=True),
        )
        below = await lines_of(
            made,
            "find . -mindepth 1",
            outputs=("h/i",),
            options=TaskOptions(is_scratch=True, cwd="x/y"),
        )
        outside = TaskOptions(is_scratch=True, cwd=str(tmp_path))
        await lines_of(made, "true", outputs=("elsewhere/x",), options=outside)

        assert lines == ["./a", "./a/b", "./d", "./given"]
        assert below == ["./h"]
        assert list((made.workdir / "given").iterdir()) == []
        assert not (tmp_path / "elsewhere").exists()


async def test_cwd_is_below_the_scratch_folder(tmp_path: Path) -> None:
    """A fresh folder has none, so it is created, unless it is in an input."""
    async with rig(tmp_path) as made:
        (made.workdir / "src" / "lib").mkdir(parents=True)
        for cwd, inputs, end in (
            ("a/b", (), "/a/b"),
            ("./a//b/.", (), "/a/b"),
            ("a", ("src",), "/a"),
            ("src/lib", ("src",), "/work/src/lib"),
            ("/", (), "/"),
        ):
            options = TaskOptions(is_scratch=True, cwd=cwd)
            lines = await lines_of(made, "pwd -P", options=options, inputs=inputs)

            assert lines[0].endswith(end)
            assert (lines[0] == f"{tmp_path}{end}") == end.startswith("/work")

        options = TaskOptions(is_scratch=True, cwd="src/new")
        outcome = await made.run("true", options=options, inputs=("src",))
        assert outcome.detail == "cwd src/new does not exist on rig"
        assert not (made.workdir / "src" / "new").exists()


async def test_the_folder_is_removed_however_the_attempt_ends(tmp_path: Path) -> None:
    """By its time limit, by a stop, with its launcher, before its start."""
    async with rig(tmp_path, slots=1) as made:
        tell = f"touch {tmp_path}/on; exec sleep 60"
        late = await made.run("sleep 60", options=SCRATCH, timeout_s=1)
        assert late.reason is EndReason.TIMEOUT

        stopped = made.start(tell, options=SCRATCH)
        waiting = made.start(tell, options=SCRATCH)
        await eventually((tmp_path / "on").exists)
        made.pool.stop_attempts([stopped, waiting])
        assert (await made.end_of(stopped[0])).state is AttemptState.CANCELLED
        # An attempt that waits for a moment is returned, and cannot be cancelled then.
        end = await made.end_of(waiting[0])
        assert end.state is AttemptState.CANCELLED or end.reason is EndReason.RETURNED

        (tmp_path / "on").unlink()
        lost = made.start(tell, options=SCRATCH)
        await eventually((tmp_path / "on").exists)
        for pid in launchers_of(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        assert (await made.end_of(lost[0])).reason is EndReason.LOST

        await eventually(lambda: left(tmp_path) == [])


async def test_a_closed_pool_leaves_none(tmp_path: Path) -> None:
    """Running attempts are ended first."""
    async with rig(tmp_path) as made:
        made.start(f"touch {tmp_path}/on; exec sleep 60", options=SCRATCH)
        await eventually((tmp_path / "on").exists)
        assert len(left(tmp_path)) == 1

    assert left(tmp_path) == []


async def test_folders_of_a_killed_agent_are_removed_by_the_next(
    tmp_path: Path,
) -> None:
    """But not the targets of their links."""
    old = tmp_path / "scratch" / "old"
    (old / "sub").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (old / "sub" / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "scratch" / "link").symlink_to(tmp_path / "precious")
    async with rig(tmp_path) as made:
        assert (await made.run("pwd", options=SCRATCH)).state is AttemptState.OK
        await eventually(lambda: left(tmp_path) == [])

    assert (tmp_path / "precious" / "file").exists()


async def test_without_a_writable_parent_the_task_fails(tmp_path: Path) -> None:
    """It would fail again: the answer says why and where."""
    (tmp_path / "scratch").write_text("a file")
    async with rig(tmp_path) as made:
        outcome = await made.run("true", options=SCRATCH)

        assert (outcome.state, outcome.exit_code) == (AttemptState.FAILED, 126)
        assert outcome.detail.startswith("no scratch folder on rig: ")


def test_without_room_another_node_is_tried() -> None:
    """As for a missing input: it may have the room."""
    why = "No space left on device"

    outcome = preparation_failed(OSError(errno.ENOSPC, why, "/scratch"), "rig")

    assert (outcome.state, outcome.reason) == (AttemptState.RELEASED, EndReason.INPUTS)
    assert outcome.detail == f"space for a scratch folder on rig ({why})"


async def test_a_node_without_room_for_outputs_runs_no_task_that_has_some(
    tmp_path: Path,
) -> None:
    """It returns the first one at once, and others after a moment; the rest runs."""
    async with rig(tmp_path, archive=archive_in(tmp_path, quota_bytes=0)) as made:
        first = await made.run("touch ran", outputs=("out",))
        more = [made.start("touch ran", outputs=("out",)) for _ in range(3)]
        plain = await made.run("echo hello")
        assert [made.outcome(task) for task, _ in more] == [None, None, None]
        ends = [first, *[await made.end_of(task) for task, _ in more]]

    assert plain.stdout == b"hello\n"
    why = "its --output-quota is full of outputs that were not fetched"
    assert {(end.state, end.reason, end.detail) for end in ends} == {
        (
            AttemptState.RELEASED,
            EndReason.ROOM,
            f"space for its outputs on rig ({why})",
        )
    }
    assert not (tmp_path / "work" / "ran").exists()


def test_any_tree_can_be_removed(tmp_path: Path) -> None:
    """Deep, locked, with links, pipes, and special names."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("d", dir_fd=fd)
        os.symlink(precious, "link", dir_fd=fd)
        below_fd = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below_fd
    os.close(fd)
    (top / "locked" / "inner").mkdir(parents=True)
    (top / "locked" / "inner" / "file").touch()
    (top / "locked" / "inner").chmod(0)
    (top / "locked").chmod(0o500)
    os.mkfifo(top / "pipe")
    (top / "-rf").touch()
    (top / os.fsdecode(b"\xff\n")).mkdir()

    assert remove_tree(top, yes)
    assert not top.exists()
    assert (precious / "file").exists()


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    """It is removed, and its target stays."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (tmp_path / "link").symlink_to(precious)

    assert remove_tree(tmp_path / "link", yes)
    assert not (tmp_path / "link").is_symlink()
    assert (precious / "file").exists()


def test_a_removal_can_be_left_to_another_process(tmp_path: Path) -> None:
    """A stopping agent does not wait for a million files."""
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    for number in range(20):
        (top / "a" / str(number)).touch()
    asked = iter([True] * 8 + [False] * 100)

    assert not remove_tree(top, lambda: next(asked))
    assert top.exists()
    assert remove_tree(top, yes)


def test_a_killed_agent_leaves_no_folder_behind(tmp_path: Path) -> None:
    """Its next start removes it, even while the task runs again in another one."""
    agent = start(tmp_path, "solo")
    with ending(agent):
        task = submit(agent, "echo data >file; exec sleep 60", workdir="scratch")
        scratch = agent.state / "scratch"
        until(lambda: list(scratch.glob("*/file")), "it runs")
        (old,) = scratch.iterdir()
        agent.process.kill()
        agent.process.wait()
        assert old.exists()
        again = start(tmp_path, "solo")
        with ending(again):
            until(lambda: not old.exists(), "the old folder is gone")
            until(lambda: list(scratch.glob("*/file")), "it runs again")
            again.call("DELETE", f"/api/v1/tasks/{task}?force=true")
            until(lambda: not list(scratch.iterdir()), "and its folder goes, too")


# --- Files that a client lends -----------------------------------------------------

LENT = TaskOptions(
    is_scratch=True, tree=InputTree(sha256="1" * 64, node="desk", is_lent=True)
)


def await_files(
    monkeypatch: pytest.MonkeyPatch,
    *,
    tries: int,
    wait_s_max: float,
    no_room: str = "",
) -> None:
    """Have the files of a lent tree come at the last of so many tries."""
    left = [tries]

    def fetch_tree(*_: object, **_tally: object) -> list[str]:
        left[0] -= 1
        if left[0]:
            raise FilesAwaited(
                "1 not sent", retry_s=0.01, wait_s_max=wait_s_max, no_room=no_room
            )
        return []

    monkeypatch.setattr(BlobFetcher, "fetch_tree", fetch_tree)
    monkeypatch.setattr(BlobFetcher, "read_manifest", lambda *_: Manifest())


async def test_an_attempt_waits_for_the_files_of_a_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it has to ask, while some arrive; it holds no thread meanwhile."""
    await_files(monkeypatch, tries=9, wait_s_max=inf)
    async with rig(tmp_path) as made:
        outcome = await made.run("echo ran", options=LENT)
        (attempt,) = made.reports
        sources = made.pool.read_input_sources(attempt.task, attempt.attempt)

    assert sources is not None
    assert sources.awaited == ""
    assert (outcome.state, outcome.stdout) == (AttemptState.OK, b"ran\n")


async def test_an_attempt_whose_client_stays_away_lacks_its_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a time, with what is missing."""
    await_files(monkeypatch, tries=1000, wait_s_max=0.05)
    async with rig(tmp_path) as made:
        outcome = await made.run("true", options=LENT)

    assert (outcome.reason, outcome.detail) == (EndReason.INPUTS, "1 not sent")


async def test_an_attempt_without_room_for_the_files_of_a_client_is_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other nodes may have room, and the task does not fail."""
    await_files(monkeypatch, tries=1000, wait_s_max=0.05, no_room="full")
    async with rig(tmp_path) as made:
        outcome = await made.run("true", options=LENT)

    assert (outcome.state, outcome.reason) == (AttemptState.RELEASED, EndReason.ROOM)
    assert outcome.detail == "space for its files on rig (full)"


async def test_a_task_that_writes_to_its_stdin_changes_no_stored_file(
    tmp_path: Path,
) -> None:
    """The next task with this file gets the bytes that were sent."""
    data = b"right bytes"
    name = sha256(data).hexdigest()
    supply_in(tmp_path).blob_store.store_blob(name, data)
    options = TaskOptions(stdin_file=BlobRef(sha256=name, node="desk"))
    write = "chmod u+w /dev/stdin; printf WRONG 1<>/dev/stdin; cat"
    async with rig(tmp_path) as made:
        first = await made.run(write, options=options)
        second = await made.run("cat /dev/stdin", options=options)

    assert first.stdout == b"WRONG bytes"
    assert second.stdout == data


async def test_a_stdin_file_without_a_descriptor_delays_no_other_task(
    tmp_path: Path,
) -> None:
    """Its attempt is returned, as the agent could not send it to a launcher."""
    name = sha256(b"data").hexdigest()
    supply_in(tmp_path).blob_store.store_blob(name, b"data")
    options = TaskOptions(
        stdin_file=BlobRef(sha256=name, node="desk"), requires=Requirements(cpus=2)
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with rig(tmp_path, slots=2) as made:
        first, _ = made.start("while ! [ -e go ]; do sleep 0.01; done")
        second, _ = made.start("cat", options=options)
        await eventually(lambda: made.pool.count_attempts()[1] == 1)
        third, _ = made.start("echo third")
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            os.mkfifo(made.workdir / "go")  # This needs no descriptor.
            outcome = await made.end_of(second)
            other = await made.end_of(third)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        assert (outcome.state, outcome.reason, outcome.detail) == (
            AttemptState.RELEASED,
            EndReason.ROOM,
            "resources to start it on rig (Too many open files)",
        )
        assert other.stdout == b"third\n"
        assert (await made.end_of(first)).state is AttemptState.OK
        assert (await made.run("cat", options=options)).stdout == b"data"


@pytest.mark.parametrize("is_stdin", [False, True], ids=["tree", "stdin"])
async def test_an_attempt_whose_files_were_deleted_for_others_lacks_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stdin: bool
) -> None:
    """Two tasks whose files have no room at the same time must not end each other."""
    monkeypatch.setattr(BlobFetcher, "fetch_tree", lambda *_, **_tally: [])
    monkeypatch.setattr(BlobFetcher, "fetch_blob", lambda *_: [])
    name = "1" * 64
    async with rig(tmp_path) as made:
        outcome = await made.run(
            "true",
            options=TaskOptions(stdin_file=BlobRef(sha256=name, node="desk"))
            if is_stdin
            else TaskOptions(is_scratch=True, tree=InputTree(sha256=name, node="desk")),
        )

    assert (outcome.state, outcome.reason) == (AttemptState.RELEASED, EndReason.ROOM)
    assert outcome.detail == (
        "space for its files on rig (there is no file 111111111111... on this node)"
    )


@pytest.mark.parametrize("reason", [EndReason.CANCELLED, EndReason.DRAINING])
async def test_an_attempt_that_waits_for_files_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: EndReason
) -> None:
    """It has no process."""
    await_files(monkeypatch, tries=1000, wait_s_max=60.0)
    async with rig(tmp_path) as made:
        name = made.start("true", options=LENT)
        await eventually(lambda: made.pool._preparer._next_tries)
        sources = made.pool.read_input_sources(*name)
        assert sources is not None
        assert sources.awaited == "1 not sent"
        if reason is EndReason.CANCELLED:
            made.pool.stop_attempts([name])
        else:
            made.pool.release_waiting()
        outcome = await made.end_of(name[0])

    assert outcome.reason is reason
