"""Outputs that a visitor sends: of its own attempts, once, and where there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from msgspec.structs import replace

from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.task_options import BlobRef, TaskOptions
from octaskly.core.model.tasks import TaskSpec
from octaskly.errors import OutputNotFound
from octaskly.files.captured_tree import CapturedTree
from octaskly.files.manifest import (
    MANIFEST_BYTES_MAX,
    NAME_BYTES_MAX,
    TreeFile,
    make_manifest,
)
from octaskly.files.tree_tar import END_BYTES, TarError
from octaskly.ports.files import FileQuotaExceeded, VisitorAccess
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.files.capture import OutputReader, outputs_folder
from octaskly.runner.files.output_copies import ROOM_BYTES, OutputCopies
from octaskly.runner.files.visitor_files import UPLOAD_BYTES_PER_S, VisitorFiles
from octaskly.runner.output.captured_contents import MANIFEST_NAME
from octaskly.runner.output.output_archive import OutputArchive
from tests.support.pooling import archive_in, supply_in
from tests.support.sample_messages import ATTEMPT, SPEC
from tests.support.set_clock import SetClock

VISITOR, STRANGER = NodeId("visitor-one"), NodeId("visitor-two")
DATA = b"result" * 1000
SIZE_MAX = 1 << 60


@dataclass
class Member:
    """A dispatcher that has given one attempt to a visitor."""

    files: VisitorFiles
    archive: OutputArchive
    fetcher: BlobFetcher
    held: list[tuple[AttemptId, TaskSpec]]  #: what the visitor runs

    def sent(self, folder: Path, path: str = "out.txt", data: bytes = DATA) -> bytes:
        """Return the archive of an output."""
        digest = sha256(data)
        (folder / digest.hexdigest()).write_bytes(data)
        file = TreeFile(path, digest.digest(), len(data), 17, is_executable=False)
        tree = CapturedTree(
            make_manifest([file], (), ()), lambda name: folder / name.hex()
        )
        return b"".join(tree.tar_chunks(0, tree.tar.size_bytes, 1 << 16))


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    (tmp_path / "outputs").mkdir()
    archive, fetcher = archive_in(tmp_path), supply_in(tmp_path)
    copies = OutputCopies(
        archive,
        fetcher,
        node=NodeId("me"),
        copy_holders=lambda _task, _attempt: (),
        is_strict=True,
    )
    options = TaskOptions(stdin_file=BlobRef(sha256="f" * 64, node="me"))
    held = [(ATTEMPT, replace(SPEC, options=options))]

    def attempts_of(node: NodeId) -> list[tuple[AttemptId, object]]:
        return list(held) if node == VISITOR else []

    clock = SetClock()
    yield Member(
        VisitorFiles(attempts_of, fetcher, archive, copies, clock),  # type: ignore[arg-type]
        archive,
        fetcher,
        held,
    )
    copies.close()
    fetcher.close()


def test_outputs_of_its_own_attempt_are_kept(member: Member, tmp_path: Path) -> None:
    """They can be read here afterwards, and are not accepted a second time."""
    data = member.sent(tmp_path)
    outputs = member.files.open_outputs(VISITOR, SPEC.id, ATTEMPT, len(data))
    assert outputs is not None

    outputs.write(data)
    outputs.finish()
    outputs.abort()

    archive = member.archive
    reader = OutputReader(archive.outputs_dir, archive.captured.contents)
    tree = reader.read_tree(SPEC.id, ATTEMPT)
    path = tree.file_path("out.txt")
    assert path is not None
    assert path.read_bytes() == DATA
    assert member.files.open_outputs(VISITOR, SPEC.id, ATTEMPT, 1) is None


def test_outputs_of_an_attempt_that_was_taken_from_it_are_not_kept(
    member: Member, tmp_path: Path
) -> None:
    """It was revoked in the middle of the upload, for example, or its time was up."""
    data = member.sent(tmp_path)
    outputs = member.files.open_outputs(VISITOR, SPEC.id, ATTEMPT, len(data))
    assert outputs is not None
    outputs.write(data)

    member.held.clear()
    with pytest.raises(OutputNotFound):
        outputs.finish()
    outputs.abort()

    folder = outputs_folder(member.archive.outputs_dir, SPEC.id, ATTEMPT)
    assert list(folder.parent.iterdir()) == []


def test_one_upload_of_an_attempt_is_open_at_a_time(member: Member) -> None:
    """Otherwise each could reserve the room of all."""
    first = member.files.open_outputs(VISITOR, SPEC.id, ATTEMPT, 1000)
    assert first is not None

    assert member.files.open_outputs(VISITOR, SPEC.id, ATTEMPT, 1000) is None
    first.abort()
    second = member.files.open_outputs(VISITOR, SPEC.id, ATTEMPT, 1000)
    assert second is not None
    second.abort()
    folder = outputs_folder(member.archive.outputs_dir, SPEC.id, ATTEMPT)
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("visitor", "task", "attempt"),
    [
        (STRANGER, SPEC.id, ATTEMPT),
        (VISITOR, TaskId("task-of-another"), ATTEMPT),
        (VISITOR, SPEC.id, replace(ATTEMPT, seq=9)),
    ],
)
def test_outputs_of_other_attempts_are_refused(
    member: Member, visitor: NodeId, task: TaskId, attempt: AttemptId
) -> None:
    """It names the task of another, or an attempt that it was not given."""
    assert member.files.open_outputs(visitor, task, attempt, 1) is None


def test_an_announced_size_deletes_nothing(member: Member, tmp_path: Path) -> None:
    """Outputs of other tasks stay, whatever a visitor announces."""
    other = outputs_folder(member.archive.outputs_dir, TaskId("other"), ATTEMPT)
    other.mkdir(parents=True)
    (other / MANIFEST_NAME).write_bytes(DATA)
    member.archive.captured.add_folder(other)

    with pytest.raises(FileQuotaExceeded):
        member.files.open_outputs(VISITOR, SPEC.id, ATTEMPT, SIZE_MAX)

    assert (other / MANIFEST_NAME).read_bytes() == DATA


def test_a_slow_upload_holds_room_only_for_what_has_arrived(
    member: Member, tmp_path: Path
) -> None:
    """Captures of other tasks would delete older outputs for the rest of it."""
    data = member.sent(tmp_path, data=bytes(ROOM_BYTES))
    captured = member.archive.captured
    announced = 10 * ROOM_BYTES
    outputs = member.files.open_outputs(VISITOR, SPEC.id, ATTEMPT, announced)
    assert outputs is not None

    outputs.write(data[:1000])

    assert captured.usage().used_bytes == 1000 + ROOM_BYTES
    # Others take all of the room meanwhile.
    other = outputs_folder(member.archive.outputs_dir, TaskId("other"), ATTEMPT)
    captured.make_room(other, SIZE_MAX)
    with pytest.raises(FileQuotaExceeded):
        outputs.write(data[1000:])
    outputs.abort()


def test_all_uploads_of_a_visitor_have_one_rate(member: Member, tmp_path: Path) -> None:
    """It cannot send faster by sending the outputs of several attempts at once."""
    ((attempt, spec),) = member.held
    other = replace(attempt, seq=attempt.seq + 1)
    member.held.append((other, replace(spec, id=TaskId("other"))))
    data = member.sent(tmp_path, data=bytes(UPLOAD_BYTES_PER_S // 2))
    first = member.files.open_outputs(VISITOR, SPEC.id, attempt, len(data))
    second = member.files.open_outputs(VISITOR, TaskId("other"), other, len(data))
    assert first is not None
    assert second is not None
    assert second.wait_s() == 0.0

    first.write(data)

    assert second.wait_s() == first.wait_s() > 0.0
    first.abort()
    second.abort()


def test_an_output_that_was_not_declared_is_refused(
    member: Member, tmp_path: Path
) -> None:
    """Tasks that get its outputs would find it among them."""
    data = member.sent(tmp_path, "Makefile")
    outputs = member.files.open_outputs(VISITOR, SPEC.id, ATTEMPT, len(data))
    assert outputs is not None

    with pytest.raises(TarError, match="no declared output"):
        outputs.write(data)
    outputs.abort()

    folder = outputs_folder(member.archive.outputs_dir, SPEC.id, ATTEMPT)
    assert list(folder.parent.iterdir()) == []


def test_an_archive_that_is_none_leaves_nothing(member: Member) -> None:
    """Nor one that ends early."""
    outputs = member.files.open_outputs(VISITOR, SPEC.id, ATTEMPT, 2048)
    assert outputs is not None

    with pytest.raises(TarError):
        outputs.write(b"x" * 2048)
    outputs.abort()

    folder = outputs_folder(member.archive.outputs_dir, SPEC.id, ATTEMPT)
    assert not folder.exists()


def test_files_of_no_attempt_are_denied(member: Member) -> None:
    """A stranger has none; a visitor those that its attempts name."""
    assert member.files.access_to(STRANGER, ["a" * 64]) is VisitorAccess.DENIED
    assert member.files.access_to(VISITOR, ["f" * 64]) is VisitorAccess.LATER


async def test_an_input_that_made_room_for_others_is_fetched_again(
    member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A visitor may ask for it a second time, for example in another attempt."""
    name, store = sha256(DATA).hexdigest(), member.fetcher.blob_store
    options = TaskOptions(stdin_file=BlobRef(sha256=name, node="me"))
    member.held[0] = (ATTEMPT, replace(SPEC, options=options))

    def fetch_blob(_source: object) -> list[str]:
        store.store_blob(name, DATA)
        return []

    monkeypatch.setattr(member.fetcher, "fetch_blob", fetch_blob)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(20):
        member.files.start(tasks)
        for _ in range(2):
            while member.files.access_to(VISITOR, [name]) is not VisitorAccess.GRANTED:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            (tmp_path / "files" / name).unlink()


def test_the_paths_of_an_archive_take_little_memory(
    member: Member, tmp_path: Path
) -> None:
    """Empty files with long paths: all paths are in memory until the end."""
    ((attempt, spec),) = member.held
    member.held[0] = (attempt, replace(spec, outputs=("out",)))
    digest = sha256(b"").digest()
    (tmp_path / digest.hex()).touch()
    folders = "/".join(["f" * NAME_BYTES_MAX] * 14)
    files = [
        TreeFile(f"out/{n}/{folders}", digest, 0, 17, is_executable=False)
        for n in range(100)
    ]
    few = CapturedTree(make_manifest(files, (), ()), lambda name: tmp_path / name.hex())
    part = b"".join(few.tar_chunks(0, few.tar.size_bytes - END_BYTES, 1 << 16))
    outputs = member.files.open_outputs(VISITOR, SPEC.id, attempt, 1 << 30)
    assert outputs is not None

    with pytest.raises(TarError, match="paths"):
        outputs.write(part * (2 * MANIFEST_BYTES_MAX // len(part)))
    outputs.abort()
