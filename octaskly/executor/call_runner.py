"""The program that runs the calls of an `Executor` in the process of a task.

It is started by file name in the interpreter that the caller chose. It therefore
imports only the standard library and cloudpickle, and nothing else of this package.

A payload is a sequence of parts, then a JSON header with their sizes, then the length
of the header. A part may be in a file instead. The call's payload arrives on stdin. The
result is a payload on stdout, or in a file if it is large.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Files beside this one must not shadow other modules.
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

INLINE_BYTES_MAX = 256 << 10  #: of a payload on stdin or stdout
RESULT_BYTES_MAX = 1 << 30  #: of a payload in a file; a node keeps no larger output
RESULT_FILE = "octaskly.result"  #: in the working folder of the task
TEXT_CHARS_MAX = 16 << 10
"""Of each text in a header: JSON has up to 12 bytes for a character, and a node keeps a
MiB of stdout."""
PICKLE_PROTOCOL = 5  #: the first protocol with out-of-band buffers
PAYLOAD_VERSION = 1  #: version of the payload format

_ALIGNMENT = 64  #: arrays need aligned buffers
_LENGTH = struct.Struct(">Q")

Dumps = Callable[..., bytes]


class InvalidPayload(ValueError):
    """The bytes are not a complete payload."""


def python_version() -> str:
    """Return the minor Python version, which caller and node must share."""
    return "{}.{}".format(*sys.version_info)


def pickle_value(value: object, dumps: Dumps) -> list[bytes | memoryview]:
    """Return a pickle, then its out-of-band buffers, which are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    first = dumps(value, protocol=PICKLE_PROTOCOL, buffer_callback=buffers.append)
    try:
        return [first, *(buffer.raw() for buffer in buffers)]
    except BufferError:  # A buffer is not contiguous.
        return [dumps(value, protocol=PICKLE_PROTOCOL)]


def payload_bytes(parts: Sequence[bytes | memoryview]) -> int:
    """Return the size in bytes of a payload with these parts, without header."""
    return sum(len(part) + _padding(len(part)) for part in parts)


