"""Output files: long output, and live readers (B31, threat 16)."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from octaskly.core.model.ids import AttemptId, Moment, TaskId
from octaskly.errors import OutputNotFound
from octaskly.ports.files import KeptOutput
from octaskly.ports.output import OutputChunk
from octaskly.runner.output.captured_contents import MANIFEST_NAME
from octaskly.runner.output.output_archive import (
    QUOTA_BYTES_MAX,
    OutputArchive,
    output_file_name,
)
from octaskly.runner.output.output_file import (
    BLOCK_BYTES,
    HEAD_BYTES,
    READ_BYTES_MAX,
    OutputFileReader,
    OutputFileWriter,
)
from octaskly.runner.pool.pool import Pool
from tests.support.agents import WAIT_S_MAX
from tests.support.pooling import (
    STREAM,
    archive_in,
    eventually,
    no_descriptors,
    rig,
    stranger,
)

MIB = 1 << 20
ATTEMPT = AttemptId(3, STREAM, 1, 1)


async def read(
    pool: Pool, task: TaskId, *, follow: bool = False, start: int = 0
) -> list[OutputChunk]:
    """Return all pieces of an attempt."""
    pieces = pool.recorder.stream_output(task, ATTEMPT, (start, start), follow=follow)
    return [piece async for piece in pieces]


def joined(pieces: list[OutputChunk], stream: int) -> bytes:
    return b"".join(piece.data for piece in pieces if piece.stream == stream)


def transcripts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("transcripts/*"))


async def test_short_output_makes_no_file(tmp_path: Path) -> None:
    """Also for a longer attempt, as long as it has no reader."""
    async with rig(tmp_path) as made:
        outcome = await made.run("echo hello; sleep 0.05; echo bye")

        assert outcome.stdout == b"hello\nbye\n"
        assert transcripts(tmp_path) == []


async def test_long_output_is_kept_on_disk_within_the_cap(tmp_path: Path) -> None:
    """The first MiB and the end stay, byte for byte; the counts are true."""
    async with rig(tmp_path) as made:
        task, _ = made.start("sleep 0.05; seq 5000000; seq 9000 >&2")
        outcome = await made.end_of(task)
        pieces = await read(made.pool, task)

    whole = b"".join(b"%d\n" % n for n in range(1, 5_000_001))
    assert outcome.stdout_bytes == len(whole)
    assert outcome.stdout == whole[:MIB]
    for piece in pieces:
        if piece.stream == 0:
            assert whole[piece.offset : piece.end_offset] == piece.data
    assert joined(pieces, 0)[:HEAD_BYTES] == whole[:HEAD_BYTES]
    assert pieces[-2] == OutputChunk(0, len(whole), b"")
    assert 6 * MIB < len(joined(pieces, 0)) < 8 * MIB
    # A flood on one stream does not push out the other.
    assert joined(pieces, 1) == b"".join(b"%d\n" % n for n in range(1, 9001))
    [name] = transcripts(tmp_path)
    assert (tmp_path / "transcripts" / name).stat().st_size <= 8 * MIB


async def test_a_follower_sees_lines_while_the_attempt_runs(tmp_path: Path) -> None:
    """Earlier output first, then each line as it is written."""
    async with rig(tmp_path) as made:
        task, _ = made.start(
            "echo one; while ! [ -e go ]; do sleep 0.01; done; echo two; echo three >&2"
        )
        seen: list[OutputChunk] = []
        async with asyncio.timeout(WAIT_S_MAX):
            pieces = made.pool.recorder.stream_output(
                task, ATTEMPT, (0, 0), follow=True
            )
            async for piece in pieces:
                seen.append(piece)
                if joined(seen, 0) == b"one\n":
                    assert made.outcome(task) is None
                    (made.workdir / "go").touch()

        assert joined(seen, 0) == b"one\ntwo\n"
        assert joined(seen, 1) == b"three\n"
        assert seen[-2:] == [OutputChunk(0, 8, b""), OutputChunk(1, 6, b"")]
        assert await read(made.pool, task, start=4) == [
            OutputChunk(0, 4, b"two\n"),
            OutputChunk(1, 4, b"e\n"),
            OutputChunk(0, 8, b""),
            OutputChunk(1, 6, b""),
        ]


async def test_without_follow_the_existing_output_is_read(tmp_path: Path) -> None:
    """The attempt goes on."""
    async with rig(tmp_path) as made:
        task, name = made.start("echo one; sleep 30")
        while not joined(pieces := await read(made.pool, task), 0):
            pass

        assert pieces == [
            OutputChunk(0, 0, b"one\n"),
            OutputChunk(0, 4, b""),
            OutputChunk(1, 0, b""),
        ]
        assert made.outcome(task) is None
        made.pool.stop_attempts([(task, name)])
        await made.end_of(task)


async def test_an_attempt_without_a_file_is_reported(tmp_path: Path) -> None:
    """Its output is in the result alone; an unknown attempt has none either."""
    async with rig(tmp_path) as made:
        task, _ = made.start("echo hello")
        await made.end_of(task)

        for name in (task, TaskId("unknown"), TaskId("..")):
            with pytest.raises(OutputNotFound):
                await read(made.pool, name, follow=True)


async def test_output_without_room_is_only_counted(tmp_path: Path) -> None:
    """A full quota must not block the task."""
    archive = archive_in(tmp_path, bytes_max=8 * MIB, quota_bytes=4 * MIB)
    async with rig(tmp_path, archive=archive) as made:
        outcome = await made.run("sleep 0.05; head -c 5000000 /dev/zero")

        assert (outcome.exit_code, outcome.stdout_bytes) == (0, 5_000_000)
        assert len(outcome.stdout) == MIB
        assert transcripts(tmp_path) == []


async def test_a_task_gets_no_descriptor_of_a_file(tmp_path: Path) -> None:
    """Files of others are private."""
    async with rig(tmp_path, slots=2, launchers=1) as made:
        task, name = made.start("echo one; sleep 30")
        while not joined(await read(made.pool, task), 0):
            pass
        outcome = await made.run("ls -l /proc/self/fd")
        made.pool.stop_attempts([(task, name)])
        await made.end_of(task)

    assert b"transcripts" not in outcome.stdout
    assert b"pipe" in outcome.stdout


@pytest.mark.slow
async def test_links_do_not_redirect_output(tmp_path: Path) -> None:
    """A task that creates links wherever it can changes no file of ours.

    It runs as the agent's own user here, so it may even replace the file by a link:
    output goes into the opened file, and readers follow no link.
    """
    victim = tmp_path / "victim"
    victim.write_text("mine")
    other_file = output_file_name(TaskId("task-002-rig"), ATTEMPT)
    async with rig(tmp_path) as made:
        task, _ = made.start(
            "d=../transcripts; mkdir -p $d; for n in $(seq 200); do"
            f' for f in $d/* "$d/{other_file}"; do'
            f" rm -f $f; ln -s {victim} $f; done; head -c 100000 /dev/zero; done"
        )
        async with asyncio.timeout(2 * WAIT_S_MAX):  # A thousand programs run.
            other = await made.run("sleep 0.02; head -c 3000000 /dev/zero")
            await made.end_of(task, within_s=2 * WAIT_S_MAX)
            for each in (task, TaskId("task-002-rig")):
                with pytest.raises(OutputNotFound):
                    await read(made.pool, each, follow=True)

    assert victim.read_text() == "mine"
    assert other.stdout_bytes == 3_000_000


@pytest.mark.skipif(os.getuid() != 0, reason="only root may run tasks as another user")
async def test_another_user_writes_output_through_its_launcher_only() -> None:
    """The launcher gets the descriptor alone; the folder stays closed to tasks."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # Pytest's own folder is closed to the other user.
        async with rig(folder, account=stranger()) as made:
            task, _ = made.start("sleep 0.02; head -c 3000000 /dev/zero")
            await made.end_of(task)
            spoiled = await made.run(
                f"rm -rf {folder}/transcripts/*; ln -s x {folder}/transcripts/x;"
                f" echo bad >> {folder}/transcripts/{output_file_name(task, ATTEMPT)}"
            )
            pieces = await read(made.pool, task)

        assert spoiled.exit_code != 0
        assert joined(pieces, 0) == bytes(3_000_000)
        assert transcripts(folder) == [output_file_name(task, ATTEMPT)]


