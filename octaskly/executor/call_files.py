"""The files of calls: large values, and the inputs of an executor, in one tree."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Final, NamedTuple, NoReturn

from octaskly.client.errors import Refused
from octaskly.client.flows import files
from octaskly.client.flows.files import SendCallbacks, TreeContents
from octaskly.client.inputs import TaskInputs
from octaskly.errors import OctasklyError
from octaskly.executor.mesh import MeshClient
from octaskly.files.local_tree import LocalTree
from octaskly.files.manifest import (
    Manifest,
    TreeFile,
    content_digest,
    encode_manifest,
    make_manifest,
)

RESEND_AFTER_S: Final = 600.0  #: a node keeps a file for an hour after each use


class Blob(NamedTuple):
    """A part of a call that is sent as a file."""

    name: str  #: of the file in the working folder of the task
    sha256: str
    data: bytes | memoryview


class NodeFilesFull(OctasklyError):
    """The node has no room for more files at the moment."""


def _raise_full(refusal: Refused) -> NoReturn:
    raise NodeFilesFull(refusal.message, hint=refusal.hint) from refusal


RAISE_IF_FULL: Final = SendCallbacks(on_no_room=_raise_full)
"""Do not wait for room: it comes when other calls end, which the caller handles."""


class CallFiles:
    """The files of an executor's calls; used only by its submit thread.

    Args:
        mesh: Sends them.
        inputs: Files and folders that all calls get, as they are at the first one.
    """

    def __init__(self, mesh: MeshClient, inputs: TaskInputs) -> None:
        self._mesh, self._inputs = mesh, inputs
        self._names: dict[str, list[str]] = {}  #: by task: digests of its own files
        self._use_counts: Counter[str] = Counter()  #: number of calls with a value
        #: By digest of a tree: the node, and the time of the next transfer.
        self._sent: dict[str, tuple[str, float]] = {}

    def send(self, task: str, blobs: Sequence[Blob]) -> dict[str, str] | None:
        """Send the files of a call, unless they were; return the task's field `tree`.

        Raises:
            ManifestError: an input cannot be sent.
            NodeFilesFull: the node has no room for them.
        """
        inputs = self._input_tree
        if inputs is None and not blobs:
            return None
        tree = _CallTree(inputs, blobs)
        self._names[task] = tree.own_names
        self._use_counts.update(tree.own_names)
        try:
            return {"sha256": tree.sha256, "node": self._send_if_needed(tree)}
        except OctasklyError:
            self.release(task)
            raise

    def release(self, task: str) -> None:
        """Release the values of an ended call; delete those no longer needed."""
        for name in self._names.pop(task, ()):
            self._use_counts[name] -= 1
            if self._use_counts[name] <= 0:
                del self._use_counts[name]
                self._sent.pop(name, None)
                with suppress(OctasklyError):  # The node deletes it later by itself.
                    self._mesh.perform(partial(files.release_file, sha256=name))

    def _send_if_needed(self, tree: _CallTree) -> str:
        now_s = time.monotonic()
        node, until_s = self._sent.get(tree.sha256, ("", 0.0))
        if until_s < now_s:
            contents = TreeContents(tree.sha256, tree.sizes(), tree.read_content)
            flow = partial(files.upload_tree, tree=contents, callbacks=RAISE_IF_FULL)
            node = self._mesh.perform(flow).node
            self._sent[tree.sha256] = node, now_s + RESEND_AFTER_S
        return node

    @cached_property
    def _input_tree(self) -> LocalTree | None:
        return self._inputs.files().scan() if self._inputs.paths else None


class _CallTree:
    """The files of one call: those that all calls get, and its large values."""

    def __init__(self, inputs: LocalTree | None, blobs: Sequence[Blob]) -> None:
        self._inputs = inputs
        values = [
            TreeFile(blob.name, bytes.fromhex(blob.sha256), len(blob.data), 0)
            for blob in blobs
        ]
        given = inputs.manifest if inputs else Manifest()
        manifest = encode_manifest(
            make_manifest([*given.files, *values], given.links, given.empty_folders)
        )
        self.sha256 = content_digest(manifest)
        self._own = {blob.sha256: blob.data for blob in blobs}
        self._own[self.sha256] = manifest

    @property
    def own_names(self) -> list[str]:
        """The digests of its values and its manifest."""
        return list(self._own)

    def sizes(self) -> dict[str, int]:
        """Return the size of each content by its digest."""
        sizes = self._inputs.sizes() if self._inputs else {}
        return sizes | {name: len(data) for name, data in self._own.items()}

    def read_content(self, sha256: str, start: int) -> Iterator[bytes | memoryview]:
        """Yield a content in parts, from an offset on. Blocks."""
        if sha256 in self._own:
            yield self._own[sha256][start:]
        else:
            assert self._inputs is not None
            yield from self._inputs.read_content(sha256, start)
