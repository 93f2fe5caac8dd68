"""Report on what takes up room on this node: stored files, outputs and logs.

Files that belong to a tree are counted as one item. The store does not note which of
its blobs are manifests, so this looks at the first bytes of those that may be; what it
finds is remembered, because a blob never changes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from octaskly.files.manifest import (
    MANIFEST_BYTES_MAX,
    Manifest,
    ManifestError,
    decode_manifest,
    is_content_digest,
)
from octaskly.ports.files import StorageUsage, StoredItem
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.output.output_archive import OutputArchive

EXAMINED_MAX: Final = 20_000  #: blobs whose first bytes one report reads
TREE_ENTRIES_MAX: Final = 300_000  #: of all manifests that one report decodes
OUTPUT_FILES_MAX: Final = 100_000  #: files of captured outputs that it counts
MANIFEST_STARTS: Final = tuple(
    bytes((0x93, files)) for files in (*range(0x90, 0xA0), 0xDC, 0xDD)
)
"""First bytes of a manifest: msgpack, an array of three, of which the first is one."""


class StorageReporter:
    """Reports what takes up room.

    Args:
        blob_store: Holds the files that tasks need.
        archive: Holds outputs.
    """

    def __init__(self, blob_store: BlobStore, archive: OutputArchive) -> None:
        self._blob_store, self._archive = blob_store, archive
        self._lock = threading.Lock()  #: one report at a time
        self._is_manifest: dict[str, bool] = {}  #: of the blobs that were examined

    def read_usage(self) -> StorageUsage:
        """Return what takes up room, the largest items first. Blocks."""
        with self._lock:
            blobs = self._blob_store.list_blobs()
            outputs = list(self._list_outputs())
            items = [*self._list_trees(blobs), *outputs]
            items += (
                StoredItem(
                    kind="file", sha256=name, size_bytes=size_bytes, kept_until_s=until
                )
                for name, (size_bytes, until) in blobs.items()
            )
            store, logs = self._blob_store.usage(), self._archive.usage()
            return StorageUsage(
                items=sorted(items, key=lambda item: -item.size_bytes),
                files_bytes=store.used_bytes,
                files_quota_bytes=store.quota_bytes,
                outputs_bytes=sum(item.size_bytes for item in outputs),
                logs_bytes=logs.used_bytes,
                output_quota_bytes=logs.quota_bytes,
                free_bytes=store.free_bytes,
                disk_bytes=store.disk_bytes,
            )

    def _list_trees(self, blobs: dict[str, tuple[int, float]]) -> Iterator[StoredItem]:
        """Yield the trees, last used first, and take their contents out of `blobs`.

        A content of several trees counts for the one that was used last.
        """
        self._forget_absent(blobs)
        left = TREE_ENTRIES_MAX
        by_use = sorted(blobs, key=lambda name: blobs[name][1], reverse=True)
        for name in by_use:
            if name not in blobs or not self._may_be_manifest(name, blobs[name][0]):
                continue
            manifest = self._read_manifest(name)
            if manifest is None:
                self._is_manifest[name] = False
                continue
            left -= len(manifest.files)
            if left < 0:
                return
            size_bytes, kept_until_s = blobs.pop(name)
            count = 0
            for sha256 in manifest.sizes():
                content = blobs.pop(sha256.hex(), None)
                if content is not None:
                    count += 1
                    size_bytes += content[0]
            yield StoredItem(
                kind="tree",
                sha256=name,
                file_count=count,
                size_bytes=size_bytes,
                kept_until_s=kept_until_s,
            )

    def _forget_absent(self, blobs: dict[str, tuple[int, float]]) -> None:
        self._is_manifest = {
            name: is_one for name, is_one in self._is_manifest.items() if name in blobs
        }

    def _may_be_manifest(self, name: str, size_bytes: int) -> bool:
        known = self._is_manifest.get(name)
        if known is not None:
            return known
        if not len(MANIFEST_STARTS[0]) < size_bytes <= MANIFEST_BYTES_MAX:
            return False
        if len(self._is_manifest) >= EXAMINED_MAX:
            return False
        with suppress(OSError):
            start = self._blob_store.read_start(name, len(MANIFEST_STARTS[0]))
            self._is_manifest[name] = start in MANIFEST_STARTS
        return self._is_manifest.get(name, False)

    def _read_manifest(self, name: str) -> Manifest | None:
        with suppress(OSError, ManifestError):
            data = self._blob_store.read_start(name, MANIFEST_BYTES_MAX + 1)
            return decode_manifest(data)
        return None

    def _list_outputs(self) -> Iterator[StoredItem]:
        """Yield the captured outputs of each attempt."""
        left = OUTPUT_FILES_MAX
        for folder, task in self._archive.output_folders():
            count = size_bytes = 0
            with suppress(OSError), os.scandir(folder) as entries:
                kept_until_s = self._archive.kept_until_s(Path(folder))
                for entry in entries:
                    left -= 1
                    if left < 0:
                        return
                    size_bytes += entry.stat(follow_symlinks=False).st_size
                    count += is_content_digest(entry.name)
                yield StoredItem(
                    kind="outputs",
                    task=task,
                    file_count=max(0, count - 1),  # One is the manifest.
                    size_bytes=size_bytes,
                    kept_until_s=kept_until_s,
                )
