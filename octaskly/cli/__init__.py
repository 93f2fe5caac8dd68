"""The command `octaskly`: arguments in, text or JSON out.

What a command prints on stdout is data; all else goes to stderr. Nothing here is
imported before it is needed: `octaskly ls` has to answer in a tenth of a second.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

COLLECT_OBJECTS = 200_000  #: more than an agent has when it is ready


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: What follows the program's name; None takes the process's own.
    """
    # Imports make objects that stay: to look for cycles among them, after every 700,
    # took a twelfth of an agent's start, and a twentieth of a short command.
    gc.set_threshold(COLLECT_OBJECTS)
    try:
        from octaskly.cli.root import run  # noqa: PLC0415 - keeps the import free

        return run(arguments)
    except KeyboardInterrupt:  # Before anything was begun, or after its end.
        return 130
