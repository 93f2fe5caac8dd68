"""Files of this machine that are sent along with tasks, for every kind of client."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from octaskly.client.flows import files
from octaskly.client.flows.files import (
    NO_CALLBACKS,
    SendCallbacks,
    SentTree,
    TreeContents,
)
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.steps import Flow, RunBlocking
from octaskly.client.flows.task_fields import InputPath, Sharing
from octaskly.config.paths import xdg_folder
from octaskly.core.model.arrays import ITEM_DIGEST_PLACEHOLDER, item_digest
from octaskly.core.model.placeholders import fill_placeholders
from octaskly.files.digest_index import DigestIndex
from octaskly.files.local_tree import (
    SILENT,
    FileChanged,
    LocalTree,
    NamedPath,
    ScanCallbacks,
    name_path,
    scan_tree,
)
from octaskly.files.manifest import (
    ENTRIES_MAX,
    Manifest,
    ManifestError,
    content_digest,
    content_of,
    encode_manifest,
    select_folders,
)
from octaskly.files.output_patterns import prefixes
from octaskly.files.sent_trees import Origin, SentTrees
from octaskly.rest.client_types import Draft, SentDigests
from octaskly.rest.tasks import TaskTree

COMMON_FOLDER: Final = "all"  #: in the tree of an array: for each member
ITEMS_FOLDER: Final = "items"  #: the same: a folder for each item, named by its digest
ARRAY_FOLDERS: Final = (COMMON_FOLDER, f"{ITEMS_FOLDER}/{ITEM_DIGEST_PLACEHOLDER}")
_RANGE: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,9})(?::([0-9]{1,9}))?")


class Attached(NamedTuple):
    """Tasks with the tree that was sent for them, or that is to be lent."""

    drafts: list[Draft]
    tree: LocalTree
    answer: SentTree


class LocalFiles:
    """The files of one request: scanned first, then sent.

    Args:
        inputs: What to send.
        array: The array whose items fill the placeholders, if it is one.
        includes_ignored: Skip nothing below folders.
        sharing: What `attach` does with the files.
        callbacks: Are told of the progress of scans.
    """

    def __init__(
        self,
        inputs: Sequence[InputPath],
        array: Mapping[str, Any] | None = None,
        *,
        includes_ignored: bool = False,
        sharing: Sharing,
        callbacks: ScanCallbacks = SILENT,
    ) -> None:
        self._inputs, self._array = inputs, array
        self._includes_ignored = includes_ignored
        self._sharing, self._callbacks = sharing, callbacks
        self._folder = ""  #: the current one during the scan
        self._named: list[NamedPath] = []
        self._is_by_item = array is not None and any(one.is_template for one in inputs)
        self._tree: LocalTree | None = None

    def scan(self, *, is_retry: bool = False) -> LocalTree:
        """Check and hash the files. Blocks.

        Args:
            is_retry: Hash all files again, since one was not what an earlier scan said.

        Raises:
            ManifestError: something cannot be sent.
        """
        self._folder = str(Path.cwd())
        self._named = list(self._named_paths())
        with DigestIndex(
            _cache_folder() / "digests.db", time.time_ns, is_distrusted=is_retry
        ) as index:
            self._tree = scan_tree(
                self._named,
                index=index,
                includes_ignored=self._includes_ignored,
                callbacks=self._callbacks,
            )
        if self._is_by_item:
            secrets = dict.fromkeys(map(_member_path, self._tree.secret_paths))
            self._tree = _without_common(self._tree)._replace(
                secret_paths=tuple(secrets)
            )
        return self._tree

    def attach(
        self,
        requests: RequestFlow,
        drafts: Iterable[Draft],
        callbacks: SendCallbacks = NO_CALLBACKS,
    ) -> Flow[Attached]:
        """Send what the node lacks of the tree, or prepare to lend it, for some tasks.

        A file that changed since the scan is scanned once more.

        Raises:
            ManifestError: visitors would see files that look like secrets.
        """
        tree = self._tree
        if tree is None:
            tree = yield RunBlocking(self.scan)
        drafts = [_kept_from_visitors(draft, tree) for draft in drafts]
        try:
            answer = yield from self._share(requests, tree, callbacks)
        except FileChanged:
            tree = yield RunBlocking(partial(self.scan, is_retry=True))
            answer = yield from self._share(requests, tree, callbacks)
        is_lent_again = self._sharing == "lend" and (
            answer.is_lent or self._array is not None
        )
        # Another process may fetch the outputs.
        if is_lent_again or any(draft.outputs for draft in drafts):
            yield RunBlocking(partial(_sent_trees().save, tree, self._origin()))
        field: dict[str, Any] = {"sha256": answer.sha256, "node": answer.node}
        if self._is_by_item:
            field["folders"] = ARRAY_FOLDERS
        if answer.is_lent:
            field["lent"] = True
        with_tree = [replace(draft, workdir="scratch", tree=field) for draft in drafts]
        return Attached(with_tree, tree, answer)

    def digests(self) -> SentDigests | None:
        """Return the digests of files whose path for the tasks is their path here."""
        if self._tree is None:
            return None
        manifest, origin = self._tree.manifest, self._origin()
        return _sent_digests(manifest, origin, is_by_item=self._is_by_item)

    def _origin(self) -> Origin:
        unmoved = {
            named.place
            for named in self._named
            if os.path.normpath(f"{self._folder}/{named.place}")
            == os.path.normpath(named.source)
        }
        return Origin(os.fsencode(self._folder), sorted(unmoved))

    def _share(
        self, requests: RequestFlow, tree: LocalTree, callbacks: SendCallbacks
    ) -> Flow[SentTree]:
        contents = contents_of(tree)
        if self._sharing == "lend":
            return (yield from files.prepare_lending(requests, contents, callbacks))
        answer = yield from files.upload_tree(requests, contents, callbacks)
        if self._sharing == "replicate":
            yield from files.replicate_tree(requests, answer)
        return answer

    def _named_paths(self) -> Iterator[NamedPath]:
        items = _items_of(self._array or {}) if self._is_by_item else ()
        for one in self._inputs:
            if not self._is_by_item:
                yield name_path(one.path, one.place, self._folder)
            elif not one.is_template:
                named = name_path(one.path, one.place, self._folder)
                yield named._replace(below=COMMON_FOLDER)
            else:
                for position, item in enumerate(items):
                    named = _name_for_item(one, item, position, self._folder)
                    yield named._replace(below=f"{ITEMS_FOLDER}/{item_digest(item)}")


def find_sent_tree(sha256: str) -> LocalTree | None:
    """Return a tree that was sent from this machine; None if unknown."""
    found = _sent_trees().find(sha256)
    return None if found is None else found.tree


def find_sent_digests(tree: TaskTree, folder: Path) -> dict[str, bytes]:
    """Return the SHA-256 of files that were sent with a tree from a folder.

    They are by their paths in the folder. A file that was sent to another place in the
    tree is not among them.
    """
    digests: dict[str, bytes] = {}
    for sent in _sent_trees().find_all(tree.sha256):
        manifest, origin = sent.tree.manifest, sent.origin
        if Path(os.fsdecode(origin.folder)).resolve() == folder.resolve():
            is_by_item = bool(tree.folders)
            digests |= _sent_digests(manifest, origin, is_by_item=is_by_item).by_path
    return digests


def _sent_digests(
    manifest: Manifest, origin: Origin, *, is_by_item: bool
) -> SentDigests:
    """Return the digests of files whose path for the tasks is their path here."""
    unmoved = frozenset(origin.unmoved)
    digests = {}
    for file in manifest.files:
        path = _member_path(file.path) if is_by_item else file.path
        if "" in unmoved or any(place in unmoved for place in prefixes(path)):
            digests[path] = file.sha256
    return SentDigests(os.fsdecode(origin.folder), digests)


def _member_path(path: str) -> str:
    """Return the path, in the folder of a member, of a file in the tree of an array."""
    is_common = path.startswith(f"{COMMON_FOLDER}/")
    return path.split("/", 1 if is_common else 2)[-1]


def _sent_trees() -> SentTrees:
    return SentTrees(_cache_folder() / "sent")


def _cache_folder() -> Path:
    return xdg_folder(os.environ, "XDG_CACHE_HOME", ".cache") / "octaskly"


def contents_of(tree: LocalTree) -> TreeContents:
    """Return the contents of a tree, to be sent."""
    return TreeContents(tree.sha256, tree.sizes(), tree.read_content)


def _name_for_item(one: InputPath, item: str, position: int, folder: str) -> NamedPath:
    filled = _filled(one, item, position)
    try:
        named = name_path(filled.path, filled.place, folder)
    except ManifestError as error:
        hint = error.hint
        if hint and filled.place is None:
            hint = f"write {one.path}={{/}} to place it by its name, without its folder"
        text = f"{_item_text(item)}: {error.message}"
        raise ManifestError(text, hint=hint) from None
    # Errors of the scan name the item, unless it is the path itself.
    return named if named.path == item else named._replace(about=_item_text(item))


def _item_text(item: str) -> str:
    return f"the item {item[:40]!r}"


def _filled(one: InputPath, item: str, position: int) -> InputPath:
    path, place = one
    return InputPath(
        fill_placeholders(path, item, position),
        None if place is None else fill_placeholders(place, item, position),
    )


def _items_of(array: Mapping[str, Any]) -> Sequence[str]:
    """Return the items of an array; its numbers, if it is a range.

    They are none if the range is invalid, and not all if that makes too large a tree.
    """
    if "items" in array:
        return list(array["items"])
    match = _RANGE.fullmatch(array.get("range", ""))
    if match is None:
        return ()
    first, last, step = (int(number or 1) for number in match.groups())
    members = range(first, last + 1, step or 1)
    return list(map(str, members[: ENTRIES_MAX + 1]))


def _without_common(tree: LocalTree) -> LocalTree:
    """Return the tree of an array without entries of items that all members have.

    Raises:
        ManifestError: an item and all members have something else at the same place.
    """
    manifest = tree.manifest
    common = select_folders(manifest, [COMMON_FOLDER])
    contents = {each.path: content_of(each) for each in common.files + common.links}
    folders = {each for path in common.paths() for each in prefixes(path)}
    folders -= contents.keys()

    def is_own(path: str, content: object = None) -> bool:
        top, _, rest = path.partition("/")
        if top == COMMON_FOLDER:
            return True
        place = rest.partition("/")[2]
        is_in_all = contents.get(place) == content if content else place in folders
        if is_in_all:
            return False
        if place in folders or not contents.keys().isdisjoint(prefixes(place)):
            raise ManifestError(
                f"a file for all tasks and one of an item collide at {place!r} in"
                " the task's folder",
                hint="give one of them another place in the task's folder",
            )
        return True

    own = Manifest(
        tuple(each for each in manifest.files if is_own(each.path, content_of(each))),
        tuple(each for each in manifest.links if is_own(each.path, content_of(each))),
        tuple(path for path in manifest.empty_folders if is_own(path)),
    )
    data = encode_manifest(own)
    return tree._replace(manifest=own, manifest_bytes=data, sha256=content_digest(data))


def _kept_from_visitors(draft: Draft, tree: LocalTree) -> Draft:
    """Return a task that no visitor runs by default if it has secrets.

    Raises:
        ManifestError: it allows visitors, but not that they see its secrets.
    """
    if not tree.secret_paths or draft.visitors in (False, "with-env"):
        return draft
    if draft.visitors is None:  # The mesh may allow visitors for all tasks.
        return replace(draft, visitors=False)
    raise ManifestError(
        f"visitors would get {tree.secret_paths[0]!r}, which looks like a secret",
        hint="leave it out, or let them see it: --visitors=with-env",
    )
