"""Requests to a holder: another node that has files which are needed here."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

from msgspec import MsgspecError, Struct, json

from octaskly.core.model.task_options import BlobRef
from octaskly.errors import OutputNotFound
from octaskly.files.manifest import ManifestError
from octaskly.files.pack import PackReader
from octaskly.ports.files import ContentMismatch
from octaskly.ports.store import Clock
from octaskly.runner.blobs.lenders import LenderReply
from octaskly.system.long_bodies import widen_window
from octaskly.system.tls_errors import clear_tls_errors

FILES_PATH: Final = "/internal/v1/files/"
PACK_PATH: Final = "/internal/v1/files/pack"
HOLD_PATH: Final = "/internal/v1/files/hold"
HOLD_OUTPUTS_PATH: Final = "/internal/v1/outputs/hold"
OUTPUT_TREES_PATH: Final = "/internal/v1/output-trees/"
PIECE_HEADER: Final = "Octaskly-Piece"
BLOB_BYTES_HEADER: Final = "Octaskly-Blob-Bytes"
NO_ROOM_HEADER: Final = "Octaskly-No-Room"
STALL_S: Final = 20.0  #: timeout for each read
IDLE_S_MAX: Final = 5.0  #: shorter than the holder's timeout for the next request
AGE_S_MAX: Final = 60.0  #: of a connection that is used again; certificates change
VERIFY_S_MAX: Final = 600.0  #: until a node has read a blob from its disk
CHUNK_BYTES: Final = 1 << 20
BLOB_BYTES_MAX: Final = 1 << 50
FOUND_BYTES_MAX: Final = 1 << 20  #: of a list of trees
ERROR_BYTES_MAX: Final = 64 << 10  #: of a response that is read to reuse its connection

REFUSALS: Final = frozenset(
    {
        http.HTTPStatus.BAD_REQUEST,
        http.HTTPStatus.METHOD_NOT_ALLOWED,
        http.HTTPStatus.GONE,
        http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        http.HTTPStatus.REQUEST_URI_TOO_LONG,
        http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        http.HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
"""Answers that stay the same, for example of another version."""
BUSY: Final = frozenset(
    {http.HTTPStatus.SERVICE_UNAVAILABLE, http.HTTPStatus.TOO_MANY_REQUESTS}
)
NO_TREES: Final = REFUSALS | {
    http.HTTPStatus.NOT_FOUND,
    http.HTTPStatus.INSUFFICIENT_STORAGE,
}

_JSON: Final = {"Content-Type": "application/json"}


class Holder(NamedTuple):
    """A node that may have files."""

    name: str
    urls: Sequence[str]  #: of its LAN API, best first; none if it is not in the mesh
    is_named: bool = False  #: by the task
    is_unknown: bool = False  #: this node has never met it


class HolderUnreachable(Exception):
    """The holder did not answer, or the connection broke."""


class HolderRefused(HolderUnreachable):
    """The holder refuses the request, and would refuse it again."""


class HolderBusy(Exception):
    """The holder serves other nodes, or has none of the wanted pieces yet."""


class OutputTree(NamedTuple):
    """The captured outputs of a task as a tree."""

    task: str  #: its name; of the outputs of an array, that of a member
    blob: BlobRef  #: the manifest


class _FoundTree(Struct):
    sha256: str
    node: str
    task: str


class _FoundTrees(Struct):
    trees: list[_FoundTree]


class _Problem(Struct):
    error: str
    hint: str | None = None


class ArrivingPiece(NamedTuple):
    """A piece of a blob that a holder is sending."""

    number: int
    size_bytes: int
    blob_bytes: int  #: size of the whole blob
    response: http.client.HTTPResponse

    def read_into(self, view: memoryview) -> int:
        """Read some bytes and return their number."""
        count = self.response.readinto(view)
        if not count:
            raise HolderUnreachable("it sent less than it announced")
        return count


class ArrivingPack(NamedTuple):
    """A pack of small files that a holder is sending."""

    contents: Iterator[tuple[str, bytes]]  #: by SHA-256; to be read to its end
    reply: LenderReply | None  #: of a holder that lacks some; a client may send them


@dataclass(slots=True)
class _Idle:
    """A connection that may be used again."""

    connection: http.client.HTTPSConnection
    opened_s: float
    until_s: float


class HolderConnections:
    """Connections to holders; any thread may use them.

    A connection is kept for a moment, because a TLS handshake costs more than most
    requests.

    Args:
        tls: Returns the TLS context that authenticates this node to others.
        open_sockets: Sockets that `BlobFetcher.close` shuts down.
        clock: The machine's clocks.
    """

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext],
        open_sockets: OpenSockets,
        *,
        clock: Clock,
    ) -> None:
        self._tls, self._clock = tls, clock
        self._open_sockets = open_sockets
        self._lock = threading.Lock()
        self._idle: dict[str, list[_Idle]] = {}  #: by holder, the last used one last

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for each in chain.from_iterable(idle.values()):
            self._close(each.connection)

    @contextmanager
    def connect_to(self, holder: Holder) -> Iterator[HolderConnection]:
        """Use a connection to a holder for the length of the block.

        Raises:
            HolderUnreachable: none of its URLs works, or the connection broke.
        """
        idle = self._take_idle(holder)
        if idle is None:
            connection, opened_s = open_connection(holder, self._tls()), self._now_s()
            self._open_sockets.add(connection)
        else:
            connection, opened_s = idle.connection, idle.opened_s
        is_reusable = False
        try:
            yield HolderConnection(connection)
            is_reusable = True
        except (OutputNotFound, HolderBusy, HolderRefused):
            is_reusable = True  # The response was read to its end.
            raise
        except (OSError, http.client.HTTPException) as error:
            clear_tls_errors()
            raise HolderUnreachable(_reason(error)) from error
        finally:
            if is_reusable and connection.sock is not None:
                self._keep(holder, connection, opened_s)
            else:
                self._close(connection)

    def _keep(
        self, holder: Holder, connection: http.client.HTTPSConnection, opened_s: float
    ) -> None:
        """Keep a connection for the next request, and close those that are too old."""
        now_s = self._now_s()
        until_s = min(now_s + IDLE_S_MAX, opened_s + AGE_S_MAX)
        with self._lock:
            kept = self._idle.setdefault(holder.name, [])
            kept.append(_Idle(connection, opened_s, until_s))
            old = [
                each
                for each in chain.from_iterable(self._idle.values())
                if now_s >= each.until_s
            ]
            self._idle = {
                name: left
                for name, idle in self._idle.items()
                if (left := [each for each in idle if now_s < each.until_s])
            }
        for each in old:
            self._close(each.connection)

    def _take_idle(self, holder: Holder) -> _Idle | None:
        while True:
            with self._lock:
                idle = self._idle.get(holder.name)
                if not idle:
                    return None
                last = idle.pop()
            if self._now_s() < last.until_s and not _has_ended(last.connection.sock):
                return last
            self._close(last.connection)

    def _now_s(self) -> float:
        return self._clock.now().mono_s

    def _close(self, connection: http.client.HTTPSConnection) -> None:
        self._open_sockets.discard(connection)
        connection.close()


class OpenSockets:
    """The sockets of connections, so that all can be shut down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: A connection forgets its socket before the last response has arrived.
        self._sockets: dict[http.client.HTTPSConnection, socket.socket] = {}

    def add(self, connection: http.client.HTTPSConnection) -> None:
        """Add the socket of a connection."""
        with self._lock:
            self._sockets[connection] = connection.sock

    def discard(self, connection: http.client.HTTPSConnection) -> None:
        """Remove the socket of a connection."""
        with self._lock:
            self._sockets.pop(connection, None)

    def shut_down(self) -> None:
        """Abort what is read from all of them."""
        with self._lock:
            for opened in self._sockets.values():
                with suppress(OSError):
                    opened.shutdown(socket.SHUT_RDWR)


