"""Folders of clients: recognised by a file, and the reason if one is not usable."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from octaskly.runner.files.same_folder import (
    FILE_BYTES_MAX,
    FolderProblem,
    find_folder_problem,
)

NAME = ".octaskly-here-00"
CONTENT = b"random\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def problem(folder: Path | str, name: str = NAME) -> FolderProblem | None:
    return find_folder_problem(str(folder), name, SHA256, may_write=True)


def test_a_folder_with_the_file_is_usable(tmp_path: Path) -> None:
    """Also through a link to the folder."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / NAME).write_bytes(CONTENT)
    (tmp_path / "link").symlink_to("real")

    assert problem(tmp_path / "real") is None
    assert problem(tmp_path / "link") is None


@pytest.mark.parametrize("kind", ["none", "other", "link", "folder", "fifo", "large"])
def test_a_folder_without_that_very_file_is_another_one(
    tmp_path: Path, kind: str
) -> None:
    """Only a small regular file counts, and a pipe stops nobody."""
    place, content = tmp_path / NAME, CONTENT
    match kind:
        case "other":
            place.write_bytes(b"other\n")
        case "link":
            (tmp_path / "target").write_bytes(CONTENT)
            place.symlink_to("target")
        case "folder":
            place.mkdir()
        case "fifo":
            os.mkfifo(place)
        case "large":
            content = bytes(FILE_BYTES_MAX + 1)
            place.write_bytes(content)
        case _:
            assert kind == "none"
    sha256 = hashlib.sha256(content).hexdigest()

    found = find_folder_problem(str(tmp_path), NAME, sha256, may_write=False)

    assert found == FolderProblem("other", str(tmp_path))


@pytest.mark.parametrize("name", ["no", "file", "file/below", "a\0b"])
def test_a_folder_that_is_not_there_is_missing(tmp_path: Path, name: str) -> None:
    """A file is no folder."""
    (tmp_path / "file").touch()
    folder = f"{tmp_path}/{name}"

    assert problem(folder) == FolderProblem("missing", folder)


def test_the_text_names_folder_node_and_what_helps() -> None:
    """It is what a task lacks, in an error and in an explanation."""
    kinds = ["missing", "hidden", "private", "denied", "other", "read-only"]

    texts = [
        FolderProblem(kind, "/home").describe("/p", "nas", "ana")
        for kind in [*kinds, "unwritable"]
    ]

    assert "\n".join(texts) == DESCRIPTIONS


DESCRIPTIONS = """\
the folder /p (it does not exist on nas)
the folder /p (the systemd unit of nas hides /home; ProtectHome=no and \
ReadWritePaths=/p, set by `sudo systemctl edit octaskly` there, open it)
the folder /p (the systemd unit of nas has a /home of its own; use another folder)
the folder /p (permission denied: on nas, tasks run as ana, who may not enter /home)
the folder /p (the one on nas is another folder, or has no longer the file by which it \
is recognised)
the folder /p (it is read-only on nas; if that is by its systemd unit, \
ReadWritePaths=/p, set by `sudo systemctl edit octaskly` there, opens it)
the folder /p (permission denied: on nas, tasks run as ana, who may not write to it)"""
