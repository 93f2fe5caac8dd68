"""Trees of this machine that are to be sent: what lies where, and its content.

Everything is checked before anything is sent. Paths of a tree lead from the folder in
which the task will run; sources are absolute paths on this machine.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Final, NamedTuple

from octaskly.files.digest_index import DigestIndex, FileState
from octaskly.files.ignore_rules import FolderListing, list_folder
from octaskly.files.manifest import (
    ENTRIES_MAX,
    Manifest,
    ManifestError,
    TreeFile,
    TreeLink,
    check_path,
    content_digest,
    encode_manifest,
    make_manifest,
)

CHUNK_BYTES: Final = 1 << 20
HASH_TRIES: Final = 2

_SECRET_NAME: Final = re.compile(
    r"\.env(?!\.(example|sample|template|dist)$)(\..+)?|id_(rsa|dsa|ecdsa|ed25519)(_sk)?"
    r"|.*\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk)|\.(netrc|pgpass|npmrc|pypirc)"
    r"|\.git-credentials|credentials(\.json)?|\.htpasswd|\.vault_pass"
    r"|secrets?\.(ya?ml|json|toml|ini)|.*\.tfstate",
    re.IGNORECASE,
)
_SPECIAL_KINDS: Final = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FileChanged(ManifestError):
    """A file changed while it was read or sent; another scan may succeed.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path!r} changes while it is sent",
            hint="wait until no program writes to it, or send a copy",
        )
        self.path = path


class NamedPath(NamedTuple):
    """A file or folder that the user named, and its place in the task's folder."""

    path: str  #: as the user wrote it
    source: str
    place: str  #: "" is the task's folder itself
    is_folder: bool  #: the user wrote the place of a folder, with a slash at its end
    below: str = ""  #: a folder of the tree that stands for the task's folder
    about: str = ""  #: what has made it, for errors


class LocalFile(NamedTuple):
    """A file with a content of a tree."""

    path: str
    state: FileState


class Skipped(NamedTuple):
    """Counts of what git's ignore rules exclude."""

    files: int = 0
    folders: int = 0  #: as a whole
    has_git: bool = False  #: the folder `.git`


class LocalTree(NamedTuple):
    """A checked tree; its contents are read from disk when they are sent.

    Digests are in hexadecimal.
    """

    manifest: Manifest
    manifest_bytes: bytes
    sha256: str  #: of the encoded manifest
    sources: Mapping[str, LocalFile]  #: by SHA-256
    skipped: Skipped
    secret_paths: tuple[str, ...]  #: files in it that look like secrets

    def sizes(self) -> dict[str, int]:
        """Return the size of each content by its digest, the manifest among them."""
        sizes = {name: file.state.size_bytes for name, file in self.sources.items()}
        return sizes | {self.sha256: len(self.manifest_bytes)}

    def changed_paths(self) -> list[str]:
        """Return the files that have another content now, or cannot be read. Blocks."""
        return sorted(
            file.path
            for sha256, file in self.sources.items()
            if _has_changed(file, bytes.fromhex(sha256))
        )

    def read_content(
        self, sha256: str, start: int = 0, *, retried_paths: Container[str] = ()
    ) -> Iterator[bytes]:
        """Yield a content in chunks. Blocks.

        Args:
            sha256: Its digest.
            start: Offset of the first byte; what is before it is not checked.
            retried_paths: Files whose times may have changed, if not their content.

        Raises:
            FileChanged: the file has another content now. It is raised before the last
                chunk, so a receiver never gets a complete content that is wrong.
            ManifestError: the file cannot be read.
        """
        if sha256 == self.sha256:
            yield self.manifest_bytes[start:]
            return
        source = self.sources[sha256]
        digest = hashlib.sha256()
        with _open_file(source.path) as (descriptor, status):
            left = status.st_size
            if left != source.state.size_bytes or (
                FileState.from_status(status) != source.state
                and source.path not in retried_paths
            ):
                raise FileChanged(source.path)
            left -= os.lseek(descriptor, start, os.SEEK_SET)
            while left > 0:
                data = os.read(descriptor, min(left, CHUNK_BYTES))
                if not data:
                    raise FileChanged(source.path)
                digest.update(data)
                left -= len(data)
                # Of a part, only the receiver can check the digest.
                if not (left or start) and digest.hexdigest() != sha256:
                    raise FileChanged(source.path)
                yield data


