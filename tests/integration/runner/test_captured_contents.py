"""Contents of captured outputs that several attempts left."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from octaskly.files.manifest import TreeFile, make_manifest
from octaskly.runner.output.captured_contents import (
    DAMAGED_NAME,
    CapturedContents,
    write_manifest,
)

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
