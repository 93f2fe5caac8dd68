"""Files of tasks: errors, values, and the interface of the trees of a node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal, NamedTuple, Protocol

from octaskly.core.model.field_types import Count
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.task_options import BlobRef, InputBlob, InputTree
from octaskly.errors import OctasklyError
from octaskly.files.captured_tree import CapturedTree
from octaskly.files.manifest import Manifest


class FileQuotaExceeded(OctasklyError):
    """The stored files leave too little room, and none may be deleted yet."""


class FileExceedsQuota(FileQuotaExceeded):
    """The file is larger than all files of the node together may be."""


class DiskFull(FileQuotaExceeded):
    """The disk of the node has no room, whatever files are deleted."""


class WrongOffset(OctasklyError):
    """The bytes before those of a request have not arrived."""


class UploadInProgress(OctasklyError):
    """Another request sends the same file."""


class ContentMismatch(OctasklyError):
    """The content differs from the announced size or hash."""


class InputSources(NamedTuple):
    """The bytes that an attempt needed, and the nodes that sent some of them."""

    total_bytes: int
    present_bytes: int  #: that were here already
    sent_bytes: Mapping[str, int]  #: by name of the node
    awaited: str = ""  #: files that have not arrived; empty if none are awaited


WANTED_PIECES_MAX: Final = 64  #: pieces in one request; the node sends one of them


class OpenPiece(NamedTuple):
    """A piece of a file, for reading."""

    fd: int  #: of a file that contains it
    number: int  #: from 0
    start: int
    end: int
    blob_bytes: int  #: size of the whole file


RETENTION_S: Final = 3600.0
"""Protection of a file from its upload, or from its last use."""

COPY_RETENTION_S: Final = 60.0
"""The same for a copy, which can be fetched again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem:
    """A tree, a file of no tree, or the outputs of an attempt, with its size."""

    kind: Literal["tree", "file", "outputs"]
    size_bytes: int
    kept_until_s: float  #: wall clock
    sha256: str | None = None  #: of a file, or of the manifest of a tree
    task: str | None = None  #: whose outputs they are
    file_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUsage:
    """The use of a node's disk by files, outputs and logs of tasks."""

    items: Sequence[StoredItem]  #: the largest first
    files_bytes: int  #: of all files that tasks need, also of those that arrive
    files_quota_bytes: int
    outputs_bytes: int  #: of captured outputs
    logs_bytes: int  #: of what tasks wrote to stdout and stderr
    output_quota_bytes: int  #: for those, and for the outputs of one task
    free_bytes: int  #: on the disk
    disk_bytes: int  #: size of the disk


KEPT_OUTPUTS_MAX: Final = 1000  #: in one question to the dispatcher


class KeptOutput(NamedTuple):
    """The files that a node keeps of an ended attempt: output and captured outputs."""

    task: TaskId
    attempt: AttemptId
    ended_ms: Count  #: wall clock of that node


class AttemptOutputs(NamedTuple):
    """The captured outputs of an attempt, or a copy of them."""

    task: TaskId
    attempt: AttemptId


class TreeKeeper(Protocol):
    """The uploaded inputs of unfinished tasks, and copies of outputs."""

    async def hold_inputs(self, inputs: Sequence[InputBlob]) -> list[str]:
        """Fetch what this node lacks of some inputs and protect them for a while.

        Returns:
            A text for each that is not complete here, and on its disk.
        """

    async def hold_outputs(self, outputs: Sequence[AttemptOutputs]) -> list[int]:
        """Protect captured outputs for a while; return which are here, by index."""

    async def read_manifest(self, tree: InputTree) -> Manifest:
        """Return the entries of the part of a tree that a task names.

        Raises:
            OutputNotFound: No node has the manifest.
            ManifestError: What has its digest is not a manifest.
        """

    async def fetch_tree(
        self, tree: InputTree, path: str | None = None
    ) -> CapturedTree:
        """Return a tree with a file of it, or with all of them, at this node.

        Args:
            tree: The tree.
            path: The file; None for all.

        Raises:
            OutputNotFound: No node has what is asked for, or there is no such file.
            ManifestError: What has its digest is not a manifest.
        """

    async def replicate_input(self, needed: InputBlob) -> list[NodeId]:
        """Store an input at this node, the dispatcher, and at its standbys.

        Returns:
            The nodes that have all of it on disk now.

        Raises:
            OutputNotFound: This node could not get all of it.
        """

    async def copy_outputs(
        self, task: TaskId, attempt: AttemptId, tree: BlobRef
    ) -> str:
        """Copy the outputs of an attempt, which are a tree at a node, to this one.

        Returns:
            Why that failed; "" if they are on disk now.
        """


class VisitorAccess(Enum):
    """Whether a visitor may read files."""

    GRANTED = auto()
    LATER = auto()  #: they are being fetched, or it is not known yet
    DENIED = auto()
