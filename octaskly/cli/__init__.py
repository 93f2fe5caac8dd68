"""The command line `octaskly`.

Commands print data on stdout and everything else on stderr. Imports are deferred until
they are needed, because `octaskly ls` must answer within 0.1 s.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

COLLECT_OBJECTS = 200_000  #: more than an agent allocates until it is ready


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: Arguments without the program's name; None means `sys.argv`.
    """
    # Imports create objects that are never freed. Collecting after every 700 of them,
    # Python's default, took 1/12 of an agent's start and 1/20 of a short command.
    gc.set_threshold(COLLECT_OBJECTS)
    try:
        from octaskly.cli.root import run  # noqa: PLC0415 - keeps this import fast

        return run(arguments)
    except KeyboardInterrupt:
        return 130  # Ctrl-C arrived before the command started, or after its end.
