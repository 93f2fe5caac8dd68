"""Interface for files that clients upload for tasks, addressed by SHA-256."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from octaskly.core.model.ids import NodeId
from octaskly.core.model.task_options import BlobRef
from octaskly.errors import OctasklyError


class FileQuotaExceeded(OctasklyError):
    """The stored files leave too little room, and none may be deleted yet."""


class ContentMismatch(OctasklyError):
    """The content differs from the announced size or hash."""


class FileUpload(Protocol):
    """One upload in progress. All methods block."""

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            ContentMismatch: There are more bytes than announced.
            FileQuotaExceeded: There is no room for them.
            OSError: The disk is full or failing.
        """

    def finish(self) -> None:
        """Store the complete file.

        Raises:
            ContentMismatch: Its size or hash differs from the announced one.
        """

    def abort(self) -> None:
        """Delete the upload, unless it was finished."""


class FileStore(Protocol):
    """The files of this node. All methods block; any thread may call them."""

    def touch_file(self, sha256: str) -> int | None:
        """Protect a file for a while and return its size; None if it is not stored."""

    def missing_files(self, sha256s: Iterable[str]) -> list[str]:
        """Return which of these files are not stored, and protect the others."""

    def store_blob(self, sha256: str, data: bytes) -> None:
        """Store a small file at once.

        Raises:
            ContentMismatch: It has another SHA-256.
            FileQuotaExceeded: There is no room for it.
            OSError: The folder cannot be used.
        """

    def pack_files(self, sha256s: Iterable[str]) -> Iterator[bytes]:
        """Yield a pack of these files in parts; files that are not stored are left out.

        Source: `octaskly.files.pack`.
        """

    def start_upload(self, sha256: str, size_bytes: int) -> FileUpload:
        """Start an upload.

        Raises:
            FileQuotaExceeded: There can be no room for the file now.
            OSError: The folder cannot be used.
        """

    def release_file(self, sha256: str) -> None:
        """End the protection of a file. It stays while there is room."""

    def file_path(self, sha256: str) -> Path:
        """Return the path of a file, for reading.

        Raises:
            OutputNotFound: There is no such file.
        """


class TreeKeeper(Protocol):
    """The trees of unfinished tasks, in the whole mesh."""

    async def hold_trees(self, trees: Sequence[BlobRef]) -> list[str]:
        """Fetch what this node lacks of some trees and protect them for a while.

        Returns:
            A text for each tree that is not complete here.
        """

    async def replicate_tree(self, tree: BlobRef) -> list[NodeId]:
        """Store a tree at this node, the dispatcher, and at its standbys.

        Returns:
            The nodes that have all of it now.

        Raises:
            OutputNotFound: This node could not get all of it.
        """
