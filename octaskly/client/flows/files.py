"""Flows that send files and trees to a node, for tasks; addressed by SHA-256."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, NoReturn, TypeVar

import msgspec

from octaskly.client.errors import Invalid, NoAnswer, NotFound, Refused
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.rest_calls import Body, Call, resource_path
from octaskly.client.flows.resumable import ResumableEvents
from octaskly.client.flows.retry import Deadline, RetryState
from octaskly.client.flows.steps import Flow, SendRequest, Sleep, Step
from octaskly.errors import MeshError, OctasklyError
from octaskly.files.manifest import ManifestError
from octaskly.files.pack import (
    ASKED_FILES_MAX,
    HEADER_BYTES,
    PACKED_BYTES_MAX,
    pack_header,
)
from octaskly.rest.tasks import MissingFiles, StoredFile, StoredPack, TreeCopies

FILES: Final = "/api/v1/files"
MISSING: Final = "/api/v1/files/missing"
PACK: Final = "/api/v1/files/pack"
LEND: Final = "/api/v1/files/lend"
REPLICATE: Final = "/api/v1/files/replicate"
REPLICATE_S_MAX: Final = 600.0
PACK_BYTES: Final = 8 << 20  #: of one request, so that progress is seen
SENT_AT_ONCE_BYTES: Final = 1 << 20  #: if at most this much is missing, it is sent
CHECKED_BYTES: Final = 64 << 20  #: smaller files fit into any quota that makes sense
KEPT_BYTES: Final = 64 << 20  #: a larger tree is lent even if all of it is there
BYTES_A_SECOND_MIN: Final = 1 << 20  #: slower uploads time out
NO_ROOM_ERROR: Final = "Not enough space for the file"
"""Refusal of a node that may have room later."""
NO_ROOM_RETRY_S: Final = 1.0
_UPLOADED_BY_OTHERS: Final = ("Piece out of order", "Upload in progress")
_LATE: Final = "the files were not sent"
_OCTETS: Final = {"Content-Type": "application/octet-stream"}

_T = TypeVar("_T")

ReadContent = Callable[[str, int], Iterator[bytes | memoryview]]
"""Yields the bytes of a content, by its SHA-256, from an offset on, in parts."""


def _raise(refusal: Refused) -> None:
    raise refusal


class SendCallbacks(NamedTuple):
    """Callbacks of a client that sends files."""

    on_sent: Callable[[int, int], None] = lambda _files, _bytes: None
    """Called with the numbers of files and bytes that were sent since the last call."""
    on_wanted: Callable[[int, int], None] = lambda _files, _bytes: None
    """The same for what will be sent."""
    on_no_room: Callable[[Refused], None] = _raise
    """Called when the node has no room now; raises the refusal, unless it waits."""


NO_CALLBACKS: Final = SendCallbacks()


class SentTree(NamedTuple):
    """A tree that a node has now, or that is lent to it."""

    sha256: str  #: of its manifest
    node: str  #: id of the node
    files_sent: int
    bytes_sent: int
    is_lent: bool = False  #: its files are sent when they are wanted: `lend_tree`


class TreeContents(NamedTuple):
    """The contents of a tree on this machine."""

    sha256: str  #: of its manifest
    sizes: Mapping[str, int]  #: by digest, with the manifest
    read: ReadContent


class ContentBody:
    """A request body that is read from its source in parts, anew for each try."""

    def __init__(
        self, size_bytes: int, read: Callable[[], Iterable[bytes | memoryview]]
    ) -> None:
        self._size_bytes = size_bytes
        self._read = read

    def __len__(self) -> int:
        return self._size_bytes

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return iter(self._read())


def within(deadline: Deadline, flow: Flow[_T]) -> Flow[_T]:
    """Run a flow that sends files, whose requests and pauses end at the deadline.

    Raises:
        TimedOut: the flow has not ended before the deadline.
    """
    resume: Callable[[], Step] = partial(next, flow)
    while True:
        try:
            step = resume()
        except StopIteration as end:
            result: _T = end.value
            return result
        except NoAnswer:
            deadline.check(_LATE)
            raise
        try:
            if isinstance(step, SendRequest | Sleep):
                deadline.check(_LATE)
                step = _limited(step, deadline)
            resume = partial(flow.send, (yield step))
        except BaseException as error:  # noqa: BLE001 - thrown into the flow
            resume = partial(flow.throw, error)


def _limited(step: SendRequest | Sleep, deadline: Deadline) -> SendRequest | Sleep:
    if isinstance(step, Sleep):
        return Sleep(deadline.cap(step.seconds))
    call, timeout_s = step.call, deadline.cap(step.timeout_s)
    body = call.body
    if isinstance(body, ContentBody):
        call = call._replace(
            body=ContentBody(len(body), partial(_read, body, deadline))
        )
    return SendRequest(call, timeout_s)


def _read(body: ContentBody, deadline: Deadline) -> Iterator[bytes | memoryview]:
    """Yield the parts of a large body, whose transfer may take longer than allowed."""
    for part in body:
        deadline.check(_LATE)
        yield part


def upload_file(
    requests: RequestFlow,
    sha256: str,
    data: Body,
    callbacks: SendCallbacks = NO_CALLBACKS,
) -> Flow[StoredFile]:
    """Upload a file, unless the node has it."""
    path = resource_path(FILES, sha256)
    try:
        return (yield from requests.send_and_decode(Call("GET", path), StoredFile))
    except NotFound:
        return (yield from _send(requests, path, data, StoredFile, callbacks))


def release_file(requests: RequestFlow, sha256: str) -> Flow[None]:
    """Allow the node to delete a file that no further task will use."""
    yield from requests.send(Call("DELETE", resource_path(FILES, sha256)))


def check_quota(requests: RequestFlow, sizes: Mapping[str, int]) -> Flow[None]:
    """Raise `ManifestError` if the node may never have room for one of these files."""
    largest = max(sizes, key=lambda path: sizes[path], default=None)
    if largest is None or sizes[largest] < CHECKED_BYTES:
        return
    try:
        quota = (yield from _ask_missing(requests, [], is_lent=True)).quota_bytes
    except NotFound:  # The node is older.
        return
    if quota is not None and sizes[largest] > quota:
        raise ManifestError(
            f"{largest!r} has {sizes[largest]} bytes; all files together may "
            f"take {quota} at {requests.node_label}",
            hint="raise the --files-quota of its agent, or send a part of the file",
        )


def upload_tree(
    requests: RequestFlow, tree: TreeContents, callbacks: SendCallbacks = NO_CALLBACKS
) -> Flow[SentTree]:
    """Send what a node lacks of a tree; its manifest goes last.

    Args:
        requests: Requests to the node.
        tree: The tree.
        callbacks: Are told of the progress.

    Raises:
        ManifestError: the node may never have room for all that it lacks.
    """
    missing, node, quota = yield from _missing(requests, tree.sizes, is_lent=False)
    missing_bytes = sum(tree.sizes[name] for name in missing)
    if quota is not None and missing_bytes > quota:
        raise ManifestError(
            f"the files have {missing_bytes} bytes; all files together may take {quota}"
            f" at {requests.node_label}",
            hint="raise the --files-quota of its agent, or send fewer files",
        )
    contents = [name for name in missing if name != tree.sha256]
    yield from _send_contents(requests, tree, contents, callbacks, is_lent=False)
    if tree.sha256 in missing:
        yield from _send_manifest(requests, tree, callbacks, is_lent=False)
    sent_bytes = sum(tree.sizes[name] for name in contents)
    return SentTree(tree.sha256, node, len(contents), sent_bytes)


def prepare_lending(
    requests: RequestFlow, tree: TreeContents, callbacks: SendCallbacks = NO_CALLBACKS
) -> Flow[SentTree]:
    """Send the manifest of a tree that will be lent, or all that is missing of it.

    If little is missing, it is sent at once. A large tree is lent even then, because a
    node keeps files that were sent for an hour.

    Args:
        requests: Requests to the node.
        tree: The tree.
        callbacks: Are told of the progress.
    """
    if sum(tree.sizes.values()) <= KEPT_BYTES:
        missing, node, _ = yield from _missing(requests, tree.sizes, is_lent=False)
        if sum(tree.sizes[name] for name in missing) <= SENT_AT_ONCE_BYTES:
            yield from _send_contents(requests, tree, missing, callbacks, is_lent=False)
            contents = [name for name in missing if name != tree.sha256]
            sent_bytes = sum(tree.sizes[name] for name in contents)
            return SentTree(tree.sha256, node, len(contents), sent_bytes)
    missing, node, _ = yield from _missing(requests, [tree.sha256], is_lent=True)
    if missing:
        yield from _send_manifest(requests, tree, callbacks, is_lent=True)
    return SentTree(tree.sha256, node, 0, 0, is_lent=True)


def share_again(
    requests: RequestFlow,
    tree: TreeContents,
    callbacks: SendCallbacks = NO_CALLBACKS,
    *,
    lent_to: str | None,
) -> Flow[SentTree]:
    """Bring the files of a tree to the mesh that an earlier task has.

    Args:
        requests: Requests to the node.
        tree: The tree.
        callbacks: Are told of the progress.
        lent_to: Id of the node to which it was lent, if it was. Workers ask that node,
            so it is lent again only there; any other node gets all its files.
    """
    missing, node, _ = yield from _missing(requests, [tree.sha256], is_lent=True)
    if node != lent_to:
        return (yield from upload_tree(requests, tree, callbacks))
    if missing:
        yield from _send_manifest(requests, tree, callbacks, is_lent=True)
    return SentTree(tree.sha256, node, 0, 0, is_lent=True)


def _send_manifest(
    requests: RequestFlow,
    tree: TreeContents,
    callbacks: SendCallbacks,
    *,
    is_lent: bool,
) -> Flow[None]:
    """Send the manifest of a tree, which does not count as one of the files."""
    uncounted = SendCallbacks(on_no_room=callbacks.on_no_room)
    yield from _send_contents(requests, tree, [tree.sha256], uncounted, is_lent=is_lent)


def lend_tree(
    requests: RequestFlow,
    tree: TreeContents,
    *,
    on_open: Callable[[], None],
    callbacks: SendCallbacks,
) -> Flow[NoReturn]:
    """Send the files of a tree that the node asks for, until this flow is closed.

    After a lost connection, the tree is offered again.

    Args:
        requests: Requests to the node.
        tree: The tree.
        on_open: Is called whenever the node knows of the offer.
        callbacks: Are told of the progress.
    """
    body = msgspec.json.encode({"sha256": tree.sha256})
    offer = ResumableEvents(
        requests,
        lambda _last: Call("POST", LEND, body=body),
        requests.deadline_after(None),
    )
    while True:
        event = yield from offer.next_event()
        on_open()
        # A node gets what the user has named, whatever it asks for.
        asked = [name for name in event.data.get("sha256", ()) if name in tree.sizes]
        if asked:
            wanted, _, _ = yield from _missing(requests, asked, is_lent=True)
            yield from _send_contents(requests, tree, wanted, callbacks, is_lent=True)


def _send_contents(
    requests: RequestFlow,
    tree: TreeContents,
    names: Sequence[str],
    callbacks: SendCallbacks = NO_CALLBACKS,
    *,
    is_lent: bool,
) -> Flow[None]:
    """Send contents, the small ones first."""
    sizes = tree.sizes
    callbacks.on_wanted(len(names), sum(sizes[name] for name in names))
    small = [name for name in names if sizes[name] <= PACKED_BYTES_MAX]
    for some in _packs(small, sizes):
        body = _pack_body(some, sizes, tree.read)
        yield from _send(requests, PACK, body, StoredPack, callbacks, is_lent=is_lent)
        callbacks.on_sent(len(some), sum(sizes[name] for name in some))
    for name in names:
        if sizes[name] > PACKED_BYTES_MAX:
            upload = _LargeUpload(requests, tree, name, callbacks, is_lent=is_lent)
            yield from upload.send_all()


class _LargeUpload:
    """The upload of a large file, which goes on where a lost connection ended it."""

    def __init__(
        self,
        requests: RequestFlow,
        tree: TreeContents,
        name: str,
        callbacks: SendCallbacks,
        *,
        is_lent: bool,
    ) -> None:
        self._requests, self._callbacks = requests, callbacks
        self._tree, self._name = tree, name
        self._size_bytes = tree.sizes[name]
        self._is_lent = is_lent
        self._at = 0  #: offset of the next byte

    def send_all(self) -> Flow[None]:
        """Send all bytes that have not arrived."""
        failures = self._requests.new_retry_state()
        start = yield from self._arrived_bytes()
        while start is not None:
            try:
                yield from self._send_rest(start)
                break
            except OctasklyError as error:
                pause_s = yield from self._pause_s(error, failures, start)
            yield Sleep(pause_s)
            before = start
            start = yield from self._arrived_bytes()
            sent_for_nothing = self._at - (self._at if start is None else start)
            self._callbacks.on_sent(0, -sent_for_nothing)
            if start is not None and start > before:
                failures = self._requests.new_retry_state()
        self._callbacks.on_sent(1, 0)

    def _arrived_bytes(self) -> Flow[int | None]:
        """Return how much of the file is at the node; None if it has all."""
        answer = yield from _ask_missing(
            self._requests, [self._name], is_lent=self._is_lent
        )
        return answer.arrived.get(self._name, 0) if answer.missing else None

    def _send_rest(self, start: int) -> Flow[None]:
        self._at, end = start, self._size_bytes
        body = ContentBody(end - start, partial(self._read, start))
        call = Call(
            "POST",
            resource_path(FILES, self._name),
            {"lent": "true"} if self._is_lent else {},
            body=body,
            headers={**_OCTETS, "Content-Range": f"bytes {start}-{end - 1}/{end}"},
            extra_wait_s=len(body) / BYTES_A_SECOND_MIN,
        )
        timeout_s = self._requests.response_timeout_s(
            call, self._requests.deadline_after(None)
        )
        self._requests.check_response(call, (yield SendRequest(call, timeout_s)))

    def _read(self, start: int) -> Iterator[bytes | memoryview]:
        for data in self._tree.read(self._name, start):
            self._at += len(data)
            self._callbacks.on_sent(0, len(data))
            yield data

    def _pause_s(
        self, error: OctasklyError, failures: RetryState, start: int
    ) -> Flow[float]:
        """Return the delay until the upload goes on; raise an error that is final."""
        if error.message == NO_ROOM_ERROR:
            assert isinstance(error, Refused)
            self._callbacks.on_no_room(error)
            return NO_ROOM_RETRY_S
        if error.message in _UPLOADED_BY_OTHERS or (
            isinstance(error, Invalid) and start
        ):
            # If the bytes of an earlier upload are wrong, the node has deleted them.
            return NO_ROOM_RETRY_S
        return (yield from self._requests.retry_delay_s(failures, error))


def replicate_tree(requests: RequestFlow, tree: SentTree) -> Flow[list[str]]:
    """Store a tree at the dispatcher and its standbys; return their ids.

    Raises:
        MeshError: the dispatcher could not get it, or has no room.
    """
    body = msgspec.json.encode({"sha256": tree.sha256, "node": tree.node})
    call = Call("POST", REPLICATE, body=body, extra_wait_s=REPLICATE_S_MAX)
    try:
        return (yield from requests.send_and_decode(call, TreeCopies)).nodes
    except NotFound as error:
        raise MeshError(
            f"the dispatcher could not store the files: {error.hint}",
            hint="octaskly nodes    shows which node that is",
        ) from None


def _missing(
    requests: RequestFlow, names: Iterable[str], *, is_lent: bool
) -> Flow[tuple[list[str], str, int | None]]:
    """Return which files the node lacks, the node's id, and its quota."""
    asked, missing = list(names), list[str]()
    node, quota = "", None
    for start in range(0, len(asked), ASKED_FILES_MAX):
        some = asked[start : start + ASKED_FILES_MAX]
        answer = yield from _ask_missing(requests, some, is_lent=is_lent)
        missing += answer.missing
        node, quota = answer.node, answer.quota_bytes
    return missing, node, quota


