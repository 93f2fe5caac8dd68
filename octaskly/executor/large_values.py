"""Large values of calls: uploads them to a node while calls need them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from octaskly.client.errors import Unavailable
from octaskly.errors import OctasklyError
from octaskly.executor.mesh import INSUFFICIENT_STORAGE, MeshClient

REUPLOAD_AFTER_S: Final = 600.0  #: a node keeps a file for an hour after each upload


class Blob(NamedTuple):
    """A part of a call that is sent as a file."""

    name: str  #: of the file in the working folder of the task
    sha256: str
    data: bytes | memoryview


class NodeFilesFull(OctasklyError):
    """The node has no room for more files at the moment."""


class UploadedValues:
    """The uploaded files of one executor; used only by its submit thread."""

    def __init__(self, mesh: MeshClient) -> None:
        self._mesh = mesh
        self._use_counts: Counter[str] = Counter()  #: number of calls that need a file
        #: By digest: the node, and the time of the next upload.
        self._uploaded: dict[str, tuple[str, float]] = {}

    def upload(self, blobs: Sequence[Blob]) -> list[dict[str, str]]:
        """Upload blobs that are not uploaded yet; return a task's `files` field.

        Raises:
            NodeFilesFull: the node has no room for a blob.
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
        """Release the files of an ended call; delete those no longer needed."""
        for name in names:
            self._use_counts[name] -= 1
            if self._use_counts[name] <= 0:
                del self._use_counts[name]
                self._uploaded.pop(name, None)
                with suppress(OctasklyError):  # The node deletes it later by itself.
                    self._mesh.release_file(name)

    def _upload_if_needed(self, blob: Blob) -> str:
        now_s = time.monotonic()
        node, until_s = self._uploaded.get(blob.sha256, ("", 0.0))
        if until_s < now_s:
            node = self._mesh.upload_file(blob.sha256, blob.data)
            self._uploaded[blob.sha256] = node, now_s + REUPLOAD_AFTER_S
        return node
