"""Outputs of a visitor's attempts: sent to the dispatcher before their end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.errors import OutputNotFound
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.blobs.holder_connection import (
    Holder,
    HolderBusy,
    HolderRefused,
    HolderUnreachable,
)
from octaskly.runner.files.capture import OutputReader

PATH: Final = "/internal/v1/visits/outputs"
TRIES: Final = 10  #: while the dispatcher changes
BUSY_TRIES: Final = 100  #: while others go first, or this visitor asks too often
PAUSE_S: Final = 2.0
CHUNK_BYTES: Final = 1 << 20


class SentOutputs:
    """Sends captured outputs; implements `CopiedOutputs`.

    Args:
        reader: Reads captured outputs.
        fetcher: Connects to members.
        dispatcher: Returns the dispatcher, if one is known.
    """

    def __init__(
        self,
        reader: OutputReader,
        fetcher: BlobFetcher,
        dispatcher: Callable[[], Holder | None],
    ) -> None:
        self._reader, self._fetcher, self._dispatcher = reader, fetcher, dispatcher

    def on_captured(self, task: TaskId, attempt: AttemptId, size_bytes: int) -> str:
        """Send captured outputs; return why the mesh does not have them, or ""."""
        del size_bytes
        why, tries, busy_tries = "no dispatcher is known", TRIES, BUSY_TRIES
        while tries and busy_tries:
            holder = self._dispatcher()
            try:
                if holder is not None:
                    self._send(holder, task, attempt)
                    return ""
            except HolderRefused as error:
                return f"its outputs were not kept ({error})"
            except HolderBusy:
                why, busy_tries = "the dispatcher is busy", busy_tries - 1
            except (HolderUnreachable, OutputNotFound, OSError) as error:
                why, tries = str(error) or type(error).__name__, tries - 1
            else:
                tries -= 1
            if self._fetcher.is_closing(PAUSE_S):
                break
        return f"its outputs were not kept ({why})"

    def _send(self, holder: Holder, task: TaskId, attempt: AttemptId) -> None:
        tree = self._reader.read_tree(task, attempt)
        size_bytes = tree.tar.size_bytes
        path = f"{PATH}/{quote(task, safe='')}/{attempt}"
        with self._fetcher.connections.connect_to(holder) as connection:
            chunks = tree.tar_chunks(0, size_bytes, CHUNK_BYTES)
            connection.send_outputs(path, size_bytes, filter(None, chunks))

    def close(self) -> None:
        """Do nothing: what is being sent ends with the sockets of the fetcher."""