def encode_payload(
    parts: Sequence[bytes | memoryview | str], header: dict[str, Any]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a payload; a `str` part is the name of a file."""
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
    """Return the header and the parts of a payload; map the parts in files.

    Raises:
        InvalidPayload: the bytes are not a complete payload.
        OSError: a file cannot be read.
    """
    try:
        end = len(data) - _LENGTH.size
        begin = end - _LENGTH.unpack(data[end:])[0]
        header: dict[str, Any] = json.loads(bytes(data[max(begin, 0) : end]))
        sizes = header["parts"]
    except (ValueError, KeyError, TypeError, struct.error):
        raise InvalidPayload("these bytes are not a payload") from None
    parts: list[memoryview] = []
    place = 0
    for size in sizes:
        if isinstance(size, str):
            parts.append(map_file(size))
            continue
        parts.append(data[place : place + size])
        place += size + _padding(size)
    if place != begin:
        raise InvalidPayload("the payload is incomplete")
    return header, parts


def map_file(path: str) -> memoryview:
    """Map a file into memory; changes to it stay in this process."""
    with open(path, "rb") as file:  # noqa: PTH123 - no Path for one call
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def unpickle(parts: Sequence[memoryview]) -> Any:
    """Return the value that was pickled."""
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - made by a caller


def _padding(size: int) -> int:
    return -size % _ALIGNMENT


def _main() -> int:
    """Read a payload from stdin, run its calls, write the result."""
    # Send everything that the call prints to stderr: stdout carries the result.
    result_fd = os.dup(1)
    os.dup2(2, 1)
    folder_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    data = memoryview(bytearray(sys.stdin.buffer.read()))
    parts, header = _perform_calls(data)
    if payload_bytes(parts) > RESULT_BYTES_MAX:
        header = {"kind": "too-large", "bytes": payload_bytes(parts)}
        parts = []
    _write_result(parts, header, result_fd, folder_fd)
    return 0 if header["kind"] == "value" else 1


def _perform_calls(data: memoryview) -> tuple[list[Any], dict[str, Any]]:
    header, parts = decode_payload(data)
    del data
    if (mismatch := _interpreter_mismatch(header)) is not None:
        return [], {"kind": "mismatch", "executable": sys.executable, **mismatch}
    dumps = _import_cloudpickle().dumps  # The mismatch is checked first.
    if header["has_inputs"]:
        sys.path.insert(0, os.getcwd())  # noqa: PTH109 - it imports little
    try:
        function, calls, is_chunk = unpickle(parts)
        del parts
        values = [function(*arguments, **named) for arguments, named in calls]
        value = values if is_chunk else values[0]
        del function, calls, values
    except BaseException as error:  # noqa: BLE001 - SystemExit is a result too
        return _encode_exception(error, dumps)
    try:
        return pickle_value(value, dumps), {"kind": "value"}
    except BaseException as error:  # noqa: BLE001
        what = f"the result, of type {type(value).__name__}, cannot be pickled"
        text = f"{what}: {type(error).__name__}: {_message_of(error)}"
        return [], {"kind": "unpicklable", "text": _cut(text)}


def _interpreter_mismatch(header: dict[str, Any]) -> dict[str, str] | None:
    """Return why this interpreter cannot load these pickles, or None.

    `package` is what `pip` must install for it; without one, it has another version.
    """
    here, there = python_version(), header["python"]
    if here != there:
        text = f"{sys.executable} is Python {here}, but the caller runs Python {there}"
        return {"text": text}
    major = header["cloudpickle"].partition(".")[0]
    package = f"cloudpickle=={major}.*"
    try:
        here = _import_cloudpickle().__version__
    except ImportError as error:
        text = f"{sys.executable} cannot import cloudpickle ({error})"
        return {"text": text, "package": package}
    if here.partition(".")[0] != major:
        where = f"{sys.executable} has cloudpickle {here}"
        text = f"{where}, but the caller has cloudpickle {header['cloudpickle']}"
        return {"text": text, "package": package}
    return None


def _import_cloudpickle() -> Any:
    """Return cloudpickle, if need be the one of the agent."""
    try:
        import cloudpickle  # noqa: PLC0415
    except ImportError:
        folder = os.environ.get("OCTASKLY_CLOUDPICKLE")
        if folder is None:
            raise
        import importlib.util  # noqa: PLC0415

        # Nothing else from beside it: other packages there may need another version.
        spec = importlib.util.spec_from_file_location(
            "cloudpickle", f"{folder}/__init__.py", submodule_search_locations=[folder]
        )
        assert spec is not None
        assert spec.loader is not None
        cloudpickle = importlib.util.module_from_spec(spec)
        sys.modules["cloudpickle"] = cloudpickle
        spec.loader.exec_module(cloudpickle)
    return cloudpickle


def _encode_exception(
    error: BaseException, dumps: Dumps
) -> tuple[list[Any], dict[str, Any]]:
    """Return the result for an exception: pickled if possible, and as text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next  # The first frames are those of this program.
    text = "".join(traceback.format_exception(type(error), error, trace))
    with suppress(Exception):  # The call may have closed it.
        sys.stderr.write(text)
    kind = type(error)
    header = {
        "kind": "error",
        "type": _cut(f"{kind.__module__}.{kind.__qualname__}"),
        "text": _cut(_message_of(error)),
        "traceback": _cut(text),
    }
    with suppress(BaseException):
        return pickle_value(error.with_traceback(None), dumps), header
    return [], header


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as second:  # noqa: BLE001 - the caller's class may raise any
        return f"<its str() raises {type(second).__name__}>"


def _cut(text: str) -> str:
    """Return a text without its middle if it is too long for a header."""
    extra = len(text) - TEXT_CHARS_MAX
    if extra <= 0:
        return text
    kept = TEXT_CHARS_MAX // 2
    return f"{text[:kept]}\n[... {extra} characters were cut ...]\n{text[-kept:]}"


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
