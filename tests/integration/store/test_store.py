"""The store on real files: crashes, full disks, foreign files and damage."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import pytest

from octaskly.core.log.facts import Decided, Fact
from octaskly.core.model.ids import Address, NodeId, StreamId
from octaskly.core.model.tasks import TaskState
from octaskly.errors import StoreCorrupt, StoreError, StoreUnusable
from octaskly.ports.store import TaskQuery
from octaskly.store import Store, move_aside
from octaskly.store.tables import rows
from octaskly.store.tables.database import open_writer
from octaskly.store.tables.node_state import read_hlc
from octaskly.store.tables.schema import VERSION
from tests.contract import log_kit as kit
from tests.support.agents import WAIT_S_MAX

ROOT = Path(__file__).parents[3]
DEADLINE_S = WAIT_S_MAX

CRASHING = """
import asyncio, os, random, signal, sys
from pathlib import Path
from octaskly.core.model.ids import Epoch, NodeId, StreamId
from octaskly.store import Store
from tests.contract import log_kit as kit

async def write(stream, pipe):
    def tell(number):
        os.write(pipe, b"%d\\n" % number)
    path = Path(sys.argv[1])
    store = Store(path, kit.PicklePacker(), tell, kit.HandClock())
    vector = dict(store.open().vector)
    os.write(pipe, repr(vector).encode() + b"\\n")
    epochs = ((stream, Epoch(1, NodeId("a"))),)
    for seq in range(1, 1_000_000):
        facts = [kit.submitted(seq, id=f"{stream}.{seq}")]
        entries = kit.entries(facts, stream=stream, after=seq - 1)
        store.append_entries(seq, entries, epochs)
        if seq % 7 == 0:
            await asyncio.sleep(0.0005)

held = {}
last = 0
for stream in range(1, 21):
    source, pipe = os.pipe()
    child = os.fork()
    if child == 0:
        asyncio.run(write(StreamId(stream), pipe))
    os.close(pipe)
    with open(source, "rb") as lines:
        vector = eval(lines.readline())
        assert vector.get(stream - 1, 0) >= last, (vector, last)
        assert {s: n for s, n in vector.items() if s < stream - 1} == held
        held, last = vector, 0
        for _ in range(random.randrange(1, 30)):
            last = int(lines.readline())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for line in lines:
            last = int(line)
