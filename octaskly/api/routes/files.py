"""Routes of files that clients send to a node for tasks.

A client asks which files are missing, sends small ones in packs and large ones alone.
They stay at that node; workers fetch them from there for tasks that name them. Or it
lends the files of a tree: it sends those that a worker wants, when it wants them.
Clients can download a file only as one of a task's tree (`task_trees`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from math import ceil
from typing import Final, NamedTuple

from aiohttp import web

from octaskly.api.http import sse
from octaskly.api.http.file_sender import (
    LONG_BODY_BYTES,
    busy_problem,
    read_parsed,
    send_chunks,
    send_open_file,
)
from octaskly.api.http.handler_types import BYTES, Access, Request, Route, json_response
from octaskly.api.http.slow_clients import long_reads
from octaskly.api.problems import (
    DISK_FULL,
    FILE_EXCEEDS_QUOTA,
    FORBIDDEN,
    INVALID_VALUE,
    NO_ROOM_FOR_FILE,
    PIECE_OUT_OF_ORDER,
    UPLOAD_IN_PROGRESS,
    Problem,
)
from octaskly.api.schemas import query, request_bodies, task_response
from octaskly.api.schemas.files import (
    InputIn,
    InputsIn,
    MissingIn,
    OfferIn,
    PackIn,
)
from octaskly.api.security import file_keepers, route_cost
from octaskly.errors import OutputNotFound
from octaskly.files.manifest import ManifestError
from octaskly.files.pack import PackReader
from octaskly.files.tree_tar import TarError
from octaskly.ports.files import (
    COPY_RETENTION_S,
    RETENTION_S,
    ContentMismatch,
    DiskFull,
    FileExceedsQuota,
    FileQuotaExceeded,
    OpenPiece,
    UploadInProgress,
    VisitorAccess,
    WrongOffset,
)
from octaskly.rest.tasks import (
    HeldTrees,
    MissingFiles,
    StoredFile,
    StoredPack,
    StoredPiece,
    TreeCopies,
    VerifiedFile,
)
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.blobs.uploads import BlobUpload
from octaskly.system.blocking_calls import opened_in_thread, run_to_end
from octaskly.system.tls_transport import TlsTransport

FILES_PATH: Final = "/api/v1/files"
PATH: Final = "/api/v1/files/{sha256}"
MISSING_PATH: Final = "/api/v1/files/missing"
PACK_PATH: Final = "/api/v1/files/pack"
LEND_PATH: Final = "/api/v1/files/lend"
REPLICATE_PATH: Final = "/api/v1/files/replicate"
HOLD_PATH: Final = "/internal/v1/files/hold"
NODE_PACK_PATH: Final = "/internal/v1/files/pack"
PIECE_HEADER: Final = "Octaskly-Piece"
BLOB_BYTES_HEADER: Final = "Octaskly-Blob-Bytes"
NO_ROOM_HEADER: Final = "Octaskly-No-Room"
PART_BYTES: Final = 256 << 10  #: at least so much must arrive within the stall timeout
PARTS_PER_TURN: Final = 4  #: of a thread; twice as many are in memory per upload


async def upload_unnamed_file(request: Request) -> web.StreamResponse:
    """Store an uploaded file for tasks, and return its SHA-256.

    Browsers cannot hash a large file without holding all of it in memory.
    """
    files, size = request.files.store, announced_size(request)
    with request.services.streams.count_stream(request.principal):
        piece = _Piece(None, size)
        name, _ = await _store_upload(request, files, None, piece)
    _add_keeper(request, name)
    return json_response(_encode_file(request, name, size), HTTPStatus.CREATED)


async def upload_file(request: Request) -> web.StreamResponse:
    """Store an uploaded file for tasks; a file that exists is not read again.

    With `Content-Range`, the body is a piece of it.
    """
    name, files = _requested_file(request)
    size = announced_size(request)
    kept = await asyncio.to_thread(files.touch_file, name)
    if kept is not None:
        _add_keeper(request, name)
        response = json_response(_encode_file(request, name, kept))
        response.force_close()  # The rest of the body is not read.
        return response
    piece = _requested_piece(request.http_request, size)
    with request.services.streams.count_stream(request.principal):
        _, arrived = await _store_upload(request, files, name, piece)
    if arrived < piece.total_bytes:
        shown = StoredPiece(
            sha256=name,
            bytes=piece.total_bytes,
            arrived=arrived,
            node=request.gateway.node_id,
        )
        return json_response(task_response.encode(shown), HTTPStatus.ACCEPTED)
    _add_keeper(request, name, are_new=True)
    return json_response(
        _encode_file(request, name, piece.total_bytes), HTTPStatus.CREATED
    )


class _Piece(NamedTuple):
    """The bytes of a file that a request sends."""

    start: int | None  #: None: all of them, and they cannot be resumed
    total_bytes: int


_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


def _requested_piece(request: web.BaseRequest, size_bytes: int) -> _Piece:
    """Return the piece that a request sends; raise `Problem` if it is invalid.

    Source: RFC 9110, section 14.5.
    """
    text = request.headers.get("Content-Range")
    if text is None:
        return _Piece(None, size_bytes)
    match = _CONTENT_RANGE.fullmatch(text)
    if match is not None:
        start, last, total = map(int, match.groups())
        if start + size_bytes == last + 1 <= total:
            return _Piece(start, total)
    raise Problem(
        400,
        INVALID_VALUE,
        hint="send `bytes FIRST-LAST/SIZE`, with as many bytes in the body",
        field="Content-Range",
        closes_connection=True,
    )


async def list_missing(request: Request) -> web.StreamResponse:
    """Return which files this node lacks, and keep the others for another hour."""
    files = request.files.store
    asked = request_bodies.parse_missing(request.body)

    def find_missing() -> tuple[list[str], dict[str, int]]:
        keep_s = _keep_s(is_lent=asked.lent)
        missing = files.missing_files(asked.sha256, keep_s=keep_s)
        return missing, {name: files.arrived_bytes(name) for name in missing}

    missing, arrived = await asyncio.to_thread(find_missing)
    _add_keeper(request, *set(asked.sha256).difference(missing))
    shown = MissingFiles(
        missing=missing,
        arrived={name: count for name, count in arrived.items() if count},
        node=request.gateway.node_id,
        quota_bytes=await asyncio.to_thread(files.quota_bytes),
    )
    return json_response(task_response.encode(shown))


async def upload_pack(request: Request) -> web.StreamResponse:
    """Store the small files of a pack; those before an error are kept."""
    files, reader = request.files.store, PackReader()
    keep_s = _keep_s(is_lent=request.query.flag("lent"))
    stored = StoredPack(files=0, bytes=0, node=request.gateway.node_id)
    # Bounded, as a pack may repeat one small file; no more keepers are remembered.
    new: deque[str] = deque(maxlen=file_keepers.FILES_MAX)
    held: deque[str] = deque(maxlen=file_keepers.FILES_MAX)

    def store(data: bytes | memoryview) -> None:
        for sha256, content in reader.add_data(data):
            is_new = files.store_blob(sha256.hex(), content, keep_s=keep_s)
            (new if is_new else held).append(sha256.hex())
            stored.files += 1
            stored.bytes += len(content)

    with (
        request.services.streams.count_stream(request.principal),
        upload_errors(field="pack"),
    ):
        try:
            await receive_body(request, store)
        finally:
            _add_keeper(request, *new, are_new=True)
            _add_keeper(request, *held)
        reader.check_end()
        if not stored.files:
            raise ManifestError("the pack is empty")
    return json_response(task_response.encode(stored), HTTPStatus.CREATED)


async def lend_tree(request: Request) -> web.StreamResponse:
    """Stream which files of a tree are wanted here, while the client lends them."""
    tree = request_bodies.parse_offer(request.body)
    lenders = request.files.lenders

    async def send_all(stream: sse.EventStream) -> None:
        with lenders.open_offer(tree) as offer:
            names: Sequence[str] = ()  # The first event says that the offer is open.
            while True:
                await stream.send({"sha256": names}, event="wanted")
                names = await offer.next_wanted()

    return await sse.serve_events(request, send_all)


async def replicate_input(request: Request) -> web.StreamResponse:
    """Store a tree at the dispatcher and its standbys: losing one machine is safe."""
    needed = request_bodies.parse_input(request.body)
    try:
        nodes = await request.files.trees.replicate_input(needed)
    except FileQuotaExceeded as error:
        text = _NO_ROOM.get(type(error), NO_ROOM_FOR_FILE)
        hint = f"{error.message}; {error.hint}"
        raise Problem(507, text, hint=hint) from None
    except OutputNotFound as error:
        raise Problem(404, "File not found", hint=error.message) from None
    shown = TreeCopies(nodes=list(nodes))
    return json_response(task_response.encode(shown), HTTPStatus.CREATED)


async def hold_inputs(request: Request) -> web.StreamResponse:
    """Keep inputs for an hour for another node, and fetch what is not here."""
    inputs = request_bodies.parse_inputs(request.body)
    failures = await request.files.trees.hold_inputs(inputs)
    return json_response(task_response.encode(HeldTrees(failures=failures)))


async def send_pack_to_node(request: Request) -> web.StreamResponse:
    """Send small files of this node to another node, in one pack.

    `Retry-After` says that a client has been asked for some that are missing in it, and
    `Octaskly-No-Room` why this node could not take the largest of them.
    """
    asked, files = request_bodies.parse_wanted_pack(request.body), request.files.store
    if request.visitor is not None:
        # Only members may have a client send what it lends.
        require_visitor_access(request, asked.sha256, lent_tree=asked.tree)
    response = web.StreamResponse(headers={"Content-Type": BYTES})
    if asked.tree:
        reply = await request.files.lenders.await_files(
            asked.tree, asked.sha256, asked.largest_bytes
        )
        if reply is not None:
            response.headers["Retry-After"] = str(ceil(reply.retry_s))
            if reply.no_room:
                response.headers[NO_ROOM_HEADER] = reply.no_room
    async with request.services.transfers.use_slot(request.visitor):
        parts = files.pack_files(asked.sha256)
        if "gzip" in request.http_request.headers.get("Accept-Encoding", ""):
            response.enable_compression(web.ContentCoding.gzip)
        request.add_headers(response)
        await response.prepare(request.http_request)
        turn = request.work.turn
        await send_chunks(request.http_request, response, parts, turn)
    if asked.tree:
        await asyncio.to_thread(files.release_copies, asked.sha256)
    return response


async def show_file(request: Request) -> web.StreamResponse:
    """Return a file's size if this node has it, and keep it for another hour."""
    name, files = _requested_file(request)
    kept = await asyncio.to_thread(files.touch_file, name)
    if kept is None:
        raise Problem(
            404, "File not found", hint="upload it with POST to the same path"
        )
    _add_keeper(request, name)
    return json_response(_encode_file(request, name, kept))


