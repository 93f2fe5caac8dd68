"""Validation and JSON of the blobs and trees that a request names."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from octaskly.api.problems import timestamp
from octaskly.api.schemas.base import SHA256, InvalidField, RequestBody, openapi_schema
from octaskly.core.model.arrays import ITEM_DIGEST_PLACEHOLDER
from octaskly.core.model.task_options import (
    TREE_FOLDER_CHARS_MAX,
    TREE_FOLDERS_MAX,
    BlobRef,
    InputTree,
    SameFolder,
)
from octaskly.files.manifest import (
    Entry,
    Manifest,
    ManifestError,
    TreeLink,
    check_path,
)
from octaskly.files.pack import ASKED_FILES_MAX
from octaskly.ports.files import KEPT_OUTPUTS_MAX, AttemptOutputs, KeptOutput
from octaskly.rest import tasks as rest

NAME_CHARS_MAX: Final = 128  #: of the file in `same_folder`
NS_PER_MS: Final = 1_000_000
_NODE = re.compile(r"[A-Za-z0-9._-]{1,64}")


class BlobIn(RequestBody, gc=False):
    """A blob at a node: a file, or the manifest of a tree."""

    sha256: Annotated[str, openapi_schema(pattern=f"^{SHA256.pattern}$")]
    node: Annotated[str, openapi_schema(pattern=f"^{_NODE.pattern}$")]


class TreeIn(BlobIn, gc=False):
    """A tree of files, or some of its folders, for the attempt's scratch folder."""

    folders: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=TREE_FOLDER_CHARS_MAX)], ...],
        msgspec.Meta(max_length=TREE_FOLDERS_MAX),
    ] = ()
    lent: bool = False


class OfferIn(RequestBody, gc=False):
    """The digest of a tree that a client lends."""

    sha256: Annotated[str, openapi_schema(pattern=f"^{SHA256.pattern}$")]


class SameFolderIn(RequestBody, gc=False):
    """A file by which a node recognises the folder in which a task must run."""

    name: Annotated[str, openapi_schema(minLength=1, maxLength=NAME_CHARS_MAX)]
    sha256: Annotated[str, openapi_schema(pattern=f"^{SHA256.pattern}$")]
    read_only: bool = False


class InputIn(BlobIn, gc=False):
    """An input of tasks: a tree, or a file that a task reads as its stdin."""

    kind: Literal["tree", "file"] = "tree"


class InputsIn(RequestBody):
    """A request about inputs of tasks."""

    trees: Annotated[tuple[BlobIn, ...], msgspec.Meta(max_length=ASKED_FILES_MAX)]
    files: Annotated[tuple[BlobIn, ...], msgspec.Meta(max_length=ASKED_FILES_MAX)] = ()


class KeptOutputsIn(RequestBody):
    """Outputs that a node keeps: task, attempt and end of each."""

    kept: Annotated[tuple[KeptOutput, ...], msgspec.Meta(max_length=KEPT_OUTPUTS_MAX)]


class ForgottenNewsIn(RequestBody):
    """Tasks were forgotten."""

    may_release_inputs: bool = False  #: the others were used just now


class OutputsIn(RequestBody):
    """Outputs that unfinished tasks need: task and attempt of each."""

    outputs: Annotated[
        tuple[AttemptOutputs, ...], msgspec.Meta(max_length=KEPT_OUTPUTS_MAX)
    ]


class FilesIn(RequestBody):
    """A request about files, by SHA-256."""

    sha256: Annotated[
        tuple[Annotated[str, openapi_schema(pattern=f"^{SHA256.pattern}$")], ...],
        msgspec.Meta(max_length=ASKED_FILES_MAX),
    ]


class MissingIn(FilesIn):
    """A question for the files that a node lacks."""

    lent: bool = False


class PackIn(FilesIn):
    """A request of a node for small files, perhaps of a tree that a client lends."""

    tree: Annotated[str, openapi_schema(pattern=f"^({SHA256.pattern})?$")] = ""
    largest_bytes: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0


TREE_HINT: Final = (
    "an object with `sha256` (digest of a manifest), `node` (name or "
    "id) and optionally `folders`; needs `workdir`: scratch"
)
SAME_FOLDER_HINT: Final = (
    f"an object with `name` (of a file in `cwd`, up to {NAME_CHARS_MAX} "
    "characters), `sha256` and optionally `read_only`; needs an absolute `cwd`"
)
FOLDERS_HINT: Final = (
    f"at most {TREE_FOLDERS_MAX} relative paths of up to {TREE_FOLDER_CHARS_MAX}"
    f" characters, each with at most one {ITEM_DIGEST_PLACEHOLDER}"
)


