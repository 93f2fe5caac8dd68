"""The contents of captured outputs on this node's disk, by their SHA-256.

The folder of an attempt is a tree: it holds each content, and the manifest, under its
SHA-256. Other nodes fetch these files like any others. No content leaves the folder
unless it is what was captured: one that has become wrong is deleted, and its folder is
marked, so that another node with the outputs is asked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from octaskly.core.model.tree_sizes import LARGE_BYTES, outputs_name
from octaskly.errors import OutputNotFound
from octaskly.files.digest_index import FileState
from octaskly.files.manifest import (
    Manifest,
    ManifestError,
    content_digest,
    decode_manifest,
    encode_manifest,
    is_content_digest,
)

MANIFEST_NAME: Final = "manifest"  #: of the file with the SHA-256 of the manifest
DAMAGED_NAME: Final = "damaged"  #: of a file that is there once a content was wrong
CONTENTS_MAX: Final = 200_000  #: bounds the index, which is kept in memory
CHECKED_MAX: Final = 200_000  #: the same for contents that were found right


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write the manifest of a folder that has all contents; return its SHA-256.

    Raises:
        OSError: it cannot be written.
    """
    data = encode_manifest(manifest)
    name = content_digest(data)
    (folder / name).write_bytes(data)
    # It comes last: without it, the folder has no outputs.
    (folder / MANIFEST_NAME).write_text(name)
    return name


def read_manifest(folder: Path) -> tuple[str, Manifest]:
    """Return the SHA-256 of the manifest of a folder, and the manifest.

    Raises:
        OSError: it is not there.
        ManifestError: it is damaged.
    """
    name = (folder / MANIFEST_NAME).read_text(errors="replace")
    if not is_content_digest(name):
        raise ManifestError("the name of the manifest is damaged")
    data = (folder / name).read_bytes()
    if content_digest(data) != name:
        raise ManifestError("the manifest is damaged")
    return name, decode_manifest(data)


def set_mark(folder: Path, name: str, *, is_set: bool) -> None:
    """Create or remove a mark of a folder, whose own time does not change."""
    with suppress(OSError):
        before = folder.lstat()
        if is_set:
            (folder / name).touch()
        else:
            (folder / name).unlink(missing_ok=True)
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


class CapturedContents:
    """Finds contents of captured outputs, and those that are wrong.

    A content is read before it is first used, unless this process has written it, and
    again after its file has changed. Any thread may call the methods, which block.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By SHA-256; the folder that was added last is first.
        self._folders: dict[str, tuple[Path, ...]] = {}
        self._names: dict[Path, Sequence[str]] = {}  #: by folder, the oldest first
        self._whole: set[str] = set()  #: names of outputs that are here
        self._checked: dict[Path, FileState] = {}
        self._changed: dict[str, None] = {}
        self.on_wrong: Callable[[Path], None] = lambda _path: None
        """Called with each content that was wrong or gone, in any thread."""

    # -- the index -----------------------------------------------------------------

    @property
    def has_changes(self) -> bool:
        """Return True if large contents came or went since `take_changes`."""
        return bool(self._changed)

    def take_changes(self) -> list[str]:
        """Return the names of what came or went; each change once, the latest last."""
        with self._lock:
            changed, self._changed = list(self._changed), {}
            return changed

    def __contains__(self, name: str) -> bool:
        """Return True if a content is in the index, or outputs by `outputs_name`."""
        return name in self._folders or name in self._whole

    def add_folder(self, folder: Path) -> str:
        """Add the contents of a folder; return the SHA-256 of its manifest.

        Raises:
            OSError: it has no manifest.
            ManifestError: the manifest is damaged.
        """
        with self._lock:
            if (known := self._names.get(folder)) is not None:
                return known[0]
        name, manifest = read_manifest(folder)
        sizes = {sha256.hex(): size for sha256, size in manifest.sizes().items()}
        total_bytes = sum(sizes.values())
        large = [each for each, size in sizes.items() if size > LARGE_BYTES]
        with self._lock:
            names = self._names[folder] = (name, *sizes)
            for each in names:
                self._folders[each] = (folder, *self._folders.get(each, ()))
            self._changed.update(dict.fromkeys(large))
            if total_bytes > LARGE_BYTES and not (folder / DAMAGED_NAME).exists():
                self._whole.add(_outputs_of(folder))
                self._changed[_outputs_of(folder)] = None
            while len(self._folders) > CONTENTS_MAX:
                self._drop(next(iter(self._names)))
        return name

    def drop_folder(self, folder: Path) -> None:
        """Forget a folder, which is being deleted."""
        with self._lock:
            self._drop(folder)

    def _drop(self, folder: Path) -> None:
        for name in self._names.pop(folder, ()):
            self._drop_content(folder / name)
        self._drop_whole(folder)

    def _drop_content(self, path: Path) -> None:
        self._checked.pop(path, None)
        folders = self._folders.get(path.name, ())
        left = tuple(folder for folder in folders if folder != path.parent)
        if left:
            self._folders[path.name] = left
        elif folders:
            del self._folders[path.name]
            self._changed[path.name] = None

    def _drop_whole(self, folder: Path) -> None:
        if (name := _outputs_of(folder)) in self._whole:
            self._whole.remove(name)
            self._changed[name] = None

    def find(self, sha256: str) -> Path | None:
        """Return the file of a content that is here and right; else None."""
        tried = None
        while (path := self.path_of(sha256)) not in (None, tried):
            if self.is_right(path):
                return path
            tried = path  # If it was wrong, it is deleted, and another may be right.
        return None

    def path_of(self, sha256: str) -> Path | None:
        """Return the file of a content, which may be wrong; None if there is none."""
        folders = self._folders.get(sha256)
        return folders[0] / sha256 if folders else None

    def verify(self, sha256: str) -> bool:
        """Read a content anew; return True if it is right.

        Raises:
            OutputNotFound: there is no such content.
        """
        path = self.path_of(sha256)
        if path is None:
            raise OutputNotFound(f"there is no file {sha256[:12]}... on this node")
        self.distrust([path])
        return self.find(sha256) is not None

    # -- checks --------------------------------------------------------------------

    def note_right(self, path: Path, status: os.stat_result) -> None:
        """Note that the content of a file with this status is right."""
        with self._lock:
            self._checked.pop(path, None)
            self._checked[path] = FileState.from_status(status)
            if len(self._checked) > CHECKED_MAX:
                del self._checked[next(iter(self._checked))]

    def distrust(self, paths: Iterable[Path]) -> None:
        """Have contents read anew before their next use."""
        with self._lock:
            for path in paths:
                self._checked.pop(path, None)

    def is_right(self, path: Path) -> bool:
        """Return True if the content of a file has the SHA-256 that is its name.

        A wrong one is deleted, and its folder is marked as damaged.
        """
        try:
            if self._checked.get(path) == FileState.from_status(path.stat()):
                return True
            with path.open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found == path.name:
                self.note_right(path, status)
                return True
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EIO):
                return False  # It may be right.
        self._discard(path)
        return False

    def _discard(self, path: Path) -> None:
        """Delete a wrong content; its folder says that it was there."""
        folder = path.parent
        with suppress(OSError):
            path.unlink()
        is_new = folder.exists() and not (folder / DAMAGED_NAME).exists()
        set_mark(folder, DAMAGED_NAME, is_set=True)
        with self._lock:
            self._drop_content(path)
            self._drop_whole(folder)
        if is_new:
            self.on_wrong(path)


def _outputs_of(folder: Path) -> str:
    """Return the name by which this node reports the outputs in a folder."""
    return outputs_name(folder.parent.name, folder.name)
