"""Records of trees that were lent, so that a retry of their tasks can lend them again.

A record names the manifest and where each content was read; it has no content. Like the
index of digests, the records are only a cache.
"""

from __future__ import annotations

import os
import secrets
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from octaskly.files.digest_index import FileState
from octaskly.files.local_tree import LocalFile, LocalTree, Skipped
from octaskly.files.manifest import (
    MANIFEST_BYTES_MAX,
    ManifestError,
    content_digest,
    decode_manifest,
)

RECORDS_MAX: Final = 100  #: the oldest are removed first
RECORD_BYTES_MAX: Final = 4 * MANIFEST_BYTES_MAX  #: unpacked
COMPRESSION_LEVEL: Final = 1


class _Source(msgspec.Struct, array_like=True):
    sha256: bytes
    path: bytes
    state: FileState


class _Record(msgspec.Struct, array_like=True):
    manifest: bytes
    sources: list[_Source]


class SentTrees:
    """The records in one folder; several processes may share it. Methods block.

    Args:
        folder: It is created with access for the user alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, tree: LocalTree) -> None:
        """Keep a record of a tree, if that is possible."""
        sources = [
            _Source(bytes.fromhex(sha256), os.fsencode(file.path), file.state)
            for sha256, file in tree.sources.items()
        ]
        data = msgspec.msgpack.encode(_Record(tree.manifest_bytes, sources))
        place = self._folder / tree.sha256
        partial = place.with_suffix(f".{secrets.token_hex(4)}")
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                partial.write_bytes(zlib.compress(data, COMPRESSION_LEVEL))
                partial.rename(place)
            finally:
                partial.unlink(missing_ok=True)
            self._remove_oldest()

    def find(self, sha256: str) -> LocalTree | None:
        """Return the tree with a manifest, as it was lent; None if it is not known."""
        try:
            packed = (self._folder / sha256).read_bytes()
            data = zlib.decompressobj().decompress(packed, RECORD_BYTES_MAX)
            record = msgspec.msgpack.decode(data, type=_Record)
            if content_digest(record.manifest) != sha256:
                return None
            manifest = decode_manifest(record.manifest)
        except (OSError, zlib.error, msgspec.MsgspecError, ManifestError):
            return None
        sources = {
            source.sha256.hex(): LocalFile(os.fsdecode(source.path), source.state)
            for source in record.sources
        }
        return LocalTree(manifest, record.manifest, sha256, sources, Skipped(), ())

    def _remove_oldest(self) -> None:
        places = sorted(self._folder.iterdir(), key=lambda p: p.lstat().st_mtime)
        for place in places[:-RECORDS_MAX]:
            place.unlink(missing_ok=True)