def split_at_place(text: str, folder: str) -> tuple[str, str | None]:
    """Return the parts of `PATH` or `PATH=DEST`.

    If a file has `=` in its name, PATH is the longest path that exists.
    """
    parts = text.split("=")
    for count in range(len(parts), 0, -1):
        path = "=".join(parts[:count])
        if path and os.path.lexists(f"{folder}/{path}" if path[0] != "/" else path):
            return path, "=".join(parts[count:]) if count < len(parts) else None
    return parts[0], "=".join(parts[1:]) if len(parts) > 1 else None


def name_path(path: str, place: str | None, folder: str) -> NamedPath:
    """Return what to send, and where it lies in the task's folder.

    Args:
        path: Absolute, or relative to `folder`.
        place: A path below the task's folder; None if it is `path`.
        folder: Absolute path.

    Raises:
        ManifestError: there is no such place, or a path that leads out of `folder` has
            none.
    """
    if not path:
        raise ManifestError("'' names no file")
    whole = path if path.startswith("/") else f"{folder}/{path}"
    source = "/" + "/".join(_names_in(whole))  # Links before `..` keep their meaning.
    if place is None:
        if path.startswith("/") or ".." in path.split("/"):
            raise _placeless(path, source, folder)
        place = path
    names = _names_in(place)
    if not place or place.startswith("/") or ".." in names:
        raise ManifestError(
            f"{path!r}: {place!r} is not a place in the task's folder",
            hint="name a path without '..' that does not begin with '/'",
        )
    return NamedPath(path, source, "/".join(names), place.endswith("/"))


def _placeless(path: str, source: str, folder: str) -> ManifestError:
    """Return the error for a path that alone does not say where it lies for a task."""
    clean = os.path.normpath(source)
    is_inside = clean == folder or clean.startswith(f"{folder}/")
    if is_inside and os.path.realpath(source) == os.path.realpath(clean):
        # It is not taken for the plain path: the command may name this one.
        why = "is absolute" if path.startswith("/") else "has '..'"
        return ManifestError(
            f"{path!r} {why}, so it is not a place in the task's folder",
            hint=f"write {os.path.relpath(clean, folder)}, also in the command",
        )
    name = clean.rpartition("/")[2] or "NAME"
    return ManifestError(
        f"{path!r} is outside this folder, so it needs a place in the task's folder",
        hint=f"write {path}={name}; in Python, {{{path!r}: {name!r}}}",
    )


class ScanCallbacks(NamedTuple):
    """Callbacks of a scan, which may take long."""

    on_found: Callable[[Mapping[str, int]], None] = lambda _sizes: None
    """Called with the sizes of all files by their places, before any is hashed."""
    on_hashed: Callable[[int, int], None] = lambda _files, _bytes: None
    """Called with the numbers of files and bytes that were hashed since the last."""


SILENT: Final = ScanCallbacks()


def scan_tree(
    named: Iterable[NamedPath],
    *,
    index: DigestIndex,
    includes_ignored: bool = False,
    callbacks: ScanCallbacks = SILENT,
) -> LocalTree:
    """Return the tree of these files and folders. Blocks.

    Args:
        named: What to send; a link among them stands for its target.
        index: Digests of earlier scans; those of this one are added.
        includes_ignored: Skip nothing below folders.
        callbacks: Are told of the progress.

    Raises:
        ManifestError: something cannot be sent; nothing is left out silently.
        FileChanged: a file changes all the time.
    """
    scan = _TreeScan(includes_ignored=includes_ignored)
    for one in named:
        scan.add_named(one)
    scan.check_collisions()
    return scan.make_tree(index, callbacks)


