"""Errors of the operating system, as the command line shows them."""

from __future__ import annotations

import errno
import os

import pytest

from octaskly.cli.command_names import COMMANDS
from octaskly.cli.output.render import report_os_error
from octaskly.cli.root import run
from tests.docs.commands_page import commands


def refused(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (
            refused(errno.EACCES, "/a b/c"),
            "cannot use /a b/c: Permission denied",
            "ls -ld '/a b/c'",
        ),
        (refused(errno.ENOSPC), "cannot write: No space left on device", "df ."),
        (refused(errno.ENOENT), "the current folder has been deleted", 'cd "$PWD"'),
        (
            refused(errno.EMFILE),
            "the operating system reports: Too many open files",
            "octaskly doctor",
        ),
    ],
    ids=["file", "output", "folder", "other"],
)
def test_the_message_names_the_operation_that_failed(
    error: OSError, said: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not every failure is a failed write."""
    report_os_error(error)

    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: {said}"
    assert second.startswith(f"  hint: {hint}")


@pytest.mark.parametrize(
    "words",
    # The words of `burst` are the command of another program, with its options.
    sorted({*COMMANDS, *(words for words, _ in commands())} - {"burst"}),
)
def test_an_unknown_option_is_refused(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by a group, and by a command without parameters."""
    code = run([*words.split(), "--bogus"])

    first, *others = capsys.readouterr().err.splitlines()
    assert code == 2
    assert first.startswith("error: no such option '--bogus'")
    assert any(line.startswith("  hint: octaskly ") for line in others)
