"""Capturing outputs: files, folders and globs, against hostile tasks (threat 15)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.core.model.tasks import OutputFile
from octaskly.errors import OutputNotFound
from octaskly.files import manifest
from octaskly.files.manifest import Manifest, TreeLink
from octaskly.runner.files import capture, task_user_ops
from octaskly.runner.files.capture import (
    CapturedOutputs,
    OutputReader,
    capture_outputs,
    outputs_folder,
    too_large_text,
)
from octaskly.runner.files.task_user_ops import (
    SameUserOps,
    TaskUserHelper,
    TaskUserOps,
)
from octaskly.runner.files.workdir import FolderEntry
from octaskly.runner.output.captured_contents import (
    MANIFEST_NAME,
    CapturedContents,
    read_manifest,
)
from tests.support.hostile_files import BAD_PATHS, make_hostile_folder
from tests.support.pooling import stranger

TASK = TaskId("task-001-aaaaaaaa")
ATTEMPT = AttemptId(2, StreamId(9), 1, 1)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A work directory with links and special files, beside a secret."""
    return make_hostile_folder(tmp_path)


def captured(
    workdir: Path,
    folder: Path,
    *paths: str,
    bytes_max: int = 1 << 30,
    access: TaskUserOps | None = None,
) -> CapturedOutputs:
    access = access or SameUserOps()
    return capture_outputs(
        workdir,
        folder,
        paths,
        access=access,
        make_room=lambda _: bytes_max,
        contents=CapturedContents(),
    )


def tree_in(folder: Path) -> Manifest:
    """Return the manifest of captured outputs; each content must be as it says."""
    name, tree = read_manifest(folder)
    for file in tree.files:
        content = (folder / file.sha256.hex()).read_bytes()
        assert manifest.content_digest(content) == file.sha256.hex()
        assert len(content) == file.size_bytes
    names = {file.sha256.hex() for file in tree.files} | {MANIFEST_NAME, name}
    assert {place.name for place in folder.iterdir()} == names
    return tree


def texts_in(folder: Path) -> dict[str, str]:
    """Return the captured files."""
    return {
        file.path: (folder / file.sha256.hex()).read_text()
        for file in tree_in(folder).files
    }


# --- files -------------------------------------------------------------------------


@pytest.mark.parametrize("path", [p for p in BAD_PATHS if p != "*"])
def test_a_bad_output_is_not_captured(workdir: Path, tmp_path: Path, path: str) -> None:
    """Nor is any target of a link, and nothing is written for it."""
    folder = tmp_path / "outputs" / "x"

    assert captured(workdir, folder, path).files == (OutputFile(path, None),)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("pipe", "not a file or folder"),
        ("sock", "not a file or folder"),
        ("inside", "is a link"),
        ("inner/deep/file", "is a link"),
        ("inner", "is a link"),
    ],
)
def test_an_output_that_exists_but_cannot_be_kept_is_reported(
    workdir: Path, tmp_path: Path, path: str, why: str
) -> None:
    """A pipe is never opened, and a link never followed."""
    found = captured(workdir, tmp_path / "o", path, "gone", "file/gone", "file")

    kept = [file.path for file in found.files if file.size_bytes is not None]
    assert kept == ["file"]
    assert found.problem == f"output {path} was not kept: {why}"


def test_outputs_are_copied(workdir: Path, tmp_path: Path) -> None:
    """Each declared path once, in order, as it was at that time."""
    folder = outputs_folder(tmp_path / "outputs", TASK, ATTEMPT)
    found = captured(workdir, folder, "folder/deep/file", "file", "gone", "file")
    (workdir / "file").write_text("changed later")

    assert found == (
        (
            OutputFile("folder/deep/file", 4),
            OutputFile("file", 5),
            OutputFile("gone", None),
        ),
        "",
    )
    assert texts_in(folder) == {"file": "hello", "folder/deep/file": "deep"}


