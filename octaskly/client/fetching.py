"""Fetching the outputs of a task into a folder, for every kind of client."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from octaskly.client.errors import Conflict
from octaskly.client.flows.outputs import ContentStart, outputs_archive
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.retry import Deadline
from octaskly.client.flows.steps import EmittingFlow
from octaskly.files.home_folder import HomeFolder, WrongBytes
from octaskly.files.unpacker import Fetched, Unpacker
from octaskly.rest.client_types import Task, sent_with

OnProgress = Callable[[int, int], None]
"""Is called with the bytes that have arrived, and the size of the archive."""

NOTHING: Final = Fetched()
WRONG_MAX: Final = 8  #: times that one file may arrive wrong: once from each holder


class Fetching:
    """One fetch of a task's outputs.

    Args:
        task: The ended task.
        folder: Where its outputs are placed.
        sent: SHA-256 of the files that were sent, by their paths in the folder; by
            default, as `digests_sent_from` returns them.
        on_progress: Is called after each part.

    Raises:
        Conflict: the task has not ended.
    """

    def __init__(
        self,
        task: Task,
        folder: str | Path,
        *,
        sent: Mapping[str, bytes] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        if not task.is_final:
            raise Conflict(
                f"{task.id} is {task.status}; its outputs are available once it has "
                "ended",
                status=409,
                hint="wait until it has ended, then fetch",
            )
        if sent is None:
            sent = digests_sent_from(Path(folder), task)
        declared = [out.path for out in task.outputs if out.bytes is not None]
        home = HomeFolder(Path(folder), task=task.id, declared=declared, sent=sent)
        self.is_empty = not declared
        self._task = task
        self._unpacker = Unpacker(home)
        self._wrong_count = 0  #: times that a file was wrong, since one was right
        self._wrong_offset = 0
        self._has_to_continue = True
        self._on_progress = on_progress
        self._size_bytes = 0

    @property
    def placed(self) -> set[str]:
        """The paths of what has arrived, also before an interruption."""
        return self._unpacker.placed

    def flows(
        self, requests: RequestFlow, deadline: Deadline
    ) -> Iterator[EmittingFlow[ContentStart | bytes]]:
        """Yield the flows that emit what `take` wants, one after the other.

        There is one, unless a file arrives with wrong bytes. Then another one asks for
        the rest, and nodes read each file before they send it.
        """
        while not self.is_empty and self._has_to_continue:
            self._has_to_continue = False
            yield outputs_archive(
                requests,
                self._task,
                etag=self._unpacker.etag,
                offset=self._unpacker.offset,
                is_verified=self._wrong_count > 0,
                deadline=deadline,
            )

    def receive(
        self,
        iterate: Callable[
            [EmittingFlow[ContentStart | bytes]], Generator[ContentStart | bytes]
        ],
        requests: RequestFlow,
        deadline: Deadline,
    ) -> None:
        """Place all that arrives. Blocks.

        Args:
            iterate: Runs a flow, and yields what it emits.
            requests: Sends the requests.
            deadline: Limit for all of it.

        Raises:
            FetchError: it cannot be placed.
        """
        for flow in self.flows(requests, deadline):
            with closing(iterate(flow)) as parts:
                for part in parts:
                    if not self.take(part):
                        break

    def take(self, part: ContentStart | bytes) -> bool:
        """Place what arrived; return False to end the flow that emitted it. Blocks.

        Raises:
            FetchError: it cannot be placed.
        """
        if isinstance(part, bytes):
            try:
                self._unpacker.add_data(part)
            except WrongBytes as error:
                self._note_wrong(error)
                return False
        else:
            self._unpacker.begin(part.etag, part.offset)
            self._size_bytes = part.size_bytes
        if self._on_progress is not None:
            self._on_progress(self._unpacker.offset, self._size_bytes)
        return True

    def _note_wrong(self, error: WrongBytes) -> None:
        """Have the rest sent by another node; raise the error if all were tried."""
        at = self._unpacker.offset
        self._wrong_count = self._wrong_count + 1 if at <= self._wrong_offset else 1
        self._wrong_offset = at
        if self._wrong_count >= WRONG_MAX:
            raise error
        self._has_to_continue = True

    def finish(self) -> Fetched:
        """Return what was fetched, after everything arrived."""
        found = NOTHING if self.is_empty else self._unpacker.finish()
        # A task that was cancelled before it ran lists none as missing.
        missing = (out.path for out in self._task.outputs if out.bytes is None)
        return msgspec.structs.replace(found, missing=tuple(missing))

    def close(self) -> None:
        """Save the state of a fetch that did not finish, so that the next resumes."""
        self._unpacker.close()


def digests_sent_from(folder: Path, task: Task) -> dict[str, bytes]:
    """Return the SHA-256 of the files that were sent with a task from a folder.

    They are by their paths in the folder. Those that this process has sent are known by
    the task, others by the records of this machine. A task with a `cwd` has none: its
    outputs are relative to that folder, so no file has the path of an output.
    """
    sent = sent_with(task)
    if sent is not None and folder.resolve() == Path(sent.folder).resolve():
        return dict(sent.by_path)
    if task.tree is None or task.cwd:
        return {}
    from octaskly.client.local_files import (  # noqa: PLC0415 - for sent files only
        find_sent_digests,
    )

    return find_sent_digests(task.tree, folder)
