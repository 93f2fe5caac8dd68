"""Commands as tests type them: each a process, forked where a start is no matter."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cli_fork_server import forking_cli

PROGRAM: list[str] = []  #: what `typed` begins with, while tests run


@contextmanager
def quickly() -> Iterator[None]:
    """Have what is typed start quickly, for the length of a block."""
    with (
        tempfile.TemporaryDirectory(prefix="okq-") as folder,
        forking_cli(Path(folder)) as path,
    ):
        PROGRAM[:] = [str(path / "octaskly")]
        yield
        PROGRAM.clear()


def apart(
    done: subprocess.CompletedProcess[bytes],
) -> subprocess.CompletedProcess[bytes]:
    """Return what a command said but for why a task waits: that is told where it does.

    On a machine that stalls, any may.
    """
    lines = done.stderr.splitlines(keepends=True)
    done.stderr = b"".join(one for one in lines if not one.startswith(b"queued: "))
    return done


def typed(*arguments: str | bytes) -> list[str | bytes]:
    """Return the words of a command that no test sends a signal to."""
    return [*PROGRAM, *arguments]