async def release_file(request: Request) -> web.StreamResponse:
    """Release a file that no further task of the client will name.

    It can be deleted once all clients that sent it or asked for it have released it.
    """
    name, files = _requested_file(request)
    keepers = request.services.file_keepers
    if keepers.release(request.authenticated_principal, name):
        await asyncio.to_thread(files.release_file, name)
    return web.Response(status=HTTPStatus.NO_CONTENT)


def _add_keeper(request: Request, *names: str, are_new: bool = False) -> None:
    subject = request.authenticated_principal.subject
    request.services.file_keepers.add(subject, names, are_new=are_new)


async def send_piece_to_node(request: Request) -> web.StreamResponse:
    """Send one of the wanted pieces of a file, which may still be arriving here."""
    name, files = _requested_file(request)
    wanted, lent_tree = request.query.pieces(), request.query.text("tree")
    if request.visitor is not None:
        require_visitor_access(request, [name], lent_tree=lent_tree or "")

    def open_piece() -> OpenPiece:
        piece = files.open_piece(name, wanted)
        if piece is None:
            raise busy_problem()
        return piece

    async with (
        request.services.transfers.use_slot(request.visitor),
        opened_in_thread(open_piece, lambda piece: os.close(piece.fd)) as piece,
    ):
        answer = web.StreamResponse(headers={"Content-Type": BYTES})
        answer.headers[PIECE_HEADER] = str(piece.number)
        answer.headers[BLOB_BYTES_HEADER] = str(piece.blob_bytes)
        answer.content_length = piece.end - piece.start
        request.add_headers(answer)
        await answer.prepare(request.http_request)
        await send_open_file(
            request.http_request, answer, piece.fd, piece.start, piece.end
        )
    if lent_tree and piece.end == piece.blob_bytes:  # Its lender can send it again.
        await asyncio.to_thread(files.release_copies, [name])
    return answer


