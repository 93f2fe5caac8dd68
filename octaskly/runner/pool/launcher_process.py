"""The agent's handle of one launcher: its process and its control socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from octaskly.runner import launch_protocol
from octaskly.runner.launch_protocol import RESET_SIGNALS
from octaskly.runner.launcher import launcher
from octaskly.runner.python_command import import_folders, python_argv

CONTROL_FD, BEGUN_FD = 3, 4  #: the launcher's descriptors
KEY_BYTES = 8
STOP_S = 6.0  #: timeout for a closing launcher to kill its process trees

#: Variables that concern only the agent and are never passed to tasks.
PRIVATE_NAMES = ("NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "PYTHONHOME")
PRIVATE_PREFIXES = ("OCTASKLY_", "WATCHDOG_", "LISTEN_")

LauncherMessage = list[Any]

#: Variables that activating a virtual environment sets, apart from `PATH`.
VENV_NAMES = ("VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT")

OWN_VENV: Final = (
    os.path.realpath(sys.prefix) if sys.prefix != sys.base_prefix else None
)
"""The virtual environment that this program is installed in; None without one."""


def task_environment(
    environ: Mapping[str, str], venv: str | None = OWN_VENV
) -> dict[str, str]:
    """Return the part of the agent's environment that tasks may see.

    A task's `python3` and `pip` are those of the machine: without this, `pip install`
    in a task would change the agent's own installation.

    Args:
        environ: The environment of the agent.
        venv: The agent's virtual environment, with all links resolved; tasks do not
            see it even if it is activated. Another one that is activated stays.
    """
    env = {
        name: value
        for name, value in environ.items()
        if name not in PRIVATE_NAMES and not name.startswith(PRIVATE_PREFIXES)
    }
    if venv is None:
        return env
    if os.path.realpath(env.get("VIRTUAL_ENV", "/")) == venv:
        env = {name: value for name, value in env.items() if name not in VENV_NAMES}
    if "PATH" in env:
        folders = env.pop("PATH").split(":")
        programs = f"{venv}/bin"
        if kept := [one for one in folders if os.path.realpath(one) != programs]:
            # If none is left, a shell searches its default folders.
            env["PATH"] = ":".join(kept)
    return env


class LauncherProcess:
    """A launcher process, from its start to its exit.

    Args:
        settings: The settings that `launcher.Launcher` reads.
        env: Environment of the launcher, which its tasks inherit.
        on_messages: Called with the messages that it sent.
        on_exit: Called once, after the exit and after the last `on_messages`.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        settings: Mapping[str, object],
        *,
        env: Mapping[str, str],
        on_messages: Callable[[list[LauncherMessage]], None],
        on_exit: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_messages = on_messages
        self._on_exit = on_exit
        self._frame_buffer = launch_protocol.FrameBuffer()
        self._outbox = bytearray()
        self._is_blocked = False  #: the socket buffer is full; the rest is sent later
        #: Descriptors of messages in the outbox, to be sent with its bytes.
        self._fds: deque[list[int]] = deque()
        self.was_ready = False  #: it has started completely, and can run orders
        self.begun_key = 0  #: of the last order that it began; known at its exit
        with ExitStack() as on_error:
            self._control, theirs = socket.socketpair()
            on_error.enter_context(self._control)
            with theirs:
                self._begun_fd = os.memfd_create("begun", os.MFD_CLOEXEC)
                on_error.callback(os.close, self._begun_fd)
                os.write(self._begun_fd, bytes(KEY_BYTES))
                self.pid = _spawn(settings, env, theirs.fileno(), self._begun_fd)
            on_error.callback(os.waitpid, self.pid, 0)
            on_error.callback(os.kill, self.pid, signal.SIGKILL)
            self._pid_fd = os.pidfd_open(self.pid)
            on_error.pop_all()
        self._control.settimeout(0)
        self._loop.add_reader(self._control, self._receive)
        self._loop.add_reader(self._pid_fd, self._on_exited)
        self.exited = self._loop.create_future()  #: done when the process has ended

    def send(
        self, messages: list[LauncherMessage], fds: Sequence[list[int]] = ()
    ) -> None:
        """Send at once, or as soon as the socket buffer has room.

        Args:
            messages: What to send.
            fds: Descriptors of each message that has some; this object closes them.
        """
        self._outbox += launch_protocol.pack_frame(messages)
        self._fds += fds
        self._flush()

    def _flush(self) -> None:
        # Descriptors may arrive before their message, but never after it. Those of two
        # messages are never sent together: if some are lost, it is known whose.
        while len(self._fds) > 1 and self._send_piece(1):
            pass
        if len(self._fds) <= 1:
            self._send_piece(len(self._outbox))
        if bool(self._outbox) == self._is_blocked:
            return
        self._is_blocked = not self._is_blocked
        if self._is_blocked:
            self._loop.add_writer(self._control, self._flush)
        else:
            self._loop.remove_writer(self._control)

    def _send_piece(self, size: int) -> bool:
        """Send up to `size` bytes, and descriptors; return True if any were sent."""
        fds = self._fds[0] if self._fds else []
        piece = self._outbox if size >= len(self._outbox) else self._outbox[:size]
        try:
            if fds:
                sent = socket.send_fds(self._control, [piece], fds)
            else:
                sent = self._control.send(piece)
        except BlockingIOError:
            return False
        except OSError:
            # The launcher is exiting: drop the rest; `_on_exited` follows.
            sent = len(self._outbox)
            self._close_fds(len(self._fds))
            fds = []
        del self._outbox[:sent]
        self._close_fds(bool(fds))
        return True

    def _close_fds(self, messages: int) -> None:
        """Close the descriptors of the first so many messages that have some."""
        for _ in range(messages):
            for fd in self._fds.popleft():
                os.close(fd)

    def _receive(self) -> None:
        data = self._read()
        if data:
            self._handle_data(data)
        elif data is not None:
            self._loop.remove_reader(self._control)  # It is exiting: see `_on_exited`.

    def _read(self) -> bytes | None:
        """Return received bytes; None if there are none, `b""` at the end."""
        try:
            return self._control.recv(launch_protocol.RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _handle_data(self, data: bytes) -> None:
        self.was_ready = True  # Its first message is `ready`.
        if messages := self._frame_buffer.add_data(data):
            self._on_messages(messages)

    def _on_exited(self) -> None:
        """Reap the process, deliver its last messages and close everything."""
        os.waitpid(self.pid, 0)
        self._loop.remove_reader(self._pid_fd)
        os.close(self._pid_fd)
        key = os.pread(self._begun_fd, KEY_BYTES, 0)
        self.begun_key = int.from_bytes(key, sys.byteorder)
        os.close(self._begun_fd)
        while data := self._read():
            self._handle_data(data)
        self._loop.remove_reader(self._control)
        self._loop.remove_writer(self._control)
        self._control.close()
        self._close_fds(len(self._fds))
        if not self.exited.done():
            self.exited.set_result(None)
        self._on_exit()

    def was_stopped(self) -> bool:
        """Return True if SIGSTOP has stopped it since the last call."""
        if self.exited.done():
            return False
        try:
            look = os.WSTOPPED | os.WNOHANG
            return os.waitid(os.P_PIDFD, self._pid_fd, look) is not None
        except ChildProcessError:  # It has exited; `_on_exited` follows.
            return False

    async def stop(self) -> bool:
        """Make it kill its process trees and exit; return True if it has exited."""
        if not self.exited.done():
            self.send([["close"]])
        try:
            async with asyncio.timeout(STOP_S):
                await asyncio.shield(self.exited)
        except TimeoutError:
            return False
        return True


def _spawn(
    settings: Mapping[str, object],
    env: Mapping[str, str],
    control_fd: int,
    begun_fd: int,
) -> int:
    """Start a launcher; return its pid."""
    words = [
        *python_argv(launcher.__file__),
        *(str(CONTROL_FD), str(BEGUN_FD)),
        *(launch_protocol.encode_settings(settings), *import_folders()),
    ]
    null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        return os.posix_spawn(
            words[0],
            words,
            env,
            file_actions=(
                (os.POSIX_SPAWN_DUP2, null_fd, 0),
                (os.POSIX_SPAWN_DUP2, null_fd, 1),
                (os.POSIX_SPAWN_DUP2, control_fd, CONTROL_FD),
                (os.POSIX_SPAWN_DUP2, begun_fd, BEGUN_FD),
            ),
            # Its own session, so that Ctrl-C reaches the agent alone.
            setsid=True,
            setsigdef=RESET_SIGNALS,
            setsigmask=(),
        )
    finally:
        os.close(null_fd)