# -- the archive ---------------------------------------------------------------------


class Wall:
    """A wall clock that a test moves."""

    def __init__(self, wall_ms: int) -> None:
        self.wall_ms = wall_ms

    def now(self) -> Moment:
        return Moment(0.0, self.wall_ms)

    def draw(self) -> float:
        return 0.5


def fill(archive: OutputArchive, task: str, size: int, mtime_s: float = 0.0) -> None:
    """Keep this many bytes for a task."""
    fd = archive.create_file(TaskId(task), ATTEMPT)
    writer = OutputFileWriter(os.dup(fd), archive.bytes_max)
    writer.write(0, bytes(size))
    writer.publish()
    writer.close()
    os.utime(fd, (mtime_s, mtime_s))
    os.close(fd)
    archive.mark_complete(TaskId(task), ATTEMPT)


def test_the_oldest_output_makes_room_for_the_next(tmp_path: Path) -> None:
    """Also that of an earlier agent; only files being written are never deleted."""
    (tmp_path / "outputs").mkdir()
    old = archive_in(tmp_path, quota_bytes=20 * MIB, clock=Wall(0))
    for n in range(3):
        fill(old, f"t{n}", 3 * MIB, mtime_s=10 - n)
    archive = archive_in(tmp_path, quota_bytes=20 * MIB, clock=Wall(0))
    first = archive.create_file(TaskId("a"), ATTEMPT)
    assert len(transcripts(tmp_path)) == 4
    second = archive.create_file(TaskId("b"), ATTEMPT)
    assert transcripts(tmp_path) == [
        output_file_name(TaskId(task), ATTEMPT) for task in ("a", "b", "t0")
    ]
    os.close(first)
    os.close(second)


