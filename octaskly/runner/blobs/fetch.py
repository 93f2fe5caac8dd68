"""One fetch of files: from packs, in pieces, or from the client that lends them."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from typing import Final, NamedTuple, Protocol

from octaskly.core.model.task_options import BlobRef
from octaskly.errors import OutputNotFound
from octaskly.files.pack import ASKED_FILES_MAX, PACKED_BYTES_MAX
from octaskly.ports.files import (
    COPY_RETENTION_S,
    ContentMismatch,
)
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.blobs.holder_connection import (
    Holder,
    HolderBusy,
    HolderConnections,
    HolderRefused,
    HolderUnreachable,
)
from octaskly.runner.blobs.lenders import (
    AWAY_RETRY_S,
    LENDER_WAIT_S,
    UNKNOWN_NODE_WAIT_S,
    AbsentLenders,
    LenderReply,
    Lenders,
)
from octaskly.runner.blobs.pieces import HOLDERS_MAX, HolderLookup, PieceDownload
from octaskly.runner.blobs.uploads import disk_error
from octaskly.runner.input_sources import SourceTally

FETCH_TRIES: Final = 4  #: without progress; a node that restarts is back within seconds
BUSY_ROUNDS_MAX: Final = 100  #: in which a busy holder does not count as a failure
PAUSE_S: Final = 1.0
CLIENT: Final = "the client"  #: what a tally calls the lender of a tree
NAMED_MAX: Final = 4  #: nodes that an error names

Sizes = Mapping[str, int | None]
"""Sizes of files by SHA-256; None if a size is not known."""


class FilesAwaited(Exception):
    """Files that a client lends are not here yet.

    Args:
        message: What is awaited.
        retry_s: When to try again.
        wait_s_max: How long to wait in all while none arrives, because the client is
            away or there is no room here.
        no_room: Why there is none; "" if they are not sent.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_s: float,
        wait_s_max: float = inf,
        no_room: str = "",
    ) -> None:
        super().__init__(message)
        self.retry_s, self.wait_s_max, self.no_room = retry_s, wait_s_max, no_room


class Wanted(NamedTuple):
    """Terms of a fetch: who has the files, when to stop, and how long to keep them."""

    find_holders: HolderLookup
    may_continue: Callable[[], bool]
    keep_s: float = COPY_RETENTION_S
    lent_tree: str = ""  #: SHA-256 of the tree that they belong to, if it is lent
    is_lent_here: bool = False  #: this node asks the lender of the tree