def parse_tree(tree: TreeIn | None, *, is_scratch: bool) -> InputTree | None:
    """Return the tree that a task names, if any.

    Raises:
        InvalidField: the tree is invalid.
    """
    if tree is None:
        return None
    if not is_scratch:
        raise InvalidField(
            "tree", "a tree needs a scratch folder: set `workdir` to scratch"
        )
    for folder in tree.folders:
        try:
            check_path(folder)
        except ManifestError as error:
            raise InvalidField("tree.folders", str(error)) from None
        if folder.count(ITEM_DIGEST_PLACEHOLDER) > 1:
            raise InvalidField("tree.folders", f"invalid path {folder!r}")
    blob = check_blob(tree, "tree")
    return InputTree(
        sha256=blob.sha256, node=blob.node, folders=tree.folders, is_lent=tree.lent
    )


def check_blob(content: BlobIn, field: str) -> BlobRef:
    """Return a content that a request names; raise `InvalidField` if it is invalid."""
    if (why := _source_error(content.sha256, content.node)) is not None:
        raise InvalidField(field, why)
    return BlobRef(sha256=content.sha256, node=content.node)


def parse_same_folder(
    same: SameFolderIn | None, cwd: str, *, is_scratch: bool
) -> SameFolder | None:
    """Return the file by which a node recognises `cwd`, if a task names one.

    Raises:
        InvalidField: it is invalid, or there is no folder to recognise.
    """
    if same is None:
        return None
    if is_scratch or not cwd.startswith("/"):
        raise InvalidField(
            "same_folder", "it needs an absolute `cwd`, and excludes a scratch folder"
        )
    if "/" in same.name or len(same.name) > NAME_CHARS_MAX:
        raise InvalidField("same_folder.name", f"invalid name {same.name[:80]!r}")
    try:
        check_path(same.name)
    except ManifestError as error:
        raise InvalidField("same_folder.name", str(error)) from None
    if not SHA256.fullmatch(same.sha256):
        what = f"{same.sha256[:80]!r} is not a SHA-256 in hexadecimal"
        raise InvalidField("same_folder.sha256", what)
    return SameFolder(name=same.name, sha256=same.sha256, is_read_only=same.read_only)


def render_same_folder(same: SameFolder | None) -> rest.SameFolder | None:
    """Return the JSON of the file by which a node recognises a folder."""
    if same is None:
        return None
    return rest.SameFolder(
        name=same.name, sha256=same.sha256, read_only=same.is_read_only
    )


def render_blob(content: BlobRef | None) -> rest.BlobRef | None:
    """Return the JSON of a content."""
    if content is None:
        return None
    return rest.BlobRef(sha256=content.sha256, node=content.node)


def render_tree(tree: InputTree | None) -> rest.TaskTree | None:
    """Return the JSON of a tree."""
    if tree is None:
        return None
    return rest.TaskTree(
        sha256=tree.sha256,
        node=tree.node,
        folders=list(tree.folders),
        lent=tree.is_lent,
    )


def render_tree_page(manifest: Manifest, offset: int, limit: int) -> rest.TreePage:
    """Return a part of the entries of a tree."""
    entries = manifest.entries()
    shown = list(map(_render_entry, entries[offset : offset + limit]))
    return rest.TreePage(
        entries=shown,
        total=len(entries),
        bytes=manifest.total_bytes,
        returned=len(shown),
        limit=limit,
        offset=offset,
    )


def _render_entry(entry: Entry) -> rest.TreeEntry:
    if isinstance(entry, str):
        return rest.TreeEntry(path=entry, kind="folder")
    if isinstance(entry, TreeLink):
        return rest.TreeEntry(path=entry.path, kind="link", target=entry.target)
    return rest.TreeEntry(
        path=entry.path,
        kind="file",
        bytes=entry.size_bytes,
        modified_at=timestamp(entry.mtime_ns // NS_PER_MS),
        executable=entry.is_executable,
    )


def _source_error(sha256: str, node: str) -> str | None:
    if not SHA256.fullmatch(sha256):
        return f"{sha256[:80]!r} is not a SHA-256 in hexadecimal"
    if not _NODE.fullmatch(node):
        return f"{node[:80]!r} is not a valid node name or id"
    return None
