"""The protocol between agent and launcher.

A frame on the control socket is a 4-byte big-endian length, then a msgpack list of
messages. Each message is a list of its name and its fields.

To the launcher, each with its descriptors, if any, in a system call of its own:

- `run`: start an attempt; the fields are those of `launch_messages.build_start_order`.
- `stop` key reason: end an attempt.
- `recall`: return the attempts that have not started.
- `freeze`, `thaw`: stop or continue all tasks.
- `file` key is_given: write the output to a new file, whose descriptor is attached.
- `close`: end all tasks and exit.

From the launcher:

- `ready` key: the first message; no attempt has this key.
- `alive` key pid: the attempt is running.
- `full` key: the output needs a file.
- `back` key: the attempt was not started.
- `refused` key reason: the machine lacked a resource to start the attempt.
- `end` key: the attempt ended; `launch_messages.outcome_of_end` reads the other fields.

Before a launcher starts an attempt, it writes the key to a file in memory, which the
agent reads when the launcher has exited. Orders have increasing keys, and are begun in
this order, so the agent knows those that had not begun.
"""

from __future__ import annotations

import errno
import signal
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack

NOT_STARTED = 126  #: exit code of a command that could not be executed

#: Temporary errors of this machine, not of the task: another attempt may succeed.
RESOURCE_ERRORS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

#: A process inherits ignored signals. An agent ignores some of these under nohup, in
#: the background of a script, and because Python does. A task that inherited them would
#: misbehave: `yes | head` would never end.
RESET_SIGNALS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGALRM,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGXFSZ,
)


FRAME_BYTES_SOFT = 1 << 20
RECEIVE_BYTES = 1 << 18
FDS_MAX = 16  #: descriptors of one message
ORDERS_WAITING_MAX = 120  #: in one launcher, to keep it busy

#: Settings contain file names, which may be any bytes.
NAME_ENCODING_ERRORS = "surrogateescape"
_LENGTH = struct.Struct(">I")
_FD = struct.Struct("i")


def pack_frame(messages: list[list[object]]) -> bytes:
    """Return messages as one frame."""
    body: bytes = msgpack.packb(messages)
    return _LENGTH.pack(len(body)) + body


def pack_results(results: list[list[object]], output_bytes: int) -> bytes:
    """Return results as one frame, or as a frame each if their output is large."""
    if output_bytes < FRAME_BYTES_SOFT:
        return pack_frame(results)
    return b"".join(pack_frame([end]) for end in results)


def receive_with_fds(control: socket.socket) -> tuple[bytes, list[int] | None]:
    """Return the received bytes, and descriptors that no child inherits.

    Returns:
        The bytes, and the descriptors that one system call sent; None if it sent none.
        The kernel drops those that exceed the limit of this process.
    """
    # `socket.recv_fds` ignores its `flags` argument.
    data, ancillary, flags, _ = control.recvmsg(
        RECEIVE_BYTES, socket.CMSG_LEN(FDS_MAX * _FD.size), socket.MSG_CMSG_CLOEXEC
    )
    if not (ancillary or flags & socket.MSG_CTRUNC):
        return data, None
    return data, [fd for *_, items in ancillary for (fd,) in _FD.iter_unpack(items)]


def encode_settings(settings: Mapping[str, object]) -> str:
    """Return settings as one command-line argument."""
    return bytes(
        msgpack.packb(dict(settings), unicode_errors=NAME_ENCODING_ERRORS)
    ).hex()


def decode_settings(word: str) -> dict[str, Any]:
    """Return the settings that `encode_settings` encoded."""
    settings: dict[str, Any] = msgpack.unpackb(
        bytes.fromhex(word), unicode_errors=NAME_ENCODING_ERRORS
    )
    return settings


def msgpack_folder() -> str:
    """Return the folder that contains msgpack, which a launcher needs on its path."""
    return str(Path(msgpack.__file__).parent.parent)


class FrameBuffer:
    """Splits a byte stream into frames."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add_data(self, data: bytes) -> list[list[object]]:
        """Add received bytes; return the messages that are complete."""
        buffer = self._buffer
        buffer += data
        messages: list[list[object]] = []
        while len(buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            messages.extend(msgpack.unpackb(bytes(buffer[_LENGTH.size : end])))
            del buffer[:end]
        return messages