class _FoundLink(NamedTuple):
    path: str
    target: str
    top: str  #: the named folder
    leaves_top: bool


class _TreeScan:
    """Collects the entries of a tree by their places, then hashes the files."""

    def __init__(self, *, includes_ignored: bool) -> None:
        self._includes_ignored = includes_ignored
        self._sources: dict[str, str] = {}  #: of all entries
        self._files: dict[str, os.stat_result] = {}
        self._links: dict[str, _FoundLink] = {}
        self._empty_folders: set[str] = set()
        self._listings: list[FolderListing] = []
        self._named_count = 0

    def add_named(self, named: NamedPath) -> None:
        """Add a file, or a folder with what lies below."""
        self._named_count += 1
        try:
            status = os.stat(named.source)  # noqa: PTH116 - fast
        except OSError as error:
            of = f" of {named.about}" if named.about else ""
            raise ManifestError(
                f"{named.path!r}{of} cannot be sent: {error.strerror}",
                hint="name a file or folder that is here, and that you may read",
            ) from None
        except ValueError:
            raise ManifestError(
                f"{named.path!r} is not a path: it contains a NUL character"
            ) from None
        if stat.S_ISDIR(status.st_mode):
            self._add_folder(named)
            self._check_count(named)
            return
        if not named.place or named.is_folder:
            raise ManifestError(
                f"{named.path!r} is a file, and its place in the task's folder has no"
                " name",
                hint="give it a place with a name, without '/' at its end",
            )
        place = _join(named.below, named.place)
        self._add_file(place, named.source, status, hint="name a file or folder")
        self._check_count(named)

    def check_collisions(self) -> None:
        """Raise `ManifestError` if one file would lie below another."""
        if self._named_count == 1:
            return
        for place, source in self._sources.items():
            above = place.rpartition("/")[0]
            while above and above not in self._sources:
                above = above.rpartition("/")[0]
            if above:
                raise _collision(above, self._sources[above], source)

    def make_tree(self, index: DigestIndex, callbacks: ScanCallbacks) -> LocalTree:
        """Hash the files whose digests are not in the index; return the tree."""
        folders = self._folders()
        links = [
            _checked_link(*item, self._sources, folders) for item in self._links.items()
        ]
        callbacks.on_found({p: status.st_size for p, status in self._files.items()})
        files = []
        sources: dict[str, LocalFile] = {}
        for place, status in self._files.items():
            path = self._sources[place]
            file, source = _tree_file(place, path, status, index, callbacks.on_hashed)
            files.append(file)
            sources.setdefault(file.sha256.hex(), source)
        manifest = make_manifest(files, links, self._empty_folders - folders)
        data = encode_manifest(manifest)
        return LocalTree(
            manifest=manifest,
            manifest_bytes=data,
            sha256=content_digest(data),
            sources=sources,
            skipped=Skipped(
                sum(listing.skipped_files for listing in self._listings),
                sum(listing.skipped_folders for listing in self._listings),
                any(listing.is_git_skipped for listing in self._listings),
            ),
            secret_paths=tuple(
                file.path for file in manifest.files if _looks_secret(file.path)
            ),
        )

    def _add_folder(self, named: NamedPath) -> None:
        top = named.source.rstrip("/")
        listing = list_folder(top or "/", includes_ignored=self._includes_ignored)
        self._listings.append(listing)
        place = _join(named.below, named.place).removesuffix("/")
        below = _join(place, "")
        for path, status in listing.entries.items():
            self._add_entry(below + path, f"{top}/{path}", status, top)
        self._empty_folders.update(below + path for path in listing.empty_folders)
        if listing.entries or listing.empty_folders:
            return
        if listing.skipped_files or listing.skipped_folders:
            raise ManifestError(
                f"git's ignore rules exclude everything in {named.path!r}",
                hint="--in-all sends ignored files, too; in Python, includes_ignored",
            )
        if place:
            self._empty_folders.add(place)

    def _add_entry(
        self, place: str, path: str, status: os.stat_result, top: str
    ) -> None:
        if stat.S_ISLNK(status.st_mode):
            self._claim(place, path)
            if place not in self._files:
                self._links[place] = _read_link(path, top)
        else:
            hint = "remove it, or exclude it in .gitignore"
            self._add_file(place, path, status, hint=hint)

    def _add_file(
        self, place: str, path: str, status: os.stat_result, *, hint: str
    ) -> None:
        """Add a file; the hint is for something that is none."""
        kind = _SPECIAL_KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is not None:
            raise ManifestError(f"{path!r} is {kind}, which cannot be sent", hint=hint)
        self._claim(place, path)
        self._files[place] = status
        self._links.pop(place, None)  # Named by itself, it stands for its target.

    def _claim(self, place: str, path: str) -> None:
        """Take a place for an entry, unless another one has it."""
        check_path(place)
        other = self._sources.setdefault(place, path)
        if other != path and os.path.normpath(other) != os.path.normpath(path):
            raise _collision(place, other, path)

    def _check_count(self, named: NamedPath) -> None:
        """Raise ManifestError if a tree has too many entries with what was added."""
        if len(self._sources) + len(self._empty_folders) <= ENTRIES_MAX:
            return
        # A folder that is empty in one place may have files from another.
        empty_folders = self._empty_folders - self._folders()
        if len(self._sources) + len(empty_folders) > ENTRIES_MAX:
            raise ManifestError(
                f"with {named.path!r}, there are more than {ENTRIES_MAX} files and"
                " folders to send",
                hint="send fewer files, or one archive of them",
            )

    def _folders(self) -> set[str]:
        """Return all folders that hold something."""
        folders = set()
        for place in (*self._sources, *self._empty_folders):
            above = place.rpartition("/")[0]
            while above and above not in folders:
                folders.add(above)
                above = above.rpartition("/")[0]
        return folders