def test_a_file_for_which_there_is_no_room_deletes_no_others(tmp_path: Path) -> None:
    """It is refused in any case; only expired output goes."""
    (tmp_path / "outputs").mkdir()
    archive = archive_in(
        tmp_path, quota_bytes=15 * MIB, retention_s=50, clock=Wall(90_000)
    )
    fill(archive, "expired", MIB, mtime_s=30)
    fill(archive, "kept", MIB, mtime_s=60)
    os.close(archive.create_file(TaskId("a"), ATTEMPT))

    with pytest.raises(OSError, match="quota"):
        archive.create_file(TaskId("b"), ATTEMPT)

    assert transcripts(tmp_path) == [
        output_file_name(TaskId(task), ATTEMPT) for task in ("a", "kept")
    ]


def test_on_a_full_disk_the_log_has_priority(tmp_path: Path) -> None:
    """Ended output is deleted for it, and no new file is created."""
    (tmp_path / "outputs").mkdir()
    archive = OutputArchive(
        tmp_path / "transcripts",
        outputs_dir=tmp_path / "outputs",
        bytes_max=8 * MIB,
        quota_bytes=1 << 30,
        retention_s=60,
        clock=Wall(0),
        reserve_bytes=shutil.disk_usage(tmp_path).total,
    )
    fill(archive_in(tmp_path), "old", 10)

    with pytest.raises(OSError, match="quota"):
        archive.create_file(TaskId("a"), ATTEMPT)

    assert transcripts(tmp_path) == []


def test_expired_output_is_deleted(tmp_path: Path) -> None:
    """Captured outputs, too, also of a node that hears of no dispatcher."""
    for n, folder in enumerate(("x/1-1-1-1", "x/2-2-2-2", "y/1-1-1-1")):
        place = tmp_path / "outputs" / folder
        place.mkdir(parents=True)
        (place / MANIFEST_NAME).write_text("kept")
        os.utime(place, (100 * n, 100 * n))
    clock = Wall(0)
    archive = archive_in(tmp_path, retention_s=50, clock=clock)
    fill(archive, "old", 10, mtime_s=0)
    fill(archive, "new", 10, mtime_s=100)
    clock.wall_ms = 120_000
    archive.delete_expired()

    assert transcripts(tmp_path) == [output_file_name(TaskId("new"), ATTEMPT)]
    kept = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("outputs/*/*"))
    assert kept == ["outputs/x/2-2-2-2", "outputs/y/1-1-1-1"]
    clock.wall_ms = 300_000
    archive.delete_expired()
    assert list(tmp_path.glob("outputs/*")) == []


