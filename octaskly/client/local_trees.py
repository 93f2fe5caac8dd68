"""Scan of the files that a client sends along with its tasks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from octaskly.client.flows.files import TreeContents
from octaskly.config.paths import xdg_folder
from octaskly.core.model.arrays import ITEM_DIGEST_PLACEHOLDER, item_digest
from octaskly.core.model.placeholders import fill_placeholders, split_placeholders
from octaskly.files.digest_index import DigestIndex
from octaskly.files.local_tree import (
    SILENT,
    LocalTree,
    NamedPath,
    ScanCallbacks,
    name_path,
    parse_named_path,
    scan_tree,
)
from octaskly.files.manifest import Manifest, ManifestError

COMMON_FOLDER: Final = "all"  #: in the tree of an array: for each member
ITEMS_FOLDER: Final = "items"  #: the same: a folder for each item, named by its digest
ARRAY_FOLDERS: Final = (COMMON_FOLDER, f"{ITEMS_FOLDER}/{ITEM_DIGEST_PLACEHOLDER}")


def scan_local_tree(
    paths: Iterable[str],
    *,
    includes_ignored: bool = False,
    is_retry: bool = False,
    callbacks: ScanCallbacks = SILENT,
) -> LocalTree:
    """Return the tree of files and folders, each as `PATH` or `PATH=DEST`. Blocks.

    Args:
        paths: Absolute, or relative to the current folder.
        includes_ignored: Skip nothing below folders.
        is_retry: Hash all files again, since one was not what an earlier scan said.
        callbacks: Are told of the progress.

    Raises:
        ManifestError: something cannot be sent.
    """
    folder = str(Path.cwd())
    named = [parse_named_path(path, folder) for path in paths]
    index = _open_index(is_retry=is_retry)
    return _scan(named, index, callbacks, includes_ignored=includes_ignored)


def scan_array_tree(
    paths: Iterable[str],
    items: Sequence[str],
    *,
    includes_ignored: bool = False,
    is_retry: bool = False,
    callbacks: ScanCallbacks = SILENT,
) -> LocalTree:
    """Return one tree for all members of an array, by `ARRAY_FOLDERS`. Blocks.

    Args:
        paths: As for `scan_local_tree`, with the placeholders of arrays.
        items: The items of the members.
        includes_ignored: As for `scan_local_tree`.
        is_retry: As for `scan_local_tree`.
        callbacks: As for `scan_local_tree`.

    Raises:
        ManifestError: something cannot be sent.
    """
    folder = str(Path.cwd())
    named: list[NamedPath] = []
    for text in paths:
        if has_placeholder(text):
            named += _of_items(text, items, folder)
        else:
            one = parse_named_path(text, folder)
            named.append(one._replace(below=COMMON_FOLDER))
    index = _open_index(is_retry=is_retry)
    tree = _scan(named, index, callbacks, includes_ignored=includes_ignored)
    _check_members(tree.manifest)
    return tree


def contents_of(tree: LocalTree) -> TreeContents:
    """Return the contents of a tree, to be sent."""
    return TreeContents(tree.sha256, tree.sizes(), tree.read_content)


def has_placeholder(text: str) -> bool:
    """Return True if a path differs between the members of an array."""
    return len(split_placeholders(text)) > 1


def _of_items(text: str, items: Sequence[str], folder: str) -> Iterator[NamedPath]:
    """Yield the path of each item; `=` in an item separates nothing."""
    path, equals, place = text.rpartition("=") if "=" in text else (text, "", "")
    for position, item in enumerate(items):
        one = name_path(
            fill_placeholders(path, item, position),
            fill_placeholders(place, item, position) if equals else None,
            folder,
            text=fill_placeholders(text, item, position),
        )
        yield one._replace(below=f"{ITEMS_FOLDER}/{item_digest(item)}")


def _check_members(manifest: Manifest) -> None:
    """Raise `ManifestError` if files of an item and those of all members collide."""
    common = {
        path.partition("/")[2]
        for path in manifest.paths()
        if path.startswith(f"{COMMON_FOLDER}/")
    }
    folders = {path[: -len(name)] for path in common for name in _ends_of(path)}
    for path in manifest.paths() if common else ():
        if path.startswith(f"{ITEMS_FOLDER}/"):
            place = path.split("/", 2)[2]
            above = {place[: -len(end) - 1] for end in _ends_of(place)}
            if f"{place}/" in folders or {place, *above} & common:
                raise ManifestError(
                    f"a file for all tasks and one of an item collide at {place!r} in"
                    " the task's folder",
                    hint="give one of them another place, by PATH=DEST",
                )


def _ends_of(path: str) -> Iterator[str]:
    """Yield what follows each slash of a path."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def _open_index(*, is_retry: bool) -> DigestIndex:
    cache = xdg_folder(os.environ, "XDG_CACHE_HOME", ".cache")
    return DigestIndex(
        cache / "octaskly" / "digests.db", time.time_ns, is_distrusted=is_retry
    )


def _scan(
    named: Iterable[NamedPath],
    index: DigestIndex,
    callbacks: ScanCallbacks,
    *,
    includes_ignored: bool,
) -> LocalTree:
    with index:
        return scan_tree(
            named, index=index, includes_ignored=includes_ignored, callbacks=callbacks
        )
