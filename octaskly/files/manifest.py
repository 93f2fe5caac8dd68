"""Manifests: the paths, contents and attributes of all files of a tree.

The encoded manifest is a content like any other, so one digest identifies the tree.
Manifests come from clients and workers, so decoding trusts nothing: no path or link
leads out of the tree, and nothing lies below a file or a link.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct, structs

from octaskly.errors import OctasklyError

ENTRIES_MAX: Final = 100_000  #: files, links and empty folders
MANIFEST_BYTES_MAX: Final = 16 << 20
PATH_BYTES_MAX: Final = 4096
NAME_BYTES_MAX: Final = 255
SHA256_BYTES: Final = 32

_DIGEST = re.compile(r"[0-9a-f]{64}")
_Entry = TypeVar("_Entry")

Path = Annotated[str, Meta(min_length=1, max_length=PATH_BYTES_MAX)]
"""Relative and normalised, with `/` between its names."""

Sha256 = Annotated[bytes, Meta(min_length=SHA256_BYTES, max_length=SHA256_BYTES)]
SizeBytes = Annotated[int, Meta(ge=0, lt=1 << 62)]
TimeNs = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class ManifestError(OctasklyError):
    """Files cannot be sent, or are not the tree that they should be."""


class TreeFile(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A regular file of a tree."""

    path: Path
    sha256: Sha256  #: of its content
    size_bytes: SizeBytes
    mtime_ns: TimeNs  #: since 1970, UTC
    is_executable: bool = False


