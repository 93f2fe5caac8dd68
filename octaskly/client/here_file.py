"""A file by which nodes recognise the current folder of a client, for `same_folder`.

Its name is random, so that a copy of the folder on another machine is not taken for the
folder itself.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

from octaskly.errors import OctasklyError

PREFIX: Final = ".octaskly-here-"  #: as in `cli.here`, which must load little
OLD_S: Final = 7 * 86_400.0  #: after this time, another one removes it
ENTRIES_EXAMINED_MAX: Final = 100_000
MODE: Final = (
    0o644  #: tasks may run as another user, whose rights do not depend on this
)

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class HereFile:
    """The file; a context manager that removes it at the end.

    Args:
        folder: The folder; default: the current one.
        name: Name of the file; default: a random one.
        is_read_only: Tasks do not write to the folder.

    Raises:
        OctasklyError: it cannot be created.
    """

    def __init__(
        self,
        folder: str | None = None,
        name: str | None = None,
        *,
        is_read_only: bool = False,
    ) -> None:
        self.folder = folder or current_folder()
        self.path = Path(self.folder) / (name or f"{PREFIX}{secrets.token_hex(16)}")
        # It follows from the name, so that a retry can make the file again.
        content = f"{self.path.name}\n".encode()
        self.fields: dict[str, Any] = {
            "cwd": self.folder,
            "same_folder": {
                "name": self.path.name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "read_only": is_read_only,
            },
        }
        """The fields of a task that runs in the folder."""
        self._remove_old()
        self._write(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self.path.unlink()

    def _write(self, content: bytes) -> None:
        try:
            with suppress(FileExistsError):  # An earlier command has left it.
                fd = os.open(self.path, _CREATE, MODE)
                with os.fdopen(fd, "wb") as file:
                    os.fchmod(fd, MODE)  # Whatever the umask is.
                    file.write(content)
        except OSError as error:
            self.remove()
            raise OctasklyError(
                f"cannot create a file in {self.folder}, by which other machines"
                f" recognise the folder: {error.strerror}"
            ) from None

    def _remove_old(self) -> None:
        """Remove such files of this user that were left here long ago."""
        before_s = time.time() - OLD_S
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in islice(entries, ENTRIES_EXAMINED_MAX):
                if not entry.name.startswith(PREFIX):
                    continue
                status = entry.stat(follow_symlinks=False)
                is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
                if is_own and status.st_mtime < before_s:
                    os.unlink(entry.path)  # noqa: PTH108 - of an entry


def name_from_key(key: str) -> str:
    """Return the name of the file for a submission that may be repeated."""
    return f"{PREFIX}{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def current_folder() -> str:
    """Return the absolute path of the current folder, as the user's shell shows it."""
    shown = os.environ.get("PWD", "")
    with suppress(OSError, ValueError):
        is_usable = shown.startswith("/") and shown == os.path.normpath(shown)
        if is_usable and Path(shown).samefile("."):
            return shown
    return str(Path.cwd())
