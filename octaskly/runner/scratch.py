"""Where attempts run: the worker directory, or a fresh folder that goes with them."""

from __future__ import annotations

import posixpath
import tempfile
import threading
from collections.abc import Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRemoving
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from octaskly.core.model import AttemptId, OutputFile, TaskSpec
from octaskly.runner.removal import remove_tree
from octaskly.runner.workdir import capture, components, folder_of, missing_inputs

CLOSE_S = 2.0  #: an agent that stops waits so long for folders to be removed
TRIES = 5  #: what a killed agent left may still be written to, for a second
TRY_AGAIN_S = 1.0


class Prepared(NamedTuple):
    """What was found before the start of an attempt."""

    missing: list[str]  #: inputs
    folder: Path | None  #: a fresh one, if it asked for that and nothing is missing


class Scratch:
    """The fresh folders of attempts, for their agent's user alone.

    Args:
        folder: Where they are made; what is in it belongs to an agent that was killed.
        workdir: The worker directory, which has the inputs.
        outputs_dir: Where declared outputs are kept, a folder for each attempt.
    """

    def __init__(self, folder: Path, workdir: Path, outputs_dir: Path) -> None:
        self._folder, self._workdir = folder, workdir
        self._outputs_dir = outputs_dir
        self._live: set[str] = set()
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._removals = ThreadPoolExecutor(1, thread_name_prefix="scratch")
        self._removals.submit(self._sweep)

    def prepare(self, spec: TaskSpec) -> Prepared:
        """Look for the inputs of an attempt, and make its folder; blocks.

        Raises:
            OSError: nobody can tell, or no folder can be made.
        """
        missing = missing_inputs(self._workdir, spec.inputs) if spec.inputs else []
        options = spec.options
        if missing or options is None or not options.is_scratch:
            return Prepared(missing, None)
        return Prepared([], self._make(spec.inputs, options.cwd))

    def capture(
        self, spec: TaskSpec, attempt: AttemptId, folder: Path | None
    ) -> tuple[OutputFile, ...]:
        """Copy the declared outputs of an attempt from where it ran; blocks."""
        kept = folder_of(self._outputs_dir, spec.id, attempt)
        return capture(folder or self._workdir, kept, spec.outputs)

    def discard(self, folder: Path) -> None:
        """Remove the folder of an attempt that has ended, beside all else."""
        self._removals.submit(self._remove, folder)

    def close(self) -> None:
        """Wait a moment for what is being removed; the next agent does the rest."""
        if self._is_closing.is_set():
            return
        with suppress(StillRemoving):
            self._removals.submit(bool).result(CLOSE_S)
        self._is_closing.set()
        self._removals.shutdown(cancel_futures=True)

    def _make(self, inputs: Iterable[str], cwd: str) -> Path:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock:
            folder = Path(tempfile.mkdtemp(prefix="", dir=self._folder))
            self._live.add(folder.name)
        try:
            given = set(inputs)
            own = posixpath.normpath(cwd)
            if components(own) and own not in given and not _is_below(own, given):
                (folder / own).mkdir(parents=True)
            for path in given:
                if _is_below(path, given):
                    continue  # It is there by way of a folder.
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).symlink_to(self._workdir.absolute() / path)
        except OSError:
            self.discard(folder)
            raise
        return folder

    def _remove(self, folder: Path) -> bool:
        is_gone = remove_tree(folder, lambda: not self._is_closing.is_set())
        with self._lock:
            self._live.discard(folder.name)
        return is_gone

    def _sweep(self) -> None:
        for _ in range(TRIES):
            with self._lock:
                names = self._names() - self._live
            left = [n for n in names if not self._remove(self._folder / n)]
            if not left:
                return
            if self._is_closing.wait(TRY_AGAIN_S):
                return

    def _names(self) -> set[str]:
        try:
            return {place.name for place in self._folder.iterdir()}
        except OSError:
            return set()


def _is_below(path: str, others: Container[str]) -> bool:
    """Whether a path lies in one of the others, which is a folder then."""
    return any(str(parent) in others for parent in PurePosixPath(path).parents)
