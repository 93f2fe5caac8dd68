"""Files that clients leave at a node for tasks; each is known by its SHA-256."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from octaskly.errors import OctasklyError


class FileQuotaExceeded(OctasklyError):
    """What is kept may not be deleted yet, and leaves too little room."""


class ContentMismatch(OctasklyError):
    """What came is not what was announced."""


class FileUpload(Protocol):
    """One file on its way in. All of it blocks."""

    def write(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            WrongBytes: they are more than was announced.
            OSError: the disk takes no more.
        """

    def finish(self) -> None:
        """Keep the file, which is whole.

        Raises:
            WrongBytes: it is not what it is called.
        """

    def abort(self) -> None:
        """Forget it, unless it was finished."""


class FileStore(Protocol):
    """The files of this node. All methods block; any thread may call them."""

    def touch_file(self, sha256: str) -> int | None:
        """Return the size of a file, which stays for a while; None: there is none."""

    def start_upload(self, sha256: str, size_bytes: int) -> FileUpload:
        """Begin to take a file in.

        Raises:
            NoRoom: there is none for it.
            OSError: the folder cannot be used.
        """

    def release_file(self, sha256: str) -> None:
        """Note that nobody counts on a file any more; it stays while there is room."""

    def file_path(self, sha256: str) -> Path:
        """Return where a file lies, to be read.

        Raises:
            OutputNotFound: there is none.
        """
