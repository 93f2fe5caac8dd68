"""Scan of the files that a client sends along with its tasks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from octaskly.config.paths import xdg_folder
from octaskly.files.digest_index import DigestIndex
from octaskly.files.local_tree import LocalTree, parse_named_path, scan_tree


def scan_local_tree(
    paths: Iterable[str], *, includes_ignored: bool = False, is_retry: bool = False
) -> LocalTree:
    """Return the tree of files and folders, each as `PATH` or `PATH=DEST`. Blocks.

    Args:
        paths: Absolute, or relative to the current folder.
        includes_ignored: Skip nothing below folders.
        is_retry: Hash all files again, since one was not what an earlier scan said.

    Raises:
        ManifestError: something cannot be sent.
    """
    folder = str(Path.cwd())
    cache = xdg_folder(os.environ, "XDG_CACHE_HOME", ".cache")
    with DigestIndex(
        cache / "octaskly" / "digests.db", time.time_ns, is_distrusted=is_retry
    ) as index:
        return scan_tree(
            [parse_named_path(path, folder) for path in paths],
            index=index,
            includes_ignored=includes_ignored,
        )
