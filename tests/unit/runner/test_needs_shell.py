"""Commands that need no shell."""

from __future__ import annotations

import pytest

from octaskly.runner.launcher.attempt_process import shell_argv, split_simple_command


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ls", ["ls"]),
        ("  gzip \t -9  a/b_c.tar ", ["gzip", "-9", "a/b_c.tar"]),
        ("/usr/bin/env A=1 b", ["/usr/bin/env", "A=1", "b"]),
        ("./run me@x:y,z %1", ["./run", "me@x:y,z", "%1"]),
        ("g++ -o a a.cc", ["g++", "-o", "a", "a.cc"]),
        ("7z a", ["7z", "a"]),
    ],
)
def test_a_program_with_plain_words_is_started_directly(
    command: str, words: list[str]
) -> None:
    """Only blanks have a meaning: they separate words."""
    assert split_simple_command(command) == words


@pytest.mark.parametrize(
    "command",
    [
        "",
        "   ",
        "true",
        "echo a",
        "cd /",
        "if true",
        "time ls",
        "A=1 ls",
        "A=1",
        "ls; ls",
        "ls | cat",
        "ls &",
        "ls > x",
        "ls < x",
        "ls *",
        "ls ?",
        "ls [a]",
        "ls ~",
        "ls ~root/x",
        "ls {a,b}",
        "ls $HOME",
        "ls `pwd`",
        "ls 'a b'",
        'ls "a"',
        "ls a\\ b",
        "ls # x",
        "ls\nls",
        "ls a\n",
        "ls a\rb",
        "ls a\0b",
        "ls a\u00a0b",
        "ls \N{GREEK SMALL LETTER ALPHA}",
        "! ls",
        "(ls)",
        "%1",
        "-x",
        ". x",
        ": x",
        "[ a",
        "x" * 200_000,
    ],
)
def test_shell_syntax_goes_to_the_shell(command: str) -> None:
    """Syntax, builtins, keywords, assignments, and anything but plain ASCII."""
    assert split_simple_command(command) is None


def test_a_command_is_never_an_option_of_the_shell() -> None:
    """`-x` is a program that is not found, not a flag of `sh`."""
    assert shell_argv(b"-x") == [b"sh", b"-c", b"--", b"-x"]
    assert shell_argv(b"x") == [b"sh", b"-c", b"x"]