def open_connection(holder: Holder, tls: ssl.SSLContext) -> http.client.HTTPSConnection:
    """Connect to the first URL of a node that works.

    Raises:
        HolderRefused: no such node is known; one that is known may come back.
        HolderUnreachable: none works.
    """
    if holder.is_unknown:
        raise HolderRefused("there is no such node")
    why = "it cannot be reached" if holder.urls else "it is not in the mesh now"
    for url in holder.urls:
        place = urlsplit(url)
        assert place.hostname is not None
        connection = http.client.HTTPSConnection(
            place.hostname, place.port, timeout=STALL_S, context=tls
        )
        try:
            connection.connect()
            widen_window(connection.sock)
        except OSError as error:
            connection.close()
            clear_tls_errors()
            why = _reason(error)
        else:
            return connection
    raise HolderUnreachable(why)


def _has_ended(opened: socket.socket) -> bool:
    """Return True if the holder has closed an idle connection, or sent something."""
    poll = select.poll()
    poll.register(opened, select.POLLIN)
    return bool(poll.poll(0))


class HolderConnection:
    """Requests over one connection to a holder.

    Methods raise OutputNotFound if the holder does not have what is wanted, HolderBusy,
    HolderRefused, and HolderUnreachable if it answers with another error; OSError and
    HTTPException pass through to `HolderConnections.connect_to`.
    """

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection

    def request_piece(
        self, sha256: str, wanted: Sequence[int], *, lent_tree: str = ""
    ) -> ArrivingPiece:
        """Ask for one of the wanted pieces of a blob; the holder chooses.

        Raises:
            ContentMismatch: it sends something else.
        """
        numbers = ",".join(map(str, wanted))
        tree = f"&tree={lent_tree}" if lent_tree else ""
        response = self._request("GET", f"{FILES_PATH}{sha256}?pieces={numbers}{tree}")
        try:
            number = int(response.headers[PIECE_HEADER])
            blob_bytes = int(response.headers[BLOB_BYTES_HEADER])
        except (TypeError, ValueError):
            raise HolderUnreachable(
                "it answered without the number of a piece"
            ) from None
        if number not in wanted or not 0 <= blob_bytes <= BLOB_BYTES_MAX:
            raise ContentMismatch("it sent another piece than was wanted")
        return ArrivingPiece(number, response.length or 0, blob_bytes, response)

    def fetch_pack(
        self,
        names: Sequence[str],
        may_continue: Callable[[], bool],
        *,
        is_compressed: bool = False,
        lent_tree: str = "",
        largest_bytes: int = 0,
    ) -> ArrivingPack:
        """Return those of these small files that the holder has.

        With `lent_tree`, it asks the client that lends this tree for the others, and
        says if it has no room for a file of `largest_bytes`.
        """
        headers = {**_JSON, "Accept-Encoding": "gzip"} if is_compressed else _JSON
        body = json.encode(
            {"sha256": names, "tree": lent_tree, "largest_bytes": largest_bytes}
        )
        response = self._request("POST", PACK_PATH, body, headers)
        retry_s, reply = response.getheader("Retry-After"), None
        if retry_s is not None:
            no_room = response.getheader(NO_ROOM_HEADER, "")
            reply = LenderReply(float(retry_s), no_room)
        return ArrivingPack(_read_pack(response, names, may_continue), reply)

    def fetch_outputs(self, path: str) -> tuple[int, Iterator[bytes]]:
        """Return the size of an archive of captured outputs, and its bytes."""
        response = self._request("GET", path)
        if response.length is None:
            raise HolderUnreachable("it did not announce the size of the outputs")
        return response.length, _chunks(response, lambda: True)

    def send_outputs(self, path: str, size_bytes: int, chunks: Iterable[bytes]) -> None:
        """Send an archive of captured outputs."""
        headers = {"Content-Type": "application/octet-stream"}
        headers["Content-Length"] = str(size_bytes)
        self._connection.request("POST", path, chunks, headers)
        self._read_answer().read()

    def find_output_trees(self, task: str) -> list[OutputTree]:
        """Return the trees with the outputs of a task, as the dispatcher knows them.

        Raises:
            OutputNotFound: it says that there are none, and why.
        """
        self._connection.request("GET", OUTPUT_TREES_PATH + quote(task, safe=""))
        response = self._connection.getresponse()
        status, body = response.status, response.read(FOUND_BYTES_MAX)
        try:
            if status == http.HTTPStatus.OK:
                found = json.decode(body, type=_FoundTrees).trees
                return [
                    OutputTree(one.task, BlobRef(sha256=one.sha256, node=one.node))
                    for one in found
                ]
            problem = json.decode(body, type=_Problem)
        except MsgspecError:
            problem = _Problem(f"it answered with status {status}")
        text = problem.hint or problem.error
        if status in NO_TREES:
            raise OutputNotFound(text)
        raise HolderUnreachable(text)

    def ask_to_verify(self, sha256: str) -> bool:
        """Have the holder read its copy; return True if it was wrong and is deleted."""
        path = f"{FILES_PATH}{sha256}/verify"
        answer = self.post_json(path, {}, timeout_s=VERIFY_S_MAX)
        return isinstance(answer, dict) and answer.get("is_right") is False

    def post_json(self, path: str, body: object, *, timeout_s: float) -> Any:
        """Send a request with JSON, and return the JSON of its response."""
        opened = self._connection.sock
        opened.settimeout(timeout_s)
        try:
            data = self._request("POST", path, json.encode(body), _JSON).read()
        finally:
            opened.settimeout(STALL_S)
        try:
            return json.decode(data)
        except MsgspecError as error:
            raise HolderUnreachable(f"it answered with no JSON: {error}") from None

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        self._connection.request(method, path, body, headers or {})
        return self._read_answer()

    def _read_answer(self) -> http.client.HTTPResponse:
        """Return the response to the last request."""
        response = self._connection.getresponse()
        if response.status == http.HTTPStatus.OK:
            return response
        if len(response.read(ERROR_BYTES_MAX)) == ERROR_BYTES_MAX:
            self._connection.close()
        if response.status == http.HTTPStatus.NOT_FOUND:
            raise OutputNotFound("it no longer has the file")
        if response.status in BUSY:
            raise HolderBusy
        text = f"it answered with status {response.status}"
        if response.status in REFUSALS:
            raise HolderRefused(text)
        raise HolderUnreachable(text)


def _read_pack(
    response: http.client.HTTPResponse,
    names: Sequence[str],
    may_continue: Callable[[], bool],
) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a pack as they arrive.

    Raises:
        ContentMismatch: the holder sends what was not asked, or no pack.
    """
    chunks = _chunks(response, may_continue)
    if response.getheader("Content-Encoding") == "gzip":
        chunks = _decompressed(chunks)
    reader, asked = PackReader(), set(names)
    try:
        for data in chunks:
            for digest, content in reader.add_data(data):
                name = digest.hex()
                if name not in asked:
                    raise ContentMismatch(f"it sent {name[:12]}..., which is not asked")
                yield name, content
        reader.check_end()
    except ManifestError as error:
        raise ContentMismatch(str(error)) from None


def _chunks(
    response: http.client.HTTPResponse, may_continue: Callable[[], bool]
) -> Iterator[bytes]:
    """Yield the body of a response in parts, while it is needed."""
    while data := response.read(CHUNK_BYTES):
        if not may_continue():
            raise HolderUnreachable("the files are no longer needed")
        yield data


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


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