def require_visitor_access(
    request: Request, names: Sequence[str], *, lent_tree: str
) -> None:
    """Raise `Problem` unless a visitor may read files, and they are here.

    They are inputs of its attempts. What is not here is being fetched.
    """
    assert request.visitor is not None
    access = request.files.visitors.access_to(request.visitor, names)
    if access is VisitorAccess.DENIED or lent_tree:
        hint = "this is not a file of a task that the visitor runs"
        raise Problem(403, FORBIDDEN, hint=hint)
    if access is VisitorAccess.LATER:
        raise busy_problem()


async def verify_file(request: Request) -> web.StreamResponse:
    """Read a file that another node found to be wrong; delete it if it is."""
    name, files = _requested_file(request)
    async with request.services.transfers.use_slot():
        is_right = await asyncio.to_thread(files.verify_file, name)
    return json_response(task_response.encode(VerifiedFile(is_right=is_right)))


def _requested_file(request: Request) -> tuple[str, BlobStore]:
    return query.sha256(request.path_params["sha256"]), request.files.store


def _keep_s(*, is_lent: bool) -> float:
    """Return how long to keep a file; its lender can send it again."""
    return COPY_RETENTION_S if is_lent else RETENTION_S


def announced_size(request: Request) -> int:
    """Return the size of a body; raise `Problem` (411) if it is not announced."""
    size = request.http_request.content_length
    if size is None:
        hint = "send Content-Length: chunked uploads are not supported"
        raise Problem(411, "Length required", hint=hint, closes_connection=True)
    return size


