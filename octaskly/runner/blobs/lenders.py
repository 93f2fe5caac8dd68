"""Lenders: clients that keep the files of a tree, and send them when a node wants them.

A client offers a tree to its node over an open connection. Workers ask that node for
the files; it asks the client for those that it does not have, and keeps them only for a
moment. So the files of all tasks together need no room at any node.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from octaskly.ports.files import COPY_RETENTION_S
from octaskly.ports.store import Clock
from octaskly.runner.blobs.blob_store import BlobStore

LENDER_WAIT_S: Final = 600.0  #: from the end of the last offer until a tree is given up
UNKNOWN_NODE_WAIT_S: Final = 60.0  #: the same for a node that this one has never met
ARRIVAL_S: Final = 2.0  #: longest wait of one request for files of a lender
ASK_AGAIN_S: Final = 1.0  #: while a lender sends
AWAY_RETRY_S: Final = 5.0  #: while no lender offers the tree
REPLY_S_MAX: Final = 20.0  #: of the event loop, to a thread
WANTED_MAX: Final = 10_000  #: files that one offer was asked for and that are not here
ASKED_AT_ONCE_MAX: Final = 1000  #: files of one event of an offer
DEPARTURES_MAX: Final = 10_000


class LenderReply(NamedTuple):
    """What a node that lacks files of a lent tree says of its lender."""

    retry_s: float  #: when to ask again
    no_room: str = ""  #: why that node could not take the largest of them now

    @property
    def is_away(self) -> bool:
        """Whether no lender offers the tree now."""
        return self.retry_s != ASK_AGAIN_S


class Offer:
    """The offer of one client; its stream of wanted files."""

    def __init__(self) -> None:
        self.wanted: set[str] = set()  #: asked for, and not here yet
        self._unsent: dict[str, None] = {}
        self._has_unsent = asyncio.Event()

    def ask(self, names: Iterable[str]) -> None:
        """Ask for files, unless that was done and they have not arrived.

        Those beyond `WANTED_MAX` are not asked for: workers repeat their requests.
        """
        room = WANTED_MAX - len(self.wanted)
        more = [name for name in names if name not in self.wanted][:room]
        self.wanted.update(more)
        self._unsent.update(dict.fromkeys(more))
        if self._unsent:
            self._has_unsent.set()

    def on_stored(self, name: str) -> None:
        """Note that a file is here."""
        self.wanted.discard(name)
        self._unsent.pop(name, None)

    async def next_wanted(self) -> Sequence[str]:
        """Wait for files that are wanted, and return them."""
        while not self._unsent:
            self._has_unsent.clear()
            await self._has_unsent.wait()
        names = list(self._unsent)[:ASKED_AT_ONCE_MAX]
        for name in names:
            del self._unsent[name]
        return names


class _Arrivals:
    """The files that one request waits for."""

    def __init__(self, names: Iterable[str]) -> None:
        self.missing = set(names)
        self._all_here = asyncio.Event()

    def on_stored(self, name: str) -> None:
        self.missing.discard(name)
        if not self.missing:
            self._all_here.set()

    async def wait(self) -> None:
        """Wait until all are here, for at most `ARRIVAL_S`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ARRIVAL_S):
                await self._all_here.wait()


