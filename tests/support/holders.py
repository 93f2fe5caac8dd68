"""Nodes that have files, with their faults; without a network."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import cast
from weakref import finalize

from octaskly.api.schemas.query import Query
from octaskly.files.manifest import content_digest
from octaskly.files.pack import PackReader
from octaskly.ports.files import RETENTION_S
from octaskly.ports.store import Clock
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.blobs.holder_connection import (
    ArrivingPack,
    ArrivingPiece,
    Holder,
    HolderBusy,
    HolderConnection,
    HolderConnections,
    HolderRefused,
    HolderUnreachable,
)
from octaskly.runner.blobs.lenders import Lenders
from octaskly.runner.output.output_archive import RESERVE_BYTES
from tests.support.pooling import MachineClock

FAULTS = (
    *("unreachable", "breaks", "lacks", "busy", "refuses"),
    *("wrong", "longer", "shorter"),
)


class OtherNode:
    """A node with a store of its own, and perhaps a fault."""

    def __init__(self, name: str, folder: Path, fault: str = "") -> None:
        self.name, self.fault = name, fault
        self.store = BlobStore(folder / name, clock=MachineClock())
        self.asked = 0  #: requests for pieces and packs
        self.sent_bytes = 0
        self.verified: list[str] = []

    def put(self, data: bytes) -> str:
        """Store a file, which the fault spoils on the disk; return its SHA-256."""
        name = content_digest(data)
        if self.fault == "lacks":
            return name
        upload = self.store.start_upload(name, len(data), keep_s=RETENTION_S)
        upload.write(data)
        upload.finish()
        place = self.store.file_path(name)
        place.chmod(0o600)
        if self.fault == "wrong":
            place.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        elif self.fault == "longer":
            place.write_bytes(data + b"more")
        elif self.fault == "shorter":
            place.write_bytes(data[:-1])
        return name

    def has(self, name: str) -> bool:
        """Return True if the node has a file."""
        return self.store.touch_file(name) is not None


class _Response:
    """The body of a response."""

    def __init__(self, node: OtherNode, fd: int, start: int, end: int) -> None:
        self._node, self._fd = node, fd
        self._at, self._end = start, end
        finalize(self, os.close, fd)

    def readinto(self, view: memoryview) -> int:
        data = os.pread(self._fd, min(len(view), self._end - self._at), self._at)
        self._at += len(data)
        if self._node.fault == "breaks" and self._node.sent_bytes:
            self._node.fault = ""  # It breaks once.
            raise HolderUnreachable("the connection broke")
        self._node.sent_bytes += len(data)
        view[: len(data)] = data
        return len(data)


class _Connection:
    """A connection to another node."""

    def __init__(self, node: OtherNode) -> None:
        self._node = node

    def request_piece(
        self, sha256: str, wanted: Sequence[int], *, lent_tree: str = ""
    ) -> ArrivingPiece:
        self._node.asked += 1
        if self._node.fault == "refuses":
            raise HolderRefused("it answered with status 400")
        # As the route of a real node reads them.
        query = Query([("pieces", ",".join(map(str, wanted)))], ("pieces",))
        piece = self._node.store.open_piece(sha256, query.pieces())
        if piece is None:
            raise HolderBusy
        fd, number, start, end, blob_bytes = piece
        response = cast("HTTPResponse", _Response(self._node, fd, start, end))
        return ArrivingPiece(number, end - start, blob_bytes, response)

    def fetch_pack(
        self,
        names: Sequence[str],
        _may_continue: Callable[[], bool],
        *,
        is_compressed: bool = False,
        lent_tree: str = "",
        largest_bytes: int = 0,
    ) -> ArrivingPack:
        self._node.asked += 1
        if self._node.fault == "refuses":
            raise HolderRefused("it answered with status 400")
        return ArrivingPack(self._read_pack(names), None)

    def _read_pack(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        reader = PackReader()
        for part in self._node.store.pack_files(names):
            for digest, content in reader.add_data(part):
                yield digest.hex(), content

    def ask_to_verify(self, sha256: str) -> bool:
        self._node.verified.append(sha256)
        return not self._node.store.verify_file(sha256)


class Lan:
    """Other nodes, and fetchers that reach them."""

    def __init__(self, folder: Path, **faults: str) -> None:
        self._folder = folder
        self.nodes = {name: OtherNode(name, folder, faults[name]) for name in faults}
        self.hidden: set[str] = set()  #: nodes that a lookup does not find
        self.unknown: set[str] = set()  #: nodes that were never met
        self.clock: Clock = MachineClock()
        self.lookups = 0
        self.reported: list[tuple[str, str]] = []

    def fetcher(
        self, quota_bytes: int | None = None, *, reserve_bytes: int = RESERVE_BYTES
    ) -> BlobFetcher:
        """Return a fetcher with an empty store."""
        store = BlobStore(
            self._folder / "own",
            clock=self.clock,
            quota_bytes=quota_bytes,
            reserve_bytes=reserve_bytes,
        )
        return _Fetcher(self, store)

    def put(self, data: bytes) -> str:
        """Store a file at all nodes; return its SHA-256."""
        for node in self.nodes.values():
            node.put(data)
        return content_digest(data)

    def holders_of(self, first: str) -> list[Holder]:
        """Return the nodes, first the named one, even if it is not in the mesh now."""
        self.lookups += 1
        names = sorted(self.nodes.keys() - self.hidden - {first})
        named = Holder(first, (), is_named=True, is_unknown=first in self.unknown)
        return [named, *(Holder(name, ()) for name in names)]

    def close(self) -> None:
        """Do nothing: no connection is kept."""

    @contextmanager
    def connect_to(self, holder: Holder) -> Iterator[HolderConnection]:
        node = self.nodes[holder.name]
        if node.fault == "unreachable" or node.name in self.hidden:
            raise HolderUnreachable("it cannot be reached")
        if node.fault == "busy" and node.asked < 2:
            node.asked += 1
            raise HolderBusy
        yield cast("HolderConnection", _Connection(node))


class _Fetcher(BlobFetcher):
    """A fetcher that reaches the nodes of a `Lan`."""

    def __init__(self, lan: Lan, store: BlobStore) -> None:
        super().__init__(
            store,
            ssl.create_default_context,
            lambda node, _known: lan.holders_of(node),
            ("own",),
            Lenders(store, store.clock),
            lambda *what: lan.reported.append(what),
        )
        self.connections = cast("HolderConnections", lan)
