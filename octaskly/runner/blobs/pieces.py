"""The download of a blob in pieces, from several holders at once."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Final

from octaskly.errors import OutputNotFound
from octaskly.ports.files import WANTED_PIECES_MAX, ContentMismatch, FileQuotaExceeded
from octaskly.ports.store import Clock
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.blobs.holder_connection import (
    ArrivingPiece,
    Holder,
    HolderBusy,
    HolderConnection,
    HolderUnreachable,
)
from octaskly.runner.blobs.uploads import PieceUpload, piece_count

HOLDERS_MAX: Final = 4  #: asked at once for one blob
PIECES_PER_HOLDER: Final = 4  #: another holder is asked for each so many missing pieces
READ_BYTES: Final = 256 << 10
LOOK_AGAIN_S: Final = 1.0  #: until nodes that had nothing are asked again
MISSES_MAX: Final = 8  #: nodes that have nothing and are asked in that time
BUSY_S_MAX: Final = 0.5  #: longest pause before a busy holder is asked again
BUSY_MAX: Final = 200  #: times that a holder may be busy until it counts as failed

HolderLookup = Callable[[], Sequence[Holder]]
"""Returns the nodes that may have a blob now, best first."""


class PieceDownload:
    """The download of one blob, which continues what an earlier one has left.

    `run` may be called again to continue it.

    Args:
        sha256: Digest of the blob.
        size_bytes: Its size; None if it is not known yet.
        store: Receives the blob.
        keep_s: How long to keep it.
        lent_tree: The tree that it belongs to, if a client lends that to the holder.
        clock: The machine's clocks.
        connect_to: Connects to a holder for the length of a block.
        may_continue: Returns False once the blob is not needed any more.
    """

    def __init__(
        self,
        sha256: str,
        size_bytes: int | None,
        *,
        store: BlobStore,
        keep_s: float,
        lent_tree: str = "",
        clock: Clock,
        connect_to: Callable[[Holder], AbstractContextManager[HolderConnection]],
        may_continue: Callable[[], bool],
    ) -> None:
        self._sha256, self._size_bytes = sha256, size_bytes
        self._store, self._keep_s = store, keep_s
        self._lent_tree = lent_tree
        self._connect_to, self._may_continue = connect_to, may_continue
        self._clock = clock
        self._changed = threading.Condition()
        self._upload: PieceUpload | None = None
        #: How many holders were asked for a piece, and have not answered.
        self._asked = Counter[int]()
        self._moving: set[int] = set()  #: pieces that are arriving
        self._candidates = deque[Holder]()
        self._working: dict[str, Holder] = {}  #: holders in use
        self._rests_until_s: dict[str, float] = {}  #: holders that were busy
        self._busy = Counter[
            str
        ]()  #: times that a holder was busy, since its last piece
        self._missed = 0  #: nodes that had nothing, since `_look_again_s`
        self._look_again_s = 0.0  #: when nodes that had nothing are asked again
        self._fatal: Exception | None = None
        self.failures: dict[str, Exception] = {}  #: of the last run, by holder
        self.senders: dict[str, Holder] = {}  #: holders that sent pieces
        self.piece_count = 0  #: pieces that have arrived, now or earlier
        self.resumed_count = 0  #: those that an earlier download has left
        self.sent_bytes = Counter[str]()  #: by name of the holder

    def run(self, find_holders: HolderLookup, *, at_once: int) -> bool:
        """Take pieces from holders until all are here, or nobody has more; blocks.

        Args:
            find_holders: Returns the nodes that may have the blob; called again later.
            at_once: Maximum number of holders that are asked at the same time.

        Returns:
            True if the blob is stored now.

        Raises:
            ContentMismatch: all pieces are here, but their digest is wrong.
            FileQuotaExceeded: there is no room for the blob here.
        """
        self.failures = {}
        self._busy.clear()
        self._rests_until_s.clear()
        if (
            self._upload is None
            and self._size_bytes is not None
            and self._store.has_pieces(self._sha256)
        ):
            self._start_upload(self._size_bytes)
        self._candidates = deque(find_holders())
        self._missed, self._look_again_s = 0, self._clock.now().mono_s + LOOK_AGAIN_S
        with ThreadPoolExecutor(at_once, thread_name_prefix="blob-pieces") as threads:
            workers: list[Future[None]] = []

            def start_worker() -> None:
                workers.append(threads.submit(self._work, find_holders))
                workers[-1].add_done_callback(self._notify)

            try:
                start_worker()
                while not all(worker.done() for worker in workers):
                    if len(workers) < min(at_once, self._useful_holders()):
                        start_worker()
                    self._hash_or_wait(workers)
            finally:
                # An error ends the other threads, too.
                self._fatal = self._fatal or HolderUnreachable("the fetch has ended")
        for worker in workers:
            worker.result()
        if not isinstance(self._fatal, HolderUnreachable):
            assert self._fatal is not None
            raise self._fatal
        self._fatal = None
        return self._finish()

    @property
    def new_count(self) -> int:
        """Number of pieces that have arrived in this download."""
        return self.piece_count - self.resumed_count

    def close(self, *, is_wrong: bool = False) -> None:
        """End the download; keep what has arrived, unless it is wrong or stored."""
        if self._upload is not None:
            self._upload.close(is_wrong=is_wrong)
            self._upload = None

    def _finish(self) -> bool:
        upload = self._upload
        if upload is None:
            return False
        while upload.hash_next():
            pass
        if upload.first_missing < upload.piece_count:
            return False
        upload.finish()
        return True

    def _useful_holders(self) -> int:
        """Return the number of holders to ask at the same time."""
        upload = self._upload
        if upload is None:
            return 1
        missing = upload.piece_count - self.piece_count
        return min(HOLDERS_MAX, -(-missing // PIECES_PER_HOLDER))

    def _hash_or_wait(self, workers: Sequence[Future[None]]) -> None:
        """Hash what has arrived; else wait until more has, or a worker is done."""
        with self._changed:
            upload = self._upload
            if upload is None or not upload.has_piece(upload.first_missing):
                # One that is done from here on notifies after the wait has begun.
                if not all(worker.done() for worker in workers):
                    self._changed.wait(LOOK_AGAIN_S)
                return
        upload.hash_next()

    # -- a thread for each holder --------------------------------------------------

    def _work(self, find_holders: HolderLookup) -> None:
        """Take pieces from one holder after the other."""
        buffer = memoryview(bytearray(READ_BYTES))
        try:
            while (holder := self._next_holder(find_holders)) is not None:
                self._use_holder(holder, buffer)
        except FileQuotaExceeded as error:
            self._fatal = error

    def _notify(self, _worker: Future[None]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _next_holder(self, find_holders: HolderLookup) -> Holder | None:
        """Return a holder to ask; None once there is nothing more to do."""
        with self._changed:
            while not self._is_over():
                now_s = self._clock.now().mono_s
                if (holder := self._take_candidate(now_s)) is not None:
                    self._working[holder.name] = holder
                    return holder
                if not (self._working or self._candidates):
                    return None
                if not self._look_again(find_holders, now_s):
                    self._changed.wait(self._pause_s(now_s))
            return None

    def _take_candidate(self, now_s: float) -> Holder | None:
        """Return the first node that may be asked now."""
        if self._working and self._missed >= MISSES_MAX:
            return None
        for holder in self._candidates:
            if self._rests_until_s.get(holder.name, now_s) <= now_s:
                self._candidates.remove(holder)
                return holder
        return None

    def _pause_s(self, now_s: float) -> float:
        """Return how long to wait until a holder has rested, unless others change."""
        rests = (self._rests_until_s.get(each.name, now_s) for each in self._candidates)
        ends_s = [end_s for end_s in rests if end_s > now_s]
        return min([LOOK_AGAIN_S, *(end_s - now_s for end_s in ends_s)])

    def _look_again(self, find_holders: HolderLookup, now_s: float) -> bool:
        """Return True if nodes may be asked again, or others for the first time."""
        if now_s < self._look_again_s:
            return False
        self._missed, self._look_again_s = 0, now_s + LOOK_AGAIN_S
        waiting = [one.name for one in self._candidates]
        used = {*self.failures, *self._working, *waiting}
        found = [one for one in find_holders() if one.name not in used]
        self._candidates.extend(found[:MISSES_MAX])
        return bool(self._candidates)

    def _is_over(self) -> bool:
        upload = self._upload
        is_whole = upload is not None and self.piece_count == upload.piece_count
        return is_whole or self._fatal is not None or not self._may_continue()

    def _use_holder(self, holder: Holder, buffer: memoryview) -> None:
        """Take pieces from a holder until it has no more, or fails."""
        rest_s: float | None = None  #: until it may be asked again
        try:
            with self._connect_to(holder) as connection:
                while wanted := self._next_pieces():
                    self._take_piece(holder, connection, wanted, buffer)
        except HolderBusy:
            rest_s = BUSY_S_MAX * self._clock.draw()
            self._busy[holder.name] += 1
        except _AlreadyArriving:
            rest_s = 0.0
        except OutputNotFound:
            self._missed += 1  # It is asked again: it may be fetching the blob, too.
        except (HolderUnreachable, ContentMismatch) as error:
            self.failures[holder.name] = error
        if self._busy[holder.name] > BUSY_MAX:
            self.failures[holder.name] = HolderUnreachable("it is busy")
            rest_s = None
        with self._changed:
            del self._working[holder.name]
            if rest_s:
                self._rests_until_s[holder.name] = self._clock.now().mono_s + rest_s
                self._candidates.append(holder)
            elif rest_s is not None:
                self._candidates.appendleft(holder)
            self._changed.notify_all()

    def _next_pieces(self) -> list[int]:
        """Return pieces to ask for; none if all are here or arriving."""
        with self._changed:
            while not self._is_over():
                if wanted := self._missing_pieces():
                    self._asked.update(wanted)
                    return wanted
                self._changed.wait(LOOK_AGAIN_S)
            return []

    def _missing_pieces(self) -> list[int]:
        """Return pieces that no holder is sending, best those that none was asked."""
        if (upload := self._upload) is None:
            count = 1 if self._size_bytes is None else piece_count(self._size_bytes)
            return list(range(min(count, WANTED_PIECES_MAX)))
        free: list[int] = []
        asked: list[int] = []
        for number in range(upload.first_missing, upload.piece_count):
            if upload.has_piece(number) or number in self._moving:
                continue
            (asked if self._asked[number] else free).append(number)
            if len(free) == WANTED_PIECES_MAX:
                break
        return free or asked[:WANTED_PIECES_MAX]

    def _take_piece(
        self,
        holder: Holder,
        connection: HolderConnection,
        wanted: Sequence[int],
        buffer: memoryview,
    ) -> None:
        try:
            piece = connection.request_piece(
                self._sha256, wanted, lent_tree=self._lent_tree
            )
        finally:
            with self._changed:
                self._asked.subtract(wanted)
        upload = self._begin_piece(holder, piece)
        if upload is None:
            raise _AlreadyArriving
        try:
            offset, end = upload.piece_range(piece.number)
            while offset < end:
                count = piece.read_into(buffer[: end - offset])
                upload.write_at(offset, buffer[:count])
                offset += count
                self._check_wanted()
        except BaseException:
            with self._changed:
                self._moving.discard(piece.number)
                self._changed.notify_all()
            raise
        with self._changed:
            self._moving.discard(piece.number)
            upload.end_piece(piece.number)
            self.piece_count += 1
            self.sent_bytes[holder.name] += piece.size_bytes
            self._busy[holder.name] = 0
            self._changed.notify_all()

    def _check_wanted(self) -> None:
        if self._fatal is not None or not self._may_continue():
            raise HolderUnreachable("the files are no longer needed")

    def _begin_piece(self, holder: Holder, piece: ArrivingPiece) -> PieceUpload | None:
        """Return where a piece goes; None if another holder sends it.

        Raises:
            ContentMismatch: the piece or the whole blob has another size.
        """
        with self._changed:
            if self._size_bytes is None:
                self._size_bytes = piece.blob_bytes
            if piece.blob_bytes != self._size_bytes:
                raise ContentMismatch(
                    f"its copy has {piece.blob_bytes} bytes, not {self._size_bytes}"
                )
            upload = self._upload or self._start_upload(self._size_bytes)
            start, end = upload.piece_range(piece.number)
            if piece.size_bytes != end - start:
                raise ContentMismatch(f"it sent {piece.size_bytes} bytes of a piece")
            if piece.number in self._moving or upload.has_piece(piece.number):
                return None
            upload.begin_piece(piece.number)
            self._moving.add(piece.number)
            self.senders[holder.name] = holder
            self._changed.notify_all()
            return upload

    def _start_upload(self, size_bytes: int) -> PieceUpload:
        upload = self._store.start_pieces(self._sha256, size_bytes, keep_s=self._keep_s)
        self.piece_count = self.resumed_count = upload.arrived_count
        self._upload = upload
        return upload


class _AlreadyArriving(Exception):
    """Another holder is sending the piece, or has sent it."""
