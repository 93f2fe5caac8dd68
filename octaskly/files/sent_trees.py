"""Records of trees that were sent from this machine.

By them a retry lends the same files again, and a fetch of outputs knows which files the
user has changed since. A record names the manifest and where each content was read; it
has no content. Like the index of digests, the records are only a cache.
"""

from __future__ import annotations

import os
import secrets
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

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


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """The folder from which a tree was sent."""

    folder: bytes  #: absolute path
    unmoved: list[str]
    """Places in the tree that are also paths in the folder; "" stands for all."""


class _Record(msgspec.Struct, array_like=True):
    manifest: bytes
    sources: list[_Source]
    origin: Origin


class SentTree(NamedTuple):
    """A tree as it was sent."""

    tree: LocalTree
    origin: Origin


class SentTrees:
    """The records in one folder; several processes may share it. Methods block.

    Args:
        folder: It is created with access for the user alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, tree: LocalTree, origin: Origin) -> None:
        """Keep a record of a tree, if that is possible."""
        sources = [
            _Source(bytes.fromhex(sha256), os.fsencode(file.path), file.state)
            for sha256, file in tree.sources.items()
        ]
        data = msgspec.msgpack.encode(_Record(tree.manifest_bytes, sources, origin))
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

    def find(self, sha256: str) -> SentTree | None:
        """Return the tree with a manifest, as it was last sent; None if unknown."""
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
        tree = LocalTree(manifest, record.manifest, sha256, sources, Skipped(), ())
        return SentTree(tree, record.origin)

    def _remove_oldest(self) -> None:
        places = sorted(self._folder.iterdir(), key=lambda p: p.lstat().st_mtime)
        for place in places[:-RECORDS_MAX]:
            place.unlink(missing_ok=True)
