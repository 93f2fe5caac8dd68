"""Records of trees that were sent from this machine.

By them a retry lends the same files again, and a fetch of outputs knows which files the
user has changed since. A record names the manifest and where each content was read; it
has no content. A tree that was sent from several folders has a record for each. Like
the index of digests, the records are only a cache.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import zlib
from collections.abc import Iterator
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

RECORDS_MAX: Final = 2000  #: the oldest are removed first
RECORDS_BYTES_MAX: Final = 256 << 20  #: of all of them
RECORD_BYTES_MAX: Final = 4 * MANIFEST_BYTES_MAX  #: unpacked
COMPRESSION_LEVEL: Final = 1
ORIGIN_CHARS: Final = 16  #: of the digest of an origin, in the name of a record


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
        place = self._folder / f"{tree.sha256}-{_origin_name(origin)}"
        partial = self._folder / f".{secrets.token_hex(4)}"
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
        return next(self.find_all(sha256), None)

    def find_all(self, sha256: str) -> Iterator[SentTree]:
        """Yield the tree with a manifest for each origin, the one last sent first."""
        for place, _ in self._newest_first():
            if place.name.startswith(f"{sha256}-"):
                found = _read_record(place, sha256)
                if found is not None:
                    yield found

    def _remove_oldest(self) -> None:
        all_bytes = 0
        for number, (place, size_bytes) in enumerate(self._newest_first()):
            all_bytes += size_bytes
            is_last = number == 0  # However large it is, a fetch may need it.
            if number >= RECORDS_MAX or (all_bytes > RECORDS_BYTES_MAX and not is_last):
                place.unlink(missing_ok=True)

    def _newest_first(self) -> list[tuple[Path, int]]:
        """Return the records with their sizes, the one that was saved last first."""
        found = []
        with suppress(OSError):
            for place in self._folder.iterdir():
                with suppress(FileNotFoundError):  # Another process has removed it.
                    status = place.lstat()
                    found.append((status.st_mtime_ns, status.st_size, place))
        found.sort(reverse=True)
        return [(place, size_bytes) for _, size_bytes, place in found]


def _origin_name(origin: Origin) -> str:
    """Return the part of a record's name that tells equal trees apart."""
    digest = hashlib.sha256(msgspec.msgpack.encode(origin)).hexdigest()
    return digest[:ORIGIN_CHARS]


def _read_record(place: Path, sha256: str) -> SentTree | None:
    """Return the tree of a record; None if it is damaged or gone."""
    try:
        packed = place.read_bytes()
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
