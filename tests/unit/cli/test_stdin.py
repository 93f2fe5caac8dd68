"""The stdin of a command, while it is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from octaskly.cli.stdin import _Content, _read_head
from octaskly.errors import OctasklyError


def test_a_file_that_shrinks_is_an_error_of_octaskly(tmp_path: Path) -> None:
    """`run` exits with 125: any other status would be that of the command."""
    path = tmp_path / "stdin"
    path.write_bytes(b"short")
    with path.open("rb") as file, pytest.raises(OctasklyError, match="shrank"):
        list(_Content(file.fileno(), 0, 10, "0" * 64).read())


def test_a_stdin_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A full disk would be blamed for an error of writing."""
    with (tmp_path / "stdin").open("wb") as file, pytest.raises(OctasklyError) as error:
        _read_head(file.fileno())

    assert str(error.value) == "stdin cannot be read: Bad file descriptor"