def test_time_and_executable_bit_are_kept_and_set_id_bits_are_not(
    workdir: Path, tmp_path: Path
) -> None:
    """A program that was built is still a program."""
    (workdir / "app").write_text("app")
    (workdir / "app").chmod(0o6755)
    os.utime(workdir / "app", ns=(0, 1_600_000_000_123_456_789))
    os.utime(workdir / "file", ns=(0, -5))

    captured(workdir, tmp_path / "o", "app", "file")

    app, file = tree_in(tmp_path / "o").files
    assert (app.is_executable, app.mtime_ns) == (True, 1_600_000_000_123_456_789)
    assert (file.is_executable, file.mtime_ns) == (False, -5)
    modes = {place.stat().st_mode & 0o7777 for place in (tmp_path / "o").iterdir()}
    assert modes <= {0o600, 0o644}


def test_the_first_of_contradictory_outputs_is_captured(
    workdir: Path, tmp_path: Path
) -> None:
    """A file cannot be a folder, too: the task replaced it in the meantime."""
    (workdir / "d").write_text("x")

    class Replacing(SameUserOps):
        def open_output(self, workdir: Path, path: str) -> int:
            fd = SameUserOps.open_output(workdir, path)
            if path == "d":
                (workdir / "d").unlink()
                (workdir / "d").mkdir()
                (workdir / "d" / "e").write_text("y")
            return fd

    found = captured(workdir, tmp_path / "o", "d", "d/e", access=Replacing())

    assert found.files == (OutputFile("d", 1), OutputFile("d/e", None))
    assert found.problem == "output d/e was not kept: it is a folder of another output"


def test_a_copy_that_fails_leaves_nothing_behind(workdir: Path, tmp_path: Path) -> None:
    """A disk that outputs have filled would stay full."""
    (workdir / "large").write_bytes(b"x" * 5_000_000)
    script = """
import resource, signal, sys
from pathlib import Path
from octaskly.runner.files.capture import capture_outputs
from octaskly.runner.files.task_user_ops import SameUserOps
from octaskly.runner.output.captured_contents import CapturedContents
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))  # EFBIG above it
workdir, folder = map(Path, sys.argv[1:])
print(capture_outputs(
    workdir, folder, ["large", "file"],
    access=SameUserOps(), make_room=lambda _: 1 << 30, contents=CapturedContents(),
).files)
"""
    words = [sys.executable, "-c", script, str(workdir), str(tmp_path / "kept")]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert "path='large', size_bytes=None" in said
    assert "path='file', size_bytes=5" in said
    assert texts_in(tmp_path / "kept") == {"file": "hello"}