def _encode_file(request: Request, name: str, size_bytes: int) -> bytes:
    shown = StoredFile(sha256=name, bytes=size_bytes, node=request.gateway.node_id)
    return task_response.encode(shown)


async def _store_upload(
    request: Request, files: BlobStore, name: str | None, piece: _Piece
) -> tuple[str, int]:
    """Store a file, or a piece of one that has a name.

    Returns:
        Its SHA-256, and how many bytes of the file have arrived.
    """
    keep_s = _keep_s(is_lent=request.query.flag("lent"))
    with upload_errors(field="sha256"):
        start = partial(files.start_upload, name, piece.total_bytes, keep_s=keep_s)
        if piece.start is not None and name is not None:
            start = partial(
                files.continue_upload,
                name,
                piece.total_bytes,
                piece.start,
                keep_s=keep_s,
            )
        async with opened_in_thread(start, BlobUpload.abort) as intake:
            sent_bytes = await receive_body(request, intake.write)
            if piece.start is None or intake.is_complete:
                name = await run_to_end(intake.finish)
            return name or "", (piece.start or 0) + sent_bytes


_NO_ROOM: Final = {
    FileExceedsQuota: FILE_EXCEEDS_QUOTA,
    DiskFull: DISK_FULL,
}
"""Errors that do not pass when other files may be deleted."""
_CONFLICTS: Final[Mapping[type, str]] = {
    WrongOffset: PIECE_OUT_OF_ORDER,
    UploadInProgress: UPLOAD_IN_PROGRESS,
}


