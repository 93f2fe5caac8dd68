"""Large parts of calls, as files that are left at a node while calls need them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from octaskly.client.errors import Unavailable
from octaskly.errors import OctasklyError
from octaskly.executor.mesh import INSUFFICIENT_STORAGE, MeshClient

REUPLOAD_AFTER_S: Final = 600.0  #: a node keeps for an hour what it was asked for


class Blob(NamedTuple):
    """A part that travels as a file of its own."""

    name: str  #: of the file, in the folder of the task
    sha256: str
    data: bytes | memoryview


class NodeFilesFull(OctasklyError):
    """The node takes no more files at the moment."""


class UploadedValues:
    """What one executor has left at a node; for the thread that hands out work."""

    def __init__(self, mesh: MeshClient) -> None:
        self._mesh = mesh
        self._use_counts: Counter[str] = Counter()  #: calls that need a file
        self._uploaded: dict[
            str, tuple[str, float]
        ] = {}  #: node, and until when it is so

    def upload(self, blobs: Sequence[Blob]) -> list[dict[str, str]]:
        """Have parts at a node; return how a task names them.

        Raises:
            NoRoom: there is no room for one.
        """
        names = [blob.sha256 for blob in blobs]
        self._use_counts.update(names)
        try:
            return [
                {"path": b.name, "sha256": b.sha256, "node": self._upload_if_needed(b)}
                for b in blobs
            ]
        except Unavailable as error:
            self.release(names)
            if error.status == INSUFFICIENT_STORAGE:
                raise NodeFilesFull(str(error), hint=error.hint) from error
            raise
        except OctasklyError:
            self.release(names)
            raise

    def release(self, names: Iterable[str]) -> None:
        """Note that a call needs its parts no more."""
        for name in names:
            self._use_counts[name] -= 1
            if self._use_counts[name] <= 0:
                del self._use_counts[name]
                self._uploaded.pop(name, None)
                with suppress(OctasklyError):  # It goes by itself, only later.
                    self._mesh.release_file(name)

    def _upload_if_needed(self, blob: Blob) -> str:
        now_s = time.monotonic()
        node, until_s = self._uploaded.get(blob.sha256, ("", 0.0))
        if until_s < now_s:
            node = self._mesh.upload_file(blob.sha256, blob.data)
            self._uploaded[blob.sha256] = node, now_s + REUPLOAD_AFTER_S
        return node