print(last)
"""


@asynccontextmanager
async def opened(
    path: Path, committed: list[int] | None = None, **options: object
) -> AsyncIterator[Store]:
    store = kit.open_store(path, committed, **options)
    await asyncio.to_thread(store.open)
    try:
        yield store
    finally:
        await store.close()


async def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110  another thread changes it
            await asyncio.sleep(0.005)


async def fill(path: Path, tasks: int = 50) -> None:
    async with opened(path) as store:
        facts = [kit.submitted(n) for n in range(1, tasks + 1)]
        store.append_entries(1, kit.entries(facts), kit.EPOCHS)


async def refused(path: Path) -> StoreError:
    """Open an invalid file; it must not change."""
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        await asyncio.to_thread(kit.open_store(path).open)
    assert path.read_bytes() == before
    return caught.value


@pytest.mark.parametrize("commits", [1, 3])
async def test_a_verdict_may_come_before_its_end(tmp_path: Path, commits: int) -> None:
    """Another stream has the end; until it comes, the attempt runs on."""
    path, committed = tmp_path / "log.db", list[int]()
    assigned = kit.assigned(1)
    where = assigned.attempt, assigned.node
    verdict = Decided(assigned.task, TaskState.FAILED, 1, *where)
    facts: list[Fact] = [kit.submitted(1), assigned, verdict]
    size = len(facts) // commits
    async with opened(path, committed) as store:
        for n in range(commits):
            some = facts[n * size : (n + 1) * size]
            store.append_entries(n, kit.entries(some, after=n * size), kit.EPOCHS)
            await until(partial(has_committed, committed, n))

    with closing(sqlite3.connect(path)) as db:
        found = db.execute("SELECT state, runs_on FROM tasks").fetchall()
    assert found == [(rows.NUMBER_OF[TaskState.FAILED], 1)]


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_acknowledged_entries_survive_kill_9(tmp_path: Path) -> None:
    """At random moments, twenty times, on one file."""
    path = tmp_path / "log.db"

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CRASHING, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    async with opened(path) as store:
        vector = dict(await store.read_vector())
        total = (await store.read_task_page(TaskQuery(limit=1))).total
    assert len(vector) == 20
    assert vector[StreamId(20)] >= int(done.stdout)
    assert total == sum(vector.values())


async def test_any_prefix_of_the_write_ahead_log_is_a_sound_database(
    tmp_path: Path,
) -> None:
    """A power cut leaves whole commits, in order, with matching counters."""
    source = tmp_path / "log.db"
    committed: list[int] = []
    async with opened(source, committed) as store:
        for n in range(1, 31):
            facts: list[Fact] = [kit.submitted(n), kit.assigned(n)]
            facts.append(kit.finished(n, stdout=b"x"))
            store.append_entries(n, kit.entries(facts, after=3 * n - 3), kit.EPOCHS)
            await until(partial(has_committed, committed, n))
        wal = Path(f"{source}-wal").read_bytes().rstrip(b"\0")  # Without its reserve.
        database = source.read_bytes()

    seen = []
    for cut in (*range(0, len(wal), 512 * 37), len(wal)):
        path = tmp_path / str(cut) / "log.db"
        path.parent.mkdir()
        path.write_bytes(database)
        path.with_name("log.db-wal").write_bytes(wal[:cut])
        async with opened(path) as store:
            have = dict(await store.read_vector()).get(kit.STREAM, 0)
            counts = (await store.read_stats()).counts
            page = await store.read_task_page(TaskQuery(state=TaskState.COMPLETED))
        assert have % 3 == 0
        assert counts[TaskState.COMPLETED] == len(page.records) == have // 3
        seen.append(have)
    assert seen == sorted(seen)
    assert seen[-1] > 60


async def test_a_second_process_learns_which_one_has_the_database(
    tmp_path: Path,
) -> None:
    """It must not wait, and not touch anything."""
    path = tmp_path / "log.db"
    async with opened(path):
        error = await refused(path)

    assert isinstance(error, StoreUnusable)
    assert f"process {os.getpid()}" in str(error)
    assert "--name" in (error.hint or "")
    async with opened(path) as store:
        assert store.write_failure is None


async def test_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    """Commands and outputs are private."""
    path = tmp_path / "new" / "state" / "log.db"
    before = os.umask(0)
    try:
        async with opened(path) as store:
            store.append_entries(1, kit.entries([kit.submitted(1)]), kit.EPOCHS)
            await store.read_vector()
            modes = {
                f.name: stat.S_IMODE(f.stat().st_mode) for f in path.parent.iterdir()
            }
    finally:
        os.umask(before)

    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {"log.db", "log.db-wal", "log.db.lock"} <= set(modes)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """The hint names the next step."""
    path = tmp_path / "log.db"
    path.write_bytes(b"dear diary" * 1000)

    error = await refused(path)

    assert isinstance(error, StoreCorrupt)
    assert "octaskly db reset" in (error.hint or "")


async def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """Our tables do not belong there."""
    path = tmp_path / "log.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url)")

    error = await refused(path)

    assert isinstance(error, StoreCorrupt)
    assert "another program" in str(error)


@pytest.mark.parametrize(
    ("version", "why", "hint"),
    [
        (3, "has schema 3, which no release has written", ""),
        (10, "has schema 10, which no release has written", ""),
        (
            VERSION + 1,
            f"has schema {VERSION + 1}, this program knows up to {VERSION}",
            "install the newer Octaskly again; ",
        ),
    ],
)
async def test_a_newer_or_too_old_database_is_refused(
    tmp_path: Path, version: int, why: str, hint: str
) -> None:
    """The program cannot know what it would damage."""
    path = tmp_path / "log.db"
    await fill(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={version}")

    error = await refused(path)

    assert isinstance(error, StoreCorrupt)
    assert error.message == f"{path} {why}"
    assert (error.hint or "").startswith(f"{hint}`octaskly db reset`")


@pytest.mark.parametrize("kept", [100, 4096, 30_000])
async def test_a_truncated_database_is_refused(tmp_path: Path, kept: int) -> None:
    """Whether the header, the schema or only rows are missing."""
    path = tmp_path / "log.db"
    await fill(path, 2000)
    path.write_bytes(path.read_bytes()[:kept])

    assert isinstance(await refused(path), StoreCorrupt)


async def test_a_database_with_damaged_pages_is_refused(tmp_path: Path) -> None:
    """Silently wrong is worse than down."""
    path = tmp_path / "log.db"
    await fill(path, 2000)
    whole = bytearray(path.read_bytes())
    for page in range(2, len(whole) // 4096):
        whole[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(whole)

    assert isinstance(await refused(path), StoreCorrupt)


def test_a_sqlite_that_is_too_old_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end with a syntax error of SQLite, or later in a search."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 37, 2))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.37.2")
    path = tmp_path / "log.db"

    with pytest.raises(StoreUnusable, match=r"SQLite 3\.37\.2; 3\.38 is needed"):
        open_writer(path)

    assert not path.exists()


async def test_a_damaged_value_is_a_damaged_log(tmp_path: Path) -> None:
    """SQLite has no checksums, so only the reader of the value notices."""
    path = tmp_path / "log.db"
    await fill(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE tasks SET attempts = x'c1'")

    async with opened(path) as store:
        with pytest.raises(StoreCorrupt, match="damaged"):
            await store.read_task(kit.task_id(1))


async def test_a_database_that_another_program_writes_is_refused(
    tmp_path: Path,
) -> None:
    """The error comes at once, without an endless wait."""
    path = tmp_path / "log.db"
    await fill(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnusable, match="locked by another program"):
            await asyncio.to_thread(kit.open_store(path).open)


async def test_a_read_only_database_is_refused() -> None:
    """At the start, not at the first task."""
    folder = Path(tempfile.mkdtemp(prefix="octaskly-", dir="/tmp"))
    path = folder / "log.db"
    try:
        await fill(path)
        script = (
            "import asyncio, os, sys\n"
            "from pathlib import Path\n"
            "from octaskly.errors import StoreError\n"
            "from tests.contract import log_kit as kit\n"
            "async def main():\n"
            "    store = kit.open_store(Path(sys.argv[1]))\n"
            "    if os.getuid() == 0:\n"  # Nothing is read-only to root.
            "        os.setuid(65534)\n"
            "    try:\n"
            "        store.open()\n"
            "    except StoreError as error:\n"
            "        print(error, '/', error.hint)\n"
            "asyncio.run(main())\n"
        )
        for item in folder.iterdir():
            item.chmod(0o666 if item.suffix == ".lock" else 0o444)
        folder.chmod(0o755)

        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", script, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(folder)

    assert str(path) in done.stdout, done.stderr
    assert "owner and permissions" in done.stdout


async def test_a_full_disk_delays_the_acknowledgement_and_loses_nothing(
    tmp_path: Path,
) -> None:
    """Once there is room again, the same writes succeed, without a restart."""
    committed: list[int] = []
    async with opened(tmp_path / "log.db", committed) as store:
        store.append_entries(1, kit.entries([kit.submitted(1)]), kit.EPOCHS)
        await until(lambda: committed == [1])
        limit_pages(store, 1)
        big = [kit.submitted(n, command="x" * 10_000) for n in range(2, 40)]
        store.append_entries(2, kit.entries(big, after=1), kit.EPOCHS)
        await until(lambda: store.write_failure is not None)
        store.append_entries(3, kit.entries([kit.assigned(1)], after=39), kit.EPOCHS)

        assert "full" in str(store.write_failure)
        assert not store.has_disk_room()
        assert committed == [1]
        assert (await store.read_task_page(TaskQuery())).total == 1

        limit_pages(store, 1 << 30)
        await until(lambda: committed[-1] == 3)
        assert store.write_failure is None
        assert store.has_disk_room()
        assert await store.read_vector() == ((kit.STREAM, 40),)


async def test_closing_on_a_full_disk_reports_the_unwritten_entries(
    tmp_path: Path,
) -> None:
    """They were never acknowledged, and a stop must not hang."""
    committed: list[int] = []
    store = kit.open_store(tmp_path / "log.db", committed)
    await asyncio.to_thread(store.open)
    await store.read_vector()
    limit_pages(store, 1)
    store.append_entries(
        1, kit.entries([kit.submitted(1, command="x" * 100_000)]), kit.EPOCHS
    )

    with pytest.raises(StoreError, match="full"):
        await store.close()

    assert committed == []


async def test_a_database_that_disappears_acknowledges_nothing(tmp_path: Path) -> None:
    """The open file still accepts writes, but they would be lost."""
    path = tmp_path / "log.db"
    committed: list[int] = []
    async with opened(path, committed) as store:
        path.rename(tmp_path / "elsewhere")
        assert "is gone" in str(store.write_failure)
        store.append_entries(1, kit.entries([kit.submitted(1)]), kit.EPOCHS)
        with pytest.raises(TimeoutError):
            await until(lambda: bool(committed), deadline_s=0.2)

        (tmp_path / "elsewhere").rename(path)
        await until(lambda: committed == [1])
        assert store.write_failure is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_fact_that_cannot_be_written_shows_in_the_health(
    tmp_path: Path,
) -> None:
    """A bug of ours must not look like a slow disk, and nothing is acknowledged."""
    committed: list[int] = []
    store = kit.open_store(tmp_path / "log.db", committed)
    await asyncio.to_thread(store.open)
    broken = kit.submitted(1, command="\udcff")
    store.append_entries(1, kit.entries([broken]), kit.EPOCHS)
    await until(lambda: store.write_failure is not None)

    assert "the writer stopped" in str(store.write_failure)
    assert store.shortage_reason() == store.write_failure
    assert not store.has_disk_room()
    with pytest.raises(StoreError, match="the writer stopped"):
        await store.close()
    assert committed == []


async def test_free_room_excludes_the_reserve(tmp_path: Path) -> None:
    """The reserve lets running tasks report when nothing new is accepted."""
    free = shutil.disk_usage(tmp_path).free
    async with opened(tmp_path / "a.db", free_bytes_min=0) as store:
        assert store.has_disk_room(1000)
        assert not store.has_disk_room(4 * free)
        assert store.shortage_reason(1000) is None
    async with opened(tmp_path / "b.db", free_bytes_min=4 * free) as store:
        assert not store.has_disk_room()
        assert "MiB are free where the log is" in str(store.shortage_reason())


async def test_the_address_of_a_peer_is_forgotten_after_a_week(
    tmp_path: Path,
) -> None:
    """Another machine has probably got its address; its name stays."""
    path = tmp_path / "log.db"
    clock = kit.HandClock()
    async with opened(path, clock=clock) as store:
        for name in ("old", "new", "newest"):
            store.save_peer(NodeId(name), name, [Address("10.0.0.1", 7878)])
            clock.wall_ms += 86_400_000
        store.save_peer(NodeId("left"), "left", [])  # As one that left for good.
    clock.wall_ms += 5 * 86_400_000

    store = kit.open_store(path, clock=clock)
    saved = await asyncio.to_thread(store.open)
    await store.close()

    assert [advert.node for advert in saved.peers] == ["newest", "new"]
    names = ("old", "new", "newest", "left")
    assert dict(saved.names) == {name: name for name in names}


async def test_a_reset_moves_everything_aside(tmp_path: Path) -> None:
    """The old log can still be opened under its new name."""
    path = tmp_path / "log.db"
    await fill(path)

    moved = move_aside(path, "20261124T120000Z")

    assert [p.name for p in moved] == ["log.db.20261124T120000Z"]
    async with opened(moved[0]) as store:
        assert (await store.read_task_page(TaskQuery())).total == 50
    async with opened(path) as store:
        assert (await store.read_task_page(TaskQuery())).total == 0
        with pytest.raises(StoreError, match="in use by process"):
            move_aside(path, "later")


async def test_queued_writes_share_a_few_commits(tmp_path: Path) -> None:
    """With one commit for each, every write would wait for the disk in turn."""
    committed: list[int] = []
    async with opened(tmp_path / "log.db", committed) as store:
        for n in range(1, 2001):
            store.append_entries(
                n, kit.entries([kit.submitted(n)], after=n - 1), kit.EPOCHS
            )
        await until(lambda: committed[-1:] == [2000])

    assert len(committed) < 200


async def test_a_fact_without_a_waiter_is_written_later_or_with_the_next(
    tmp_path: Path,
) -> None:
    """It wakes nobody, but does not wait for ever either."""
    committed: list[int] = []
    async with opened(tmp_path / "log.db", committed) as store:
        store.append_entries(
            1, kit.entries([kit.submitted(1), kit.submitted(2)]), kit.EPOCHS
        )
        await until(lambda: has_committed(committed, 1))
        store.append_entries(2, kit.entries([kit.assigned(1)], after=2), kit.EPOCHS)
        await until(lambda: has_committed(committed, 2))
        store.append_entries(3, kit.entries([kit.assigned(2)], after=3), kit.EPOCHS)
        store.append_entries(4, kit.entries([kit.finished(1)], after=4), kit.EPOCHS)
        await until(lambda: has_committed(committed, 4))

    assert committed == [1, 2, 4]


def has_committed(committed: list[int], number: int) -> bool:
    return committed[-1:] == [number]


def limit_pages(store: Store, pages: int) -> None:
    """Make SQLite find the disk full at this many pages."""
    assert store._writer is not None
    store._writer._db.execute(f"PRAGMA max_page_count={pages}").fetchall()


def test_the_clock_of_a_long_log_is_found_by_stream(tmp_path: Path) -> None:
    """Each PULL needs it, so it must not scan a million entries."""
    db = open_writer(tmp_path / "octaskly.db")
    asked: list[str] = []
    db.set_trace_callback(asked.append)
    read_hlc(db)
    db.set_trace_callback(None)

    plans = [
        step[3]
        for question in asked
        for step in db.execute(f"EXPLAIN QUERY PLAN {question}")
    ]

    db.close()
    assert "SEARCH log USING INDEX sqlite_autoindex_log_1 (stream=?)" in plans
    assert "USE TEMP B-TREE FOR ORDER BY" not in plans
