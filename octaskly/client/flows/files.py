"""Flows that send files and trees to a node, for tasks; addressed by SHA-256."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeVar

import msgspec

from octaskly.client.errors import NotFound
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.rest_calls import Body, Call, resource_path
from octaskly.client.flows.steps import Flow
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
REPLICATE: Final = "/api/v1/files/replicate"
REPLICATE_S_MAX: Final = 600.0
PACK_BYTES: Final = 8 << 20  #: of one request, so that progress is seen
BYTES_A_SECOND_MIN: Final = 1 << 20  #: slower uploads time out
_OCTETS: Final = {"Content-Type": "application/octet-stream"}

_T = TypeVar("_T")

ReadContent = Callable[[str], Iterator[bytes]]
"""Yields the bytes of a content, by its SHA-256, in parts."""

OnSent = Callable[[int, int], None]
"""Called with the numbers of files and bytes that were sent since the last call."""


class SentTree(NamedTuple):
    """A tree that a node has now."""

    sha256: str  #: of its manifest
    node: str  #: id of the node
    files_sent: int
    bytes_sent: int


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


def upload_file(requests: RequestFlow, sha256: str, data: Body) -> Flow[StoredFile]:
    """Upload a file, unless the node has it."""
    path = resource_path(FILES, sha256)
    try:
        return (yield from requests.send_and_decode(Call("GET", path), StoredFile))
    except NotFound:
        return (yield from _send(requests, path, data, StoredFile))


def release_file(requests: RequestFlow, sha256: str) -> Flow[None]:
    """Allow the node to delete a file that no further task will use."""
    yield from requests.send(Call("DELETE", resource_path(FILES, sha256)))


def upload_tree(
    requests: RequestFlow,
    sha256: str,
    sizes: Mapping[str, int],
    read: ReadContent,
    on_sent: OnSent = lambda _files, _bytes: None,
) -> Flow[SentTree]:
    """Send what a node lacks of a tree; its manifest goes last.

    Args:
        requests: Requests to the node.
        sha256: Digest of the manifest.
        sizes: Size of each content by its digest, with the manifest.
        read: Reads a content.
        on_sent: Is told of the progress.
    """
    missing, node = yield from _missing(requests, list(sizes))
    contents = [name for name in missing if name != sha256]
    small = [name for name in contents if sizes[name] <= PACKED_BYTES_MAX]
    large = [name for name in contents if sizes[name] > PACKED_BYTES_MAX]
    sent_bytes = 0
    for names in _packs(small, sizes):
        size_bytes = sum(sizes[name] for name in names)
        body = _pack_body(names, sizes, read)
        yield from _send(requests, PACK, body, StoredPack)
        sent_bytes += size_bytes
        on_sent(len(names), size_bytes)
    for name in [*large, sha256] if sha256 in missing else large:
        path = resource_path(FILES, name)
        body = ContentBody(sizes[name], partial(read, name))
        yield from _send(requests, path, body, StoredFile)
        if name != sha256:
            sent_bytes += sizes[name]
            on_sent(1, sizes[name])
    return SentTree(sha256, node, len(contents), sent_bytes)


def replicate_tree(requests: RequestFlow, tree: SentTree) -> Flow[list[str]]:
    """Store a tree at the dispatcher and its standbys; return their ids."""
    body = msgspec.json.encode({"sha256": tree.sha256, "node": tree.node})
    call = Call("POST", REPLICATE, body=body, extra_wait_s=REPLICATE_S_MAX)
    return (yield from requests.send_and_decode(call, TreeCopies)).nodes


def _missing(
    requests: RequestFlow, names: Sequence[str]
) -> Flow[tuple[list[str], str]]:
    """Return which files the node lacks, and the node's id."""
    missing: list[str] = []
    node = ""
    for start in range(0, len(names), ASKED_FILES_MAX):
        body = msgspec.json.encode({"sha256": names[start : start + ASKED_FILES_MAX]})
        answer = yield from requests.send_and_decode(
            Call("POST", MISSING, body=body), MissingFiles
        )
        missing += answer.missing
        node = answer.node
    return missing, node


def _send(requests: RequestFlow, path: str, body: Body, kind: type[_T]) -> Flow[_T]:
    call = Call(
        "POST",
        path,
        body=body,
        headers=_OCTETS,
        extra_wait_s=len(body) / BYTES_A_SECOND_MIN,
    )
    return (yield from requests.send_and_decode(call, kind))


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
            content = b"".join(read(name))
            yield pack_header(bytes.fromhex(name), len(content)) + content

    size_bytes = sum(HEADER_BYTES + sizes[name] for name in names)
    return ContentBody(size_bytes, parts)