@pytest.mark.parametrize("full_at", ["a content", "the manifest"])
def test_a_full_disk_of_the_worker_is_named(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    """The user learns which machine is full, and nothing half-done stays there."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if full_at == "a content":
        monkeypatch.setattr(capture, "write_all", fail)
    else:
        monkeypatch.setattr(Path, "write_bytes", fail)

    found = captured(workdir, tmp_path / "o", "file", "folder/deep")

    assert [file.size_bytes for file in found.files] == [None, None]
    assert f"kept: {capture.DISK_FULL}" in found.problem
    assert list((tmp_path / "o").iterdir()) == []


def test_all_outputs_share_a_bound(workdir: Path, tmp_path: Path) -> None:
    """An output above the rest is omitted, a later one that fits is captured."""
    (workdir / "big").write_bytes(bytes(80))
    (workdir / "small").write_bytes(bytes(30))

    found = captured(
        workdir, tmp_path / "o", "big", "big2", "small", "file", bytes_max=100
    )

    assert found.files == (
        OutputFile("big", 80),
        OutputFile("big2", None),
        OutputFile("small", None),
        OutputFile("file", 5),
    )
    assert found.problem == f"output small was not kept: {too_large_text(100)}"
    assert set(texts_in(tmp_path / "o")) == {"big", "file"}


def test_a_worker_without_space_says_where_to_look(
    workdir: Path, tmp_path: Path
) -> None:
    """A bound of 0 bytes is no property of the task."""
    found = captured(workdir, tmp_path / "o", "file", bytes_max=0)

    assert found.problem == (
        "output file was not kept: its worker has no space for outputs;"
        " octaskly doctor there says why"
    )


def test_a_sparse_terabyte_is_refused_at_once(workdir: Path, tmp_path: Path) -> None:
    """By its size, before a byte is read; also inside a folder."""
    with (workdir / "folder" / "huge").open("wb") as file:
        file.truncate(1 << 40)

    found = captured(workdir, tmp_path / "o", "folder/huge", "folder")

    assert found.files == (OutputFile("folder/huge", None), OutputFile("folder", None))
    assert found.problem.startswith(
        f"output folder/huge was not kept: {too_large_text(1 << 30)}; output folder"
    )
    assert not (tmp_path / "o").exists()


def test_a_folder_swapped_for_a_link_never_leads_out(
    workdir: Path, tmp_path: Path
) -> None:
    """In every timing only bytes of the task's own files are captured."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("secret")
    swap, real = workdir / "swap", workdir / "real"
    real.mkdir()
    (real / "file").write_text("mine")
    is_over = threading.Event()

    def keep_swapping() -> None:
        while not is_over.is_set():
            for target in (real, tmp_path / "outside"):
                new = workdir / "new"
                new.unlink(missing_ok=True)
                new.symlink_to(target)
                new.replace(swap)
            swap.unlink()
            real.rename(swap)
            swap.rename(real)

    swapper = threading.Thread(target=keep_swapping)
    swapper.start()
    try:
        for turn in range(300):
            folder = tmp_path / "o" / str(turn)
            captured(workdir, folder, "swap/file", "swap", "s*p")
            if folder.exists():
                assert set(texts_in(folder).values()) <= {"mine"}
    finally:
        is_over.set()
        swapper.join()


# --- folders and globs -------------------------------------------------------------


def test_a_folder_is_captured_whole(workdir: Path, tmp_path: Path) -> None:
    """Links inside stay links, links outside and special files are named."""
    (workdir / "folder" / "link").symlink_to("./deep//file")
    (workdir / "folder" / "deep" / "up").symlink_to("../../file")
    (workdir / "folder" / "empty").mkdir()
    (workdir / "folder" / ".hidden").write_text("hidden")
    os.mkfifo(workdir / "folder" / "pipe")

    found = captured(workdir, tmp_path / "o", "folder")

    assert found.files == (OutputFile("folder", 10, 4),)
    assert set(found.problem.split("; ")) == {
        "not kept: the link 'folder/away' points outside the folder",
        "output folder/pipe was not kept: not a file or folder",
    }
    tree = tree_in(tmp_path / "o")
    assert [file.path for file in tree.files] == [
        "folder/.hidden",
        "folder/deep/file",
    ]
    assert tree.links == (
        TreeLink("folder/deep/up", "../../file"),
        TreeLink("folder/link", "deep/file"),
    )
    assert tree.empty_folders == ("folder/empty",)


@pytest.mark.parametrize("skipped", ["pipe", "away", "unreadable", "gone", "bad name"])
def test_a_folder_whose_entries_are_all_skipped_is_an_empty_folder(
    tmp_path: Path, skipped: str
) -> None:
    """It exists, so it can be fetched; a glob that matches nothing else is missing."""
    work = tmp_path / "work"
    for folder in ("d", "e/inner"):
        (work / folder).mkdir(parents=True)
        make_skipped(work / folder, skipped)
    (work / "e" / "file").touch()

    found = captured(
        work, tmp_path / "o", "d", "d/*", "e", "e/inner", access=Refusing()
    )

    assert found.files == (
        OutputFile("d", 0, 0),
        OutputFile("d/*", None),
        OutputFile("e", 0, 1),
        OutputFile("e/inner", 0, 0),
    )
    assert tree_in(tmp_path / "o").empty_folders == ("d", "e/inner")


class Refusing(SameUserOps):
    """Cannot open some files: the task may not read them, or removed them."""

    def open_output(self, workdir: Path, path: str) -> int:
        code = {"unreadable": errno.EACCES, "gone": errno.ENOENT}.get(Path(path).name)
        if code is not None:
            raise OSError(code, os.strerror(code))
        return SameUserOps.open_output(workdir, path)


def make_skipped(folder: Path, kind: str) -> None:
    """Make an entry that cannot be kept."""
    if kind == "pipe":
        os.mkfifo(folder / "pipe")
    elif kind == "away":
        (folder / "away").symlink_to("/etc/passwd")
    elif kind == "bad name":
        (folder / os.fsdecode(b"\xff")).mkdir()
        (folder / os.fsdecode(b"\xff") / "file").touch()
    else:
        (folder / kind).touch()


def test_a_folder_that_is_filled_meanwhile_is_not_empty(tmp_path: Path) -> None:
    """A task in the background may add a file between two outputs that overlap."""
    work = tmp_path / "work"
    (work / "d" / "x").mkdir(parents=True)

    class Filling(SameUserOps):
        def find_entry(self, workdir: Path, path: str) -> FolderEntry:
            if path == "d/x":
                (workdir / "d/x/late").touch()
            return SameUserOps.find_entry(workdir, path)

    found = captured(work, tmp_path / "o", "d", "d/x", access=Filling())

    assert found == ((OutputFile("d", 0, 0), OutputFile("d/x", 0, 1)), "")
    assert tree_in(tmp_path / "o").empty_folders == ()


def test_a_bad_folder_name_is_named_once_beside_its_files(tmp_path: Path) -> None:
    """Each file in it is named, as is the folder."""
    folder = tmp_path / "work" / "d" / os.fsdecode(b"\xff")
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / name).touch()

    found = captured(tmp_path / "work", tmp_path / "o", "d")

    assert found.files == (OutputFile("d", 0, 0),)
    assert found.problem.count("is not UTF-8") == 3