class TreeLink(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A symbolic link that stays inside the tree."""

    path: Path
    target: Path  #: relative to the folder of the link, normalised


Entry = TreeFile | TreeLink | str
"""A file, a link, or the path of an empty folder."""


class Manifest(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A tree. Each part is sorted by path; folders that hold something are implied."""

    files: tuple[TreeFile, ...] = ()
    links: tuple[TreeLink, ...] = ()
    empty_folders: tuple[Path, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size_bytes for file in self.files)

    def sizes(self) -> dict[bytes, int]:
        """Return the size of each distinct content by its digest."""
        return {file.sha256: file.size_bytes for file in self.files}

    def find_file(self, path: str) -> TreeFile | None:
        """Return the file with this path, if it is one."""
        at = bisect_left(self.files, path, key=entry_path)
        found = self.files[at] if at < len(self.files) else None
        return found if found is not None and found.path == path else None

    def entries(self) -> list[Entry]:
        """Return all entries, ordered by path."""
        entries: list[Entry] = [*self.files, *self.links, *self.empty_folders]
        return sorted(entries, key=entry_path)

    def paths(self) -> Iterator[str]:
        """Yield the paths of all entries, by kind."""
        yield from (file.path for file in self.files)
        yield from (link.path for link in self.links)
        yield from self.empty_folders


_decoder = msgspec.msgpack.Decoder(Manifest)
_encoder = msgspec.msgpack.Encoder()


def make_manifest(
    files: Iterable[TreeFile],
    links: Iterable[TreeLink] = (),
    empty_folders: Iterable[str] = (),
) -> Manifest:
    """Return the manifest of a tree whose entries are in any order.

    Raises:
        ManifestError: the entries are not a tree, or too many.
    """
    manifest = Manifest(
        tuple(sorted(files, key=lambda file: file.path)),
        tuple(sorted(links, key=lambda link: link.path)),
        tuple(sorted(empty_folders)),
    )
    check_manifest(manifest)
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest; equal trees have equal bytes.

    Raises:
        ManifestError: it would be too large.
    """
    data = _encoder.encode(manifest)
    if len(data) > MANIFEST_BYTES_MAX:
        raise ManifestError(
            f"the list of files has {len(data)} bytes; at most {MANIFEST_BYTES_MAX}"
            " are possible",
            hint="send fewer files, or one archive of them",
        )
    return data


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest in these bytes.

    Raises:
        ManifestError: they are not a valid manifest.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise ManifestError(f"a manifest of {len(data)} bytes is too large")
    try:
        manifest = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ManifestError(f"not a manifest: {error}") from None
    check_manifest(manifest)
    for paths in (
        [file.path for file in manifest.files],
        [link.path for link in manifest.links],
        manifest.empty_folders,
    ):
        if any(one >= other for one, other in pairwise(paths)):
            raise ManifestError("not a manifest: its paths are not in order")
    return manifest


def is_content_digest(text: str) -> bool:
    """Return True if a text is a SHA-256 as `content_digest` returns it."""
    return _DIGEST.fullmatch(text) is not None


def content_digest(data: bytes) -> str:
    """Return the SHA-256 of a content, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def select_folders(manifest: Manifest, folders: Sequence[str]) -> Manifest:
    """Return the tree with the contents of some of its folders, together at its top.

    Args:
        manifest: The tree.
        folders: Paths of folders, which may be missing; without any, the whole tree.

    Raises:
        ManifestError: the contents of two folders collide, or a link leaves them.
    """
    if not folders:
        return manifest
    files: list[TreeFile] = []
    links: list[TreeLink] = []
    empty_folders: list[str] = []
    for folder in folders:
        below = f"{folder}/"
        start = len(below)
        files += (
            structs.replace(file, path=file.path[start:])
            for file in _below(manifest.files, below, entry_path)
        )
        links += (
            structs.replace(link, path=link.path[start:])
            for link in _below(manifest.links, below, entry_path)
        )
        empty_folders += (
            path[start:] for path in _below(manifest.empty_folders, below, str)
        )
    paths = sorted([*map(entry_path, files), *map(entry_path, links), *empty_folders])
    return make_manifest(
        files,
        links,
        {path for path in empty_folders if not any(_below(paths, f"{path}/", str))},
    )


def merge_trees(named: Sequence[tuple[str, Manifest]]) -> Manifest:
    """Return one tree with the entries of several, each with a name for errors.

    Raises:
        ManifestError: two of them have something else at the same path.
    """
    trees = [tree for _, tree in named]
    if len(trees) <= 1:
        return trees[0] if trees else Manifest()
    entries: dict[str, TreeFile | TreeLink] = {}
    names: dict[str, str] = {}
    for name, tree in named:
        here: list[TreeFile | TreeLink] = [*tree.files, *tree.links]
        for entry in here:
            known = entries.setdefault(entry.path, entry)
            first = names.setdefault(entry.path, name)
            if content_of(known) != content_of(entry):
                raise ManifestError(
                    f"{entry.path!r} is not the same in {first} and in {name}"
                )
    folders = {path for tree in trees for path in tree.empty_folders}
    paths = sorted([*entries, *folders])
    return make_manifest(
        (entry for entry in entries.values() if isinstance(entry, TreeFile)),
        (entry for entry in entries.values() if isinstance(entry, TreeLink)),
        {path for path in folders if not any(_below(paths, f"{path}/", str))},
    )


def content_of(entry: TreeFile | TreeLink) -> tuple[bytes | str, bool]:
    """Return what makes two entries the same at one path."""
    if isinstance(entry, TreeLink):
        return entry.target, False
    return entry.sha256, entry.is_executable


def entry_path(entry: Entry) -> str:
    """Return the path of an entry."""
    return entry if isinstance(entry, str) else entry.path


def _below(
    entries: Sequence[_Entry], below: str, path_of: Callable[[_Entry], str]
) -> Iterator[_Entry]:
    """Yield the entries whose paths begin with `below`, of entries sorted by path."""
    start = bisect_left(entries, below, key=path_of)
    return takewhile(lambda one: path_of(one).startswith(below), entries[start:])


def check_manifest(manifest: Manifest) -> None:
    """Raise `ManifestError` unless the entries are a tree that stays inside itself."""
    places = []
    for count, path in enumerate(manifest.paths(), start=1):
        if count > ENTRIES_MAX:
            raise ManifestError(
                f"more than {ENTRIES_MAX} files and folders",
                hint="send fewer files, or one archive of them",
            )
        check_path(path)
        # No name contains NUL, so what lies below an entry follows it directly.
        places.append(path.replace("/", "\0"))
    for one, other in pairwise(sorted(places)):
        if one == other:
            raise ManifestError(f"two entries are called {_path_of(one)!r}")
        if other.startswith(f"{one}\0"):
            raise ManifestError(
                f"{_path_of(other)!r} lies below {_path_of(one)!r}, which is not a "
                "folder"
            )
    for link in manifest.links:
        check_link(link)
    sizes: dict[bytes, int] = {}
    for file in manifest.files:
        if sizes.setdefault(file.sha256, file.size_bytes) != file.size_bytes:
            raise ManifestError(f"{file.path!r} has the digest of another size")


def _path_of(place: str) -> str:
    return place.replace("\0", "/")


def check_path(path: str) -> None:
    """Raise `ManifestError` unless a path is relative, normalised and short enough."""
    try:
        encoded = path.encode()
    except UnicodeError:
        raise ManifestError(f"the name {path!r} is not UTF-8") from None
    names = encoded.split(b"/")
    if any(name in (b"", b".", b"..") for name in names) or b"\0" in encoded:
        raise ManifestError(f"{path!r} is not a path below the folder")
    if len(encoded) > PATH_BYTES_MAX or max(map(len, names)) > NAME_BYTES_MAX:
        raise ManifestError(f"the name {path[:80]!r}... is too long")


def check_link(link: TreeLink) -> None:
    """Raise `ManifestError` unless a link stays inside the tree.

    Its target is `.`, or a path with `..` at its start only. The folder of the link is
    real, because nothing lies below a link, so that start stays inside, and each
    further link on the way is checked in the same way.
    """
    if link.target == ".":
        return
    names = link.target.split("/")
    ups = 0
    while ups < len(names) and names[ups] == "..":
        ups += 1
    below = names[ups:]
    if ups > link.path.count("/") or link.target.startswith("/"):
        raise ManifestError(f"the link {link.path!r} points outside the folder")
    if below:
        check_path("/".join(below))
