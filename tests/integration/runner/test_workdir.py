"""Inputs and outputs against hostile paths and files (threat 15)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.core.model.tasks import OutputFile
from octaskly.errors import OutputNotFound
from octaskly.runner.files.workdir import (
    TOO_LARGE,
    capture_outputs,
    captured_path,
    missing_inputs,
    outputs_folder,
    path_components,
)

TASK = TaskId("task-001-aaaaaaaa")
ATTEMPT = AttemptId(2, StreamId(9), 1)

BAD_PATHS = [
    *("", ".", "..", "/", "//", "./", "../", "a/", "/a", "//a", "a//b", "./a", "a/."),
    *("../secret", "../../etc/passwd", "/etc/passwd", "a/../../secret", "a/.."),
    *("folder/../../secret", "..//secret", "a\0b", "\0", "secret\0.txt", "x" * 5000),
    *("x" * 300, "a/" * 2500 + "a", "\ud800", "\udcff/x"),
    *("away", "away/passwd", "updir", "updir/secret", "loop", "loop/x", "dangling"),
    *("folder/away", "folder/away/passwd", "away/", "file/x", "file/..", "proc"),
    *("proc/1/environ", "absolute", "pipe", "sock", "null", "%2e%2e/secret"),
    *("..\\secret", "....//secret", "~", "~root/x", "$HOME", "*", "file\n"),
]


def test_a_copy_that_fails_leaves_nothing_behind(workdir: Path, tmp_path: Path) -> None:
    """A disk that outputs have filled would stay full."""
    (workdir / "large").write_bytes(b"x" * 5_000_000)
    script = """
import resource, signal, sys
from pathlib import Path
from octaskly.runner.files.workdir import capture_outputs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))  # EFBIG above it
print(capture_outputs(Path(sys.argv[1]), Path(sys.argv[2]), ["large", "file"]).files)
"""
    words = [sys.executable, "-c", script, str(workdir), str(tmp_path / "kept")]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert "path='large', size_bytes=None" in said
    assert "path='file', size_bytes=5" in said
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["file"]


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A work directory with links and special files, beside a secret."""
    (tmp_path / "secret").write_text("secret")
    work = tmp_path / "work"
    (work / "folder" / "deep").mkdir(parents=True)
    (work / "file").write_text("hello")
    (work / "folder" / "deep" / "file").write_text("deep")
    (work / "away").symlink_to("/etc")
    (work / "folder" / "away").symlink_to("../../../../../../../etc")
    (work / "absolute").symlink_to(work / "file")
    (work / "updir").symlink_to("..")
    (work / "loop").symlink_to("loop")
    (work / "dangling").symlink_to("nothing")
    (work / "proc").symlink_to("/proc/self/root")
    (work / "inside").symlink_to("folder/deep/../deep/file")
    (work / "inner").symlink_to("folder")
    os.mkfifo(work / "pipe")
    (work / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(work / "sock"))
    return work


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_bad_input_is_missing(workdir: Path, path: str) -> None:
    """A path outside the directory, or neither file nor folder."""
    assert missing_inputs(workdir, [path, "file"]) == [path]


@pytest.mark.parametrize("path", [*BAD_PATHS, "inside", "inner/deep/file", "folder"])
def test_a_bad_output_is_not_captured(workdir: Path, tmp_path: Path, path: str) -> None:
    """Nor is any target of a link, and nothing is written for it."""
    folder = tmp_path / "outputs" / "x"

    assert capture_outputs(workdir, folder, [path]).files == (OutputFile(path, None),)
    assert [file for file in tmp_path.rglob("*") if file.is_relative_to(folder)] in (
        [],
        [folder],
    )
    with pytest.raises(OutputNotFound):
        captured_path(tmp_path / "outputs", TASK, ATTEMPT, path)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("inside", "is a link"),
        ("inner/deep/file", "is a link"),
    ],
)
def test_an_output_that_exists_but_is_no_file_is_reported(
    workdir: Path, tmp_path: Path, path: str, why: str
) -> None:
    """A user who declares a folder must learn it at once."""
    found = capture_outputs(
        workdir, tmp_path / "o", [path, "gone", "file/gone", "file"]
    )

    kept = [file.path for file in found.files if file.size_bytes is not None]
    assert kept == ["file"]
    assert found.problem == f"output {path} was not kept: {why}"


