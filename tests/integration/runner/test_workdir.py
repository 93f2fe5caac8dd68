"""Inputs against hostile paths and files (threat 15)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octaskly.runner.files.workdir import missing_inputs, path_components
from tests.support.hostile_files import BAD_PATHS, make_hostile_folder


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A work directory with links and special files, beside a secret."""
    return make_hostile_folder(tmp_path)


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_bad_input_is_missing(workdir: Path, path: str) -> None:
    """A path outside the directory, or neither file nor folder."""
    assert missing_inputs(workdir, [path, "file"]) == [path]


def test_files_folders_and_inner_links_are_inputs(workdir: Path) -> None:
    """A link may lead anywhere below."""
    good = ["file", "folder", "folder/deep/file", "inside", "inner", "inner/deep/file"]

    assert missing_inputs(workdir, good) == []


def test_without_a_work_directory_all_inputs_are_missing(tmp_path: Path) -> None:
    """It is no error of its own: another node may have them."""
    assert missing_inputs(tmp_path / "no", ["a", "b"]) == ["a", "b"]


@given(st.text(alphabet="a./\0 ~\\", max_size=12))
def test_components_never_lead_up_or_away(path: str) -> None:
    """An accepted path is the path itself, without detours."""
    parts = path_components(path)
    if parts is not None:
        assert "/".join(parts) == path
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(parts)