def test_git_folders_are_never_captured(workdir: Path, tmp_path: Path) -> None:
    """Their hooks would be commands at home."""
    for folder in (workdir, workdir / "folder", workdir / "folder" / "deep"):
        (folder / ".git" / "hooks").mkdir(parents=True)
        (folder / ".git" / "hooks" / "post-checkout").write_text("#!/bin/sh")

    found = captured(workdir, tmp_path / "o", ".git", "folder/.git/hooks", "fold*")

    assert [file.size_bytes for file in found.files] == [None, None, 4]
    assert set(texts_in(tmp_path / "o")) == {"folder/deep/file"}


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.o", {"a.o", "b.o"}),
        ("out/*.txt", {"out/1.txt"}),
        ("out/**", {"out/1.txt", "out/x/2.txt", "out/x/y/3.txt"}),
        ("**/*.txt", {"out/1.txt", "out/x/2.txt", "out/x/y/3.txt"}),
        ("out/**/y", {"out/x/y/3.txt"}),
        ("[ab].o", {"a.o", "b.o"}),
        ("?.o", {"a.o", "b.o"}),
        ("odd[1].p", {"odd[1].p"}),
    ],
)
def test_globs_select_files_and_folders(
    tmp_path: Path, pattern: str, paths: set[str]
) -> None:
    """A name that exists is taken as it is, whatever characters it has."""
    work = tmp_path / "work"
    (work / "out" / "x" / "y").mkdir(parents=True)
    for path in ("a.o", "b.o", "out/1.txt", "out/x/2.txt", "out/x/y/3.txt"):
        (work / path).write_text(path)
    for path in ("odd[1].p", "odd1.p", "c"):
        (work / path).write_text(path)

    found = captured(work, tmp_path / "o", pattern, "none*")

    size = sum(map(len, paths))
    is_file = pattern.startswith("odd")
    assert found == (
        (
            OutputFile(pattern, size, None if is_file else len(paths)),
            OutputFile("none*", None),
        ),
        "",
    )
    assert set(texts_in(tmp_path / "o")) == paths


