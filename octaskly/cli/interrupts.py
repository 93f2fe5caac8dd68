"""Deferred handling of Ctrl-C and SIGTERM, so that no wait for tasks loses one.

SIGTERM is handled like Ctrl-C: `timeout`, `kill` and build servers send it to end the
task. SIGHUP keeps its default: the terminal is gone, so nothing can be printed, and
the tasks go on.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Final

_INTERRUPTING: Final = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def defer_first_interrupt() -> Iterator[list[int]]:
    """Defer the first Ctrl-C until the response arrives; a second one interrupts."""
    noted: list[int] = []

    def on_interrupt(number: int, _frame: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    with signal_handlers(_INTERRUPTING, on_interrupt):
        yield noted


@contextlib.contextmanager
def allow_interrupts(deferred: list[int]) -> Iterator[None]:
    """Let Ctrl-C end the block at once; a deferred Ctrl-C ends it before it starts."""
    with signal_handlers(_INTERRUPTING, _interrupt):
        if deferred:
            number = deferred[0]
            deferred.clear()
            raise KeyboardInterrupt(number)
        yield


def interrupt_on_sigterm() -> AbstractContextManager[None]:
    """Let SIGTERM end the block like Ctrl-C, so that it can clean up."""
    return signal_handlers((signal.SIGTERM,), _interrupt)


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def interrupt_cause(interrupt: KeyboardInterrupt) -> str:
    """Return the display name of the signal that interrupted a block."""
    return "SIGTERM" if interrupt.args == (signal.SIGTERM,) else "Ctrl-C"


def ignore_unfinished_objects() -> None:
    """Let a program that was interrupted end without tracebacks of destructors.

    Ctrl-C may arrive in a constructor. The destructor then misses an attribute, and
    Python prints that on stderr.
    """
    sys.unraisablehook = lambda _unraisable: None


@contextlib.contextmanager
def signal_handlers(
    numbers: Sequence[signal.Signals],
    handler: Callable[[int, FrameType | None], object] | signal.Handlers,
) -> Iterator[None]:
    """Install a signal handler for the duration of the block."""
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, previous in before:
            signal.signal(number, previous)