@contextlib.contextmanager
def upload_errors(*, field: str) -> Iterator[None]:
    """Turn errors of the store into error responses; the body may be unread."""
    try:
        yield
    except FileQuotaExceeded as error:
        raise Problem(
            507,
            _NO_ROOM.get(type(error), NO_ROOM_FOR_FILE),
            hint=f"{error.message}; {error.hint}",
            closes_connection=True,
        ) from None
    except TimeoutError:
        hint = "no bytes of the body arrived within the stall timeout"
        raise Problem(
            408, "Request timeout", hint=hint, closes_connection=True
        ) from None
    except OSError as error:
        hint = f"the operating system reports: {error.strerror}"
        raise Problem(507, DISK_FULL, hint=hint, closes_connection=True) from None
    except (WrongOffset, UploadInProgress) as error:
        raise Problem(
            409, _CONFLICTS[type(error)], hint=error.message, closes_connection=True
        ) from None
    except (ContentMismatch, ManifestError, TarError) as error:
        raise Problem(
            400, INVALID_VALUE, hint=error.message, field=field, closes_connection=True
        ) from None


async def receive_body(
    request: Request,
    write: Callable[[bytes | memoryview], None],
    wait_s: Callable[[], float] | None = None,
) -> int:
    """Pass the body to `write`, in a thread, in parts; return its size.

    While a part is written, the next one arrives.

    Args:
        request: The request.
        write: Takes the data.
        wait_s: Returns how long to read nothing after a part; None: read on.
    """
    body_bytes = request.http_request.content_length or 0
    if body_bytes - request.http_request.content.total_bytes > LONG_BODY_BYTES:
        transport = request.http_request.transport
        if isinstance(transport, TlsTransport):
            await _receive_long(request, transport, write, wait_s)
            return body_bytes
    size_bytes = 0
    writing: asyncio.Future[None] | None = None
    loop = asyncio.get_running_loop()
    with long_reads(request.http_request.transport):
        try:
            while parts := await _next_parts(request):
                if writing is not None:
                    await asyncio.shield(writing)
                writing = loop.run_in_executor(None, _write_parts, write, parts)
                size_bytes += sum(map(len, parts))
                if wait_s is not None:
                    await asyncio.sleep(wait_s())
        finally:
            # After a disconnect, too, the caller must be alone with the file.
            if writing is not None:
                await asyncio.shield(asyncio.wait((writing,)))
        if writing is not None:
            writing.result()
    return size_bytes


async def _receive_long(
    request: Request,
    transport: TlsTransport,
    write: Callable[[bytes | memoryview], None],
    wait_s: Callable[[], float] | None,
) -> None:
    """Pass a long body on straight from its connection.

    The parser cannot find the next request afterwards, so the connection is closed.
    """
    content = request.http_request.content
    parsed = deque(read_parsed(content))
    left_bytes = (request.http_request.content_length or 0) - content.total_bytes

    def take(data: memoryview) -> None:
        while parsed:
            write(parsed.popleft())
        write(data)

    request.info.closes_connection = True
    stall_s = request.services.timeouts.stall_s
    await transport.receive_to(take, left_bytes, stall_s=stall_s, wait_s=wait_s)
    request.http_request.protocol.close()
    content.feed_eof()


async def _next_parts(request: Request) -> list[bytes]:
    """Return the next parts of the body, to be written in one turn; none at its end."""
    content, stall_s = request.http_request.content, request.services.timeouts.stall_s
    parts: list[bytes] = []
    for _ in range(PARTS_PER_TURN):
        part_bytes = 0
        async with asyncio.timeout(stall_s):
            while part_bytes < PART_BYTES:
                # These are not copied, in contrast to `readexactly`.
                data = await content.readany()
                if not data:
                    return parts
                parts.append(data)
                part_bytes += len(data)
    return parts