def test_files_of_an_earlier_agent_are_found_once_a_descriptor_is_free(
    tmp_path: Path,
) -> None:
    """Those that this agent writes meanwhile are no leftovers."""
    (tmp_path / "outputs").mkdir()
    fill(archive_in(tmp_path), "old", 1)
    archive = archive_in(tmp_path, clock=Wall(0))
    with no_descriptors(), pytest.raises(OSError):
        archive.create_file(TaskId("refused"), ATTEMPT)
    with no_descriptors():
        assert archive.usage().used_bytes == 0
    os.close(archive.create_file(TaskId("a"), ATTEMPT))

    assert [TaskId("old")] == [each.task for each in archive.list_ended()]
    assert len(transcripts(tmp_path)) == 2


def test_a_small_disk_still_keeps_the_end_of_long_output(tmp_path: Path) -> None:
    """By default a tenth of the disk is used, a quarter of that by one attempt."""
    (tmp_path / "outputs").mkdir()
    disk = shutil.disk_usage(tmp_path).total
    archive = OutputArchive(
        tmp_path / "transcripts",
        outputs_dir=tmp_path / "outputs",
        bytes_max=disk,
        quota_bytes=None,
        retention_s=60,
        clock=Wall(0),
    )

    assert archive.bytes_max == min(QUOTA_BYTES_MAX, disk // 10) // 4


# -- the file ------------------------------------------------------------------------


def test_a_reader_survives_any_file(tmp_path: Path) -> None:
    """Tasks of the agent's own user could have written it."""
    good = tmp_path / "good"
    fd = os.open(good, os.O_RDWR | os.O_CREAT)
    writer = OutputFileWriter(fd, 4 * MIB)
    writer.write(0, bytes(3 * BLOCK_BYTES))
    writer.publish()
    writer.close()
    data = good.read_bytes()
    for bad in (
        b"",
        data[:10],
        data[:20],
        data[:16] + b"\xff" * 60_000 + data[60_016:],
        data[:-BLOCK_BYTES],
        data[:16] + data[16:32] * 3 + data[64:],
    ):
        path = tmp_path / "bad"
        path.write_bytes(bad)
        reader = OutputFileReader(os.open(path, os.O_RDONLY))
        if not reader.refresh_index():
            continue
        offset, looks = 0, 0
        while (piece := reader.read(0, offset))[1]:
            offset = piece[0] + len(piece[1])
            looks += 1
            assert looks < 2 * BLOCK_BYTES // READ_BYTES_MAX + 2


async def test_files_are_cleaned_up_while_the_agent_runs(tmp_path: Path) -> None:
    """And once at its start."""
    archive = archive_in(tmp_path, retention_s=0, clock=Wall(10_000_000_000_000))
    (tmp_path / "outputs").mkdir()
    fill(archive_in(tmp_path), "old", 10)
    async with rig(tmp_path, archive=archive) as made:
        tidying = asyncio.create_task(made.pool.recorder.run_cleanup())
        await eventually(lambda: not transcripts(tmp_path))
        tidying.cancel()


def test_what_is_kept_of_an_attempt_can_be_deleted(tmp_path: Path) -> None:
    """Captured outputs and output files; not a file that is being written."""
    archive = archive_in(tmp_path, clock=Wall(10_000))
    fill(archive, "a.b", 10, mtime_s=3)
    fill(archive, "other", 10, mtime_s=4)
    archive.create_file(TaskId("running"), ATTEMPT)
    for name in (f"a.b/{ATTEMPT}", f"%2e2e/{ATTEMPT}", f"a.b/{ATTEMPT}.partial"):
        place = tmp_path / "outputs" / name
        place.mkdir(parents=True)
        (place / "manifest").write_bytes(b"kept")
        os.utime(place, (5, 5))

    listed = archive.list_ended()

    assert sorted(listed) == [
        KeptOutput(TaskId(".."), ATTEMPT, 5000),
        KeptOutput(TaskId("a.b"), ATTEMPT, 5000),
        KeptOutput(TaskId("other"), ATTEMPT, 4000),
    ]
    before = archive.usage().used_bytes
    archive.delete_ended([each for each in listed if each.task != "other"])
    archive.delete_ended([KeptOutput(TaskId("running"), ATTEMPT, 0)])
    assert archive.list_ended() == [KeptOutput(TaskId("other"), ATTEMPT, 4000)]
    assert transcripts(tmp_path) == [
        output_file_name(TaskId(name), ATTEMPT) for name in ("other", "running")
    ]
    assert (tmp_path / "outputs" / f"a.b/{ATTEMPT}.partial").exists()
    assert archive.usage().used_bytes < before
