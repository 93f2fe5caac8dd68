"""Fetching files that a task needs from the nodes that have them."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from msgspec import MsgspecError, json

from octaskly.core.model.task_options import BlobRef, InputTree, UploadedFile
from octaskly.errors import OutputNotFound
from octaskly.files.manifest import (
    MANIFEST_BYTES_MAX,
    Manifest,
    ManifestError,
    decode_manifest,
    select_folders,
)
from octaskly.files.pack import ASKED_FILES_MAX, PACKED_BYTES_MAX, PackReader
from octaskly.ports import COPY_RETENTION_S, ContentMismatch, FileQuotaExceeded
from octaskly.runner.files.blob_store import BlobStore
from octaskly.runner.files.lenders import ASK_AGAIN_S, AWAY_RETRY_S, Lenders

FILES_PATH: Final = "/internal/v1/files/"
PACK_PATH: Final = "/internal/v1/files/pack"
HOLD_PATH: Final = "/internal/v1/files/hold"
HOLD_S_MAX: Final = 600.0  #: until a node has fetched all files of the trees
STALL_S: Final = 20.0  #: timeout for each read
FETCH_TRIES: Final = 4  #: a node that restarts is back within seconds
PAUSE_S: Final = 1.0
CHUNK_BYTES: Final = 1 << 20
CONCURRENT_FETCHES_MAX: Final = 4
NAMED_MAX: Final = 4  #: nodes that an error names


class FilesAwaited(Exception):
    """Files that a client lends are not here yet.

    Args:
        message: What is awaited.
        retry_s: When to try again.
        is_stalled: None arrives now: the client is away, or there is no room here.
    """

    def __init__(
        self, message: str, *, retry_s: float, is_stalled: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_s, self.is_stalled = retry_s, is_stalled


class Holder(NamedTuple):
    """A node that may have files."""

    name: str
    urls: Sequence[str]  #: of its LAN API, best first
    is_named: bool = False  #: by the task


HoldersOf = Callable[[str], Sequence[Holder]]
"""Returns the live nodes that may have what the named node had, that node first."""

Sizes = Mapping[str, int | None]
"""Sizes of files by SHA-256; None if a size is not known."""


class FileSource(NamedTuple):
    """A file, and the nodes that may have it."""

    file: UploadedFile
    holders: Sequence[Holder]


class BlobSource(NamedTuple):
    """A blob, and the nodes that may have it."""

    blob: BlobRef
    holders: Sequence[Holder]
    is_named_here: bool = False  #: this is the node that the task names


class _Wanted(NamedTuple):
    """How files are wanted."""

    holders: Sequence[Holder]
    may_continue: Callable[[], bool]
    keep_s: float = COPY_RETENTION_S
    is_tree: bool = False  #: they are manifests, which are worth compressing
    lent_tree: str = ""  #: SHA-256 of the tree that they belong to, if it is lent
    is_lent_here: bool = False  #: this node asks the lender of the tree


class _NodeUnreachable(Exception):
    """The node did not answer, or the connection broke."""


_FAILURES = (
    OutputNotFound,
    ContentMismatch,
    FileQuotaExceeded,
    ManifestError,
    _NodeUnreachable,
)


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
    """Fetches files from other nodes. Methods that fetch block: call them in `threads`.

    Args:
        blob_store: Holds the fetched files.
        tls: Returns the TLS context that authenticates this node to others.
        holders_of: Called on the event loop.
        own_names: Name and id of this node.
        lenders: The clients that lend files to this node.
    """

    def __init__(
        self,
        blob_store: BlobStore,
        tls: Callable[[], ssl.SSLContext],
        holders_of: HoldersOf,
        own_names: Container[str],
        lenders: Lenders,
    ) -> None:
        self.blob_store = blob_store
        self.lenders = lenders
        self._own_names = own_names
        self._tls = tls
        self._holders_of = holders_of
        self.threads = ThreadPoolExecutor(
            CONCURRENT_FETCHES_MAX, thread_name_prefix="blob-fetch"
        )
        self.file_locks = NamedLocks()  #: by the SHA-256 of what is being fetched
        self._lock = threading.Lock()
        self._open_sockets: set[socket.socket] = set()
        self._is_closed = threading.Event()

    def find_sources(self, files: Iterable[UploadedFile]) -> list[FileSource]:
        """Return the sources of files; call it on the event loop."""
        return [FileSource(file, self._holders_of(file.node)) for file in files]

    def find_blob(self, content: BlobRef | None) -> BlobSource | None:
        """Return the source of a content; call it on the event loop."""
        if content is None:
            return None
        return BlobSource(
            content, self._holders_of(content.node), content.node in self._own_names
        )

    def fetch_files(
        self, sources: Iterable[FileSource], may_continue: Callable[[], bool]
    ) -> list[str]:
        """Fetch files that are not here; return a text for each that failed.

        Args:
            sources: The files with their sources.
            may_continue: Returns False once the files are not needed any more.
        """
        failed = []
        for file, holders in sources:
            wanted = _Wanted(holders, may_continue)
            try:
                # Many tasks may need the same file, which is fetched once.
                with self.file_locks.hold_lock(file.sha256):
                    self._fetch_missing({file.sha256: None}, wanted)
            except _FAILURES as error:
                name = f"{file.path} ({file.sha256[:12]}...)"
                failed.append(f"{name} of node {file.node}: {error}")
        return failed

    def fetch_blob(
        self, source: BlobSource, may_continue: Callable[[], bool]
    ) -> list[str]:
        """Fetch a content unless it is here; return a text if that failed.

        Args:
            source: The content with its source.
            may_continue: Returns False once it is not needed any more.
        """
        content, holders, _ = source
        try:
            with self.file_locks.hold_lock(content.sha256):
                self._fetch_missing(
                    {content.sha256: None}, _Wanted(holders, may_continue)
                )
        except _FAILURES as error:
            return [f"{content.sha256[:12]}... of node {content.node}: {error}"]
        return []

    def fetch_tree(
        self,
        source: BlobSource,
        may_continue: Callable[[], bool] = lambda: True,
        *,
        keep_s: float = COPY_RETENTION_S,
    ) -> list[str]:
        """Fetch the contents of a tree that are not here; return texts of failures.

        Args:
            source: The tree with its source.
            may_continue: Returns False once the tree is not needed any more.
            keep_s: How long to keep all its contents.

        Raises:
            FilesAwaited: a client lends the tree, and has not sent all of it.
        """
        tree = source.blob
        from_client = is_lent(tree)
        sizes: dict[str, int] = {}
        wanted = _Wanted(
            source.holders,
            may_continue,
            keep_s,
            lent_tree=tree.sha256 if from_client else "",
            is_lent_here=from_client and source.is_named_here,
        )
        try:
            with self.file_locks.hold_lock(tree.sha256):
                fetch = self._fetch_lent if from_client else self._fetch_missing
                fetch({tree.sha256: None}, wanted._replace(is_tree=True))
                of_files = self.read_manifest(tree).sizes()
                sizes = {name.hex(): size for name, size in of_files.items()}
                fetch(sizes, wanted)
        except FileQuotaExceeded as error:
            if from_client and sum(sizes.values()) <= self.blob_store.quota_bytes():
                # Others that wait for room, too, may go on with less than it takes.
                self.blob_store.release_copies(sizes)
                raise FilesAwaited(
                    str(error), retry_s=ASK_AGAIN_S, is_stalled=True
                ) from None
            return [f"the files of node {tree.node}: {error}"]
        except _FAILURES as error:
            of = f"the files of node {tree.node}"
            of += ", whose client is gone" if from_client else ""
            return [f"{of}: {error}"]
        return []

    def read_manifest(self, tree: BlobRef) -> Manifest:
        """Return the manifest of a tree that is here, of the folders that it names.

        Raises:
            OutputNotFound: it is not here any more.
            ManifestError: the content with its digest is not a manifest.
        """
        with open(self.blob_store.open_file(tree.sha256), "rb") as file:  # noqa: PTH123
            manifest = decode_manifest(file.read(MANIFEST_BYTES_MAX + 1))
        folders = tree.folders if isinstance(tree, InputTree) else ()
        return select_folders(manifest, folders)

    def close(self) -> None:
        """Abort all fetches and wait until the threads have ended."""
        self._is_closed.set()
        with self._lock:
            for connection in self._open_sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.threads.shutdown()

    def _fetch_missing(self, sizes: Sizes, wanted: _Wanted) -> None:
        """Fetch the files that are not here from the nodes that have them.

        A node that cannot be reached is tried again: it may have restarted.

        Raises:
            OutputNotFound: no node has one of them.
            FileQuotaExceeded: there is no room for them here.
            _NodeUnreachable: the files are not needed any more.
        """
        for more in reversed(range(FETCH_TRIES)):
            failures: dict[str, Exception] = {}
            for holder in wanted.holders:
                missing = self.blob_store.missing_files(sizes, keep_s=wanted.keep_s)
                if not missing:
                    return
                try:
                    self._fetch_from(
                        holder, {name: sizes[name] for name in missing}, wanted
                    )
                except (_NodeUnreachable, ContentMismatch) as error:
                    failures[holder.name] = error
                if not self._may_continue(wanted):
                    raise _NodeUnreachable("the files are not needed any more")
            missing = self.blob_store.missing_files(sizes, keep_s=wanted.keep_s)
            if not missing:
                return
            if not failures or not more or self._is_closed.wait(PAUSE_S):
                raise OutputNotFound(_why_missing(missing, wanted.holders, failures))

    def _fetch_lent(self, sizes: Sizes, wanted: _Wanted) -> None:
        """Fetch the files that are not here of a tree that a client lends.

        Other nodes are asked if the client is away, or has stopped sending.

        Raises:
            FilesAwaited: the client has not sent all, and may send more.
            OutputNotFound: nobody has one of them, and no client is expected.
            FileQuotaExceeded: there is no room for them here.
            _NodeUnreachable: the files are not needed any more.
        """
        wait_s = None
        missing = self.blob_store.missing_files(sizes, keep_s=wanted.keep_s)
        while missing:
            if not self._may_continue(wanted):
                raise _NodeUnreachable("the files are not needed any more")
            wait_s = self._ask_lender({name: sizes[name] for name in missing}, wanted)
            before = len(missing)
            missing = self.blob_store.missing_files(missing, keep_s=wanted.keep_s)
            if len(missing) == before:
                break
        if not missing:
            return
        is_away = wait_s != ASK_AGAIN_S
        try:
            if is_away:
                self._fetch_missing(sizes, wanted)
                return
        except OutputNotFound:
            if wait_s is None:
                raise
        assert wait_s is not None
        raise FilesAwaited(
            f"{len(missing)} of them have not been sent",
            retry_s=wait_s,
            is_stalled=is_away,
        )

    def _ask_lender(self, missing: Sizes, wanted: _Wanted) -> float | None:
        """Fetch from the node to which a client lends files, and have it ask for them.

        Returns:
            After how many seconds more may be there; None if nothing more is expected.
        """
        if wanted.is_lent_here:
            return self.lenders.await_files_in_thread(wanted.lent_tree, list(missing))
        named = next((holder for holder in wanted.holders if holder.is_named), None)
        if named is None:
            return None
        try:
            return self._fetch_from(named, missing, wanted)
        except (_NodeUnreachable, ContentMismatch):
            return AWAY_RETRY_S

    def _fetch_from(
        self, holder: Holder, missing: Sizes, wanted: _Wanted
    ) -> float | None:
        """Fetch what a node has of these files; raise _NodeUnreachable.

        Returns:
            After how many seconds a client may have sent it more; None for never.
        """
        with self._connect_to(holder) as connection:
            exchange = _Exchange(
                connection,
                self.blob_store,
                lambda: self._may_continue(wanted),
                wanted.keep_s,
                wanted.lent_tree if holder.is_named else "",
            )
            if wanted.is_tree:
                exchange.fetch_pack(list(missing), is_compressed=True)
                left = self.blob_store.missing_files(missing, keep_s=wanted.keep_s)
                missing = dict.fromkeys(left)
            exchange.fetch_all(missing)
            return exchange.retry_s

    def ask_to_hold(self, holder: Holder, trees: Iterable[BlobRef]) -> list[str]:
        """Ask a node to keep trees, and to fetch what it lacks; return its failures.

        Blocks.
        """
        body = json.encode(
            {"trees": [{"sha256": tree.sha256, "node": tree.node} for tree in trees]}
        )
        headers = {"Content-Type": "application/json"}
        try:
            with self._connect_to(holder) as connection:
                connection.sock.settimeout(HOLD_S_MAX)
                connection.request("POST", HOLD_PATH, body, headers)
                data = _successful_response(connection).read()
            answer = json.decode(data, type=dict[str, list[str]])
        except (_NodeUnreachable, OutputNotFound, MsgspecError) as error:
            return [f"{holder.name}: {error}"]
        return [f"{holder.name}: {failure}" for failure in answer.get("failures", [])]

    @contextmanager
    def _connect_to(self, holder: Holder) -> Iterator[http.client.HTTPSConnection]:
        """Connect to a node for the length of the block; `close` aborts it.

        Raises:
            _NodeUnreachable: none of its URLs works, or the connection broke.
        """
        connection = self._open_connection(holder)
        opened = connection.sock
        with self._lock:
            self._open_sockets.add(opened)
        try:
            yield connection
        except (OSError, http.client.HTTPException) as error:
            raise _NodeUnreachable(str(error) or type(error).__name__) from error
        finally:
            with self._lock:
                self._open_sockets.discard(opened)
            connection.close()

    def _open_connection(self, holder: Holder) -> http.client.HTTPSConnection:
        """Connect to the first URL of a node that works; raise _NodeUnreachable."""
        why = "it cannot be reached"
        for url in holder.urls:
            place = urlsplit(url)
            assert place.hostname is not None
            connection = http.client.HTTPSConnection(
                place.hostname, place.port, timeout=STALL_S, context=self._tls()
            )
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                why = str(error) or type(error).__name__
            else:
                return connection
        raise _NodeUnreachable(why)

    def _may_continue(self, wanted: _Wanted) -> bool:
        return not self._is_closed.is_set() and wanted.may_continue()


def is_lent(tree: BlobRef | None) -> bool:
    """Return True if a client sends the files of a tree when they are wanted."""
    return isinstance(tree, InputTree) and tree.is_lent


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


def _decompressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what gzip compressed, in parts of at most `CHUNK_BYTES`."""
    inflating = zlib.decompressobj(16 + zlib.MAX_WBITS)
    for chunk in chunks:
        left = chunk
        while left:
            try:
                yield inflating.decompress(left, CHUNK_BYTES)
            except zlib.error as error:
                raise ContentMismatch(f"it sent no gzip: {error}") from None
            left = inflating.unconsumed_tail
    yield inflating.flush()