# --- Paths and links ---------------------------------------------------------------


def _looks_secret(path: str) -> bool:
    return _SECRET_NAME.fullmatch(path.rpartition("/")[2]) is not None


def _checked_link(
    place: str, link: _FoundLink, sources: Mapping[str, str], folders: set[str]
) -> TreeLink:
    """Return a link that stays in its named folder, or leads to another one's file."""
    if link.leaves_top:
        target = os.path.normpath(f"{place}/../{link.target}")
        if target not in sources and target not in folders:
            raise ManifestError(
                f"the link {link.path!r} points outside {link.top!r}, to "
                f"{link.target!r}",
                hint="send its target to a place of its own, and exclude the link in "
                ".gitignore",
            )
    return TreeLink(place, link.target)


def _join(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder else path


def _names_in(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _read_link(path: str, top: str) -> _FoundLink:
    """Return a link with a relative, normalised target.

    Raises:
        ManifestError: it leads to itself, or its target cannot be normalised.
    """
    try:
        raw = os.readlink(path)  # noqa: PTH115 - a Path would normalise it
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        os.stat(path)  # noqa: PTH116 - fast
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ManifestError(f"the link {path!r} leads to itself") from None
    folder = path.rpartition("/")[0]
    names = _names_in(raw)
    is_odd = any(one != ".." == other for one, other in pairwise(names))
    whole = os.path.normpath(f"{folder}/{raw}" if raw[0] != "/" else raw)
    # `..` behind another link leads elsewhere than the text says.
    if is_odd and os.path.realpath(path) != os.path.realpath(whole):
        raise ManifestError(
            f"the link {path!r} has '..' behind another link in its target {raw!r}",
            hint="link to the target directly, without '..'",
        )
    if raw[0] == "/":
        is_inside, raw = _relative_target(whole, folder, top)
        return _FoundLink(path, raw, top, leaves_top=not is_inside)
    target = os.path.normpath(raw)
    ups = target.split("/").count("..")
    depth = path[len(top) :].count("/") - 1
    return _FoundLink(path, target, top, leaves_top=ups > depth)


def _relative_target(target: str, folder: str, top: str) -> tuple[bool, str]:
    """Return whether an absolute target is in `top`, and its path from `folder`."""
    for start in (top, os.path.realpath(top)):
        if target == start or target.startswith(f"{start}/"):
            return True, os.path.relpath(top + target[len(start) :], folder)
    return False, target


# --- Contents ----------------------------------------------------------------------


def _tree_file(
    place: str,
    path: str,
    status: os.stat_result,
    index: DigestIndex,
    on_hashed: Callable[[int, int], None],
) -> tuple[TreeFile, LocalFile]:
    """Return an entry of the tree and its source; hash the file if necessary."""
    state = FileState.from_status(status)
    sha256 = index.look_up(state)
    if sha256 is None:
        sha256, status = _hash_file(path, index, on_hashed)
        state = FileState.from_status(status)
    else:
        on_hashed(0, state.size_bytes)
    on_hashed(1, 0)
    is_executable = bool(status.st_mode & stat.S_IXUSR)
    file = TreeFile(place, sha256, state.size_bytes, state.mtime_ns, is_executable)
    return file, LocalFile(path, state)


def _hash_file(
    path: str, index: DigestIndex, on_hashed: Callable[[int, int], None]
) -> tuple[bytes, os.stat_result]:
    """Return the SHA-256 of a file, and its status before and after it was read."""
    for _ in range(HASH_TRIES):
        hashed_at_ns = index.now_ns()
        with _open_file(path) as (descriptor, status):
            sha256 = _hash_content(descriptor, status.st_size, on_hashed)
            state = FileState.from_status(os.fstat(descriptor))
        if sha256 is not None and state == FileState.from_status(status):
            index.add(state, sha256, hashed_at_ns=hashed_at_ns)
            return sha256, status
    raise FileChanged(path)


def _has_changed(file: LocalFile, sha256: bytes) -> bool:
    """Return True if a file has another content now, or cannot be read."""
    try:
        with _open_file(file.path) as (descriptor, status):
            if FileState.from_status(status) == file.state:
                return False
            if status.st_size != file.state.size_bytes:
                return True
            return _hash_content(descriptor, status.st_size, _ignore) != sha256
    except ManifestError:
        return True


def _ignore(_files: int, _size_bytes: int) -> None:
    """Report no progress."""


def _hash_content(
    descriptor: int, size_bytes: int, on_hashed: Callable[[int, int], None]
) -> bytes | None:
    """Return the SHA-256 of a file; None if it has another size."""
    digest = hashlib.sha256()
    left = size_bytes
    while left:
        data = os.read(descriptor, min(left, CHUNK_BYTES))
        if not data:
            return None
        digest.update(data)
        left -= len(data)
        on_hashed(0, len(data))
    return None if os.read(descriptor, 1) else digest.digest()


@contextmanager
def _open_file(path: str) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for the block.

    Raises:
        FileChanged: it is no regular file any more.
        ManifestError: it cannot be opened, or reading it fails in the block.
    """
    try:
        # Opening a FIFO that replaced it must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileChanged(path)
        yield descriptor, status
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(descriptor)


def _unreadable(path: str, error: OSError) -> ManifestError:
    return ManifestError(
        f"{path!r} cannot be read: {error.strerror}",
        hint="make it readable for yourself, or exclude it in .gitignore",
    )


def _collision(place: str, one: str, other: str) -> ManifestError:
    return ManifestError(
        f"{one!r} and {other!r} collide at {place!r} in the task's folder",
        hint="give one of them another place in the task's folder",
    )
