"""The command `octaskly`: arguments in, text or JSON out.

What a command prints on stdout is data; all else goes to stderr. Nothing here is
imported before it is needed: `octaskly ls` has to answer in a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: What follows the program's name; None takes the process's own.
    """
    try:
        from octaskly.cli.root import run  # noqa: PLC0415 - keeps the import free

        return run(arguments)
    except KeyboardInterrupt:  # Before anything was begun, or after its end.
        return 130