def test_overlapping_outputs_share_their_files(tmp_path: Path) -> None:
    """Each is counted on its own, and stored once; so are equal contents."""
    (tmp_path / "work" / "build").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (tmp_path / "work" / "build" / name).write_text("same")

    found = captured(
        tmp_path / "work",
        tmp_path / "o",
        "build",
        "build/a",
        "build/*",
        bytes_max=12,
    )

    assert found == (
        (
            OutputFile("build", 12, 3),
            OutputFile("build/a", 4),
            OutputFile("build/*", 12, 3),
        ),
        "",
    )
    assert len(list((tmp_path / "o").iterdir())) == 3  # With two for the manifest.


def test_an_output_that_cannot_be_kept_whole_leaves_the_others(
    tmp_path: Path,
) -> None:
    """Half a folder would be taken for the whole; a shared content stays."""
    work = tmp_path / "work"
    (work / "build").mkdir(parents=True)
    (work / "build" / "a").write_text("same")
    (work / "build" / "z").write_bytes(b"grows")
    (work / "other").write_text("same")

    class Growing(SameUserOps):
        def open_output(self, workdir: Path, path: str) -> int:
            if path == "build/z":
                with (workdir / path).open("ab") as file:
                    file.write(bytes(1000))
            return SameUserOps.open_output(workdir, path)

    found = captured(
        work, tmp_path / "o", "other", "build", bytes_max=20, access=Growing()
    )

    assert found.files == (OutputFile("other", 4), OutputFile("build", None))
    assert texts_in(tmp_path / "o") == {"other": "same"}


@pytest.mark.parametrize("failing", ["build/z", "build/inner"])
def test_a_failing_disk_makes_the_whole_output_missing(
    tmp_path: Path, failing: str
) -> None:
    """The command would end with 0 and have half a folder."""
    work = tmp_path / "work"
    (work / "build" / "inner").mkdir(parents=True)
    for name in ("build/a", "build/inner/b", "build/z", "other"):
        (work / name).write_text(name)

    class Failing(SameUserOps):
        def open_output(self, workdir: Path, path: str) -> int:
            self._check(path)
            return SameUserOps.open_output(workdir, path)

        def list_folder(self, workdir: Path, path: str) -> list[FolderEntry]:
            self._check(path)
            return SameUserOps.list_folder(workdir, path)

        def _check(self, path: str) -> None:
            if path == failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    found = captured(work, tmp_path / "o", "other", "build", access=Failing())

    assert found.files == (OutputFile("other", 5), OutputFile("build", None))
    assert found.problem == "output build was not kept: Input/output error"


