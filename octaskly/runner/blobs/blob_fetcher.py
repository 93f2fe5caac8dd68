"""Fetching files that a task needs from the nodes that have them."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf
from typing import Final, NamedTuple

import msgspec

from octaskly.core.model.ids import NodeId
from octaskly.core.model.task_options import BlobRef, InputBlob, InputTree
from octaskly.core.model.tree_sizes import NO_HOLDERS, blob_key
from octaskly.errors import OutputNotFound
from octaskly.files.manifest import (
    MANIFEST_BYTES_MAX,
    Manifest,
    ManifestError,
    decode_manifest,
    select_folders,
)
from octaskly.files.pack import PACKED_BYTES_MAX
from octaskly.ports.files import (
    COPY_RETENTION_S,
    RETENTION_S,
    AttemptOutputs,
    ContentMismatch,
    DiskFull,
    FileExceedsQuota,
    FileQuotaExceeded,
)
from octaskly.rest.tasks import HeldIndices
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.blobs.fetch import Fetch, FilesAwaited, NamedLocks, Wanted
from octaskly.runner.blobs.holder_connection import (
    HOLD_OUTPUTS_PATH,
    HOLD_PATH,
    STALL_S,
    Holder,
    HolderBusy,
    HolderConnections,
    HolderUnreachable,
    OpenSockets,
    OutputTree,
)
from octaskly.runner.blobs.lenders import (
    ASK_AGAIN_S,
    AbsentLenders,
    Lenders,
)
from octaskly.runner.blobs.pieces import (
    HolderLookup,
)
from octaskly.runner.blobs.uploads import disk_error
from octaskly.runner.input_sources import SourceTally

ROOM_WAIT_S: Final = 10.0
"""Until lent files for which there is no room are left to other nodes.

Tasks here that end meanwhile make room at once.
"""
HOLD_S_MAX: Final = 600.0  #: until a node has fetched all files of the trees
FIND_TRIES: Final = 10  #: while the dispatcher changes, or a node restarts
FIND_PAUSE_S: Final = 2.0
THREADS_MAX: Final = 64  #: fetches at a time; each may wait for another one's files
LARGE_MAX: Final = 4  #: blobs that arrive in pieces at a time, whatever else waits
REPORT_PERIOD_S: Final = 3600.0  #: between reports of wrong bytes from one node
REPORTED_MAX: Final = 1000  #: nodes whose last report is remembered

HoldersOf = Callable[[str, Sequence[NodeId]], Sequence[Holder]]
"""Returns the nodes that may have a blob, by the node that the task names.

Those that the dispatcher knows to have it come first, then the named one. Any thread
may call it.
"""

KnownHolders = Mapping[int, Sequence[NodeId]]
"""Nodes that have a blob, by its key."""


class BlobSource(NamedTuple):
    """A blob, and the nodes that may have it."""

    blob: BlobRef
    find_holders: HolderLookup
    is_named_here: bool = False  #: this is the node that the task names


FindOutputs = Callable[[str], Sequence[tuple[str, BlobSource]]]
"""Returns the trees of the outputs of an ended task, by its id in the log.

Each comes with the name of the task; of the outputs of an array, with that of a member.

