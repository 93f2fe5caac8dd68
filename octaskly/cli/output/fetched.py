"""Fetching outputs with progress on a terminal, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from octaskly.cli.output.progress import TransferProgress
from octaskly.cli.output.render import count_of, data_size, listed, note
from octaskly.client.fetching import Fetching
from octaskly.files.unpacker import Fetched
from octaskly.rest.client_types import Task

if TYPE_CHECKING:
    from octaskly.client import Session


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
    progress = TransferProgress("fetching")
    fetching = Fetching(task, folder, sent=sent, on_progress=progress.set_bytes)
    try:
        with closing(fetching):
            deadline = client.requests.deadline_after(None)
            fetching.receive(client.iterate, client.requests, deadline)
            if placed is not None:
                placed |= fetching.placed
            return fetching.finish()
    finally:
        progress.clear()


def report_fetched(task: Task, fetched: Fetched, *, must_be_whole: bool) -> bool:
    """Say what is not as expected; return True if everything is.

    Args:
        task: The task.
        fetched: What was fetched.
        must_be_whole: A declared output that is missing is an error.
    """
    for kept in fetched.kept:
        note(
            f"{kept.path} already exists with other content, so the output was "
            f"fetched as {kept.saved_as}"
        )
    for path in fetched.skipped_links:
        note(f"{path} was not fetched: it is a link that points outside its folder")
    is_missing = bool(fetched.missing) and must_be_whole
    if is_missing:
        note(f"{task.id} ended without {listed(fetched.missing)}")
    return not (fetched.kept or is_missing)


def fetched_text(declared: Sequence[str], fetched: Fetched) -> str:
    """Return what was fetched, for a line about a task."""
    files = count_of(fetched.files, "file")
    return f"{listed(declared)}: fetched {files}, {data_size(fetched.bytes)}"
