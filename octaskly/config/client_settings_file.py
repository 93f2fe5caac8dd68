"""Client settings in settings files, and the checks before such a file is read.

Commands import only this module, because the table of all settings takes too long to
import.
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
"""The keys of `config.settings.CLIENT_SETTINGS`."""
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def read_client_settings(environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield the client settings of each file; earlier files override later ones.

    Raises:
        ConfigError: A file with client settings cannot be used.
    """
    for path in settings_files(environ):
        if _mentions_clients(path):
            yield _read_client_file(path)


def _mentions_clients(path: Path) -> bool:
    """Return True if a file may contain client settings."""
    try:
        with open(path, "rb", opener=_opened) as file:
            text = file.read(FILE_BYTES_MAX)
    except OSError:
        return False  # It is missing, or this user may not read it.
    return any(key.encode() in text for key in CLIENT_KEYS)


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # A FIFO must not block a command.


def _read_client_file(path: Path) -> dict[str, str]:
    # Imported here, as most machines have no file and commands must be quick.
    import tomllib  # noqa: PLC0415

    try:
        rows = tomllib.loads(read_protected_file(path))
        return {str(key): _text(key, rows[key]) for key in CLIENT_KEYS if key in rows}
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: {why}", hint="octaskly config check") from None


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is not text")  # noqa: TRY004 - as any fault of a file
    if key != "ca_file":
        return value
    if not value.startswith(("/", "~/")):
        raise ValueError(f"{key} {value!r}: a path that begins with / or ~/")
    return str(Path(value).expanduser())


def read_protected_file(path: Path) -> str:
    """Return the text of a file that only this user or root can change.

    Other users must not change settings, because these decide which programs run.

    Raises:
        OSError: It cannot be read.
        ValueError: It is unsuitable; the text states the reason.
    """
    # O_NONBLOCK: opening a FIFO must not block the start.
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
