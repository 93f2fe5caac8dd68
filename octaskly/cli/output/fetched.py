"""Fetching outputs with progress on a terminal, and what is said about it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from octaskly.cli.output.render import data_size, duration, is_quiet, note
from octaskly.cli.output.terminal import ProgressLine
from octaskly.client.fetching import Fetching
from octaskly.files.unpacker import Fetched
from octaskly.rest.client_types import Task

if TYPE_CHECKING:
    from octaskly.client import Session

DRAW_S: Final = 0.1  #: between two drawings of the progress
NAMED_MAX: Final = 5  #: paths on one line


def fetch_outputs(
    client: Session,
    task: Task,
    folder: Path,
    *,
    sent: Mapping[str, bytes] | None = None,
    placed: set[str] | None = None,
) -> Fetched:
    """Place the outputs of an ended task in a folder.

    Args:
        client: Session with a node.
        task: The task.
        folder: The folder.
        sent: SHA-256 of the files that were sent; one that has changed is kept.
        placed: Gets the paths of what was placed.

    Raises:
        Refused: the node refuses.
        FetchError: they cannot be placed.
    """
    progress = _Progress()
    fetching = Fetching(task, folder, sent=sent, on_progress=progress.show)
    try:
        with closing(fetching):
            if not fetching.is_empty:
                deadline = client.requests.deadline_after(None)
                flow = fetching.flow(client.requests, deadline)
                with closing(client.iterate(flow)) as parts:
                    for part in parts:
                        fetching.take(part)
            if placed is not None:
                placed |= fetching.placed
            return fetching.finish()
    finally:
        progress.clear()


def report_fetched(task: Task, fetched: Fetched) -> bool:
    """Say what is not as expected; return True if everything is."""
    for kept in fetched.kept:
        note(f"{kept.path} is kept as it is here; fetched as {kept.saved_as}")
    for path in fetched.skipped_links:
        note(f"{path} was not fetched: a link that would lead out of its folder")
    is_missing = bool(fetched.missing) and task.exit_code == 0
    if is_missing:
        note(f"{task.id} has no output {listed(fetched.missing)}")
    return not (fetched.kept or is_missing)


def fetched_text(declared: Sequence[str], fetched: Fetched) -> str:
    """Return what was fetched, for a line about a task."""
    files = "1 file" if fetched.files == 1 else f"{fetched.files} files"
    return f"{listed(declared)}: fetched {files}, {data_size(fetched.bytes)}"


def listed(paths: Sequence[str]) -> str:
    """Return paths on one line, or their number if they are many."""
    return ", ".join(paths) if len(paths) <= NAMED_MAX else f"{len(paths)} outputs"


class _Progress:
    """Bytes, rate and remaining time, on a terminal."""

    def __init__(self) -> None:
        self._line = ProgressLine(is_quiet=is_quiet())
        self._began: tuple[float, int] | None = None  #: time, and bytes until then
        self._drawn_s = 0.0
        self.clear = self._line.clear

    def show(self, arrived: int, total: int) -> None:
        """Draw the progress, unless it was drawn a moment ago."""
        now_s = time.monotonic()
        if self._began is None:
            self._began = now_s, arrived
            self._drawn_s = now_s
        if now_s - self._drawn_s < DRAW_S:
            return
        self._drawn_s = now_s
        began_s, before = self._began
        rate = (arrived - before) / (now_s - began_s)
        left = duration((total - arrived) / rate * 1000) if rate else "?"
        self._line.show(
            f"fetching {data_size(arrived)} of {data_size(total)},"
            f" {data_size(round(rate))}/s, {left} left"
        )