class NamedLocks:
    """Locks by name; a lock exists only while a thread holds it or waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: The lock, and how many threads hold it or wait for it.
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @contextmanager
    def hold_lock(self, name: str) -> Iterator[None]:
        """Hold the lock of a name for the length of the block."""
        with self._lock:
            lock, count = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = lock, count + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                _, count = self._locks.pop(name)
                if count > 1:
                    self._locks[name] = lock, count - 1


class FetcherState(Protocol):
    """Store, lenders and connections, shared by all fetches of a node."""

    blob_store: BlobStore
    lenders: Lenders
    absent_lenders: AbsentLenders
    file_locks: NamedLocks  #: by what is being fetched
    large_slots: threading.Semaphore  #: for blobs in pieces

    def is_closing(self, wait_s: float = 0.0) -> bool:
        """Return True if all fetches are to end; wait so long for it."""

    def report_wrong_copy(self, holder: str, sha256: str) -> None:
        """Report that a holder sent wrong bytes, unless one was reported recently."""


class Fetch:
    """One fetch: what it has learned about the holders, and its connections.

    Args:
        fetcher: What it shares with other fetches.
        connections: Connects to holders.
        wanted: How files are wanted.
    """

    def __init__(
        self, fetcher: FetcherState, connections: HolderConnections, wanted: Wanted
    ) -> None:
        self._fetcher, self._store = fetcher, fetcher.blob_store
        self._connections, self._wanted = connections, wanted
        self._liars: set[str] = set()  #: holders that sent wrong bytes
        self._tally: SourceTally | None = None
        self._tree = ""  #: SHA-256 of the tree whose bytes are counted
        self._progress = 0  #: small files and pieces that arrived, and dropped holders

    def count_into(
        self, tally: SourceTally | None, tree: BlobRef, sizes: Mapping[str, int]
    ) -> None:
        """Count the bytes that are sent from now on, of a tree with these sizes."""
        self._tally, self._tree = tally, tree.sha256
        if tally is not None:
            present = sum(sizes[name] for name in self._store.files_here(sizes))
            tally.set_needed(tree.sha256, sum(sizes.values()), present)

    def fetch_manifest(self, sha256: str) -> None:
        """Fetch a manifest, compressed if it is small."""
        try:
            self.fetch_small([sha256], is_compressed=True)
        except OutputNotFound:
            self.fetch_large(sha256, None)

    def fetch_all(self, sizes: Sizes) -> None:
        """Fetch small files in packs, and the others in pieces."""
        small, large = _split(sizes)
        self.fetch_small(small)
        # Nodes that fetch one tree get different files first, and then fetch from each
        # other.
        secrets.SystemRandom().shuffle(large)
        for name in large:
            self.fetch_large(name, sizes[name])

    def fetch_lent(self, sizes: Sizes, *, is_manifest: bool = False) -> None:
        """Fetch the files that are not here of a tree that a client lends.

        Other nodes are asked if the client is away, or has stopped sending.

        Raises:
            FilesAwaited: the client has not sent all, and may send more.
            OutputNotFound: no node has one of them, and no client lends it.
            FileQuotaExceeded: there is no room for them here.
            HolderUnreachable: the files are no longer needed.
        """
        reply: LenderReply | None = None
        keep_s = self._wanted.keep_s
        missing = self._store.missing_files(sizes, keep_s=keep_s)
        while missing:
            if not self._may_continue():
                raise HolderUnreachable("the files are no longer needed")
            left = {name: sizes[name] for name in missing}
            reply = self._ask_lender(left, is_manifest=is_manifest)
            missing = self._store.missing_files(missing, keep_s=keep_s)
            if len(missing) == len(left):
                break
            if self._wanted.is_lent_here:
                came = left.keys() - set(missing)
                self._count_sent(CLIENT, sum(left[name] or 0 for name in came))
        if not missing:
            return
        wait_s_max = inf
        if reply is None or reply.is_away:
            try:
                self.fetch_all(sizes)
            except OutputNotFound:
                if reply is None:
                    raise
            else:
                return
            wait_s_max = self._lender_wait_s(self._named_holder())
        raise FilesAwaited(
            f"{len(missing)} of them not yet sent by the client{_why_not_sent(reply)}",
            retry_s=reply.retry_s,
            wait_s_max=wait_s_max,
        )

    def _away_reply(self, named: Holder | None) -> LenderReply | None:
        """Return when to ask a node again that gives no answer; None for never."""
        absent_s = self._fetcher.absent_lenders.note_absence(self._wanted.lent_tree)
        is_over = absent_s > self._lender_wait_s(named)
        return None if is_over else LenderReply(AWAY_RETRY_S)

    def _lender_wait_s(self, named: Holder | None) -> float:
        """Return how long to wait for a lender at this node, or at the named one."""
        is_known = named is not None and not named.is_unknown
        is_waited_for = self._wanted.is_lent_here or is_known
        return LENDER_WAIT_S if is_waited_for else UNKNOWN_NODE_WAIT_S

    def _named_holder(self) -> Holder | None:
        holders = self._find_holders()
        return next((holder for holder in holders if holder.is_named), None)

    def _ask_lender(self, missing: Sizes, *, is_manifest: bool) -> LenderReply | None:
        """Fetch from the node to which a client lends files, and have it ask for them.

        Returns:
            None if nothing more is expected.
        """
        tree = self._wanted.lent_tree
        largest_bytes = max(size or 0 for size in missing.values())
        if self._wanted.is_lent_here:
            lenders = self._fetcher.lenders
            return lenders.await_files_in_thread(tree, list(missing), largest_bytes)
        named = self._named_holder()
        if named is None or named.is_unknown:  # It may be introduced soon.
            return self._away_reply(named)
        try:
            # The node asks the client for all that this request names.
            reply = self._fetch_packs(
                named,
                list(missing),
                is_compressed=is_manifest,
                lent_tree=tree,
                largest_bytes=largest_bytes,
            )
            self._fetcher.absent_lenders.note_answer(tree)
            for name in _split(missing)[1]:
                self._download_from(named, name, missing[name])
        except HolderRefused:
            return None
        except HolderUnreachable:
            return self._away_reply(named)
        except (HolderBusy, ContentMismatch):
            return LenderReply(AWAY_RETRY_S)
        return reply

    def _download_from(
        self, holder: Holder, sha256: str, size_bytes: int | None
    ) -> None:
        """Fetch a file in pieces from one node, if that has it."""
        locks = self._fetcher.file_locks
        with locks.hold_lock(sha256), self._fetcher.large_slots:
            if not self._store.missing_files([sha256], keep_s=self._wanted.keep_s):
                return
            with self._downloading(sha256, size_bytes) as download:
                try:
                    download.run(lambda: [holder], at_once=1)
                except ContentMismatch:
                    self._drop_wrong_copies(download, sha256)
                    raise
            if failure := download.failures.get(holder.name):
                raise failure

    def fetch_small(self, names: Sequence[str], *, is_compressed: bool = False) -> None:
        """Fetch files in packs, unless they are here.

        Raises:
            OutputNotFound: no node has one of them.
            FileQuotaExceeded: there is no room for them here.
            HolderUnreachable: the files are no longer needed.
        """

        def missing() -> list[str]:
            return self._store.missing_files(names, keep_s=self._wanted.keep_s)

        if not missing():
            return
        for failures in self._rounds(missing):
            for holder in self._find_holders():
                if not (left := missing()):
                    break
                with _noting(failures, holder):
                    self._fetch_packs(holder, left, is_compressed=is_compressed)

    def fetch_large(self, sha256: str, size_bytes: int | None) -> None:
        """Fetch a file in pieces, from several nodes at once, unless it is here.

        Raises:
            OutputNotFound: no node has it.
            FileQuotaExceeded: there is no room for it here.
            HolderUnreachable: it is not needed any more.
        """

        def missing() -> list[str]:
            return self._store.missing_files([sha256], keep_s=self._wanted.keep_s)

        with self._fetcher.file_locks.hold_lock(sha256):
            if not missing():
                return
            with self._fetcher.large_slots:
                self._download(sha256, size_bytes, missing)

    def _download(
        self,
        sha256: str,
        size_bytes: int | None,
        missing: Callable[[], Sequence[str]],
    ) -> None:
        rounds, at_once = self._rounds(missing), HOLDERS_MAX
        failures: dict[str, Exception] = {}
        while missing():
            with self._downloading(sha256, size_bytes) as download:
                try:
                    for failures in rounds:
                        before = download.new_count
                        download.run(self._find_holders, at_once=at_once)
                        self._progress += download.new_count - before
                        failures.update(download.failures)
                except ContentMismatch as error:
                    failures.update(dict.fromkeys(download.senders, error))
                    self._drop_wrong_copies(download, sha256)
                    # It is certain whose bytes are wrong if only one holder sends.
                    at_once = 1

    @contextmanager
    def _downloading(
        self, sha256: str, size_bytes: int | None
    ) -> Iterator[PieceDownload]:
        """Download a blob in the block; the next fetch continues what it leaves."""
        download = PieceDownload(
            sha256,
            size_bytes,
            store=self._store,
            keep_s=self._wanted.keep_s,
            lent_tree=self._wanted.lent_tree,
            clock=self._store.clock,
            connect_to=self._connections.connect_to,
            may_continue=self._may_continue,
        )
        try:
            yield download
        finally:
            download.close()
            for name, sent_bytes in download.sent_bytes.items():
                self._count_sent(name, sent_bytes)

    def _find_holders(self) -> Sequence[Holder]:
        return [
            holder
            for holder in self._wanted.find_holders()
            if holder.name not in self._liars
        ]

    def _rounds(
        self, missing: Callable[[], Sequence[str]]
    ) -> Iterator[dict[str, Exception]]:
        """Yield a dictionary for the failures of each round, until nothing is missing.

        A node that cannot be reached is asked again, for it may have restarted, and so
        is one that is busy, but not one that refuses. Nodes are looked up again,
        because the mesh may have changed.
        """
        tries, busy_rounds = FETCH_TRIES, 0
        while True:
            failures: dict[str, Exception] = {}
            before = self._progress
            yield failures
            if not self._may_continue():
                raise HolderUnreachable("the files are no longer needed")
            left = missing()
            if not left:
                return
            is_busy = any(isinstance(each, HolderBusy) for each in failures.values())
            busy_rounds += is_busy
            if self._progress > before:
                tries = FETCH_TRIES
            elif not is_busy or busy_rounds > BUSY_ROUNDS_MAX:
                tries -= 1
            may_succeed = self._progress > before or not all(
                isinstance(each, HolderRefused) for each in failures.values()
            )
            if not may_succeed or not tries or self._fetcher.is_closing(PAUSE_S):
                wrong = ContentMismatch("its bytes were wrong")
                failures |= dict.fromkeys(self._liars, wrong)
                raise OutputNotFound(
                    _why_missing(left, self._wanted.find_holders(), failures)
                )

    def _fetch_packs(
        self,
        holder: Holder,
        names: Sequence[str],
        *,
        is_compressed: bool,
        lent_tree: str = "",
        largest_bytes: int = 0,
    ) -> LenderReply | None:
        """Fetch those of these small files that a holder has.

        Returns:
            What it says of the lender of others; None if it expects none.
        """
        reply = None
        with self._connections.connect_to(holder) as connection:
            for start in range(0, len(names), ASKED_FILES_MAX):
                pack = connection.fetch_pack(
                    names[start : start + ASKED_FILES_MAX],
                    self._may_continue,
                    is_compressed=is_compressed,
                    lent_tree=lent_tree,
                    largest_bytes=largest_bytes,
                )
                if pack.reply is not None:
                    why = pack.reply.no_room
                    reply = pack.reply._replace(no_room=why and f"{holder.name}: {why}")
                for name, content in pack.contents:
                    self._store_small(holder, name, content)
        return reply

    def _store_small(self, holder: Holder, name: str, content: bytes) -> None:
        try:
            self._store.store_blob(name, content, keep_s=self._wanted.keep_s)
        except ContentMismatch:
            self._on_wrong_copy(holder, name, is_certain=True)
            raise
        except OSError as error:
            raise disk_error(error) from None
        self._progress += 1
        self._count_sent(holder.name, len(content))

    def _count_sent(self, name: str, size_bytes: int) -> None:
        if self._tally is not None:
            self._tally.add_sent(self._tree, name, size_bytes)

    def _drop_wrong_copies(self, download: PieceDownload, sha256: str) -> None:
        """Discard a wrong file, and have those who sent it examine their copies."""
        download.close(is_wrong=True)
        # What an earlier fetch left may be wrong instead; it is discarded now.
        self._progress += bool(download.resumed_count)
        is_certain = len(download.senders) == 1 and not download.resumed_count
        for holder in download.senders.values():
            self._on_wrong_copy(holder, sha256, is_certain=is_certain)

    def _on_wrong_copy(self, holder: Holder, sha256: str, *, is_certain: bool) -> None:
        """Have a holder examine its copy; drop it if its bytes were certainly wrong."""
        has_deleted = False
        with (
            suppress(HolderUnreachable, HolderBusy, OutputNotFound),
            self._connections.connect_to(holder) as connection,
        ):
            has_deleted = connection.ask_to_verify(sha256)
        if is_certain or has_deleted:
            self._liars.add(holder.name)
            self._progress += 1
            self._fetcher.report_wrong_copy(holder.name, sha256)

    def _may_continue(self) -> bool:
        return not self._fetcher.is_closing() and self._wanted.may_continue()


def _why_not_sent(reply: LenderReply) -> str:
    """Return what to add about a client that has not sent all files."""
    if reply.is_away:
        return ", which is not connected now"
    return reply.no_room and f": {reply.no_room}"


def _split(sizes: Sizes) -> tuple[list[str], list[str]]:
    """Return the files that travel in packs, and the others."""
    small: list[str] = []
    large: list[str] = []
    for name, size in sizes.items():
        is_small = size is not None and size <= PACKED_BYTES_MAX
        (small if is_small else large).append(name)
    return small, large


@contextmanager
def _noting(failures: dict[str, Exception], holder: Holder) -> Iterator[None]:
    """Note that a holder failed in the block."""
    try:
        yield
    except (HolderUnreachable, HolderBusy, OutputNotFound, ContentMismatch) as error:
        failures[holder.name] = error


def _why_missing(
    missing: Sequence[str], holders: Sequence[Holder], failures: Mapping[str, Exception]
) -> str:
    """Return what is missing, and why no node could send it."""
    what = "it is" if len(missing) == 1 else f"{len(missing)} of them are"
    if not holders:
        return f"{what} not here, and no other node is known"
    answered = [holder.name for holder in holders if holder.name not in failures]
    why = [f"{name}: {error}" for name, error in failures.items()]
    if answered:
        shown = ", ".join(answered[:NAMED_MAX])
        more = len(answered) - NAMED_MAX
        why.append(f"not at {shown}" + (f" and {more} more" if more > 0 else ""))
    return f"{what} nowhere ({'; '.join(why)})"
