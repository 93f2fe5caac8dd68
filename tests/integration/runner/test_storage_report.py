"""What takes up room on a node: trees with their contents, single files, outputs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.files.manifest import (
    TreeFile,
    content_digest,
    encode_manifest,
    make_manifest,
)
from octaskly.ports.files import StoredItem
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.files import storage_report
from octaskly.runner.files.capture import outputs_folder
from octaskly.runner.files.storage_report import StorageReporter
from octaskly.runner.output.captured_contents import MANIFEST_NAME
from octaskly.runner.output.output_archive import OutputArchive
from tests.support.pooling import MachineClock

ATTEMPT = AttemptId(1, StreamId(1), 1, 1)


class Disk:
    """The store and the outputs of a node, and their report."""

    def __init__(self, folder: Path) -> None:
        self.blobs = BlobStore(folder / "files", clock=MachineClock())
        self.outputs_dir = folder / "outputs"
        self.outputs_dir.mkdir()
        self.archive = OutputArchive(
            folder / "logs",
            outputs_dir=self.outputs_dir,
            bytes_max=1 << 20,
            quota_bytes=8 << 20,
            retention_s=3600,
            clock=MachineClock(),
        )
        self.reporter = StorageReporter(self.blobs, self.archive)

    def store(self, data: bytes, keep_s: float = 3600.0) -> str:
        name = content_digest(data)
        self.blobs.store_blob(name, data, keep_s=keep_s)
        return name

    def store_tree(self, *contents: bytes, keep_s: float) -> tuple[str, int]:
        """Store a tree; return the digest and the size of its manifest."""
        manifest = encode_manifest(
            make_manifest(
                TreeFile(f"{n}", hashlib.sha256(data).digest(), len(data), 0)
                for n, data in enumerate(contents)
            )
        )
        for data in contents:
            self.store(data, keep_s)
        return self.store(manifest, keep_s), len(manifest)

    def items(self) -> list[tuple[str, str | None, int | None, int]]:
        return [summary(item) for item in self.reporter.read_usage().items]


def summary(item: StoredItem) -> tuple[str, str | None, int | None, int]:
    return item.kind, item.sha256 or item.task, item.file_count, item.size_bytes


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_room_is_told_by_tree_file_and_task_and_counted_once(disk: Disk) -> None:
    """A shared content counts for the tree that was used last."""
    shared, own, lone = b"s" * 5000, b"o" * 3000, b"l" * 9000
    old, old_bytes = disk.store_tree(shared, own, keep_s=10)
    new, new_bytes = disk.store_tree(shared, keep_s=100)
    single = disk.store(lone)
    folder = outputs_folder(disk.outputs_dir, TaskId(".."), ATTEMPT)
    folder.mkdir(parents=True)
    (folder / ("a" * 64)).write_bytes(b"a" * 20_000)
    (folder / ("b" * 64)).write_bytes(b"m" * 36)
    (folder / MANIFEST_NAME).write_text("b" * 64)

    usage = disk.reporter.read_usage()

    assert [summary(item) for item in usage.items] == [
        ("outputs", "..", 1, 20_100),
        ("file", single, None, 9000),
        ("tree", new, 1, 5000 + new_bytes),
        ("tree", old, 1, 3000 + old_bytes),
    ]
    files = [item for item in usage.items if item.kind != "outputs"]
    assert usage.files_bytes == sum(item.size_bytes for item in files)
    assert usage.outputs_bytes == 20_100
    assert (usage.logs_bytes, usage.output_quota_bytes) == (0, 8 << 20)
    assert 0 < usage.free_bytes <= usage.disk_bytes


def test_what_only_begins_like_a_manifest_is_a_file(disk: Disk) -> None:
    """A client chooses what it stores."""
    names = {disk.store(bytes((0x93, 0x91)) + b"x" * n) for n in range(3)}

    assert {(kind, name) for kind, name, _, _ in disk.items()} == {
        ("file", name) for name in names
    }
    assert disk.items() == disk.items()


def test_a_report_looks_at_a_bounded_number_of_files(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a full store, those that were used last; the rest are single files."""
    monkeypatch.setattr(storage_report, "TREE_ENTRIES_MAX", 3)
    disk.store_tree(b"1", b"2", keep_s=10)
    disk.store_tree(b"3", b"4", keep_s=100)

    kinds = [kind for kind, _, _, _ in disk.items()]

    assert sorted(kinds) == ["file", "file", "file", "tree"]
