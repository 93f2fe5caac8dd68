"""Performs the calls of an `Executor` in the process of a task.

Started by its file, in whatever interpreter was chosen there: so it needs the standard
library and cloudpickle alone, and nothing else of this package.

A parcel is some parts, one behind the other, then JSON that tells their sizes, then the
length of that JSON. It comes as stdin; parts of it may lie in files instead. The answer
is a parcel too: on stdout, or in a file where it is large.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # What lies beside this file must not hide modules of the same name.
    del sys.path[0]

import json
import mmap
import os
import pickle
import struct
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

INLINE_BYTES_MAX = 256 << 10  #: of a parcel in stdin or stdout
RESULT_BYTES_MAX = 1 << 30  #: of one in a file: what a node keeps of a task
RESULT_FILE = "octaskly.result"  #: in the folder of the task
PICKLE_PROTOCOL = 5  #: of pickles; the first with buffers beside them
PAYLOAD_VERSION = 1  #: of parcels

_ALIGNMENT = 64  #: arrays want their numbers at round addresses
_LENGTH = struct.Struct(">Q")

Dumps = Callable[..., bytes]


class InvalidPayload(ValueError):
    """These bytes are no parcel, or not all of one."""


def python_version() -> str:
    """Return what two interpreters must have in common to exchange functions."""
    return "{}.{}".format(*sys.version_info)


def pickle_value(value: object, dumps: Dumps) -> list[bytes | memoryview]:
    """Return a pickle and the large buffers that it refers to, not copied."""
    buffers: list[pickle.PickleBuffer] = []
    first = dumps(value, protocol=PICKLE_PROTOCOL, buffer_callback=buffers.append)
    try:
        return [first, *(buffer.raw() for buffer in buffers)]
    except BufferError:  # One is not in one piece.
        return [dumps(value, protocol=PICKLE_PROTOCOL)]


def payload_bytes(parts: Sequence[bytes | memoryview]) -> int:
    """Return how many bytes a parcel of these parts takes, without its JSON."""
    return sum(len(part) + _padding(len(part)) for part in parts)


def encode_payload(
    parts: Sequence[bytes | memoryview | str], header: dict[str, Any]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a parcel; a text is the name of the file with that part."""
    for part in parts:
        if not isinstance(part, str):
            yield part
            yield bytes(_padding(len(part)))
    sizes = [part if isinstance(part, str) else len(part) for part in parts]
    text = json.dumps(
        {**header, "payload_version": PAYLOAD_VERSION, "parts": sizes}
    ).encode()
    yield text
    yield _LENGTH.pack(len(text))


def decode_payload(data: memoryview) -> tuple[dict[str, Any], list[memoryview]]:
    """Return what is told of a parcel, and its parts; those in files are opened.

    Raises:
        NoParcel: it is none.
        OSError: a file is not there.
    """
    try:
        end = len(data) - _LENGTH.size
        begin = end - _LENGTH.unpack(data[end:])[0]
        told: dict[str, Any] = json.loads(bytes(data[max(begin, 0) : end]))
        sizes = told["parts"]
    except (ValueError, KeyError, TypeError, struct.error):
        raise InvalidPayload("this is no parcel") from None
    parts: list[memoryview] = []
    place = 0
    for size in sizes:
        if isinstance(size, str):
            parts.append(map_file(size))
            continue
        parts.append(data[place : place + size])
        place += size + _padding(size)
    if place != begin:
        raise InvalidPayload("the parcel is not whole")
    return told, parts


def map_file(path: str) -> memoryview:
    """Return the bytes of a file; what is changed there stays in this process."""
    with open(path, "rb") as file:  # noqa: PTH123 - no Path for one call
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def unpickle(parts: Sequence[memoryview]) -> Any:
    """Return the value that was pickled."""
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - made by a caller


def _padding(size: int) -> int:
    return -size % _ALIGNMENT


def _main() -> int:
    """Take a parcel from stdin, perform its calls, answer; return an exit code."""
    # Whatever else is printed here is for people who read the log of the task.
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    folder_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    data = memoryview(bytearray(sys.stdin.buffer.read()))
    parts, told = _perform_calls(data)
    if payload_bytes(parts) > RESULT_BYTES_MAX:
        told = {"kind": "too-large", "bytes": payload_bytes(parts)}
        parts = []
    _write_result(parts, told, answer_fd, folder_fd)
    return 0 if told["kind"] == "value" else 1


def _perform_calls(data: memoryview) -> tuple[list[Any], dict[str, Any]]:
    told, parts = decode_payload(data)
    del data
    if (why := _interpreter_mismatch(told)) is not None:
        return [], {"kind": "mismatch", "text": why}
    import cloudpickle  # noqa: PLC0415 - the mismatch is said first

    dumps = cloudpickle.dumps
    try:
        function, calls, is_chunk = unpickle(parts)
        del parts
        values = [function(*arguments, **named) for arguments, named in calls]
        value = values if is_chunk else values[0]
        del function, calls, values
    except BaseException as error:  # noqa: BLE001 - SystemExit, too, is an answer
        return _encode_exception(error, dumps)
    try:
        return pickle_value(value, dumps), {"kind": "value"}
    except BaseException as error:  # noqa: BLE001
        what = f"the result, of type {type(value).__name__}, cannot be pickled"
        text = f"{what}: {type(error).__name__}: {error}"
        return [], {"kind": "unpicklable", "text": text}


def _interpreter_mismatch(header: dict[str, Any]) -> str | None:
    """Return why this interpreter cannot take these pickles."""
    here, there = python_version(), header["python"]
    if here != there:
        return f"{sys.executable} is Python {here}, and the call comes from {there}"
    try:
        import cloudpickle  # noqa: PLC0415
    except ImportError as error:
        return f"{sys.executable} cannot import cloudpickle ({error})"
    here, there = cloudpickle.__version__, header["cloudpickle"]
    if here.partition(".")[0] != there.partition(".")[0]:
        where = f"{sys.executable} has cloudpickle {here}"
        return f"{where}, and the call comes from {there}"
    return None


def _encode_exception(
    error: BaseException, dumps: Dumps
) -> tuple[list[Any], dict[str, Any]]:
    """Return the answer for an exception: itself where it can be pickled, and text."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    sys.stderr.write(text)
    kind = type(error)
    told = {
        "kind": "error",
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "text": str(error),
        "traceback": text,
    }
    with suppress(BaseException):
        return pickle_value(error.with_traceback(None), dumps), told
    return [], told


def _write_result(
    parts: Sequence[bytes | memoryview],
    header: dict[str, Any],
    result_fd: int,
    folder_fd: int,
) -> None:
    fd = result_fd
    if payload_bytes(parts) > INLINE_BYTES_MAX:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(RESULT_FILE, flags, 0o600, dir_fd=folder_fd)
    for piece in encode_payload(parts, header):
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]
    os.close(fd)
    if fd != result_fd:
        for piece in encode_payload([], {"kind": "file"}):
            os.write(result_fd, piece)


if __name__ == "__main__":
    sys.exit(_main())
