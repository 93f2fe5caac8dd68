"""Errors that Python can raise nowhere: a line of the log each, and few of them.

Python writes a traceback for each. Strangers can cause one with every connection, by a
host name in TLS that is no ASCII, and would fill the log.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from octaskly.log import Logger
from octaskly.ports import Clock

EVERY_S: Final = 60.0  #: between two lines about errors of one kind
_SHOWN_CHARS: Final = 200


def unraised(log: Logger, clock: Clock) -> Callable[[sys.UnraisableHookArgs], None]:
    """Return what `sys.unraisablehook` is to be for a log."""
    told_s: dict[type[BaseException], float] = {}

    def tell(what: sys.UnraisableHookArgs) -> None:
        now_s = clock.now().mono_s
        if now_s - told_s.get(what.exc_type, -EVERY_S) < EVERY_S:
            return
        told_s[what.exc_type] = now_s
        error = f"{what.exc_type.__name__}: {what.exc_value}"
        log.warning("error ignored", error=error[:_SHOWN_CHARS], at=_place_of(what))

    return tell


def _place_of(what: sys.UnraisableHookArgs) -> str:
    """Return the file and line where it came about, as far as that is known."""
    trace = what.exc_traceback
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