def _write_parts(
    write: Callable[[bytes | memoryview], None], parts: Sequence[bytes]
) -> None:
    for part in parts:
        write(part)


ROUTES = (
    # Before the routes of one file: they would match `missing` and `pack`.
    Route(
        method="POST",
        path=MISSING_PATH,
        handler=list_missing,
        cost=route_cost.CHEAP,
        access=Access.SUBMIT,
        is_local=True,
        body_type=MissingIn,
        responses={200: MissingFiles},
    ),
    Route(
        method="POST",
        path=LEND_PATH,
        handler=lend_tree,
        cost=route_cost.STREAM,
        access=Access.SUBMIT,
        is_local=True,
        body_type=OfferIn,
        responses={200: None},
        media_type=sse.CONTENT_TYPE,
    ),
    Route(
        method="POST",
        path=PACK_PATH,
        handler=upload_pack,
        cost=route_cost.UPLOAD,
        access=Access.SUBMIT,
        is_local=True,
        is_body_streamed=True,
        query=("lent",),
        responses={201: StoredPack},
        error_statuses=(507,),
    ),
    Route(
        method="POST",
        path=REPLICATE_PATH,
        handler=replicate_input,
        cost=route_cost.UPLOAD,
        access=Access.SUBMIT,
        body_type=InputIn,
        responses={201: TreeCopies},
        error_statuses=(404, 507),
    ),
    Route(
        method="POST",
        path=HOLD_PATH,
        handler=hold_inputs,
        cost=route_cost.CHEAP,
        access=Access.NODE,
        is_local=True,
        body_type=InputsIn,
        responses={200: HeldTrees},
    ),
    Route(
        method="POST",
        path=NODE_PACK_PATH,
        handler=send_pack_to_node,
        allows_visitors=True,
        cost=route_cost.STREAM,
        access=Access.NODE,
        is_local=True,
        body_type=PackIn,
        responses={200: None},
        media_type=BYTES,
        response_headers=("Retry-After",),
    ),
    Route(
        method="POST",
        path=FILES_PATH,
        handler=upload_unnamed_file,
        cost=route_cost.UPLOAD,
        access=Access.SUBMIT,
        is_local=True,
        is_body_streamed=True,
        responses={201: StoredFile},
        error_statuses=(411, 507),
    ),
    Route(
        method="POST",
        path=PATH,
        handler=upload_file,
        cost=route_cost.UPLOAD,
        access=Access.SUBMIT,
        is_local=True,
        is_body_streamed=True,
        query=("lent",),
        request_headers=("Content-Range",),
        responses={200: StoredFile, 201: StoredFile, 202: StoredPiece},
        error_statuses=(409, 411, 507),
    ),
    Route(
        method="GET",
        path=PATH,
        handler=show_file,
        cost=route_cost.CHEAP,
        access=Access.SUBMIT,
        is_local=True,
        responses={200: StoredFile},
    ),
    Route(
        method="DELETE",
        path=PATH,
        handler=release_file,
        cost=route_cost.CHEAP,
        access=Access.SUBMIT,
        is_local=True,
        responses={204: None},
    ),
    Route(
        method="GET",
        path="/internal/v1/files/{sha256}",
        handler=send_piece_to_node,
        allows_visitors=True,
        cost=route_cost.STREAM,
        access=Access.NODE,
        is_local=True,
        query=("pieces", "tree"),
        responses={200: None},
        media_type=BYTES,
    ),
    Route(
        method="POST",
        path="/internal/v1/files/{sha256}/verify",
        handler=verify_file,
        cost=route_cost.CHEAP,
        access=Access.NODE,
        is_local=True,
        responses={200: VerifiedFile},
    ),
)
