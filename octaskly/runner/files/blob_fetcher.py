"""Fetching uploaded files that a task needs from the nodes that have them."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from octaskly.core.model.task_options import UploadedFile
from octaskly.errors import OutputNotFound
from octaskly.ports import ContentMismatch, FileQuotaExceeded
from octaskly.runner.files.blob_store import COPY_RETENTION_S, BlobStore

FILES_PATH: Final = "/internal/v1/files/"
STALL_S: Final = 20.0  #: timeout for each read
FETCH_TRIES: Final = 4  #: a node that restarts is back within seconds
PAUSE_S: Final = 1.0
CHUNK_BYTES: Final = 1 << 20
CONCURRENT_FETCHES_MAX: Final = 4

UrlsOf = Callable[[str], Sequence[str]]


class FileSource(NamedTuple):
    """A file, and the URLs of nodes that may have it."""

    file: UploadedFile
    urls: Sequence[str]


class _NodeUnreachable(Exception):
    """The node did not answer, or the connection broke."""


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


class BlobFetcher:
    """Fetches files from other nodes. `fetch_files` blocks; call it in `threads`.

    Args:
        blob_store: Holds the fetched files.
        tls: Returns the TLS context that authenticates this node to others.
        urls_of: Returns the URLs of a node by name or id; called on the event loop.
    """

    def __init__(
        self, blob_store: BlobStore, tls: Callable[[], ssl.SSLContext], urls_of: UrlsOf
    ) -> None:
        self.blob_store = blob_store
        self._tls = tls
        self._urls_of = urls_of
        self.threads = ThreadPoolExecutor(
            CONCURRENT_FETCHES_MAX, thread_name_prefix="supply"
        )
        self.file_locks = NamedLocks()  #: by the SHA-256 of files being fetched
        self._lock = threading.Lock()
        self._open_sockets: set[socket.socket] = set()
        self._is_closed = threading.Event()

    def find_sources(self, files: Iterable[UploadedFile]) -> list[FileSource]:
        """Return the sources of files; call it on the event loop."""
        return [FileSource(file, self._urls_of(file.node)) for file in files]

    def fetch_files(
        self, sources: Iterable[FileSource], may_continue: Callable[[], bool]
    ) -> list[str]:
        """Fetch files that are not here; return a text for each that failed.

        Args:
            sources: The files with their sources.
            may_continue: Returns False once the files are not needed any more.
        """
        failed = []
        for source in sources:
            try:
                # Many tasks may need the same file, which is fetched once.
                with self.file_locks.hold_lock(source.file.sha256):
                    self._fetch_file(source, may_continue)
            except (
                OutputNotFound,
                ContentMismatch,
                FileQuotaExceeded,
                _NodeUnreachable,
            ) as error:
                name = f"{source.file.path} ({source.file.sha256[:12]}...)"
                failed.append(f"{name} of node {source.file.node}: {error}")
        return failed

    def close(self) -> None:
        """Abort all fetches and wait until the threads have ended."""
        self._is_closed.set()
        with self._lock:
            for connection in self._open_sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.threads.shutdown()

    def _fetch_file(self, source: FileSource, may_continue: Callable[[], bool]) -> None:
        for more in reversed(range(FETCH_TRIES)):
            kept = self.blob_store.touch_file(
                source.file.sha256, keep_s=COPY_RETENTION_S
            )
            if kept is not None:
                break
            try:
                self._try_sources(source, may_continue)
            except _NodeUnreachable:
                if not more or self._is_closed.wait(PAUSE_S) or not may_continue():
                    raise

    def _try_sources(
        self, source: FileSource, may_continue: Callable[[], bool]
    ) -> None:
        last = _NodeUnreachable("it cannot be reached")
        for url in source.urls:
            try:
                self._fetch_from(source.file.sha256, url, may_continue)
            except (OSError, http.client.HTTPException) as error:
                last = _NodeUnreachable(str(error) or type(error).__name__)
            else:
                return
        raise last

    def _fetch_from(
        self, name: str, url: str, may_continue: Callable[[], bool]
    ) -> None:
        place = urlsplit(url)
        assert place.hostname is not None
        connection = http.client.HTTPSConnection(
            place.hostname, place.port, timeout=STALL_S, context=self._tls()
        )
        try:
            connection.connect()
            with self._lock:
                self._open_sockets.add(connection.sock)
            connection.request("GET", FILES_PATH + name)
            self._receive_body(name, connection.getresponse(), may_continue)
        finally:
            with self._lock:
                self._open_sockets.discard(connection.sock)
            connection.close()

    def _receive_body(
        self,
        name: str,
        response: http.client.HTTPResponse,
        may_continue: Callable[[], bool],
    ) -> None:
        if response.status == http.HTTPStatus.NOT_FOUND:
            raise OutputNotFound("it does not have the file any more")
        if response.status != http.HTTPStatus.OK or response.length is None:
            raise _NodeUnreachable(f"it answered with status {response.status}")
        upload = self.blob_store.start_upload(
            name, response.length, keep_s=COPY_RETENTION_S
        )
        try:
            while data := response.read(CHUNK_BYTES):
                if self._is_closed.is_set() or not may_continue():
                    raise _NodeUnreachable("the file is not needed any more")
                upload.write(data)
            upload.finish()
        finally:
            upload.abort()
