"""The process of an agent: garbage collection, stop signals, systemd, a terminal.

Source for systemd: sd_notify(3). Its protocol is one datagram and will not change, so
no library is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import shlex
import signal
import socket
import sys
from collections.abc import Callable, MutableMapping, Sequence
from typing import Final

from octaskly import __version__
from octaskly.config.agent import AgentConfig
from octaskly.ports.store import Clock
from octaskly.system.log import Logger, StartupFilter

YOUNG_OBJECTS_MAX: Final = 5_000
"""Allocations minus deallocations until Python collects young objects.

This takes some 6 ms. With 200 000, as many as 1000 closed connections leave, the event
loop stood still for 140 ms.
"""
MANY_COLLECTIONS: Final = 4
"""So many collections of young objects make one of all due, or an agent busy."""


class GarbageCollection:
    """Leaves young objects to Python, and collects all of them while little is done."""

    def __init__(self) -> None:
        self._seen = 0  #: collections of young objects until the last check
        self._until_full = 0  #: the same until the last full collection
        self._has_frozen = False

    def freeze_startup_objects(self) -> None:
        """Collect once, then exempt all live objects from collection.

        They live as long as the process. Objects frozen by an earlier call are
        collected first: a node that moved to another mesh no longer needs them.
        """
        if self._has_frozen:  # Objects that a parent process froze stay shared with it.
            gc.unfreeze()
        self._has_frozen = True
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS_MAX, 1, 1)

    def collect_if_due(self) -> None:
        """Collect all objects if many young ones have been, and few since last asked.

        Python does so itself once there are a quarter more old objects.
        """
        collections = sum(young["collections"] for young in gc.get_stats()[:2])
        is_busy = collections >= self._seen + MANY_COLLECTIONS
        self._seen = collections
        if not is_busy and collections >= self._until_full + MANY_COLLECTIONS:
            gc.collect()
            self._until_full = collections


def disable_core_dumps() -> int:
    """Disable core dumps, which would contain the mesh secret; return the old limit.

    PR_SET_DUMPABLE is no alternative: it would hide from users which agent uses a port.
    """
    bytes_max, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    return bytes_max


class StopSignals:
    """Counts SIGTERM and SIGINT. Create it while the event loop runs."""

    def __init__(self) -> None:
        self.count = 0
        self.received = asyncio.Event()  #: set by a signal or another reason to stop
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self.count += 1
        self.received.set()


REPEAT_S: Final = 60.0  #: between two log lines for one exception type
_SHOWN_CHARS: Final = 200


def build_unraisable_hook(
    log: Logger, clock: Clock
) -> Callable[[sys.UnraisableHookArgs], None]:
    """Return a `sys.unraisablehook` that logs a type once per `REPEAT_S` at most."""
    logged_s: dict[type[BaseException], float] = {}

    def log_error(what: sys.UnraisableHookArgs) -> None:
        now_s = clock.now().mono_s
        if now_s - logged_s.get(what.exc_type, -REPEAT_S) < REPEAT_S:
            return
        logged_s[what.exc_type] = now_s
        error = f"{what.exc_type.__name__}: {what.exc_value}"
        log.warning(
            "unraisable error", error=error[:_SHOWN_CHARS], at=_source_location(what)
        )

    return log_error


def _source_location(what: sys.UnraisableHookArgs) -> str:
    """Return the file and line that raised the error, or "unknown"."""
    trace = what.exc_traceback
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


class SystemdNotifier:
    """Notifies systemd over a datagram socket; does nothing without systemd."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._socket: socket.socket | None = None
        self._last_status = ""
        # Tasks must not inherit the address of the service manager.
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = environ.pop("WATCHDOG_USEC", "")
        watchdog_pid = environ.pop("WATCHDOG_PID", "")
        is_ours = watchdog_pid in ("", str(os.getpid()))
        self.watchdog_s = int(watchdog_us) / 2e6 if watchdog_us and is_ours else None
        """Seconds between notifications, half of the limit; None: no watchdog."""
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)  # noqa: FBT003  no keyword there
            self._address = "\0" + address[1:] if address[0] == "@" else address

    def close(self) -> None:
        """Close the socket; later calls do nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def notify_ready(self) -> None:
        """Report that the node is ready."""
        self._send("READY=1")

    def set_status(self, text: str) -> None:
        """Set the line that `systemctl status` shows; send it when it changes."""
        # A line break in a node name would start another assignment to systemd.
        text = " ".join(text.splitlines())
        if text != self._last_status:
            self._last_status = text
            self._send(f"STATUS={text}")

    def notify_watchdog(self) -> None:
        """Report that the main loop is responsive."""
        self._send("WATCHDOG=1")

    def notify_stopping(self, within_s: float) -> None:
        """Report the start of the shutdown; extend `TimeoutStopSec` to `within_s`."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")

    def _send(self, message: str) -> None:
        if self._socket is not None:
            # The node keeps running if systemd does not read.
            with contextlib.suppress(OSError):
                self._socket.sendto(message.encode(), self._address)


