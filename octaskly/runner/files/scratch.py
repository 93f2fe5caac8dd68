"""Where attempts run: the worker directory, or a fresh folder that goes with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRemoving
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from octaskly.core.model.ids import AttemptId
from octaskly.core.model.task_options import UploadedFile
from octaskly.core.model.tasks import TaskSpec
from octaskly.errors import OutputNotFound
from octaskly.runner.files.blob_fetcher import BlobFetcher, FileSource
from octaskly.runner.files.task_user import TaskUserOps
from octaskly.runner.files.workdir import (
    CapturedOutputs,
    capture_outputs,
    outputs_folder,
)

CLOSE_S = 2.0  #: an agent that stops waits so long for folders to be removed
REMOVE_TRIES = 5  #: what a killed agent left may still be written to, for a second
REMOVE_RETRY_S = 1.0


class Prepared(NamedTuple):
    """What was found before the start of an attempt."""

    missing: list[str]  #: inputs
    folder: Path | None  #: a fresh one, if it asked for that and nothing is missing


class ScratchFolders:
    """The fresh folders of attempts, for the user alone whose tasks they are.

    Args:
        hands: What touches files of tasks.
        folder: Where they are made; what is in it belongs to an agent that was killed.
        workdir: The worker directory, which has the inputs.
        outputs_dir: Where declared outputs are kept, a folder for each attempt.
        supply: Brings the files that tasks name.
    """

    def __init__(
        self,
        task_user_ops: TaskUserOps,
        folder: Path,
        workdir: Path,
        outputs_dir: Path,
        blob_fetcher: BlobFetcher,
    ) -> None:
        self._task_user_ops, self._blob_fetcher = task_user_ops, blob_fetcher
        self._folder, self._workdir = folder, workdir
        self._outputs_dir = outputs_dir
        self._in_use: set[str] = set()
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._removals = ThreadPoolExecutor(1, thread_name_prefix="scratch")
        self._removals.submit(self._remove_stale)

    def prepare_attempt(
        self,
        spec: TaskSpec,
        sources: Sequence[FileSource],
        may_continue: Callable[[], bool],
    ) -> Prepared:
        """Look for the inputs of an attempt, and make its folder; blocks.

        Args:
            spec: The task.
            sources: Of the files that it names.
            may_continue: Asked now and again whether it is still wanted.

        Raises:
            OSError: nobody can tell, or no folder can be made.
        """
        missing = []
        if spec.inputs:
            missing = self._task_user_ops.missing_inputs(self._workdir, spec.inputs)
        if not missing and sources:
            missing = self._blob_fetcher.fetch_files(sources, may_continue)
        options = spec.options
        if missing or options is None or not options.is_scratch:
            return Prepared(missing, None)
        folder = self._make_folder(spec.inputs, options.cwd)
        try:
            self._place_files(folder, options.files)
        except OutputNotFound as error:  # So quickly there was need of the room.
            self.discard_folder(folder)
            return Prepared([str(error)], None)
        except OSError:
            self.discard_folder(folder)
            raise
        return Prepared([], folder)

    def capture_outputs(
        self, spec: TaskSpec, attempt: AttemptId, folder: Path | None
    ) -> CapturedOutputs:
        """Copy the declared outputs of an attempt from where it ran; blocks."""
        kept = outputs_folder(self._outputs_dir, spec.id, attempt)
        opened = self._task_user_ops.open_output
        return capture_outputs(
            folder or self._workdir, kept, spec.outputs, opened=opened
        )

    def discard_folder(self, folder: Path) -> None:
        """Remove the folder of an attempt that has ended, beside all else."""
        self._removals.submit(self._remove_folder, folder)

    def close(self) -> None:
        """Wait a moment for what is being removed; the next agent does the rest."""
        if self._is_closing.is_set():
            return
        with suppress(StillRemoving):
            self._removals.submit(bool).result(CLOSE_S)
        self._is_closing.set()
        self._removals.shutdown(cancel_futures=True)

    def _place_files(self, folder: Path, files: Iterable[UploadedFile]) -> None:
        for file in files:
            source = self._blob_fetcher.blob_store.file_path(file.sha256)
            self._task_user_ops.place_file(source, folder, file.path)

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
