"""The captured outputs of one attempt: their manifest, and a file for each content."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from octaskly.files.manifest import Manifest, content_digest, encode_manifest
from octaskly.files.tree_tar import ContentPart, TarLayout


class CapturedTree:
    """A captured tree on the disk of this node.

    Args:
        manifest: Its entries.
        content_path: Returns the path of a content by its SHA-256, which has been
            checked; blocks, and raises OutputNotFound if it is not here or wrong.
        mark_fetched: Notes that all of it was fetched; blocks.
        is_damaged: Returns True if a content of the tree was wrong; blocks.
        distrust: Has the contents checked again, because somebody got wrong bytes.
    """

    def __init__(
        self,
        manifest: Manifest,
        content_path: Callable[[bytes], Path],
        *,
        mark_fetched: Callable[[], None] = lambda: None,
        is_damaged: Callable[[], bool] = lambda: False,
        distrust: Callable[[], None] = lambda: None,
    ) -> None:
        self.manifest = manifest
        self.content_path = content_path
        self.mark_fetched = mark_fetched
        self.is_damaged = is_damaged
        self.distrust = distrust

    @cached_property
    def etag(self) -> str:
        """The same for equal trees only."""
        return content_digest(encode_manifest(self.manifest))[:32]

    @cached_property
    def tar(self) -> TarLayout:
        """The tree as a tar; large trees take some tenths of a second."""
        return TarLayout(self.manifest)

    def file_path(self, path: str) -> Path | None:
        """Return the file with the content of a path; None if there is no such file.

        Raises:
            OutputNotFound: its content is not here any more, or wrong.
        """
        file = self._files.get(path)
        return None if file is None else self.content_path(file)

    def file_etag(self, path: str) -> str:
        """Return the etag of a file: all nodes have the same one for equal files."""
        return self._files[path].hex()

    def has_path(self, path: str) -> bool:
        """Return True if a path is a file, a link or a folder of the tree."""
        return any(
            known == path or known.startswith(f"{path}/")
            for known in self.manifest.paths()
        )

    def tar_chunks(self, start: int, end: int, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the bytes of the tar from `start` to `end`. Blocks.

        Raises:
            OSError, OutputNotFound: a content is not there any more, or wrong.
        """
        chunk = bytearray()
        for part in self.tar.parts(start, end):
            for data in self._read(part, chunk_bytes):
                chunk += data
                if len(chunk) >= chunk_bytes:
                    yield bytes(chunk)
                    chunk.clear()
        yield bytes(chunk)

    def _read(self, part: bytes | ContentPart, chunk_bytes: int) -> Iterator[bytes]:
        if isinstance(part, bytes):
            yield part
            return
        with self.content_path(part.file.sha256).open("rb", buffering=0) as file:
            file.seek(part.start)
            left = part.end - part.start
            while left:
                data = file.read(min(left, chunk_bytes))
                if not data:
                    raise OSError(errno.EIO, f"{part.file.path} became shorter")
                yield data
                left -= len(data)

    @cached_property
    def _files(self) -> dict[str, bytes]:
        return {file.path: file.sha256 for file in self.manifest.files}
