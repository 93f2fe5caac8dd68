"""File and process operations with the rights of the tasks' user.

If tasks run as another user, the agent may neither read or remove their private files
nor signal them. A helper process of that user does this with the same rights as the
tasks. So a link that a task creates leads only to files that the task could open.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from octaskly.config.task_account import Account
from octaskly.config.users import user_name
from octaskly.runner import launch_protocol
from octaskly.runner.files import task_user_helper
from octaskly.runner.files.same_folder import FolderProblem, find_folder_problem
from octaskly.runner.files.scratch_folder import (
    FinishedFile,
    create_file,
    finish_files,
    make_folders,
    make_links,
    make_output_folders,
    make_scratch,
    remove_tree,
)
from octaskly.runner.files.workdir import (
    FolderEntry,
    find_entry,
    list_folder,
    missing_inputs,
    open_output,
)
from octaskly.runner.processes import proc_tree
from octaskly.runner.python_command import import_folders, python_argv

REPLY_S = 10.0  #: timeout; then the helper is replaced, as a task may have stopped it
START_S = 30.0  #: timeout of the first reply: on a busy machine, Python starts slowly
EXIT_WAIT_S = 1.0
BATCH: Final = 500  #: files per request, as other requests wait

#: Requests that fail if they are repeated, though the first one got no answer.
_DONE_ONCE: Final = frozenset({"scratch", "create", "links"})

_T = TypeVar("_T")


class SameUserOps:
    """Operations for tasks that run as the agent's own user."""

    @property
    def user(self) -> str:
        """The name of the agent's user."""
        return user_name(os.geteuid())

    missing_inputs = staticmethod(missing_inputs)
    find_folder_problem = staticmethod(find_folder_problem)
    make_scratch = staticmethod(make_scratch)
    find_entry = staticmethod(find_entry)
    list_folder = staticmethod(list_folder)
    open_output = staticmethod(open_output)
    create_file = staticmethod(create_file)
    finish_files = staticmethod(finish_files)
    make_links = staticmethod(make_links)
    make_folders = staticmethod(make_folders)
    make_output_folders = staticmethod(make_output_folders)
    remove_folder = staticmethod(remove_tree)
    kill_marked = staticmethod(proc_tree.kill_marked)
    continue_processes = staticmethod(proc_tree.continue_processes)

    def close(self) -> None:
        """Do nothing."""


