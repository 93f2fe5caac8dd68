"""Commands as tests type them: processes, forked where a fresh start is not tested."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.fork_server import forking_cli

PROGRAM: list[str] = []  #: prefix of `typed` while tests run


@contextmanager
def quickly() -> Iterator[None]:
    """Make `typed` commands start quickly within the block."""
    with (
        tempfile.TemporaryDirectory(prefix="okq-") as folder,
        forking_cli(Path(folder)) as path,
    ):
        PROGRAM[:] = [str(path / "octaskly")]
        yield
        PROGRAM.clear()


def without_wait_reason(
    done: subprocess.CompletedProcess[bytes],
) -> subprocess.CompletedProcess[bytes]:
    """Return the output of a command without the reason of a wait.

    On a slow machine any command may wait.
    """
    lines = done.stderr.splitlines(keepends=True)
    done.stderr = b"".join(one for one in lines if not one.startswith(b"queued: "))
    return done


def typed(*arguments: str | bytes) -> list[str | bytes]:
    """Return the words of a command that no test sends a signal to."""
    return [*PROGRAM, *arguments]