def _ask_missing(
    requests: RequestFlow, names: Sequence[str], *, is_lent: bool
) -> Flow[MissingFiles]:
    body = msgspec.json.encode({"sha256": names, "lent": is_lent})
    call = Call("POST", MISSING, body=body)
    return (yield from requests.send_and_decode(call, MissingFiles))


def _send(
    requests: RequestFlow,
    path: str,
    body: Body,
    kind: type[_T],
    callbacks: SendCallbacks = NO_CALLBACKS,
    *,
    is_lent: bool = False,
) -> Flow[_T]:
    call = Call(
        "POST",
        path,
        {"lent": "true"} if is_lent else {},
        body=body,
        headers=_OCTETS,
        extra_wait_s=len(body) / BYTES_A_SECOND_MIN,
    )
    while True:
        try:
            return (yield from requests.send_and_decode(call, kind))
        except Refused as refusal:
            if refusal.message != NO_ROOM_ERROR:
                raise
            callbacks.on_no_room(refusal)
        yield Sleep(NO_ROOM_RETRY_S)


def _packs(names: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield the names of small files in groups of about `PACK_BYTES`."""
    group: list[str] = []
    group_bytes = 0
    for name in names:
        if group and group_bytes + sizes[name] > PACK_BYTES:
            yield group
            group, group_bytes = [], 0
        group.append(name)
        group_bytes += HEADER_BYTES + sizes[name]
    if group:
        yield group


def _pack_body(
    names: Sequence[str], sizes: Mapping[str, int], read: ReadContent
) -> ContentBody:
    def parts() -> Iterator[bytes]:
        for name in names:
            content = b"".join(read(name, 0))
            yield pack_header(bytes.fromhex(name), len(content)) + content

    size_bytes = sum(HEADER_BYTES + sizes[name] for name in names)
    return ContentBody(size_bytes, parts)
