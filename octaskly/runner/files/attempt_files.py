"""Preparing attempts: inputs, scratch folders, and capturing declared outputs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRemoving
from contextlib import suppress
from functools import partial
from pathlib import Path
from posixpath import normpath
from typing import NamedTuple

from octaskly.core.model.ids import AttemptId, TaskId, task_name
from octaskly.core.model.tasks import TaskSpec
from octaskly.errors import OutputNotFound
from octaskly.files.copying import copy_content
from octaskly.files.manifest import Manifest, ManifestError, merge_trees
from octaskly.files.output_patterns import prefixes
from octaskly.ports.files import FileExceedsQuota, FileQuotaExceeded
from octaskly.runner.blobs.blob_fetcher import BlobFetcher, BlobSource, is_lent
from octaskly.runner.blobs.fetch import FilesAwaited
from octaskly.runner.blobs.lenders import ASK_AGAIN_S
from octaskly.runner.files.capture import (
    CapturedOutputs,
    capture_outputs,
    outputs_folder,
)
from octaskly.runner.files.same_folder import FolderProblem
from octaskly.runner.files.task_user_ops import TaskUserOps
from octaskly.runner.input_sources import SourceTally
from octaskly.runner.output.output_archive import OutputArchive

CLOSE_S = 2.0  #: on shutdown, longest wait for the removal of folders
#: After an agent was killed, its tasks may still write to their folders for a second.
REMOVE_TRIES = 5
REMOVE_RETRY_S = 1.0


class NoRoom(NamedTuple):
    """The resource that this node lacks to run an attempt, and the reason."""

    what: str
    why: str


class Prepared(NamedTuple):
    """The result of preparing an attempt."""

    missing: list[str]  #: missing inputs and files, as text
    folder: Path | None  #: its scratch folder, if it has one and nothing is missing
    stdin_fd: int | None = None  #: the file that it reads, if it has one
    no_room: NoRoom | None = None
    problem: FolderProblem | None = None  #: of the folder of a client


class AttemptSources(NamedTuple):
    """Sources of the files of an attempt."""

    tree: BlobSource | None
    stdin_file: BlobSource | None


class _NamedTree(NamedTuple):
    """A tree of the folder, with its name for errors."""

    name: str
    source: BlobSource


class ScratchFolders:
    """The scratch folders of attempts; only the user of the tasks may enter them.

    Args:
        task_user_ops: Accesses files with the rights of the tasks' user.
        folder: Parent of the scratch folders; existing ones are stale and removed.
        workdir: The worker directory, which contains the inputs.
        archive: Keeps captured outputs.
        blob_fetcher: Fetches uploaded files from other nodes.
    """

    def __init__(
        self,
        task_user_ops: TaskUserOps,
        folder: Path,
        workdir: Path,
        archive: OutputArchive,
        blob_fetcher: BlobFetcher,
    ) -> None:
        self._task_user_ops, self._blob_fetcher = task_user_ops, blob_fetcher
        self._folder, self._workdir = folder, workdir
        self._archive = archive
        self._in_use: set[str] = set()
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._removals = ThreadPoolExecutor(1, thread_name_prefix="scratch")
        self._removals.submit(self._remove_stale)

    def prepare_attempt(
        self,
        spec: TaskSpec,
        sources: AttemptSources,
        may_continue: Callable[[], bool],
        tally: SourceTally | None = None,
    ) -> Prepared:
        """Check room and inputs, fetch files, create the scratch folder. Blocks.

        Args:
            spec: The task.
            sources: Sources of its files.
            may_continue: Returns False once the attempt is not wanted any more.
            tally: Counts the bytes of its trees.

        Raises:
            FilesAwaited: a client has not sent all of its files.
            OSError: inputs could not be checked, or no folder could be created.
        """
        if (obstacle := self._find_obstacle(spec)) is not None:
            return obstacle
        try:
            trees, missing = self._fetch(spec, sources, may_continue, tally)
        except FileExceedsQuota as error:  # There is no room later, either.
            return Prepared([error.message], None)
        except FileQuotaExceeded as error:
            lack = NoRoom("space for its files", error.message)
            return Prepared([], None, no_room=lack)
        if missing:
            return Prepared(missing, None)
        stdin_fd = None
        try:
            if (stdin := sources.stdin_file) is not None:
                stdin_fd = self._blob_fetcher.blob_store.open_copy(stdin.blob.sha256)
            folder = self._make_filled_folder(spec, trees)
            return Prepared([], folder, stdin_fd)
        except (OutputNotFound, ManifestError, OSError) as error:
            if stdin_fd is not None:
                os.close(stdin_fd)
            if isinstance(error, OSError):
                raise
            return _unusable(error, trees)

    def _find_obstacle(self, spec: TaskSpec) -> Prepared | None:
        """Return what keeps a task from this node, whatever files it needs."""
        if spec.outputs and (why := self._archive.captured.lack_of_room()):
            return Prepared([], None, no_room=NoRoom("space for its outputs", why))
        options = spec.options
        same = None if options is None else options.same_folder
        if options is None or same is None:
            return None
        problem = self._task_user_ops.find_folder_problem(
            options.cwd, same.name, same.sha256, may_write=not same.is_read_only
        )
        return None if problem is None else Prepared([], None, problem=problem)

    def _fetch(
        self,
        spec: TaskSpec,
        sources: AttemptSources,
        may_continue: Callable[[], bool],
        tally: SourceTally | None,
    ) -> tuple[list[_NamedTree], list[str]]:
        """Check inputs and fetch all files; return the trees, and texts of failures."""
        fetcher, missing = self._blob_fetcher, []
        trees: list[_NamedTree] = []
        if spec.inputs:
            paths = self._task_user_ops.missing_inputs(self._workdir, spec.inputs)
            if paths:
                noun = "input" if len(paths) == 1 else "inputs"
                missing = [f"{noun} {', '.join(paths)}"]
        if not missing:
            trees, missing = self._find_trees(spec, sources)
        for tree in trees:
            if not missing:
                missing = fetcher.fetch_tree(tree.source, may_continue, tally=tally)
        if not missing and sources.stdin_file is not None:
            missing = fetcher.fetch_blob(sources.stdin_file, may_continue)
        return trees, missing

    def _find_trees(
        self, spec: TaskSpec, sources: AttemptSources
    ) -> tuple[list[_NamedTree], list[str]]:
        """Return the trees of the folder, and texts about outputs that are missing."""
        trees = []
        if sources.tree is not None:
            trees.append(_NamedTree("what was sent along", sources.tree))
        missing = []
        for task in spec.options.outputs_of if spec.options else ():
            try:
                found = self._blob_fetcher.find_outputs(task)
            except OutputNotFound as error:
                missing.append(f"the outputs of {task_name(TaskId(task))}: {error}")
            else:
                trees += [
                    _NamedTree(f"the outputs of {owner}", source)
                    for owner, source in found
                ]
        return trees, missing

    def _make_filled_folder(
        self, spec: TaskSpec, trees: Sequence[_NamedTree]
    ) -> Path | None:
        """Create the scratch folder of an attempt with its files, if it has one.

        Raises:
            OutputNotFound: a file is not here any more.
            ManifestError: two trees have different files with one path, or one has a
                file where a link leads to this node's own files.
            OSError: a file could not be created.
        """
        options = spec.options
        if options is None or not options.is_scratch:
            return None
        read_manifest = self._blob_fetcher.read_manifest
        manifest = merge_trees(
            [(name, read_manifest(source.blob)) for name, source in trees]
        )
        _require_apart(manifest, [normpath(path) for path in spec.inputs])
        folder = self._make_folder(spec.inputs, options.cwd)
        try:
            self._place_tree(folder, manifest)
            if is_lent(options.tree):
                # What the client lends may be more than there is room for.
                names = [file.sha256.hex() for file in manifest.files]
                self._blob_fetcher.blob_store.release_copies(names)
            self._task_user_ops.make_output_folders(
                folder,
                [normpath(f"{options.cwd or '.'}/{path}") for path in spec.outputs],
            )
        except (OutputNotFound, OSError):
            self.discard_folder(folder)
            raise
        return folder

    def capture_outputs(
        self, spec: TaskSpec, attempt: AttemptId, folder: Path | None
    ) -> CapturedOutputs:
        """Copy declared outputs from the folder where an attempt ran. Blocks."""
        cwd = spec.options.cwd if spec.options else ""
        kept = outputs_folder(self._archive.outputs_dir, spec.id, attempt)
        folders = self._archive.captured
        try:
            return capture_outputs(
                (folder or self._workdir) / cwd,
                kept,
                spec.outputs,
                access=self._task_user_ops,
                make_room=partial(folders.make_room, kept),
                contents=folders.contents,
            )
        finally:
            folders.add_folder(kept)

    def discard_folder(self, folder: Path) -> None:
        """Remove the folder of an ended attempt in the background."""
        self._removals.submit(self._remove_folder, folder)

    def close(self) -> None:
        """Wait up to `CLOSE_S` for removals; the next agent removes the rest."""
        if self._is_closing.is_set():
            return
        with suppress(StillRemoving):
            self._removals.submit(bool).result(CLOSE_S)
        self._is_closing.set()
        self._removals.shutdown(cancel_futures=True)

    def _place_tree(self, folder: Path, manifest: Manifest) -> None:
        """Copy a tree into a scratch folder, with times and executable bits."""
        for file in manifest.files:
            self._copy_file(folder, file.path, file.sha256.hex())
        ops = self._task_user_ops
        ops.make_links(folder, [(link.path, link.target) for link in manifest.links])
        ops.make_folders(folder, manifest.empty_folders)
        ops.finish_files(
            folder,
            [(file.path, file.mtime_ns, file.is_executable) for file in manifest.files],
        )

    def _copy_file(self, folder: Path, path: str, sha256: str) -> None:
        source_fd = self._blob_fetcher.blob_store.open_file(sha256)
        try:
            target_fd = self._task_user_ops.create_file(folder, path)
            try:
                copy_content(source_fd, target_fd)
            finally:
                os.close(target_fd)
        finally:
            os.close(source_fd)

    def _make_folder(self, inputs: Iterable[str], cwd: str) -> Path:
        with self._lock:
            folder = self._task_user_ops.make_scratch(
                self._folder, self._workdir.absolute(), inputs, cwd
            )
            self._in_use.add(folder.name)
        return folder

    def _remove_folder(self, folder: Path) -> bool:
        is_gone = self._task_user_ops.remove_folder(
            folder, lambda: not self._is_closing.is_set()
        )
        with self._lock:
            self._in_use.discard(folder.name)
        return is_gone

    def _remove_stale(self) -> None:
        for _ in range(REMOVE_TRIES):
            with self._lock:
                names = self._folder_names() - self._in_use
            left = [n for n in names if not self._remove_folder(self._folder / n)]
            if not left:
                return
            if self._is_closing.wait(REMOVE_RETRY_S):
                return

    def _folder_names(self) -> set[str]:
        try:
            return {place.name for place in self._folder.iterdir()}
        except OSError:
            return set()


def _unusable(
    error: OutputNotFound | ManifestError, trees: Iterable[_NamedTree]
) -> Prepared:
    """Return the result if fetched files cannot be placed.

    Raises:
        FilesAwaited: a client that lends them sends them again.
    """
    if isinstance(error, ManifestError):
        return Prepared([str(error)], None)
    # A file was already deleted again to make room.
    if any(is_lent(tree.source.blob) for tree in trees):
        raise FilesAwaited(str(error), retry_s=ASK_AGAIN_S)
    return Prepared([], None, no_room=NoRoom("space for its files", str(error)))


def _require_apart(manifest: Manifest, needed: Iterable[str]) -> None:
    """Raise `ManifestError` if a tree has something at, above or below these paths.

    A link to this node's own files is there: nothing may be written through it.
    """
    links, sent = set(needed), set(manifest.paths())
    for path in links | sent if links else ():
        others = sent if path in links else links
        if any(place in others for place in prefixes(path)):
            raise ManifestError(
                f"{path!r} is sent to the task's folder, and is also needed from the"
                " folder of the node"
            )
