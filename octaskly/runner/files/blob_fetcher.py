"""Brings files that a task names to this node, from the nodes that have them."""

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
from octaskly.ports import NoRoom, WrongBytes
from octaskly.runner.files.blob_store import KEEP_COPY_S, Depot

PATH: Final = "/internal/v1/files/"
STALL_S: Final = 20.0  #: between two parts of a file
TRIES: Final = 4  #: a node that begins again is back within seconds
PAUSE_S: Final = 1.0
CHUNK_BYTES: Final = 1 << 20
AT_A_TIME: Final = 4  #: files that are fetched

Tune = Callable[[socket.socket], None]
UrlsOf = Callable[[str], Sequence[str]]


class Source(NamedTuple):
    """A file, and where it can be had."""

    file: UploadedFile
    urls: Sequence[str]


class _Unanswered(Exception):
    """The node is not there, or broke off."""


class Turns:
    """Locks by name, each kept only while somebody has it or waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[str, tuple[threading.Lock, int]] = {}  #: and by how many

    def __len__(self) -> int:
        return len(self._taken)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Keep others out who want the same name, for the length of the block."""
        with self._lock:
            turn, count = self._taken.get(name, (threading.Lock(), 0))
            self._taken[name] = turn, count + 1
        try:
            with turn:
                yield
        finally:
            with self._lock:
                _, count = self._taken.pop(name)
                if count > 1:
                    self._taken[name] = turn, count - 1


class Supply:
    """Fetches files; who asks for some is blocked until they are here.

    It has `threads` for that, so that others need not wait.

    Args:
        depot: Where they are kept.
        tls: Returns how this node shows to others that it is one.
        urls_of: Returns where another node, by name or id, serves; called where
            attempts are started.
    """

    def __init__(
        self, depot: Depot, tls: Callable[[], ssl.SSLContext], urls_of: UrlsOf
    ) -> None:
        self.depot = depot
        self._tls = tls
        self._urls_of = urls_of
        self.threads = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="supply")
        self.turns = Turns()  #: of files that are fetched
        self._lock = threading.Lock()
        self._live: set[socket.socket] = set()
        self._is_closed = threading.Event()

    def sources(self, files: Iterable[UploadedFile]) -> list[Source]:
        """Return where files can be had; not for other threads."""
        return [Source(file, self._urls_of(file.node)) for file in files]

    def bring(self, sources: Iterable[Source], go_on: Callable[[], bool]) -> list[str]:
        """Have files here; return what cannot be had, in words.

        Args:
            sources: What, and where from.
            go_on: Asked now and again whether they are still wanted.
        """
        lacking = []
        for source in sources:
            try:
                # Many tasks may want the same file, which comes once.
                with self.turns.of(source.file.sha256):
                    self._bring(source, go_on)
            except (OutputNotFound, WrongBytes, NoRoom, _Unanswered) as error:
                name = f"{source.file.path} ({source.file.sha256[:12]}...)"
                lacking.append(f"{name} of node {source.file.node}: {error}")
        return lacking

    def close(self) -> None:
        """Fetch no more; what is on its way is given up; blocks until it is."""
        self._is_closed.set()
        with self._lock:
            for connection in self._live:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.threads.shutdown()

    def _bring(self, source: Source, go_on: Callable[[], bool]) -> None:
        for more in reversed(range(TRIES)):
            kept = self.depot.size_bytes(source.file.sha256, keep_s=KEEP_COPY_S)
            if kept is not None:
                break
            try:
                self._try_each(source, go_on)
            except _Unanswered:
                if not more or self._is_closed.wait(PAUSE_S) or not go_on():
                    raise

    def _try_each(self, source: Source, go_on: Callable[[], bool]) -> None:
        last = _Unanswered("it is not there")
        for url in source.urls:
            try:
                self._fetch(source.file.sha256, url, go_on)
            except (OSError, http.client.HTTPException) as error:
                last = _Unanswered(str(error) or type(error).__name__)
            else:
                return
        raise last

    def _fetch(self, name: str, url: str, go_on: Callable[[], bool]) -> None:
        place = urlsplit(url)
        assert place.hostname is not None
        connection = http.client.HTTPSConnection(
            place.hostname, place.port, timeout=STALL_S, context=self._tls()
        )
        try:
            connection.connect()
            with self._lock:
                self._live.add(connection.sock)
            connection.request("GET", PATH + name)
            self._receive(name, connection.getresponse(), go_on)
        finally:
            with self._lock:
                self._live.discard(connection.sock)
            connection.close()

    def _receive(
        self, name: str, response: http.client.HTTPResponse, go_on: Callable[[], bool]
    ) -> None:
        if response.status == http.HTTPStatus.NOT_FOUND:
            raise OutputNotFound("it has no such file any more")
        if response.status != http.HTTPStatus.OK or response.length is None:
            raise _Unanswered(f"it answered {response.status}")
        arrival = self.depot.begin(name, response.length, keep_s=KEEP_COPY_S)
        try:
            while data := response.read(CHUNK_BYTES):
                if self._is_closed.is_set() or not go_on():
                    raise _Unanswered("it is not wanted any more")
                arrival.write(data)
            arrival.finish()
        finally:
            arrival.drop()
