"""Contents of captured outputs: equal ones, and those that an upload has, too."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from octaskly.files.manifest import TreeFile, make_manifest
from octaskly.ports.files import COPY_RETENTION_S, RETENTION_S
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.output.captured_contents import (
    DAMAGED_NAME,
    CapturedContents,
    write_manifest,
)
from tests.support.set_clock import SetClock

DATA = b"the same in each folder"
NAME = sha256(DATA).hexdigest()


@pytest.fixture
def contents(tmp_path: Path) -> CapturedContents:
    """The contents of two folders, `a` and `b`, which have an equal file."""
    found = CapturedContents()
    for task in ("a", "b"):
        folder = tmp_path / task / "1-1-1-1"
        folder.mkdir(parents=True)
        (folder / NAME).write_bytes(DATA)
        file = TreeFile(f"out/{task}", bytes.fromhex(NAME), len(DATA), 0)
        write_manifest(folder, make_manifest([file]))
        found.add_folder(folder)
    return found


@pytest.mark.parametrize(("deleted", "left"), ["ab", "ba"])
def test_a_content_stays_while_one_folder_has_it(
    contents: CapturedContents, tmp_path: Path, deleted: str, left: str
) -> None:
    """Whichever folder with it is deleted first."""
    contents.drop_folder(tmp_path / deleted / "1-1-1-1")

    assert contents.find(NAME) == tmp_path / left / "1-1-1-1" / NAME
    contents.drop_folder(tmp_path / left / "1-1-1-1")
    assert contents.find(NAME) is None
    assert NAME not in contents


@pytest.mark.parametrize(("wrong", "right"), ["ab", "ba"])
def test_a_right_copy_replaces_a_wrong_one(
    contents: CapturedContents, tmp_path: Path, wrong: str, right: str
) -> None:
    """Only the outputs with the wrong one are damaged."""
    (tmp_path / wrong / "1-1-1-1" / NAME).write_bytes(b"x" * len(DATA))

    assert contents.find(NAME) == tmp_path / right / "1-1-1-1" / NAME
    assert contents.verify(NAME)
    assert not (tmp_path / right / "1-1-1-1" / DAMAGED_NAME).exists()


def test_a_captured_content_is_sent_again_as_an_input(
    contents: CapturedContents, tmp_path: Path
) -> None:
    """Its outputs may be deleted while the task with this input waits."""
    store = BlobStore(tmp_path / "files", clock=SetClock(), captured=contents)
    assert store.missing_files([NAME], keep_s=COPY_RETENTION_S) == []
    assert store.missing_files([NAME], keep_s=RETENTION_S) == [NAME]

    assert store.store_blob(NAME, DATA, keep_s=RETENTION_S)

    for task in ("a", "b"):
        contents.drop_folder(tmp_path / task / "1-1-1-1")
    assert store.missing_files([NAME], keep_s=RETENTION_S) == []