def test_too_many_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of them is copied."""
    monkeypatch.setattr(capture, "ENTRIES_MAX", 10)
    work = tmp_path / "work"
    (work / "many").mkdir(parents=True)
    for n in range(11):
        (work / "many" / str(n)).touch()
    (work / "few").touch()

    found = captured(work, tmp_path / "o", "many", "many/*", "few")

    assert [file.size_bytes for file in found.files] == [None, None, 0]
    assert found.problem.startswith(f"output many was not kept: {capture.TOO_MANY}")


def test_names_that_are_not_text_are_named(tmp_path: Path) -> None:
    """They cannot be described, and the rest is kept."""
    work = tmp_path / "work"
    (work / "d").mkdir(parents=True)
    (work / "d" / os.fsdecode(b"\xff\xfe")).touch()
    (work / "d" / "good").touch()

    found = captured(work, tmp_path / "o", "d")

    assert found.files == (OutputFile("d", 0, 1),)
    assert "is not UTF-8" in found.problem


def test_few_of_many_problems_are_named(tmp_path: Path) -> None:
    """The detail of a task is for people."""
    (tmp_path / "work").mkdir()
    for n in range(15):
        os.mkfifo(tmp_path / "work" / f"pipe{n:02}")

    found = captured(tmp_path / "work", tmp_path / "o", "pipe*")

    assert found.problem.endswith("; and 5 more")
    assert found.problem.count("pipe") == 10


@pytest.fixture
def helper() -> Iterator[TaskUserHelper]:
    """The helper of a user who owns nothing here."""
    made = TaskUserHelper(stranger())
    yield made
    made.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_only_what_the_tasks_user_may_read_is_captured(
    tmp_path: Path, helper: TaskUserHelper
) -> None:
    """The agent, who may read everything, looks and opens as that user."""
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents:
        if any("pytest-" in part for part in folder.parts):
            folder.chmod(0o755)
    work = tmp_path / "work"
    for name in ("d", "d/closed", "locked"):
        (work / name).mkdir(parents=True)
        (work / name / "file").write_text(name)
    (work / "d" / "private").write_text("private")
    (work / "d" / "private").chmod(0o600)
    (work / "d" / os.fsdecode(b"\xff")).touch()
    (work / "d" / "closed").chmod(0o700)
    (work / "locked").chmod(0o700)

    found = captured(work, tmp_path / "o", "d", "locked", "lo*", access=helper)

    assert [file.size_bytes for file in found.files] == [1, None, None]
    assert texts_in(tmp_path / "o") == {"d/file": "d"}
    assert "output d/private was not kept: Permission denied" in found.problem
    assert "output d/closed was not kept: Permission denied" in found.problem
    assert "output locked was not kept: Permission denied" in found.problem


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_file_is_not_created_twice_if_the_helper_does_not_answer(
    tmp_path: Path, helper: TaskUserHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have created it, and the task is to start elsewhere rather than fail."""
    monkeypatch.setattr(task_user_ops, "REPLY_S", 0.5)
    for folder in (tmp_path, *tmp_path.parents):
        if any("pytest-" in part for part in folder.parts):
            folder.chmod(0o777)
    assert helper.missing_inputs(tmp_path, ["x"]) == ["x"]
    assert helper._process is not None

    os.kill(helper._process.pid, signal.SIGSTOP)
    with pytest.raises(OSError, match="no answer") as caught:
        helper.create_file(tmp_path, "x")
    assert caught.value.errno == errno.EAGAIN
    assert helper.missing_inputs(tmp_path, ["x"]) == ["x"]

    helper._process.kill()
    helper._process.wait()
    os.close(helper.create_file(tmp_path, "x"))
    assert (tmp_path / "x").exists()


# --- reading -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [".", "..", "...", "task-1~2", "a" * 64])
def test_every_task_has_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    """Also if its id is a special name of the file system."""
    folder = outputs_folder(tmp_path, TaskId(name), ATTEMPT)

    assert folder.resolve().parent.parent == tmp_path
    assert folder.name == "2-9-1-1"


def test_captured_outputs_are_read_by_their_paths(
    workdir: Path, tmp_path: Path
) -> None:
    """Only files have a content; readers at the same time share the manifest."""
    captured(workdir, outputs_folder(tmp_path / "o", TASK, ATTEMPT), "folder", "file")
    reader = OutputReader(tmp_path / "o", CapturedContents())

    tree = reader.read_tree(TASK, ATTEMPT)

    assert reader.read_tree(TASK, ATTEMPT) is tree
    file = tree.file_path("folder/deep/file")
    assert file is not None
    assert file.read_text() == "deep"
    assert [tree.file_path(path) for path in ("folder", "none", "../file")] == [
        None
    ] * 3
    assert tree.has_path("folder/deep")
    assert not tree.has_path("fold")
    with pytest.raises(OutputNotFound):
        reader.read_tree(TASK, AttemptId(2, StreamId(9), 2, 2))


def test_a_task_without_outputs_leaves_no_folder(workdir: Path, tmp_path: Path) -> None:
    """There would be one for each attempt."""
    captured(workdir, tmp_path / "o", "gone", "x*")

    assert not (tmp_path / "o").exists()
