"""Decides whether a command needs a shell.

Starting a program directly costs half of starting it through `sh -c`, so a command
that a shell would only split at blanks and execute is started directly. The decision
is on the safe side: anything that is not plainly one external program with plain
words goes to the shell, and so does every program that cannot be started, because
then the shell's own message and exit code are what people expect.

What differs where `/bin/sh` is not dash: bash would add `_` and `SHLVL` to the
environment of the program.
"""

from __future__ import annotations

import re

_FIRST = r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*"
_WORD = r"[A-Za-z0-9_@%+=:,./-]+"
_PLAIN = re.compile(rf"[ \t]*{_FIRST}(?:[ \t]+{_WORD})*[ \t]*")

#: Names that dash, bash, busybox ash, ksh or mksh run or read themselves. A name too
#: many costs half a millisecond; a name too few changes what a command means.
SHELL_NAMES = frozenset(
    (  # noqa: SIM905 - a list of ninety lines would hide what is missing
        ". : alias autoload bg bind break builtin caller case cd chdir command compgen "
        "complete compopt continue coproc declare dirs disown do done echo elif else "
        "enable end esac eval exec exit export false fc fg fi float for foreach "
        "function functions getopts global hash help history if in integer jobs kill "
        "let local logout mapfile nameref namespace popd print printf pushd pwd read "
        "readarray readonly repeat return select set shift shopt source stop suspend "
        "switch test then time times trap true type typeset ulimit umask unalias "
        "unset until wait whence while"
    ).split()
)

LONGEST_DIRECT_CHARS = 100_000  #: below the 128 KiB that one argument may have


def split_plain(command: str) -> list[str] | None:
    """Return the words of a command that needs no shell, or None if it needs one."""
    if len(command) > LONGEST_DIRECT_CHARS or _PLAIN.fullmatch(command) is None:
        return None
    words = command.split()
    return None if words[0] in SHELL_NAMES else words


def shell_words(command: bytes) -> list[bytes]:
    """Return the words that run a command through the shell."""
    if command.startswith((b"-", b"+")):
        return [b"sh", b"-c", b"--", command]  # Else the shell takes it for an option.
    return [b"sh", b"-c", command]
