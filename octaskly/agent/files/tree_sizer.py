"""The sizes of trees for the core, which places tasks near their bytes.

The dispatcher reads the manifest of each tree before it accepts the first task with it,
and those of all unfinished tasks when it becomes dispatcher.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from msgspec.structs import replace

from octaskly.core.events import Event, TreeSized
from octaskly.core.model.task_options import InputTree
from octaskly.core.model.tree_sizes import (
    LARGE_BYTES,
    SizedPath,
    TreeSizes,
    blob_key,
)
from octaskly.errors import OctasklyError
from octaskly.files.manifest import Manifest
from octaskly.runner.blobs.blob_fetcher import BlobFetcher, BlobSource
from octaskly.runner.blobs.fetch import FilesAwaited
from octaskly.runner.blobs.holder_connection import HolderBusy, HolderUnreachable

SIZE_S_MAX: Final = 1.0  #: tasks are accepted then, though sizes are not known yet
TREES_MAX: Final = 1000  #: whose sizes are known; the core bounds their files


class TreeSizer:
    """Passes the sizes of trees to the core of the dispatcher.

    Args:
        fetcher: Reads manifests, here or from the nodes that have them.
        post: Handles an event of the core.
    """

    def __init__(self, fetcher: BlobFetcher, post: Callable[[Event], None]) -> None:
        self._fetcher, self._post = fetcher, post
        self._sized: dict[str, asyncio.Future[TreeSizes | None]] = {}

    async def size_trees(
        self, trees: Iterable[InputTree], wait_s: float | None = SIZE_S_MAX
    ) -> None:
        """Pass on the sizes of trees; after `wait_s`, the rest follows later."""
        pending = {
            sized for sized in map(self._start_sizing, trees) if not sized.done()
        }
        if pending:
            await asyncio.wait(pending, timeout=wait_s)

    def _start_sizing(self, tree: InputTree) -> asyncio.Future[TreeSizes | None]:
        name = tree.sha256
        if (known := self._sized.get(name)) is not None:
            return known
        source = self._fetcher.find_blob(replace(tree, folders=()))
        assert source is not None
        loop = asyncio.get_running_loop()
        sized = self._sized[name] = loop.run_in_executor(
            self._fetcher.threads, self._read_sizes, source
        )
        sized.add_done_callback(partial(self._on_sized, name))
        if len(self._sized) > TREES_MAX:
            del self._sized[next(iter(self._sized))]
        return sized

    def _read_sizes(self, source: BlobSource) -> TreeSizes | None:
        """Return the sizes of a tree; None if its manifest cannot be read. Blocks."""
        try:
            return sizes_of(self._fetcher.fetch_manifest(source))
        except (OctasklyError, FilesAwaited, HolderUnreachable, HolderBusy, OSError):
            return None  # The worker tells why.

    def _on_sized(self, name: str, sized: asyncio.Future[TreeSizes | None]) -> None:
        sizes = None if sized.cancelled() else sized.result()
        if sizes is not None:
            self._post(TreeSized(name, sizes))
        elif self._sized.get(name) is sized:
            del self._sized[name]  # A later task with this tree tries again.


def sizes_of(manifest: Manifest) -> TreeSizes:
    """Return the sizes of large files, and of the small ones of each folder."""
    small = Counter[str]()
    large = []
    for file in manifest.files:
        if file.size_bytes > LARGE_BYTES:
            key = blob_key(file.sha256.hex())
            large.append(SizedPath(file.path, key, file.size_bytes))
        else:
            small[f"{file.path.rpartition('/')[0]}/"] += file.size_bytes
    return TreeSizes(large + [SizedPath(path, 0, size) for path, size in small.items()])
