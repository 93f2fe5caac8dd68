"""What touches the files and processes of tasks: the agent, or a process of their user.

Where tasks run as another user, the agent may neither read what they made for
themselves, nor remove it, nor signal them. A steward does, with their rights and no
more: whatever tasks plant, it leads nowhere that they could not go themselves.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

from octaskly.config.account import Account
from octaskly.runner import launch_protocol
from octaskly.runner.files import task_user_helper
from octaskly.runner.files.scratch_folder import link_or_copy, make_scratch, remove_tree
from octaskly.runner.files.workdir import COPY_BYTES, missing_inputs, open_output
from octaskly.runner.processes import proc_tree
from octaskly.runner.python_command import import_folders, python_argv

REPLY_S = 10.0  #: later than this it is replaced: a task may have stopped it
START_S = 30.0  #: for the first answer: a busy machine takes long to start a Python
EXIT_WAIT_S = 1.0


class TaskUserOps(Protocol):
    """What must be done with the rights of tasks. All of it blocks."""

    def missing_inputs(self, workdir: Path, inputs: Iterable[str]) -> list[str]:
        """See `workdir.missing_inputs`."""

    def make_scratch(
        self, base: Path, workdir: Path, inputs: Iterable[str], cwd: str
    ) -> Path:
        """See `fresh.make_scratch`."""

    def open_output(self, workdir: Path, path: str) -> int:
        """See `workdir.open_output`."""

    def place_file(self, source: Path, folder: Path, path: str) -> None:
        """Have a file of the agent in a folder of an attempt, to be read."""

    def remove_folder(self, folder: Path, go_on: Callable[[], bool]) -> bool:
        """See `removal.remove_tree`."""

    def kill_marked(self, marks: set[bytes], pids: set[int]) -> set[int]:
        """See `tree.end_marked`."""

    def continue_processes(self, pids: set[int]) -> None:
        """See `tree.wake`."""

    def close(self) -> None:
        """Do no more."""


class SameUserOps:
    """For tasks that run as the agent's own user."""

    missing_inputs = staticmethod(missing_inputs)
    make_scratch = staticmethod(make_scratch)
    open_output = staticmethod(open_output)
    place_file = staticmethod(link_or_copy)
    remove_folder = staticmethod(remove_tree)
    kill_marked = staticmethod(proc_tree.kill_marked)
    continue_processes = staticmethod(proc_tree.continue_processes)

    def close(self) -> None:
        """Do nothing."""


class TaskUserHelper:
    """For tasks of another user: asks a process of that user; see `steward`.

    Any thread may use it; one waits for the other.

    Args:
        account: The user.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._frame_buffer = launch_protocol.FrameBuffer()
        self._is_closed = False

    def unwritable_folders(self, folders: Iterable[Path]) -> list[str]:
        """Return the folders in which tasks could not make files.

        Raises:
            OSError: nobody can become that user here.
        """
        found: list[str] = self._request(
            "unusable", [_path_bytes(folder) for folder in folders]
        )
        return found

    def missing_inputs(self, workdir: Path, inputs: Iterable[str]) -> list[str]:
        """Return those inputs that tasks would not find."""
        missing: list[str] = self._request(
            "missing", _path_bytes(workdir), list(inputs)
        )
        return missing

    def make_scratch(
        self, base: Path, workdir: Path, inputs: Iterable[str], cwd: str
    ) -> Path:
        """Make a folder that belongs to that user."""
        made = self._request(
            "scratch", _path_bytes(base), _path_bytes(workdir), list(inputs), cwd
        )
        folder = Path(os.fsdecode(made))
        if folder.parent != base:
            raise OSError(errno.EINVAL, "not a scratch folder", str(folder))
        return folder

    def open_output(self, workdir: Path, path: str) -> int:
        """Open a file that this user may read."""
        return self._request_with_fd("open", _path_bytes(workdir), path)[1]

    def place_file(self, source: Path, folder: Path, path: str) -> None:
        """Make a copy that belongs to that user, who may not see the original."""
        fd = self._request_with_fd("create", _path_bytes(folder), path)[1]
        with source.open("rb") as theirs, os.fdopen(fd, "wb") as ours:
            shutil.copyfileobj(theirs, ours, COPY_BYTES)

    def remove_folder(self, folder: Path, go_on: Callable[[], bool]) -> bool:
        """Remove a folder, a moment of work at a time."""
        is_cut = True
        with suppress(OSError):
            while is_cut and go_on():
                is_cut = self._request("remove", _path_bytes(folder))
        # What is the agent's own: from before tasks had a user, or the folder itself.
        return remove_tree(folder, go_on)

    def kill_marked(self, marks: set[bytes], pids: set[int]) -> set[int]:
        """Kill, as far as that user may."""
        return set(self._request("end", list(marks), list(pids)))

    def continue_processes(self, pids: set[int]) -> None:
        """Let processes go on, as far as that user may."""
        self._request("wake", list(pids))

    def close(self) -> None:
        """Let the process go, which sees the end of its socket."""
        with self._lock:
            self._is_closed = True
            self._close_helper()
            if self._process is not None:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(EXIT_WAIT_S)

    def _request(self, name: str, *fields: object) -> Any:
        value, fd = self._request_with_fd(name, *fields)
        if fd >= 0:
            os.close(fd)
        return value

    def _request_with_fd(self, name: str, *fields: object) -> tuple[Any, int]:
        """Return what it answers, and a descriptor or -1; raise its OSError."""
        with self._lock:
            try:
                code, value, fd = self._try_request([name, *fields])
            except OSError:  # Tasks may end it, or stop it; then there is another.
                code, value, fd = self._try_request([name, *fields])
        if code:
            raise OSError(code, value)
        return value, fd

    def _try_request(self, request: list[object]) -> tuple[int, Any, int]:
        try:
            if self._control is None:
                self._start()
            return self._exchange(request)
        except OSError as error:
            self._close_helper()
            text = f"no answer from a process of {self._account.name}: {error}"
            raise OSError(errno.EAGAIN, text) from error

    def _exchange(self, request: list[object]) -> tuple[int, Any, int]:
        assert self._control is not None
        self._control.sendall(launch_protocol.pack_frame([request]))
        fds: list[int] = []
        while True:
            data, more = launch_protocol.receive_with_fds(self._control)
            fds += more
            if not data:
                raise OSError(errno.EPIPE, "it has ended")
            for message in self._frame_buffer.add_data(data):
                self._control.settimeout(REPLY_S)  # By now it has started.
                code, value = cast("tuple[int, Any]", message)
                return code, value, fds[0] if fds else -1

    def _start(self) -> None:
        if self._is_closed:
            raise OSError(errno.EAGAIN, "this agent is stopping")
        before = self._process
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_S)
        self._frame_buffer = launch_protocol.FrameBuffer()
        groups = ",".join(map(str, self._account.groups))
        user = str(self._account.uid), str(self._account.gid), groups
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [*python_argv(task_user_helper.__file__), *user, *import_folders()],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"PATH": os.defpath},
                start_new_session=True,
            )
        if before is not None and before.poll() is None:
            self._exchange(["end", [], [before.pid]])
            before.wait()

    def _close_helper(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.poll()


def task_user_ops_for(account: Account | None) -> TaskUserOps:
    """Return what works for tasks of this user, or of the agent's."""
    return SameUserOps() if account is None else TaskUserHelper(account)


def _path_bytes(path: Path) -> bytes:
    return os.fsencode(path)