def test_files_folders_and_inner_links_are_inputs(workdir: Path) -> None:
    """A link may lead anywhere below."""
    good = ["file", "folder", "folder/deep/file", "inside", "inner", "inner/deep/file"]

    assert missing_inputs(workdir, good) == []


def test_without_a_work_directory_all_inputs_are_missing(tmp_path: Path) -> None:
    """It is no error of its own: another node may have them."""
    assert missing_inputs(tmp_path / "no", ["a", "b"]) == ["a", "b"]


def test_outputs_are_copied_with_their_paths(workdir: Path, tmp_path: Path) -> None:
    """Each declared path once, in order, under its own name."""
    folder = outputs_folder(tmp_path / "outputs", TASK, ATTEMPT)
    files = capture_outputs(
        workdir, folder, ["folder/deep/file", "file", "gone", "file"]
    ).files
    (workdir / "file").write_text("changed later")

    assert files == (
        OutputFile("folder/deep/file", 4),
        OutputFile("file", 5),
        OutputFile("gone", None),
    )
    assert (
        captured_path(tmp_path / "outputs", TASK, ATTEMPT, "file").read_text()
        == "hello"
    )
    assert captured_path(
        tmp_path / "outputs", TASK, ATTEMPT, "folder/deep/file"
    ).is_relative_to(folder)


def test_the_first_of_contradictory_outputs_is_captured(
    workdir: Path, tmp_path: Path
) -> None:
    """A file cannot be a folder, too."""
    (workdir / "d").write_text("x")
    first = capture_outputs(workdir, tmp_path / "o", ["d"]).files
    (workdir / "d").unlink()
    (workdir / "d").mkdir()
    (workdir / "d" / "e").write_text("y")

    assert first == (OutputFile("d", 1),)
    second = capture_outputs(workdir, tmp_path / "o", ["d/e"])
    assert second.files == (OutputFile("d/e", None),)
    assert second.problem == "output d/e was not kept: File exists"


def test_all_outputs_share_a_bound(workdir: Path, tmp_path: Path) -> None:
    """An output above the rest is omitted, a later one that fits is captured."""
    (workdir / "big").write_bytes(bytes(80))
    (workdir / "small").write_bytes(bytes(30))

    found = capture_outputs(workdir, tmp_path / "o", ["big", "big2", "small"], left=100)

    assert found.files == (
        OutputFile("big", 80),
        OutputFile("big2", None),
        OutputFile("small", None),
    )
    assert found.problem == f"output small was not kept: {TOO_LARGE}"
    assert not (tmp_path / "o" / "small").exists()


def test_a_sparse_terabyte_is_refused_at_once(workdir: Path, tmp_path: Path) -> None:
    """By its size, before a byte is read."""
    with (workdir / "huge").open("wb") as file:
        file.truncate(1 << 40)

    found = capture_outputs(workdir, tmp_path / "o", ["huge"])

    assert found == (
        (OutputFile("huge", None),),
        f"output huge was not kept: {TOO_LARGE}",
    )


def test_a_folder_swapped_for_a_link_never_leads_out(
    workdir: Path, tmp_path: Path
) -> None:
    """In every timing only bytes of the task's own file are captured."""
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
            (file,) = capture_outputs(workdir, folder, ["swap/file"]).files
            if file.size_bytes is not None:
                assert (folder / "swap" / "file").read_text() == "mine"
    finally:
        is_over.set()
        swapper.join()


@pytest.mark.parametrize("name", [".", "..", "...", "task-1~2", "a" * 64])
def test_every_task_has_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    """Also if its id is a special name of the file system."""
    folder = outputs_folder(tmp_path, TaskId(name), ATTEMPT)

    assert folder.resolve().parent.parent == tmp_path
    assert folder.name == "2-9-1"


@given(st.text(alphabet="a./\0 ~\\", max_size=12))
def test_components_never_lead_up_or_away(path: str) -> None:
    """An accepted path is the path itself, without detours."""
    parts = path_components(path)
    if parts is not None:
        assert "/".join(parts) == path
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(parts)
