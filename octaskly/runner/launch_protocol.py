"""What agent and launcher say to each other, as bytes.

Frames on the control socket: 4 bytes of length, big-endian, then a msgpack list of
messages, each a list. To the launcher: `run` and what `orders.run_order` says; `stop`
key verdict; `recall`: give back what has not begun; `freeze`, `thaw`; `file` key
is_given, with the descriptor of an empty file; `close`. From it: `ready`, before all
else, under a key that no attempt has; `alive` key pid; `full` key, which asks for a
file; `back` key; `lost` key reason; `end` key and what `outcome.outcome_of_end` reads.
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

NOT_STARTED = 126  #: exit code of what could not be executed

#: Errors of this moment and machine, not of the task: another attempt may go well.
RESOURCE_ERRORS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

#: What an agent under nohup, in the background of a script or in Python ignores would
#: be ignored by every task, and a `yes | head` would never end.
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
FDS_MAX = 16  #: descriptors that are sent with one piece of the byte stream

NAME_ENCODING_ERRORS = (
    "surrogateescape"  #: in settings, as names of files may be any bytes
)
_LENGTH = struct.Struct(">I")
_FD = struct.Struct("i")


def pack_frame(messages: list[list[object]]) -> bytes:
    """Return one frame."""
    body: bytes = msgpack.packb(messages)
    return _LENGTH.pack(len(body)) + body


def pack_results(results: list[list[object]], output_bytes: int) -> bytes:
    """Return results as one frame, or as one each when their output is large."""
    if output_bytes < FRAME_BYTES_SOFT:
        return pack_frame(results)
    return b"".join(pack_frame([end]) for end in results)


def receive_with_fds(control: socket.socket) -> tuple[bytes, list[int]]:
    """Return what has come: bytes, and descriptors that no child inherits."""
    # The library's `recv_fds` drops its flags.
    data, ancillary, *_ = control.recvmsg(
        RECEIVE_BYTES, socket.CMSG_LEN(FDS_MAX * _FD.size), socket.MSG_CMSG_CLOEXEC
    )
    fds = [fd for *_, items in ancillary for (fd,) in _FD.iter_unpack(items)]
    return data, fds


def encode_settings(settings: Mapping[str, object]) -> str:
    """Return settings as one word of a command line."""
    return bytes(
        msgpack.packb(dict(settings), unicode_errors=NAME_ENCODING_ERRORS)
    ).hex()


def decode_settings(word: str) -> dict[str, Any]:
    """Reverse `encode_settings`."""
    settings: dict[str, Any] = msgpack.unpackb(
        bytes.fromhex(word), unicode_errors=NAME_ENCODING_ERRORS
    )
    return settings


def msgpack_folder() -> str:
    """Return the folder that a launcher needs on its path besides this package's."""
    return str(Path(msgpack.__file__).parent.parent)


class FrameBuffer:
    """Cuts a byte stream into frames."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add_data(self, data: bytes) -> list[list[object]]:
        """Take bytes; return the messages that are complete."""
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