Blocks; raises OutputNotFound with the reason if there are none.
"""


_FAILURES = (
    OutputNotFound,
    ContentMismatch,
    ManifestError,
    HolderUnreachable,
)


class BlobFetcher:
    """Fetches files from other nodes. Methods that fetch block: call them in `threads`.

    Args:
        blob_store: Holds the fetched files.
        tls: Returns the TLS context that authenticates this node to others.
        holders_of: Returns the nodes that may have files.
        own_names: Name and id of this node.
        lenders: The clients that lend files to this node.
        on_wrong_copy: Called with the name of a holder and the SHA-256 of a file of
            which it sent wrong bytes, once an hour for each holder; any thread calls
            it.
    """

    def __init__(
        self,
        blob_store: BlobStore,
        tls: Callable[[], ssl.SSLContext],
        holders_of: HoldersOf,
        own_names: Container[str],
        lenders: Lenders,
        on_wrong_copy: Callable[[str, str], None] = lambda _holder, _sha256: None,
    ) -> None:
        self.blob_store = blob_store
        self.lenders = lenders
        self.absent_lenders = AbsentLenders(blob_store.clock)
        self._own_names = own_names
        self._holders_of = holders_of
        self._on_wrong_copy = on_wrong_copy
        self.threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="blob-fetch")
        self.file_locks = NamedLocks()  #: by what is being fetched
        self.large_slots = threading.Semaphore(LARGE_MAX)  #: for blobs in pieces
        self._open_sockets = OpenSockets()
        self.connections = HolderConnections(
            tls, self._open_sockets, clock=blob_store.clock
        )
        self._reported_s: dict[str, float] = {}  #: last report by holder, oldest first
        self._is_closed = threading.Event()
        self.find_outputs: FindOutputs = lambda _task: ()
        self.name_of: Callable[[str], str] = lambda node: node  #: for texts, by id

    def find_blob(
        self, content: BlobRef | None, known: KnownHolders = NO_HOLDERS
    ) -> BlobSource | None:
        """Return the source of a content.

        Args:
            content: The content, if the task has one.
            known: What the dispatcher knows about holders.
        """
        if content is None:
            return None
        holders = known.get(blob_key(content.sha256), ())
        return BlobSource(
            content,
            partial(self._holders_of, content.node, holders),
            content.node in self._own_names,
        )

    def fetch_blob(
        self,
        source: BlobSource,
        may_continue: Callable[[], bool] = lambda: True,
        *,
        keep_s: float = COPY_RETENTION_S,
    ) -> list[str]:
        """Fetch a content unless it is here; return a text if that failed.

        Args:
            source: The content with its source.
            may_continue: Returns False once it is not needed any more.
            keep_s: How long to keep it.

        Raises:
            FileQuotaExceeded: there is no room for it now.
        """
        content, find_holders, _ = source
        fetch = self._begin(Wanted(find_holders, may_continue, keep_s))
        try:
            fetch.fetch_large(content.sha256, None)
        except _FAILURES as error:
            node = self.name_of(content.node)
            return [f"{content.sha256[:12]}... of node {node}: {error}"]
        return []

    def fetch_tree(
        self,
        source: BlobSource,
        may_continue: Callable[[], bool] = lambda: True,
        *,
        keep_s: float = COPY_RETENTION_S,
        tally: SourceTally | None = None,
    ) -> list[str]:
        """Fetch the contents of a tree that are not here; return texts of failures.

        Args:
            source: The tree with its source.
            may_continue: Returns False once the tree is not needed any more.
            keep_s: How long to keep all its contents.
            tally: Counts the bytes that are needed and sent.

        Raises:
            FilesAwaited: a client lends the tree, and has not sent all of it.
            FileQuotaExceeded: there is no room for them now.
        """
        tree = source.blob
        from_client = is_lent(tree)
        fetch = self._begin(_wanted_of_tree(source, may_continue, keep_s))
        try:
            # Many tasks may need the same tree, which is fetched once.
            with self.file_locks.hold_lock(f"tree {tree.sha256}"):
                if from_client:
                    self._fetch_lent(fetch, tree, tally)
                else:
                    self._fetch_stored(fetch, tree, keep_s, tally)
        except FilesAwaited as awaited:
            awaited.args = (f"{self._files_of(tree)}: {awaited}",)
            raise
        except _FAILURES as error:
            of = self._files_of(tree)
            of += ", whose client has disconnected" if from_client else ""
            return [f"{of}: {error}"]
        if tally is not None:
            tally.set_complete(tree.sha256)
        if not _folders(tree):
            self.blob_store.mark_tree(tree.sha256)
        return []

    def fetch_manifest(self, source: BlobSource) -> Manifest:
        """Return the manifest of a tree, which is fetched if it is not here.

        Raises:
            FilesAwaited: a client lends the tree, and has not sent it.
            OutputNotFound, HolderUnreachable: no node has it.
            ContentMismatch, FileQuotaExceeded, ManifestError: it cannot be used.
        """
        tree = source.blob
        fetch = self._begin(_wanted_of_tree(source, lambda: True, COPY_RETENTION_S))
        if is_lent(tree):
            fetch.fetch_lent({tree.sha256: None}, is_manifest=True)
        else:
            fetch.fetch_manifest(tree.sha256)
        return self.read_manifest(tree)

    def _begin(self, wanted: Wanted) -> Fetch:
        return Fetch(self, self.connections, wanted)

    def _fetch_stored(
        self, fetch: Fetch, tree: BlobRef, keep_s: float, tally: SourceTally | None
    ) -> None:
        """Fetch a tree whose files nodes have."""
        fetch.fetch_manifest(tree.sha256)
        sizes = self._sizes_of(tree)
        fetch.count_into(tally, tree, sizes)
        self.blob_store.check_quota(sum(sizes.values()))
        fetch.fetch_all(sizes)
        if any(size > PACKED_BYTES_MAX for size in sizes.values()):
            self._check_complete(sizes, keep_s)

    def _fetch_lent(
        self, fetch: Fetch, tree: BlobRef, tally: SourceTally | None
    ) -> None:
        """Fetch a tree that a client lends.

        Raises:
            FilesAwaited: the client has not sent all of it, or there is no room now.
            DiskFull: the disk may stay full for long, so another node should run it.
        """
        sizes: dict[str, int] = {}
        try:
            fetch.fetch_lent({tree.sha256: None}, is_manifest=True)
            sizes = self._sizes_of(tree)
            fetch.count_into(tally, tree, sizes)
            # The client waits for room that will never be here.
            self.blob_store.check_quota(sum(sizes.values()))
            fetch.fetch_lent(sizes)
        except (FileExceedsQuota, DiskFull):
            raise
        except FileQuotaExceeded as error:
            # Others that wait for room, too, may go on with less than it takes.
            self.blob_store.release_copies(sizes)
            raise FilesAwaited(
                str(error),
                retry_s=ASK_AGAIN_S,
                wait_s_max=ROOM_WAIT_S,
                no_room=error.message,
            ) from None

    def _files_of(self, tree: BlobRef) -> str:
        return f"the files of node {self.name_of(tree.node)}"

    def _sizes_of(self, tree: BlobRef) -> dict[str, int]:
        of_files = self.read_manifest(tree).sizes()
        return {digest.hex(): size for digest, size in of_files.items()}

    def hold_tree(self, source: BlobSource) -> list[str]:
        """Fetch what is not here of a tree, keep it, and flush it to disk.

        Raises:
            FileQuotaExceeded: there is no room for it now.
        """
        try:
            failures = self.fetch_tree(source, keep_s=RETENTION_S)
            if failures:
                return failures
            names = self._contents_of(source.blob)
        except _FAILURES as error:
            return [f"{self._files_of(source.blob)}: {error}"]
        return self._flush(names)

    def hold_file(self, source: BlobSource) -> list[str]:
        """Fetch a file that is not here, keep it, and flush it to disk.

        Raises:
            FileQuotaExceeded: there is no room for it now.
        """
        failures = self.fetch_blob(source, keep_s=RETENTION_S)
        return failures or self._flush([source.blob.sha256])

    def keep_copies(self, inputs: Iterable[InputBlob]) -> None:
        """Keep those inputs for `RETENTION_S` that are complete here; fetch nothing.

        Blocks.
        """
        for blob, is_tree in inputs:
            try:
                names = self._contents_of(blob) if is_tree else [blob.sha256]
            except (OutputNotFound, ManifestError, OSError):
                continue
            if len(self.blob_store.files_here(names)) == len(names):
                self.blob_store.missing_files(names, keep_s=RETENTION_S)

    def _contents_of(self, tree: BlobRef) -> list[str]:
        """Return the SHA-256 of a manifest that is here, and of all its files.

        Raises:
            OutputNotFound: the manifest is not here any more.
            ManifestError: the content with its digest is not a manifest.
        """
        sizes = self.read_manifest(tree).sizes()
        return [tree.sha256, *(digest.hex() for digest in sizes)]

    def _flush(self, names: Sequence[str]) -> list[str]:
        try:
            self.blob_store.flush_files(names)
        except OSError as error:
            return [disk_error(error).message]
        return []

    def read_manifest(self, tree: BlobRef) -> Manifest:
        """Return the manifest of a tree that is here, of the folders that it names.

        Raises:
            OutputNotFound: it is not here any more.
            ManifestError: the content with its digest is not a manifest.
        """
        with open(self.blob_store.open_file(tree.sha256), "rb") as file:  # noqa: PTH123
            manifest = decode_manifest(file.read(MANIFEST_BYTES_MAX + 1))
        return select_folders(manifest, _folders(tree))

    def files_of(self, tree: BlobRef) -> dict[str, int]:
        """Return the files of a tree with their sizes; none if it is not here."""
        try:
            manifest = self.read_manifest(tree)
        except (OutputNotFound, ManifestError, OSError):
            return {}  # The worker tells why.
        return {file.path: file.size_bytes for file in manifest.files}

    def find_output_trees(
        self, dispatcher: Callable[[], Holder | None], task: str
    ) -> list[OutputTree]:
        """Return the trees with the outputs of a task. Blocks.

        Args:
            dispatcher: Returns the dispatcher, if one is known.
            task: Id of the task.

        Raises:
            OutputNotFound: there are none, or no node could be asked.
        """
        why = "no dispatcher is known"
        for more in reversed(range(FIND_TRIES)):
            holder = dispatcher()
            try:
                if holder is not None:
                    with self.connections.connect_to(holder) as connection:
                        return connection.find_output_trees(task)
            except HolderUnreachable as error:
                why = str(error)
            if not more or self.is_closing(FIND_PAUSE_S):
                break
        raise OutputNotFound(why)

    def ask_to_hold(self, holder: Holder, inputs: Iterable[InputBlob]) -> list[str]:
        """Ask a node to keep inputs, and to fetch what it lacks; return its failures.

        Blocks.
        """
        body: dict[str, list[dict[str, str]]] = {"trees": [], "files": []}
        for blob, is_tree in inputs:
            body["trees" if is_tree else "files"].append(
                {"sha256": blob.sha256, "node": blob.node}
            )
        try:
            with self.connections.connect_to(holder) as connection:
                answer = connection.post_json(HOLD_PATH, body, timeout_s=HOLD_S_MAX)
        except (HolderUnreachable, OutputNotFound, HolderBusy) as error:
            return [f"{holder.name}: {error}"]
        failures = answer.get("failures", []) if isinstance(answer, dict) else []
        return [f"{holder.name}: {failure}" for failure in failures]

    def ask_to_hold_outputs(
        self, holder: Holder, outputs: Sequence[AttemptOutputs]
    ) -> list[int]:
        """Ask a node to keep captured outputs; return which it has, by index. Blocks.

        Raises:
            HolderUnreachable, HolderBusy: it does not say.
        """
        with self.connections.connect_to(holder) as connection:
            answer = connection.post_json(
                HOLD_OUTPUTS_PATH, {"outputs": outputs}, timeout_s=STALL_S
            )
        try:
            held = msgspec.convert(answer, HeldIndices).held
        except msgspec.MsgspecError as error:
            raise HolderUnreachable(str(error)) from None
        return [index for index in held if 0 <= index < len(outputs)]

    def close(self) -> None:
        """Abort all fetches and wait until the threads have ended."""
        self._is_closed.set()
        self._open_sockets.shut_down()
        self.threads.shutdown()
        self.connections.close()

    def _check_complete(self, names: Iterable[str], keep_s: float) -> None:
        """Raise FileQuotaExceeded if a file was deleted while others were fetched."""
        if missing := self.blob_store.missing_files(names, keep_s=keep_s):
            raise FileQuotaExceeded(f"{missing[0][:12]}... was deleted to free space")

    def report_wrong_copy(self, holder: str, sha256: str) -> None:
        """Report that a holder sent wrong bytes, unless one was reported recently.

        If its disk fails, any number of files may be wrong.
        """
        now_s = self.blob_store.clock.now().mono_s
        if now_s - self._reported_s.get(holder, -inf) < REPORT_PERIOD_S:
            return
        self._reported_s.pop(holder, None)
        self._reported_s[holder] = now_s
        if len(self._reported_s) > REPORTED_MAX:
            self._reported_s.pop(next(iter(self._reported_s)))
        self._on_wrong_copy(holder, sha256)

    def is_closing(self, wait_s: float = 0.0) -> bool:
        """Return True if all fetches are to end; wait so long for it."""
        return self._is_closed.wait(wait_s)


def _wanted_of_tree(
    source: BlobSource, may_continue: Callable[[], bool], keep_s: float
) -> Wanted:
    from_client = is_lent(source.blob)
    return Wanted(
        source.find_holders,
        may_continue,
        keep_s,
        lent_tree=source.blob.sha256 if from_client else "",
        is_lent_here=from_client and source.is_named_here,
    )


def _folders(tree: BlobRef) -> Sequence[str]:
    """Return the folders that are needed of a tree; empty for all of it."""
    return tree.folders if isinstance(tree, InputTree) else ()


def is_lent(tree: BlobRef | None) -> bool:
    """Return True if a client sends the files of a tree when they are wanted."""
    return isinstance(tree, InputTree) and tree.is_lent
