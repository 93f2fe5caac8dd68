"""The helper process that runs file and process operations as the tasks' user.

The agent starts it by file, like a launcher, with a socket as stdin. A request is a
frame with one message: a name and fields. A reply is a frame with one message: 0 and a
value, possibly with a descriptor; or the number and text of an error. The helper exits
when the socket closes.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # As in the launcher: the agent passes the folders of this package and of msgpack.
    sys.path[:] = [*sys.argv[4:], *sys.path[1:]]

from octaskly.runner.files.same_folder import FolderProblem, find_folder_problem
from octaskly.runner.files.scratch_folder import (
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
from octaskly.runner.launch_protocol import FrameBuffer, pack_frame, receive_with_fds
from octaskly.runner.processes import proc_tree
from octaskly.runner.processes.privileges import switch_user

REMOVE_S = 0.2  #: for one request, as other requests wait


def handle_request(name: str, fields: list[Any]) -> tuple[object, int]:
    """Handle a request; return a value, and a descriptor or -1.

    Raises:
        OSError: the operation failed.
    """
    if (opening := _OPENING.get(name)) is not None:
        return None, opening(*fields)
    return _OPERATIONS[name](*fields), -1


_OPERATIONS: dict[str, Callable[..., object]] = {
    "unusable": lambda folders: [
        folder for folder in map(os.fsdecode, folders) if not _is_usable(folder)
    ],
    "missing": lambda workdir, inputs: missing_inputs(_path(workdir), inputs),
    "folder": lambda folder, name, sha256, may_write: _packed_problem(
        find_folder_problem(os.fsdecode(folder), name, sha256, may_write=may_write)
    ),
    "scratch": lambda base, workdir, inputs, cwd: os.fsencode(
        make_scratch(_path(base), _path(workdir), inputs, cwd)
    ),
    "find": lambda workdir, path: _packed(find_entry(_path(workdir), path)),
    "list": lambda workdir, path: [
        _packed(entry) for entry in list_folder(_path(workdir), os.fsdecode(path))
    ],
    "finish": lambda folder, files: finish_files(_path(folder), files),
    "links": lambda folder, links: make_links(_path(folder), links),
    "folders": lambda folder, paths: make_folders(_path(folder), paths),
    "above": lambda folder, paths: make_output_folders(_path(folder), paths),
    "remove": lambda folder: _is_removal_unfinished(_path(folder)),
    # For the agent, this process looks like one that a task left.
    "end": lambda marks, pids: list(
        proc_tree.kill_marked(set(marks), set(pids) - {os.getpid()})
    ),
    "wake": proc_tree.continue_processes,
}
_OPENING: dict[str, Callable[..., int]] = {
    "create": lambda folder, path: create_file(_path(folder), path),
    "open": lambda workdir, path: open_output(_path(workdir), path),
}


def _packed(entry: FolderEntry) -> list[object]:
    """Return an entry for a message; names of files may be any bytes."""
    name, mode, size_bytes, mtime_ns, target = entry
    return [os.fsencode(name), mode, size_bytes, mtime_ns, os.fsencode(target)]


def _packed_problem(problem: FolderProblem | None) -> list[object] | None:
    return None if problem is None else [problem.kind, os.fsencode(problem.path)]


def _path(raw: bytes) -> Path:
    return Path(os.fsdecode(raw))


def _is_usable(folder: str) -> bool:
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK)


def _is_removal_unfinished(folder: Path) -> bool:
    """Remove for up to `REMOVE_S`; return True if time ran out before the end."""
    until_s = time.monotonic() + REMOVE_S
    is_gone = remove_tree(folder, lambda: time.monotonic() < until_s)
    return not is_gone and time.monotonic() >= until_s


def serve_requests(control: socket.socket) -> None:
    """Handle requests until the agent closes the socket."""
    inbox = FrameBuffer()
    while True:
        data, fds = receive_with_fds(control)
        for fd in fds or ():
            os.close(fd)
        if not data:
            return
        for name, *fields in inbox.add_data(data):
            fd = -1
            try:
                value, fd = handle_request(str(name), fields)
                reply = pack_frame([[0, value]])
            except OSError as error:
                reply = pack_frame([[error.errno or 5, str(error.strerror or error)]])
            if fd >= 0:
                socket.send_fds(control, [reply], [fd])
                os.close(fd)
            else:
                control.sendall(reply)


def main() -> None:
    """Run as `task_user_helper.py UID GID GROUP,... FOLDER...`."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=os.dup(0))
    uid, gid, groups = sys.argv[1:4]
    switch_user(
        int(uid), int(gid), [int(group) for group in groups.split(",") if group]
    )
    with suppress(OSError):  # The agent is gone, or has closed its socket.
        serve_requests(control)


if __name__ == "__main__":
    main()
