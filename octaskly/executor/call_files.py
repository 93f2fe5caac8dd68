"""The files of calls: large values, and the inputs of an executor, in one tree."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeVar

from octaskly.client.errors import Refused
from octaskly.client.flows import files
from octaskly.client.flows.files import SendCallbacks, TreeContents
from octaskly.client.inputs import TaskInputs
from octaskly.client.local_files import contents_of
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

if TYPE_CHECKING:
    from octaskly.client.lending import Lender
    from octaskly.rest.client_types import Task

_T = TypeVar("_T")

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
    """The files of an executor's calls; used by its submit thread, except for results.

    The inputs of all calls are lent, as by `run` and `map`. Large values are not: they
    would fill the memory of this process until a node wants them.

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
        self._lender: Lender | None = None  #: of the inputs, if they are lent
        #: The tree of the inputs as a field of tasks, and when to offer it again.
        self._offered: tuple[dict[str, Any], float] = {}, 0.0

    def send(self, task: str, blobs: Sequence[Blob]) -> dict[str, Any] | None:
        """Send or lend the files of a task; return its field `tree`.

        Raises:
            ManifestError: an input cannot be sent.
            NodeFilesFull: the node has no room for them.
        """
        inputs = self._input_tree
        if not blobs:
            return None if inputs is None else self._lend_inputs(task, inputs)
        tree = _CallTree(inputs, blobs)
        self._names[task] = tree.own_names
        self._use_counts.update(tree.own_names)
        try:
            return {"sha256": tree.sha256, "node": self._send_if_needed(tree)}
        except OctasklyError:
            self.release(task)
            raise

    def release(self, task: str) -> None:
        """Release the files of an ended task; delete values no longer needed."""
        if self._lender is not None:
            self._lender.on_task_ended(task)
        for name in self._names.pop(task, ()):
            self._use_counts[name] -= 1
            if self._use_counts[name] <= 0:
                del self._use_counts[name]
                self._sent.pop(name, None)
                with suppress(OctasklyError):  # The node deletes it later by itself.
                    self._mesh.perform(partial(files.release_file, sha256=name))

    def check_result(self, result_of: Callable[[Task], _T], task: Task) -> _T:
        """Return the result of an ended task; any thread may call it.

        Raises:
            ManifestError: it was cancelled because an input cannot be sent any more.
        """
        failure = None if self._lender is None else self._lender.failure
        if failure is not None and task.status == "cancelled":
            raise failure
        return result_of(task)

    def _lend_inputs(self, task: str, inputs: LocalTree) -> dict[str, Any]:
        """Offer the inputs, unless they were; return the field `tree` of a task."""
        now_s = time.monotonic()
        field, until_s = self._offered
        if until_s < now_s:
            contents = contents_of(inputs)
            flow = partial(
                files.prepare_lending, tree=contents, callbacks=RAISE_IF_FULL
            )
            answer = self._mesh.perform(flow)
            field = {"sha256": answer.sha256, "node": answer.node}
            if answer.is_lent:
                field["lent"] = True
                self._lender = self._lender or self._mesh.lend(inputs)
            self._offered = field, now_s + RESEND_AFTER_S
        if self._lender is not None:
            if self._lender.failure is not None:
                raise self._lender.failure
            self._lender.cancel_on_failure(task)
        return field

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
