"""The node to ask, as settings files name it, and how such files are read.

Commands import this alone: the table of all settings takes longer to import than a
quick command may.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from octaskly.config.paths import settings_files
from octaskly.errors import ConfigError

FILE_BYTES_MAX: Final = 64 << 10
CLIENT_KEYS: Final = ("url", "node", "ca_file")
"""The keys of `config.client`."""
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def read_client_settings(environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield what each file says of the node to ask; the first prevails.

    Raises:
        ConfigError: a file that says something of it cannot be used.
    """
    for path in settings_files(environ):
        if _mentions_clients(path):
            yield _read_client_file(path)


def _mentions_clients(path: Path) -> bool:
    """Whether a file may say something to commands: those for agents alone do not."""
    try:
        with open(path, "rb", opener=_opened) as file:
            text = file.read(FILE_BYTES_MAX)
    except OSError:
        return False  # There is none, or it is not for this user.
    return any(key.encode() in text for key in CLIENT_KEYS)


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # A FIFO must not hang a command.


def _read_client_file(path: Path) -> dict[str, str]:
    # Imported here: most machines have no such file, and commands shall be quick.
    import tomllib  # noqa: PLC0415

    try:
        rows = tomllib.loads(read_protected_file(path))
        return {str(key): _text(key, rows[key]) for key in CLIENT_KEYS if key in rows}
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: {why}", hint="octaskly config check") from None


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a string")  # noqa: TRY004 - as any fault of a file
    if key != "ca_file":
        return value
    if not value.startswith(("/", "~/")):
        raise ValueError(f"{key} {value!r}: a path that begins with / or ~/")
    return str(Path(value).expanduser())


def read_protected_file(path: Path) -> str:
    """Return the text of a file that nobody else can change: it decides what runs.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file for this; the text says why.
    """
    # A FIFO in its place must not hang the start, hence O_NONBLOCK.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_MAX:
            raise ValueError(f"not a regular file, or over {FILE_BYTES_MAX} bytes")
        if status.st_mode & _OTHERS_WRITE:
            mode = f"{status.st_mode & 0o777:04o}"
            raise ValueError(f"others may write it (mode {mode}): chmod go-w {path}")
        if status.st_uid not in (0, os.geteuid()):
            raise ValueError(
                f"it belongs to user {status.st_uid}: sudo chown root {path}"
            )
        return file.read(FILE_BYTES_MAX).decode()