def _successful_response(
    connection: http.client.HTTPSConnection,
) -> http.client.HTTPResponse:
    """Return the response to the last request, if it is a success.

    Raises:
        OutputNotFound: the node does not have the file.
        _NodeUnreachable: it answered with another error.
    """
    response = connection.getresponse()
    if response.status == http.HTTPStatus.NOT_FOUND:
        raise OutputNotFound("it does not have the file any more")
    if response.status != http.HTTPStatus.OK:
        raise _NodeUnreachable(f"it answered with status {response.status}")
    return response


class _Exchange:
    """Requests for files over one connection to a node.

    Args:
        connection: The connection.
        blob_store: Holds the fetched files.
        may_continue: Returns False once the files are not needed any more.
        keep_s: How long to keep the fetched files.
        lent_tree: SHA-256 of the tree that they belong to, if a client lends it to the
            node.
    """

    def __init__(
        self,
        connection: http.client.HTTPSConnection,
        blob_store: BlobStore,
        may_continue: Callable[[], bool],
        keep_s: float,
        lent_tree: str,
    ) -> None:
        self._connection = connection
        self._lent_tree = lent_tree
        self.retry_s: float | None = None  #: when a client may have sent more
        self._blob_store = blob_store
        self._may_continue = may_continue
        self._keep_s = keep_s

    def fetch_all(self, wanted: Sizes) -> None:
        """Fetch small files in packs and the others alone; skip what the node lacks."""
        small = [
            name
            for name, size in wanted.items()
            if size is not None and size <= PACKED_BYTES_MAX
        ]
        # Of a lent tree, the node asks the client for all that this request names.
        packed = list(wanted) if self._lent_tree else small
        for start in range(0, len(packed), ASKED_FILES_MAX):
            self.fetch_pack(packed[start : start + ASKED_FILES_MAX])
        for name in wanted.keys() - set(small):
            with suppress(OutputNotFound):
                self._fetch_file(name)

    def fetch_pack(self, names: Sequence[str], *, is_compressed: bool = False) -> None:
        """Fetch those of these small files that the node has."""
        body = json.encode({"sha256": names, "tree": self._lent_tree})
        headers = {"Content-Type": "application/json"}
        if is_compressed:
            headers["Accept-Encoding"] = "gzip"
        self._connection.request("POST", PACK_PATH, body, headers)
        reader, asked = PackReader(), set(names)
        response = _successful_response(self._connection)
        if (retry_s := response.getheader("Retry-After")) is not None:
            self.retry_s = float(retry_s)
        chunks = self._chunks(response)
        if response.getheader("Content-Encoding") == "gzip":
            chunks = _decompressed(chunks)
        for data in chunks:
            for sha256, content in reader.add_data(data):
                name = sha256.hex()
                if name not in asked:
                    raise ContentMismatch(f"it sent {name[:12]}..., which is not asked")
                self._blob_store.store_blob(name, content, keep_s=self._keep_s)
        reader.check_end()

    def _fetch_file(self, name: str) -> None:
        query = f"?tree={self._lent_tree}" if self._lent_tree else ""
        self._connection.request("GET", FILES_PATH + name + query)
        response = _successful_response(self._connection)
        if response.length is None:
            raise _NodeUnreachable("it did not announce the size of the file")
        upload = self._blob_store.start_upload(
            name, response.length, keep_s=self._keep_s
        )
        try:
            for data in self._chunks(response):
                upload.write(data)
            upload.finish()
        finally:
            upload.abort()

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """Yield the body of a response in parts, while it is needed."""
        while data := response.read(CHUNK_BYTES):
            if not self._may_continue():
                raise _NodeUnreachable("the files are not needed any more")
            yield data
