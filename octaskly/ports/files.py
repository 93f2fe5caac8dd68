"""Interface for files that clients upload for tasks, addressed by SHA-256."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
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


class FileUpload(Protocol):
    """One upload in progress. All methods block."""

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, which must not change until the next call.

        Raises:
            ContentMismatch: There are more bytes than announced.
            FileQuotaExceeded: There is no room for them.
            OSError: The disk is full or failing.
        """

    def finish(self) -> str:
        """Store the complete file, and return its SHA-256.

        Raises:
            ContentMismatch: Its size or hash differs from the announced one.
        """

    @property
    def is_complete(self) -> bool:
        """Return True if all bytes of the file have arrived."""

    def abort(self) -> None:
        """End an upload that was not finished; what arrived may be kept."""


WANTED_PIECES_MAX: Final = 64  #: pieces in one request; the node sends one of them


class OpenPiece(NamedTuple):
    """A piece of a file, for reading."""

    fd: int  #: of a file that contains it
    number: int  #: from 0
    start: int
    end: int
    blob_bytes: int  #: size of the whole file


class FileStore(Protocol):
    """The files of this node. All methods block; any thread may call them."""

    def touch_file(self, sha256: str) -> int | None:
        """Protect a file for a while and return its size; None if it is not stored."""

    def missing_files(self, sha256s: Iterable[str], *, keep_s: float) -> list[str]:
        """Return which of these files are not stored, and protect the others."""

    def store_blob(self, sha256: str, data: bytes, *, keep_s: float) -> bool:
        """Store a small file at once, and protect it; return True if it is new.

        Raises:
            ContentMismatch: It has another SHA-256.
            FileQuotaExceeded: There is no room for it.
            OSError: The folder cannot be used.
        """

    def pack_files(self, sha256s: Iterable[str]) -> Iterator[bytes]:
        """Yield a pack of these files in parts; files that are not stored are left out.

        Source: `octaskly.files.pack`.
        """

    def start_upload(
        self, sha256: str | None, size_bytes: int, *, keep_s: float
    ) -> FileUpload:
        """Start an upload; the finished file is protected.

        Without `sha256`, the file gets the name of what arrives.

        Raises:
            FileQuotaExceeded: There can be no room for the file now.
            OSError: The folder cannot be used.
        """

    def quota_bytes(self) -> int:
        """Return the maximum size of all files."""

    def arrived_bytes(self, sha256: str) -> int:
        """Return how much has arrived of a file that is uploaded in pieces."""

    def continue_upload(
        self, sha256: str, size_bytes: int, start: int, *, keep_s: float
    ) -> FileUpload:
        """Start or continue an upload in pieces, at an offset.

        Raises:
            WrongOffset: Less has arrived.
            UploadInProgress: Another request sends the file.
        """

    def release_file(self, sha256: str) -> None:
        """End the protection of a file. It stays while there is room."""

    def release_copies(self, sha256s: Iterable[str]) -> None:
        """End the protection of files that are protected as copies only."""

    def open_piece(self, sha256: str, wanted: Sequence[int]) -> OpenPiece | None:
        """Return one of the wanted pieces of a file that is stored, or arriving.

        Returns:
            None if none of them has arrived yet. The caller closes the descriptor.

        Raises:
            OutputNotFound: There is no such file.
        """

    def verify_file(self, sha256: str) -> bool:
        """Return True if a file has the right content; delete it if it has not.

        Raises:
            OutputNotFound: There is no such file.
        """


RETENTION_S: Final = 3600.0
"""Protection of a file from its upload, or from its last use."""

COPY_RETENTION_S: Final = 60.0
"""The same for a copy, which can be fetched again."""


class Offer(Protocol):
    """The offer of a client to send the files of a tree."""

    async def next_wanted(self) -> Sequence[str]:
        """Wait for files that are wanted, and return their SHA-256."""


class Lenders(Protocol):
    """Clients that send the files of trees when this node wants them."""

    def open_offer(self, tree: str) -> AbstractContextManager[Offer]:
        """Offer the files of a tree, by its SHA-256, while the block runs."""

    async def await_files(self, tree: str, names: Sequence[str]) -> float | None:
        """Ask the lender of a tree for files that are not here, and wait a moment.

        Returns:
            After how many seconds to ask again; None if there is nothing to wait for.
        """


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


class StorageReport(Protocol):
    """Tells what takes up room on this node."""

    def read_usage(self) -> StorageUsage:
        """Return what takes up room. Blocks."""


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


class ForgottenOutputs(Protocol):
    """Deletes what this node keeps of forgotten tasks."""

    def wake(self) -> None:
        """Look soon: tasks were forgotten."""


class TreeKeeper(Protocol):
    """The uploaded inputs of unfinished tasks, and copies of outputs."""

    @property
    def lenders(self) -> Lenders:
        """The clients that lend trees to this node."""

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


class PushedOutputs(Protocol):
    """Captured outputs that a visitor sends; the methods block."""

    def write(self, data: bytes | memoryview) -> None:
        """Store the next bytes; raise TarError if they are no archive."""

    def wait_s(self) -> float:
        """Return how long to read nothing, as the visitor sends too fast."""

    def finish(self) -> None:
        """Keep the outputs.

        Raises:
            TarError, ManifestError: They are not whole.
            OutputNotFound: The attempt is not the visitor's any more.
        """

    def abort(self) -> None:
        """Delete what is not finished; call it at the end in any case."""


class VisitorFiles(Protocol):
    """What visitors may ask the dispatcher for: what belongs to their live attempts."""

    def access_to(self, visitor: NodeId, names: Sequence[str]) -> VisitorAccess:
        """Return whether a visitor may read files, by their SHA-256."""

    def may_read_outputs(self, visitor: NodeId, task: str) -> bool:
        """Return True if an attempt of the visitor gets the outputs of this task."""

    def grant_trees(self, visitor: NodeId, trees: Sequence[BlobRef]) -> None:
        """Let a visitor read trees of outputs that its attempts get."""

    def open_outputs(
        self, visitor: NodeId, task: TaskId, attempt: AttemptId, size_bytes: int
    ) -> PushedOutputs | None:
        """Return what stores the outputs of an attempt; None if it is not its own.

        Raises:
            FileQuotaExceeded: There is no room for them.
        """


@dataclass(frozen=True, slots=True)
class MemberFiles:
    """The file store of a member, its trees, and the report on their room."""

    store: FileStore
    trees: TreeKeeper
    storage: StorageReport
    forgotten: ForgottenOutputs
    visitors: VisitorFiles
