"""Direct starts compared with the real shell."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from octaskly.runner.launcher.attempt_process import (
    SHELL_KEYWORDS,
    split_simple_command,
)
from octaskly.runner.launcher.spawn import find_program

PLAIN = "abcXYZ019_@%+=:,./-"
SYNTAX = PLAIN + " \t~#$&|;<>()[]{}*?!^'\"`\\\n\0\N{LATIN SMALL LETTER E WITH ACUTE}"

programs = st.sampled_from(
    [
        *("args", "./args", "../work/args", "script", "./script", "empty", "locked"),
        *("folder", "./folder", "nowhere", "./nowhere", "env", "/bin/echo", "a/b"),
        *("exit", "echo", "printf", "test", "args.sh", "/", ".", "..", "./", "2"),
    ]
)
words = st.text(alphabet=PLAIN, min_size=1, max_size=8)
plain_commands = st.builds(
    lambda program, rest, gap: gap.join([program, *rest]),
    programs,
    st.lists(words, max_size=4),
    st.sampled_from([" ", "  ", "\t", " \t "]),
)
any_commands = st.builds(
    lambda program, rest: f"{program} {rest}",
    programs,
    st.text(alphabet=SYNTAX, max_size=12),
)


@pytest.fixture(scope="module")
def workdir() -> Iterator[Path]:
    """A folder with programs of every kind, also reachable through PATH."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve() / "work"
        folder.mkdir()
        printer = '#!/bin/sh\nprintf "<%s>" "$0" "$@"\nenv | grep PWD\n'
        for name, text, mode in (
            ("args", printer, 0o755),
            ("args.sh", printer, 0o755),
            ("script", 'printf "no shebang <%s>" "$@"\nexit 5\n', 0o755),
            ("empty", "", 0o755),
            ("locked", printer, 0o644),
        ):
            (folder / name).write_text(text)
            (folder / name).chmod(mode)
        (folder / "folder").mkdir()
        yield folder


def _run(words: list[str], program: str, workdir: Path) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        words,
        executable=program,
        cwd=workdir,
        env=_environment(workdir),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def _environment(workdir: Path) -> dict[str, str]:
    return {"PATH": f"{workdir}:/usr/bin:/bin", "PWD": str(workdir)}


@settings(max_examples=150, deadline=None)
@example(command="script a")
@example(command="locked")
@example(command="folder")
@example(command="env")
@given(command=plain_commands | any_commands)
def test_direct_start_equals_the_shell(workdir: Path, command: str) -> None:
    """Exit code, stdout and stderr are the same, or the shell runs the command."""
    split = split_simple_command(command)
    if split is None:
        return
    previous = Path.cwd()
    os.chdir(workdir)
    try:
        program = find_program(split[0], _environment(workdir)["PATH"])
    finally:
        os.chdir(previous)
    if program is None:
        return
    try:
        direct = _run(split, program, workdir)
    except OSError:
        return  # Then the launcher uses the shell.

    assert direct == _run(["sh", "-c", command], "/bin/sh", workdir)


@given(command=st.text(alphabet=SYNTAX, max_size=30))
def test_plain_words_equal_the_text(command: str) -> None:
    """No word is lost, added or unquoted."""
    split = split_simple_command(command)
    if split is not None:
        assert " ".join(split) == " ".join(command.split())
        assert split[0] not in SHELL_KEYWORDS
        assert "=" not in split[0]


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_every_builtin_of_the_shells_is_known(shell: str) -> None:
    """A shell's builtins must go to the shell."""
    names = subprocess.run(
        [shell, "-c", 'IFS=:; for d in $PATH; do ls "$d"; done'],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    plain = sorted({n for n in names if split_simple_command(n) is not None})
    answer = subprocess.run(
        [shell, "-c", 'for n; do command -V "$n"; done', "x", *plain],
        capture_output=True,
        check=False,
        text=True,
    ).stdout

    assert [it for it in answer.splitlines() if it.endswith("shell builtin")] == []
