"""The one thread that writes: everything that waits goes into one commit.

The first write after a pause is committed at once. Only while writes arrive faster
than they are committed does the thread wait a little, so that a commit carries more.
Facts for which nobody waits (an attempt was assigned) may wait a little for company,
and do not wake the thread: a short task then costs two commits instead of three, and
the thread does not ask for Python's lock while its attempt is being started.
Where a node is alone, its disk quick and the commit small, the event loop makes it by
itself: waking the thread, and being woken by it, takes longer than such a disk does.
A write that fails is kept and tried again, and acknowledged once it is durable.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Final

from octaskly.core.effects import Append, MergeRows, Save, Spool, Unspool
from octaskly.errors import StoreError
from octaskly.ports import Clock, Packer
from octaskly.ports.histogram import Tally
from octaskly.store.tables import node_state
from octaskly.store.tables.database import (
    Opened,
    Reserve,
    give_back,
    has_spare_pages,
    translated,
)
from octaskly.store.tables.node_state import Met
from octaskly.store.writing.commit_queue import Item, Pace, Pile, last_number, weight
from octaskly.store.writing.tables import Tables

BUSY_ITEMS: Final = 2  #: urgent items that came during a commit: more will follow
COALESCE_S: Final = 0.001  #: while busy, wait so long for more,
COALESCE_TIMES: Final = 5  #: so many times at most, and only while more does come
COALESCE_ENTRIES: Final = 256  #: so many end that wait
LAZY_S: Final = 0.005  #: facts that nobody waits for are hurried after so long
FEW_ENTRIES: Final = 8  #: in the first commit after a pause: it is prepared at once
GIVE_WAY_S: Final = 0.002  #: and the event loop waits so long for that at most
QUICK_PAUSE_S: Final = 0.001  #: the loop makes none so soon: then many go together
PACE_ENTRIES: Final = 128  #: for so many that were added, one step of the purge,
PACE_STEPS_MAX: Final = 16  #: so many at most, as writes wait meanwhile
LOOK_S: Final = 1.0  #: between two looks for spare pages, unless many were deleted
RETRY_S: Final = 0.05
RETRY_S_MAX: Final = 2.0
COMMIT_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10)

_NEVER: Final = 1 << 62


class Writer:
    """Owns the writing connection and its thread."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        packer: Packer,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        on_commit: Callable[[int], None],
    ) -> None:
        self._path = path
        self._db = connection
        self._packer = packer
        self._loop = loop
        self._on_commit = on_commit
        self._tables = Tables(connection, packer, clock)
        self._reserve = Reserve(path)
        self._file = Opened(path)
        self._lock = threading.RLock()  #: taken by itself, which calls no Python
        self._changed = threading.Condition(self._lock)
        self._pile = Pile()
        self._is_put_off = False  #: `_hurry` will be called
        self._is_hurried = False  #: what waits goes into a commit, urgent or not
        self._wanted = _NEVER  #: wake the thread at so many entries
        self._is_held = False  #: somebody queues more, and gives way then
        self._is_owed = False  #: meanwhile the thread was not woken
        self._gate: threading.Lock | None = None  #: for who has given way
        self._pace = Pace()
        self._own_s = 0.0  #: when the loop last made a commit
        self._look_s = 0.0  #: when to look for spare pages
        self._is_closing = False
        self._has_purged = asyncio.Event()
        self._failure: str | None = None
        self._clock = clock
        self.commit_s = Tally(COMMIT_BOUNDS_S)
        self.committed = 0  #: entries
        self.ends_to_tell = 0  #: that were committed, at least
        self.has_stopped = False  #: for good, by an error that trying again cannot mend
        self._thread = threading.Thread(
            target=self._run, name="octaskly-writer", daemon=True
        )
        self._thread.start()

    @property
    def failure(self) -> str | None:
        """Why nothing is written at the moment, None while all is well."""
        if self._failure is None:
            try:
                self._file.check()
            except OSError as error:
                return self._file.gone(error)
        return self._failure

    @property
    def backlog(self) -> int:
        """Entries that wait for the next commit."""
        return self._pile.entries

    def put(self, item: Item) -> None:
        """Queue one item; returns at once."""
        with self._lock:
            self._pile.add(item)
            if self._pile.urgent:
                if self._is_held:
                    self._is_owed = True
                elif self._pile.entries >= self._wanted:
                    self._changed.notify()
                return
            if self._is_put_off:
                return
            self._is_put_off = True
        self._loop.call_later(LAZY_S, self._hurry)

    def hold(self) -> None:
        """Do not wake the thread before `give_way`."""
        self._is_held = True

    def give_way(self, *, is_alone: bool = False) -> None:
        """Wake the thread for what was queued; let it prepare a small commit first.

        Or, where the node is alone, commit it before this returns. With peers the
        thread shall: no heartbeat may ever wait for a disk, not even for a quick one.

        Python's lock goes to whoever asks at the right moment. While the caller went
        on, the thread got it some 0.3 ms late, and then the caller had to wait in turn.
        This way both are at work while the commit is on its way to the disk.
        """
        self._is_held = False
        if not self._is_owed:
            return
        self._is_owed = False
        if is_alone and self._commit_here():
            return
        gate = None
        with self._changed:
            if self._pile.entries < self._wanted:
                return  # It is at work, or waits for more.
            if self._wanted == 1 and self._pile.entries <= FEW_ENTRIES:
                gate = self._gate = threading.Lock()
                gate.acquire()
            self._changed.notify()
        if gate is not None:
            gate.acquire(timeout=GIVE_WAY_S)

    def _commit_here(self) -> bool:
        """Commit what waits on the caller's thread, if that is worth it."""
        now_s = self._clock.now().mono_s
        with self._lock:
            is_idle = self._wanted == 1 and not self._is_closing
            if (
                not (is_idle and self._pile.entries <= FEW_ENTRIES)
                or not self._pace.is_quick
                or now_s - self._own_s < QUICK_PAUSE_S
                or not self._tables.is_clean
            ):
                return False
            # The thread cannot go on before this lock is free.
            added, batch = self._pile.entries, self._pile.take()
            self._own_s, self._is_hurried = now_s, False
            try:
                is_done = self._tried(batch, now_s)
            except Exception as error:  # noqa: BLE001  the thread meets it, too
                is_done, self._failure = False, repr(error)
                self._pace.fail()
            if not is_done:
                self._pile.put_back(batch)  # The thread tries again, or ends the node.
                return False
        self._pace.own += 1
        self.committed += added
        if (number := last_number(batch)) is not None:
            self._on_commit(number)
        return True

    def _hurry(self) -> None:
        """Commit what waits now, though nobody waits for it."""
        with self._changed:
            self._is_put_off = False
            self._is_hurried = bool(self._pile.items)
            if self._is_hurried:
                self._changed.notify()

    def close(self) -> None:
        """Commit what waits, move the log into the file, and end.

        Raises:
            StoreError: something could not be written; it was never acknowledged.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()
        self._db.close()
        if self._failure is not None:
            raise StoreError(f"closed without the last writes: {self._failure}")

    def _run(self) -> None:
        try:
            while batch := self._take():
                if not self._persist(batch):
                    return
                self._pace.own, added = 0, sum(map(weight, batch))
                self.committed += added
                self._keep_pace(added)
            with suppress(sqlite3.Error):  # Not needed: all is in the log.
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except BaseException as error:
            self._failure = f"{self._path}: the writer stopped: {error!r}"
            self.has_stopped = True
            raise

    def _take(self) -> list[Item]:
        """Wait for items and return those of the next commit; none: close."""
        while not (self._pile.items or self._is_closing) and (
            self._reserve.extend() or self._tidy() or self._shorten()
        ):
            pass
        with self._changed:
            if self._pile.urgent >= BUSY_ITEMS:
                self._coalesce()
            else:
                self._wait(1, None)
            batch = self._pile.take()
            self._is_hurried = bool(self._pile.items)
            return batch

    def _coalesce(self) -> None:
        """Let more arrive, as long as it does: clients that wait for us send none."""
        for _ in range(COALESCE_TIMES):
            before = self._pile.entries
            self._wait(COALESCE_ENTRIES, COALESCE_S)
            if not before < self._pile.entries < COALESCE_ENTRIES:
                return

    def _wait(self, entries: int, timeout_s: float | None) -> None:
        self._wanted = entries
        self._changed.wait_for(
            lambda: (
                (self._pile.urgent and self._pile.entries >= entries)
                or self._is_hurried
                or self._is_closing
            ),
            timeout_s,
        )
        self._wanted = _NEVER

    def _persist(self, batch: Sequence[Item]) -> bool:
        """Commit a batch, however long that takes; False: gave up at the end."""
        delay_s = RETRY_S
        while True:
            is_last = self._is_closing
            if self._tried(batch, self._clock.now().mono_s):
                self._tell(last_number(batch))
                return True
            if is_last:
                return False
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing, delay_s)
            delay_s = min(2 * delay_s, RETRY_S_MAX)

    def _tell(self, number: int | None) -> None:
        """Have the event loop hear what is durable; it takes a moment to wake."""
        if number is not None:
            with suppress(RuntimeError):  # The loop has ended before the store.
                self._loop.call_soon_threadsafe(self._on_commit, number)

    async def purged(self) -> None:
        """Wait until nothing void is left, as of some commit."""
        while not self._tables.is_clean:
            self._has_purged.clear()
            await self._has_purged.wait()

    def _keep_pace(self, added: int) -> None:
        """Purge a little, and more where much was added: what is void never piles up.

        That is about twice what it takes to delete as much, so it catches up.
        """
        for _ in range(min(1 + added // PACE_ENTRIES, PACE_STEPS_MAX)):
            if not self._tidy():
                break

    def _tidy(self) -> bool:
        """Purge a little in a commit of its own; return whether there is more to do."""
        if self._failure is not None or self._tables.is_clean:
            return False
        try:
            self._transact(self._tables.purge)
        except (sqlite3.Error, OSError):
            self._tables.forget()
            return False  # It is tried again behind the next commit.
        self._look_s = 0.0
        is_over = bool(self._tables.is_clean)
        if is_over:
            with suppress(RuntimeError):  # The loop has ended before the store.
                self._loop.call_soon_threadsafe(self._has_purged.set)
        return not is_over

    def _shorten(self) -> bool:
        """Give some of the file back; return whether there is more to give."""
        now_s = self._clock.now().mono_s
        if self._failure is not None or now_s < self._look_s:
            return False
        try:
            if not has_spare_pages(self._db):
                self._look_s = now_s + LOOK_S
                return False
            self._transact(lambda: give_back(self._db))
        except (sqlite3.Error, OSError):
            return False  # It is tried again behind the next commit.
        return True

    def _tried(self, batch: Sequence[Item], now_s: float) -> bool:
        """Commit a batch; False: it failed, and `failure` says why."""
        try:
            self._commit(batch, now_s)
        except sqlite3.Error as error:
            self._failure = str(translated(self._path, error))
        except OSError as error:
            self._failure = self._file.gone(error)
        else:
            return True
        finally:
            self._open_gate()
        self._pace.fail()
        return False

    def _commit(self, batch: Sequence[Item], now_s: float) -> None:
        if self._failure is not None:
            self._tables.forget()
        self._transact(lambda: self._write(batch))
        self._failure = None
        self.ends_to_tell = self._tables.ends_to_tell
        took_s = self._clock.now().mono_s - now_s
        self._pace.note(took_s)
        self.commit_s.add(took_s)

    def _transact(self, write: Callable[[], None]) -> None:
        db = self._db
        self._file.check()
        db.execute("BEGIN IMMEDIATE")
        try:
            write()
            self._open_gate()
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        # A file that was deleted under us still takes writes, but keeps none.
        self._file.check()

    def _open_gate(self) -> None:
        """Let who has given way go on."""
        if (gate := self._gate) is not None:
            self._gate = None
            gate.release()

    def _write(self, batch: Sequence[Item]) -> None:
        appends = [item for item in batch if isinstance(item, Append)]
        if len(appends) == len(batch):  # As of a dispatcher, mostly.
            self._tables.append(appends)
            return
        saves = [item for item in batch if isinstance(item, Save)]
        spools = [item for item in batch if isinstance(item, Spool | Unspool)]
        peers = [item for item in batch if isinstance(item, Met)]
        if saves:
            node_state.write_saves(self._db, saves)
            for stream in (save.stream for save in saves if save.stream):
                self._tables.add_stream(*stream)
        for is_join, items in groupby(batch, lambda item: isinstance(item, MergeRows)):
            if not is_join:
                self._tables.append([i for i in items if isinstance(i, Append)])
                continue
            for item in items:
                assert isinstance(item, MergeRows)
                self._tables.join(item)
        if spools:
            node_state.write_spool(self._db, self._packer, spools)
        if peers:
            node_state.write_peers(self._db, peers)