class Banner:
    """Prints what a person needs to know once a node runs.

    Args:
        config: The settings of the agent.
        startup_filter: Hides the log of the start until the banner of a member; None
            if there is no terminal, and the log shows everything.
        is_discoverable: True if commands find this agent by its name.
    """

    def __init__(
        self,
        config: AgentConfig,
        startup_filter: StartupFilter | None,
        *,
        is_discoverable: bool,
    ) -> None:
        self._config = config
        self._startup_filter = startup_filter
        self._command = "octaskly"
        if not is_discoverable:
            folder = shlex.quote(str(config.paths.state))
            self._command += f" --state-dir {folder}"
        elif config.options.name:
            # Other agents probably run on this machine.
            self._command += f" --node {config.name}"

    @property
    def is_wanted(self) -> bool:
        """Return True if a person reads it."""
        return self._startup_filter is not None

    def print_member(
        self, *, name: str, mesh: str, dispatcher: str | None, nodes: int
    ) -> None:
        """Print it for a node that is in a mesh.

        Args:
            name: Name of the node.
            mesh: Id of the mesh.
            dispatcher: Name of the dispatcher; None if none is known yet.
            nodes: Number of nodes of the mesh.
        """
        role = f"its dispatcher is {dispatcher}"
        if dispatcher is None:
            role = "no dispatcher is elected yet"
        elif dispatcher == name:
            role = "this node is its dispatcher"
        count = "1 node" if nodes == 1 else f"{nodes} nodes"
        self._print(
            name,
            [f"Mesh {mesh}: {count}; {role}."],
            (
                ("Try it:", f"{self._command} run -- hostname"),
                ("Open the dashboard:", f"{self._command} open"),
                ("Add a machine:", f"{self._command} invite"),
            ),
        )
        if self._startup_filter is not None:
            self._startup_filter.show_all()

    def print_unpaired(self) -> None:
        """Print it for a node that sees a mesh, but has no secret to join it.

        The node starts again once it is admitted, and then prints the other banner.
        """
        self._print(
            self._config.name,
            [
                "It sees a mesh that it is not a member of, and waits to be admitted.",
            ],
            (
                ("On a member:", "octaskly invite"),
                ("Then here:", f"{self._command} join CODE"),
                ("A mesh of your own:", "octaskly agent --new-mesh"),
            ),
        )

    def _print(
        self, name: str, about: Sequence[str], commands: Sequence[tuple[str, str]]
    ) -> None:
        if self._startup_filter is None:
            return
        width = max(len(label) for label, _ in commands) + 2
        lines = [
            f"Octaskly {__version__}: node {name}, running until Ctrl-C",
            *about,
            "",
            *(f"  {label:{width}}{command}" for label, command in commands),
            "",
        ]
        print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201
