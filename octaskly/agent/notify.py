"""Tells systemd how the agent is: READY=1, STATUS=, WATCHDOG=1, STOPPING=1.

Source: sd_notify(3). The protocol is one datagram and frozen, so it needs no library.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping


class Notifier:
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

    def ready(self) -> None:
        """The node serves."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`, sent when it changes."""
        # A line break in the name of a node would begin a command to systemd.
        text = " ".join(text.splitlines())
        if text != self._last_status:
            self._last_status = text
            self._send(f"STATUS={text}")

    def alive(self) -> None:
        """The main loop passed its self-check."""
        self._send("WATCHDOG=1")

    def stopping(self, within_s: float) -> None:
        """Shutdown began; it may take so long, whatever `TimeoutStopSec` says."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")

    def _send(self, message: str) -> None:
        if self._socket is not None:
            # A manager that does not listen must not take the node down.
            with contextlib.suppress(OSError):
                self._socket.sendto(message.encode(), self._address)