class AbsentLenders:
    """Since when the nodes to which trees are lent give this node no answer.

    All attempts that want a tree wait for its lender at the same time. Any thread may
    call the methods.

    Args:
        clock: The machine's clocks.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._lock = clock, threading.Lock()
        #: By tree: since when, and when it was tried last; the last tried one is last.
        self._absences: dict[str, tuple[float, float]] = {}

    def note_absence(self, tree: str) -> float:
        """Note that a node gives no answer; return the seconds since the first time.

        Nothing is known about a time in which it was not asked.
        """
        now_s = self._clock.now().mono_s
        with self._lock:
            since_s, tried_s = self._absences.pop(tree, (now_s, now_s))
            if now_s - tried_s > LENDER_WAIT_S:
                since_s = now_s
            self._absences[tree] = since_s, now_s
            if len(self._absences) > DEPARTURES_MAX:
                del self._absences[next(iter(self._absences))]
        return now_s - since_s

    def note_answer(self, tree: str) -> None:
        """Note that a node has answered."""
        with self._lock:
            self._absences.pop(tree, None)


class Lenders:
    """The offers of clients to this node.

    Methods belong to the event loop, unless their name says otherwise.

    Args:
        blob_store: Gets the files.
        clock: The machine's clocks.
    """

    def __init__(self, blob_store: BlobStore, clock: Clock) -> None:
        self._blob_store, self._clock = blob_store, clock
        self._offers: defaultdict[str, list[Offer]] = defaultdict(list)
        self._waiting: dict[str, list[_Arrivals]] = {}
        #: Trees whose last offer has ended, by the time of that.
        self._departures: dict[str, float] = {}
        self._started_s = clock.now().mono_s
        self._loop: asyncio.AbstractEventLoop | None = None
        blob_store.on_stored = self._on_stored_in_thread

    @contextmanager
    def open_offer(self, tree: str) -> Iterator[Offer]:
        """Offer the files of a tree while the block runs."""
        self._loop = asyncio.get_running_loop()
        offer = Offer()
        self._offers[tree].append(offer)
        self._departures.pop(tree, None)
        try:
            yield offer
        finally:
            self._offers[tree].remove(offer)
            if not self._offers[tree]:
                del self._offers[tree]
                self._add_departure(tree)

    async def await_files(
        self, tree: str, names: Sequence[str], largest_bytes: int = 0
    ) -> LenderReply | None:
        """Ask the lender of a tree for the files that are not here, and wait a moment.

        Args:
            tree: SHA-256 of the tree.
            names: SHA-256 of the files.
            largest_bytes: Size of the largest of them; 0 if that is not known.

        Returns:
            None if all files are here, or if no lender has offered the tree for
            `LENDER_WAIT_S`.
        """
        arrivals = _Arrivals(names)
        # A file may be stored while the others are looked for.
        for name in names:
            self._waiting.setdefault(name, []).append(arrivals)
        try:
            missing = await asyncio.to_thread(
                self._blob_store.missing_files, names, keep_s=COPY_RETENTION_S
            )
            arrivals.missing.intersection_update(missing)
            if not arrivals.missing:
                return None
            if tree not in self._offers:
                return self._away_reply(tree)
            # Without those that were stored meanwhile: they would stay wanted.
            wanted = [name for name in missing if name in arrivals.missing]
            for offer in self._offers[tree]:
                offer.ask(wanted)
            await arrivals.wait()
        finally:
            self._stop_waiting(names, arrivals)
        if not arrivals.missing:
            return None
        why = await asyncio.to_thread(self._blob_store.why_no_room, largest_bytes)
        return LenderReply(ASK_AGAIN_S, why)

    def await_files_in_thread(
        self, tree: str, names: Sequence[str], largest_bytes: int = 0
    ) -> LenderReply | None:
        """Do as `await_files`; blocks, and is the only method for threads."""
        if self._loop is None:  # Nobody has offered anything.
            return self._away_reply(tree)
        answer = asyncio.run_coroutine_threadsafe(
            self.await_files(tree, names, largest_bytes), self._loop
        )
        try:
            return answer.result(REPLY_S_MAX)
        except TimeoutError:
            return LenderReply(ASK_AGAIN_S)

    def _stop_waiting(self, names: Iterable[str], arrivals: _Arrivals) -> None:
        for name in names:
            some = self._waiting.get(name)
            if some is not None:
                some.remove(arrivals)
                if not some:
                    del self._waiting[name]

    def _away_reply(self, tree: str) -> LenderReply | None:
        """Return when to ask again for a tree that nobody offers; None for never.

        A tree that this agent does not know may have been offered to the one before.
        """
        since_s = self._departures.get(tree, self._started_s)
        is_over = self._clock.now().mono_s - since_s > LENDER_WAIT_S
        return None if is_over else LenderReply(AWAY_RETRY_S)

    def _add_departure(self, tree: str) -> None:
        now_s = self._clock.now().mono_s
        self._departures[tree] = now_s
        for old, since_s in list(self._departures.items()):
            is_old = now_s - since_s > LENDER_WAIT_S
            # A tree that is not listed counts as gone since the start of this agent.
            if not is_old and len(self._departures) <= DEPARTURES_MAX:
                break
            del self._departures[old]

    def _on_stored_in_thread(self, name: str) -> None:
        """Note that a file is here; called in any thread."""
        if self._loop is not None and self._offers:
            self._loop.call_soon_threadsafe(self._on_stored, name)

    def _on_stored(self, name: str) -> None:
        for arrivals in self._waiting.get(name, ()):
            arrivals.on_stored(name)
        for some in self._offers.values():
            for offer in some:
                offer.on_stored(name)
