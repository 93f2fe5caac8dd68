"""Second copies of outputs: asked for at once, or before the end is reported."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.files.manifest import (
    Manifest,
    TreeFile,
    content_digest,
    encode_manifest,
    make_manifest,
)
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.blobs.holder_connection import Holder, HolderUnreachable
from octaskly.runner.files.capture import OutputReader, outputs_folder
from octaskly.runner.files.output_copies import (
    COPIED_BYTES_MAX,
    PARTIAL_SUFFIX,
    OutputCopies,
)
from octaskly.runner.output.captured_contents import read_manifest, write_manifest
from octaskly.runner.output.output_archive import OutputArchive
from tests.support.agents import until
from tests.support.pooling import STREAM, archive_in, supply_in

TASK, ATTEMPT = TaskId("task-001-0011"), AttemptId(3, STREAM, 1, 1)
DATA = b"result" * 1000


class Node:
    """A node that captures outputs, or copies them from the one that did."""

    def __init__(self, folder: Path, *, is_strict: bool = True) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "outputs").mkdir(exist_ok=True)
        self.archive: OutputArchive = archive_in(folder)
        self.others: list[Node] = []
        self.is_up = True
        self.asked: list[str] = []
        self.named_tree = ""  #: names another tree than the one that it has
        self.copies = OutputCopies(
            self.archive,
            cast("BlobFetcher", _Fetcher(self, supply_in(folder))),
            node=NodeId(folder.name),
            copy_holders=lambda _task, _attempt: [
                Holder(str(number), ()) for number in range(len(self.others))
            ],
            is_strict=is_strict,
        )

    @property
    def folder(self) -> Path:
        return outputs_folder(self.archive.outputs_dir, TASK, ATTEMPT)

    @property
    def reader(self) -> OutputReader:
        return OutputReader(self.archive.outputs_dir, self.archive.captured.contents)

    def capture(self) -> None:
        """Leave one output."""
        self.folder.mkdir(parents=True)
        digest = sha256(DATA)
        self.content.write_bytes(DATA)
        file = TreeFile("out/file", digest.digest(), len(DATA), 17, is_executable=True)
        write_manifest(self.folder, make_manifest([file], (), ["out/empty"]))

    @property
    def content(self) -> Path:
        return self.folder / sha256(DATA).hexdigest()

    def manifest(self) -> Manifest:
        return read_manifest(self.folder)[1]


class _Connection:
    """A connection from one node to another."""

    def __init__(self, node: Node, other: Node) -> None:
        self._node, self._other = node, other

    def post_json(self, path: str, body: object, *, timeout_s: float) -> Any:
        self._other.asked.append(path)
        assert isinstance(body, dict)
        tree = self._node.named_tree or body["sha256"]
        why = self._other.copies.fetch_copy(TASK, ATTEMPT, Holder("0", ()), tree)
        return {"failures": [why] if why else []}

    def fetch_outputs(self, path: str) -> tuple[int, Iterator[bytes]]:
        assert path.endswith("?copy=true&verify=true")
        tree = self._other.reader.read_tree(TASK, ATTEMPT)
        tree.distrust()
        size_bytes = tree.tar.size_bytes
        return size_bytes, tree.tar_chunks(0, size_bytes, 1000)


class _Fetcher:
    """The connections of a node."""

    def __init__(self, node: Node, real: BlobFetcher) -> None:
        self._node, self.file_locks = node, real.file_locks

    @property
    def connections(self) -> _Fetcher:
        return self

    @contextmanager
    def connect_to(self, holder: Holder) -> Iterator[_Connection]:
        other = self._node.others[int(holder.name)]
        if not other.is_up:
            raise HolderUnreachable("it cannot be reached")
        yield _Connection(self._node, other)


@pytest.fixture
def worker(tmp_path: Path) -> Node:
    node = Node(tmp_path / "worker")
    node.capture()
    return node


def add(worker: Node, tmp_path: Path, name: str) -> Node:
    other = Node(tmp_path / name)
    worker.others.append(other)
    other.others.append(worker)
    return other


def test_with_strict_durability_the_copy_is_there_before_the_end(
    worker: Node, tmp_path: Path
) -> None:
    """At the next node if one does not answer; the same tree, byte for byte."""
    first, second = add(worker, tmp_path, "first"), add(worker, tmp_path, "second")
    first.is_up = False

    assert worker.copies.on_captured(TASK, ATTEMPT, len(DATA)) == ""

    assert not first.folder.exists()
    assert second.manifest() == worker.manifest()
    assert second.archive.captured.usage().folders == 1
    copied = second.reader.read_tree(TASK, ATTEMPT)
    path = copied.file_path("out/file")
    assert path is not None
    assert path.read_bytes() == DATA


def test_with_strict_durability_a_missing_copy_is_reported(
    worker: Node, tmp_path: Path
) -> None:
    """The task has run, so its end is reported even so."""
    alone = worker.copies.on_captured(TASK, ATTEMPT, len(DATA))
    add(worker, tmp_path, "first").is_up = False
    unreachable = worker.copies.on_captured(TASK, ATTEMPT, len(DATA))

    assert alone == "its outputs have no second copy (there is no other node)"
    assert "it cannot be reached" in unreachable


def test_without_it_the_copy_is_made_in_the_background(tmp_path: Path) -> None:
    """And large outputs are not copied at all."""
    worker = Node(tmp_path / "worker", is_strict=False)
    worker.capture()
    other = add(worker, tmp_path, "other")

    assert worker.copies.on_captured(TASK, ATTEMPT, COPIED_BYTES_MAX + 1) == ""
    assert worker.copies.on_captured(TASK, ATTEMPT, len(DATA)) == ""
    worker.copies._threads.shutdown()

    assert other.manifest() == worker.manifest()
    assert len(other.asked) == 1


def test_a_copy_that_was_not_made_is_made_by_the_next_agent(tmp_path: Path) -> None:
    """Once, when another node is there; the outputs expire no later for it."""
    first = Node(tmp_path / "worker", is_strict=False)
    first.capture()
    expiry_s = first.folder.stat().st_mtime
    assert first.copies.on_captured(TASK, ATTEMPT, len(DATA)) == ""
    first.copies.close()

    worker = Node(tmp_path / "worker", is_strict=False)
    assert worker.copies.make_copies() is False
    other = add(worker, tmp_path, "other")
    assert worker.copies.make_copies() is True

    assert other.manifest() == worker.manifest()
    assert worker.folder.stat().st_mtime == expiry_s
    assert Node(tmp_path / "worker", is_strict=False).copies.make_copies() is True
    assert worker.copies.make_copies() is True
    assert len(other.asked) == 1


def test_outputs_that_are_deleted_need_no_copy(tmp_path: Path) -> None:
    """They do not stay pending."""
    worker = Node(tmp_path / "worker", is_strict=False)
    worker.capture()
    worker.copies.on_captured(TASK, ATTEMPT, len(DATA))
    worker.copies.close()
    again = Node(tmp_path / "worker", is_strict=False)
    assert again.copies.make_copies() is False
    again.archive.captured.delete(again.folder)

    assert again.copies.make_copies() is True


@pytest.mark.parametrize("wrong", [DATA[:10], b"x" * len(DATA)])
def test_a_copy_of_wrong_bytes_is_not_made(
    worker: Node, tmp_path: Path, wrong: bytes
) -> None:
    """They are no longer outputs of their own node, either; it says so once."""
    found: list[Path] = []
    worker.archive.captured.contents.on_wrong = found.append
    other = add(worker, tmp_path, "other")
    worker.content.write_bytes(wrong)

    assert worker.copies.on_captured(TASK, ATTEMPT, len(DATA))
    assert worker.copies.on_captured(TASK, ATTEMPT, len(DATA))

    assert not any(other.archive.outputs_dir.glob("*/*"))
    assert not worker.content.exists()
    assert worker.reader.read_tree(TASK, ATTEMPT).is_damaged()
    assert found == [worker.content]


def test_two_requests_for_a_copy_make_one(worker: Node, tmp_path: Path) -> None:
    """The answer to the first one was lost, and its node has asked again."""
    other = add(worker, tmp_path, "other")
    tree = content_digest(encode_manifest(worker.manifest()))
    locks, name = other.copies._fetcher.file_locks, f"outputs {other.folder}"

    def fetch() -> str:
        return other.copies.fetch_copy(TASK, ATTEMPT, Holder("0", ()), tree)

    with ThreadPoolExecutor(2) as threads:
        with locks.hold_lock(name):
            asked = [threads.submit(fetch) for _ in range(2)]
            until(lambda: locks._locks[name][1] == 3, "both wait")
        assert [each.result() for each in asked] == ["", ""]

    assert other.content.read_bytes() == DATA


def test_a_copy_is_made_though_a_killed_agent_left_a_part_of_it(
    worker: Node, tmp_path: Path
) -> None:
    """No other node is asked for one."""
    other = add(worker, tmp_path, "other")
    left = other.folder.with_name(f"{other.folder.name}{PARTIAL_SUFFIX}")
    left.mkdir(parents=True)
    (left / "content").write_bytes(DATA[:10])

    assert not worker.copies.on_captured(TASK, ATTEMPT, len(DATA))

    assert other.content.read_bytes() == DATA
    assert not left.exists()


def test_a_copy_of_another_tree_is_not_made(worker: Node, tmp_path: Path) -> None:
    """The manifest that the worker names counts, not what arrives."""
    other = add(worker, tmp_path, "other")
    worker.named_tree = "0" * 64

    why = worker.copies.on_captured(TASK, ATTEMPT, len(DATA))

    assert "the outputs are not those that were captured" in why
    assert not any(other.archive.outputs_dir.glob("*/*"))
