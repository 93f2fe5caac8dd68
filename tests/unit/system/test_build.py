"""Two builds of one version differ; the same files are the same build anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from octaskly.system.build import hash_sources


def package(folder: Path) -> Path:
    """Return a small package."""
    (folder / "sub").mkdir(parents=True)
    (folder / "a.py").write_text("A = 1\n")
    (folder / "sub" / "b.js").write_text("b\n")
    return folder


def test_the_same_files_in_another_folder_are_the_same_build(tmp_path: Path) -> None:
    """Compiled modules and other files do not count."""
    one, other = package(tmp_path / "one"), package(tmp_path / "other")
    (other / "__pycache__").mkdir()
    (other / "__pycache__" / "a.py").touch()
    (other / "py.typed").touch()

    assert hash_sources(one) == hash_sources(other)


@pytest.mark.parametrize("change", ["edited", "renamed", "added"])
def test_each_change_of_a_source_file_makes_another_build(
    tmp_path: Path, change: str
) -> None:
    """Also one that keeps the size."""
    folder = package(tmp_path / "one")
    before = hash_sources(folder)
    match change:
        case "edited":
            (folder / "a.py").write_text("A = 2\n")
        case "renamed":
            (folder / "a.py").rename(folder / "c.py")
        case _:
            (folder / "sub" / "d.py").touch()

    assert hash_sources(folder) != before
