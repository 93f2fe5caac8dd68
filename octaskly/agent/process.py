"""Tells systemd how the agent is: READY=1, STATUS=, WATCHDOG=1, STOPPING=1.

Source: sd_notify(3). The protocol is one datagram and frozen, so it needs no library.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, MutableMapping
from typing import Final

from octaskly.ports import Clock
from octaskly.system.log import Logger

YOUNG_OBJECTS_MAX: Final = (
    20_000  #: objects made since the last look, less those that ended
)
AUTOMATIC_THRESHOLD: Final = 10 * YOUNG_OBJECTS_MAX  #: then Python looks by itself


class GarbageCollection:
    """Looks for cycles when it is called."""

    def __init__(self) -> None:
        self._is_due = False  #: objects grew old that nobody looked at since

    def freeze_startup_objects(self) -> None:
        """Look once more, and from now on only at what is made from here on.

        What lives as long as the process need not be looked at again; what a node was
        before it moved to another mesh need not be kept.
        """
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        gc.set_threshold(AUTOMATIC_THRESHOLD)

    def collect_if_due(self) -> None:
        """Look at what is young where there is much of it, else at all, if need be."""
        is_much = gc.get_count()[0] >= YOUNG_OBJECTS_MAX
        if is_much or self._is_due:
            gc.collect(1 if is_much else 2)
        self._is_due = is_much


class StopSignals:
    """How often this process was told to stop; made while the loop runs."""

    def __init__(self) -> None:
        self.count = 0
        self.received = asyncio.Event()  #: a signal came, or what others say with it
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self.count += 1
        self.received.set()


REPEAT_S: Final = 60.0  #: between two lines about errors of one kind
_SHOWN_CHARS: Final = 200


def build_unraisable_hook(
    log: Logger, clock: Clock
) -> Callable[[sys.UnraisableHookArgs], None]:
    """Return what `sys.unraisablehook` is to be for a log."""
    told_s: dict[type[BaseException], float] = {}

    def tell(what: sys.UnraisableHookArgs) -> None:
        now_s = clock.now().mono_s
        if now_s - told_s.get(what.exc_type, -REPEAT_S) < REPEAT_S:
            return
        told_s[what.exc_type] = now_s
        error = f"{what.exc_type.__name__}: {what.exc_value}"
        log.warning(
            "unraisable error", error=error[:_SHOWN_CHARS], at=_source_location(what)
        )

    return tell


def _source_location(what: sys.UnraisableHookArgs) -> str:
    """Return the file and line where it came about, as far as that is known."""
    trace = what.exc_traceback
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


class SystemdNotifier:
    """One datagram socket to the service manager; silent where there is none."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._socket: socket.socket | None = None
        self._last_status = ""
        # Tasks must not inherit the way to the service manager.
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = environ.pop("WATCHDOG_USEC", "")
        watchdog_pid = environ.pop("WATCHDOG_PID", "")
        is_ours = watchdog_pid in ("", str(os.getpid()))
        self.watchdog_s = int(watchdog_us) / 2e6 if watchdog_us and is_ours else None
        """Seconds between pings, half of what systemd allows; None: no watchdog."""
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)  # noqa: FBT003  no keyword there
            self._address = "\0" + address[1:] if address[0] == "@" else address

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def notify_ready(self) -> None:
        """The node serves."""
        self._send("READY=1")

    def set_status(self, text: str) -> None:
        """One line for `systemctl status`, sent when it changes."""
        # A line break in the name of a node would begin a command to systemd.
        text = " ".join(text.splitlines())
        if text != self._last_status:
            self._last_status = text
            self._send(f"STATUS={text}")

    def notify_watchdog(self) -> None:
        """The main loop passed its self-check."""
        self._send("WATCHDOG=1")

    def notify_stopping(self, within_s: float) -> None:
        """Shutdown began; it may take so long, whatever `TimeoutStopSec` says."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")

    def _send(self, message: str) -> None:
        if self._socket is not None:
            # A manager that does not listen must not take the node down.
            with contextlib.suppress(OSError):
                self._socket.sendto(message.encode(), self._address)
