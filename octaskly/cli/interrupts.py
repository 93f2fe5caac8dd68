"""Ctrl-C and SIGTERM, put off or let through; what waits for tasks must not lose one.

SIGTERM means the same: it comes from `timeout`, from a build server that is told to
stop, from `kill`, and all of them think that they end what runs. SIGHUP is left as it
is: the terminal is gone, nobody can be told anything, and the tasks go on.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Final

_INTERRUPTING: Final = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def defer_first_interrupt() -> Iterator[list[int]]:
    """Put off the first Ctrl-C until the answer is there; a second one ends it."""
    noted: list[int] = []

    def on_interrupt(number: int, _frame: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    with signal_handlers(_INTERRUPTING, on_interrupt):
        yield noted


@contextlib.contextmanager
def allow_interrupts(deferred: list[int]) -> Iterator[None]:
    """Let Ctrl-C end the block at once, also one that was put off before."""
    with signal_handlers(_INTERRUPTING, _interrupt):
        if deferred:
            number = deferred[0]
            deferred.clear()
            raise KeyboardInterrupt(number)
        yield


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def interrupt_cause(interrupt: KeyboardInterrupt) -> str:
    """Return what people call the signal that interrupted a block."""
    return "SIGTERM" if interrupt.args == (signal.SIGTERM,) else "Ctrl-C"


@contextlib.contextmanager
def signal_handlers(
    numbers: Sequence[signal.Signals],
    handler: Callable[[int, FrameType | None], object] | signal.Handlers,
) -> Iterator[None]:
    """Handle signals so for the length of the block."""
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, previous in before:
            signal.signal(number, previous)