class TaskUserHelper:
    """Operations for tasks of another user, by a process of that user.

    `task_user_helper` is that process. It starts on demand and is restarted on errors.
    Thread-safe: requests run one after the other.

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

    @property
    def user(self) -> str:
        """The name of the user."""
        return self._account.name

    def unwritable_folders(self, folders: Iterable[Path]) -> list[str]:
        """Return the folders in which tasks could not create files.

        Raises:
            OSError: the helper could not run as that user.
        """
        found: list[str] = self._request(
            "unusable", [_path_bytes(folder) for folder in folders]
        )
        return found

    def missing_inputs(self, workdir: Path, inputs: Iterable[str]) -> list[str]:
        """Return the inputs that tasks would not find."""
        missing: list[str] = self._request(
            "missing", _path_bytes(workdir), list(inputs)
        )
        return missing

    def find_folder_problem(
        self, folder: str, name: str, sha256: str, *, may_write: bool
    ) -> FolderProblem | None:
        """Return why tasks could not run in a client's folder; None if they can."""
        found = self._request("folder", os.fsencode(folder), name, sha256, may_write)
        if found is None:
            return None
        kind, path = found
        return FolderProblem(kind, os.fsdecode(path))

    def make_scratch(
        self, base: Path, workdir: Path, inputs: Iterable[str], cwd: str
    ) -> Path:
        """Create a scratch folder that belongs to that user."""
        made = self._request(
            "scratch", _path_bytes(base), _path_bytes(workdir), list(inputs), cwd
        )
        folder = Path(os.fsdecode(made))
        if folder.parent != base:
            raise OSError(errno.EINVAL, "not a scratch folder", str(folder))
        return folder

    def find_entry(self, workdir: Path, path: str) -> FolderEntry:
        """Return a file or folder that this user can see."""
        return _unpacked(self._request("find", _path_bytes(workdir), path))

    def list_folder(self, workdir: Path, path: str) -> list[FolderEntry]:
        """Return the entries of a folder that this user may list."""
        entries = self._request("list", _path_bytes(workdir), os.fsencode(path))
        return [_unpacked(entry) for entry in entries]

    def open_output(self, workdir: Path, path: str) -> int:
        """Open an output that this user may read."""
        return self._request_with_fd("open", _path_bytes(workdir), path)[1]

    def create_file(self, folder: Path, path: str) -> int:
        """Create a file that belongs to that user; return a descriptor to write it."""
        return self._request_with_fd("create", _path_bytes(folder), path)[1]

    def finish_files(self, folder: Path, files: Sequence[FinishedFile]) -> None:
        """Set modes and times, in several short requests."""
        for part in batched(files):
            self._request("finish", _path_bytes(folder), part)

    def make_links(self, folder: Path, links: Sequence[tuple[str, str]]) -> None:
        """Create links that belong to that user, in several short requests."""
        for part in batched(links):
            self._request("links", _path_bytes(folder), part)

    def make_folders(self, folder: Path, paths: Sequence[str]) -> None:
        """Create folders that belong to that user, in several short requests."""
        for part in batched(paths):
            self._request("folders", _path_bytes(folder), part)

    def make_output_folders(self, folder: Path, outputs: Sequence[str]) -> None:
        """Create folders that belong to that user, in several short requests."""
        for part in batched(outputs):
            self._request("above", _path_bytes(folder), part)

    def remove_folder(self, folder: Path, may_continue: Callable[[], bool]) -> bool:
        """Remove a folder in several short requests."""
        is_unfinished = True
        with suppress(OSError):
            while is_unfinished and may_continue():
                is_unfinished = self._request("remove", _path_bytes(folder))
        # The agent removes the rest: the folder itself, and files of tasks that ran as
        # the agent's user.
        return remove_tree(folder, may_continue)

    def kill_marked(self, marks: set[bytes], pids: set[int]) -> set[int]:
        """Kill the processes that this user may kill."""
        return set(self._request("end", list(marks), list(pids)))

    def continue_processes(self, pids: set[int]) -> None:
        """Continue stopped processes that this user may signal."""
        self._request("wake", list(pids))

    def close(self) -> None:
        """Close the socket, so that the helper exits; wait up to `EXIT_WAIT_S`."""
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
        """Return the helper's value, and a descriptor or -1; raise its OSError."""
        with self._lock:
            try:
                code, value, fd = self._try_request([name, *fields])
            except OSError:  # A task may have killed or stopped it: start another one.
                if name in _DONE_ONCE:
                    raise
                code, value, fd = self._try_request([name, *fields])
        if code:
            raise OSError(code, value)
        return value, fd

    def _try_request(self, request: list[object]) -> tuple[int, Any, int]:
        if self._process is not None and self._process.poll() is not None:
            self._close_helper()
        try:
            if self._control is None:
                self._start()
            return self._exchange(request)
        except OSError as error:
            self._close_helper()
            text = f"no answer from the helper of user {self._account.name}: {error}"
            raise OSError(errno.EAGAIN, text) from error

    def _exchange(self, request: list[object]) -> tuple[int, Any, int]:
        assert self._control is not None
        self._control.sendall(launch_protocol.pack_frame([request]))
        fds: list[int] | None = None
        while True:
            data, received = launch_protocol.receive_with_fds(self._control)
            fds = fds if received is None else received
            if fds == []:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if not data:
                raise OSError(errno.EPIPE, "it has ended")
            for message in self._frame_buffer.add_data(data):
                self._control.settimeout(REPLY_S)  # It has started.
                code, value = cast("tuple[int, Any]", message)
                return code, value, fds[0] if fds else -1

    def _start(self) -> None:
        if self._is_closed:
            raise OSError(errno.EAGAIN, "this agent is shutting down")
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


TaskUserOps = SameUserOps | TaskUserHelper
"""Operations that need the rights of the tasks' user. All methods block."""


def task_user_ops_for(account: Account | None) -> TaskUserOps:
    """Return the operations for tasks of `account`; None: the agent's user."""
    return SameUserOps() if account is None else TaskUserHelper(account)


def batched(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Yield the items in parts of `BATCH`."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _unpacked(fields: list[Any]) -> FolderEntry:
    name, mode, size_bytes, mtime_ns, target = fields
    return FolderEntry(
        os.fsdecode(name), mode, size_bytes, mtime_ns, os.fsdecode(target)
    )


def _path_bytes(path: Path) -> bytes:
    return os.fsencode(path)
