"""The stdin of a command, while it is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from octaskly.cli.stdin import _Content
from octaskly.errors import OctasklyError


def test_a_file_that_shrinks_is_an_error_of_octaskly(tmp_path: Path) -> None:
    """`run` exits with 125: any other status would be that of the command."""
    path = tmp_path / "stdin"
    path.write_bytes(b"short")
    with path.open("rb") as file, pytest.raises(OctasklyError, match="shrank"):
        list(_Content(file.fileno(), 0, 10, "0" * 64).read())
