"""Index of a store's files: which contents are here, and until when each is protected.

Captured outputs are contents, too, which stay in their own folders. The index also
collects what came and went of the large files and trees, which the dispatcher learns.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from octaskly.core.model.tree_sizes import LARGE_BYTES
from octaskly.files.manifest import is_content_digest
from octaskly.runner.blobs.uploads import STORED_MODE, PartialFiles
from octaskly.runner.output.captured_contents import CapturedContents

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
BOOT_NAME: Final = "boot.id"  #: of the file with the id of the boot that was seen last
_SUSPECT_MODE: Final = 0o400
_PARTIAL_NAME: Final = re.compile(r"[0-9a-f]{64}(\.part|\.pieces)")


class Kept(NamedTuple):
    """A file in the store."""

    size_bytes: int
    until_s: float  #: end of its protection
    used_s: float  #: last use


class BlobIndex:
    """The files in the folder of a store, whose lock guards all of this.

    The modification time of a file on disk is the end of its protection, and its access
    time is its last use, so that both survive a restart of the agent. A file from
    before this machine started is a suspect until it was read, which its mode says: the
    machine may have lost power before all its bytes were on disk.

    Args:
        folder: The folder; created with access for the agent alone.
        partials: The partial files in it.
        captured: Contents that are not in the folder.
        now_s: Returns the time, as file times have it.
    """

    def __init__(
        self,
        folder: Path,
        partials: PartialFiles,
        captured: CapturedContents,
        now_s: Callable[[], float],
    ) -> None:
        self._folder, self._partials, self._now_s = folder, partials, now_s
        self._captured = captured
        self._files: dict[str, Kept] | None = None
        self.suspects: set[str] = set()  #: files that must be read first
        self.flushed: set[str] = set()  #: files that are on disk with their entries
        self.stored_bytes = 0  #: of all files
        self._trees: set[str] = set()  #: manifests whose contents are all here
        #: Large files and trees, since `take_changes`.
        self._changed: dict[str, None] = {}

    def files(self) -> dict[str, Kept]:
        """Return the files by SHA-256; the first call reads them from the folder."""
        if self._files is None:
            self._files, self.stored_bytes = {}, 0
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # File times do not say it: a machine may start with a wrong clock.
            boot, noted = _boot_id(), self._folder / BOOT_NAME
            has_restarted = not noted.exists() or noted.read_bytes() != boot
            for place in self._folder.iterdir():
                if place != noted:
                    self._load(place, self._files, are_suspects=has_restarted)
            if has_restarted:
                # It comes last, so that a load that is interrupted is repeated.
                noted.write_bytes(boot)
        return self._files

    def _load(self, place: Path, files: dict[str, Kept], *, are_suspects: bool) -> None:
        """Add a file that an earlier agent has left; delete what is of no use."""
        status = place.lstat()
        if is_content_digest(place.name) and stat.S_ISREG(status.st_mode):
            files[place.name] = Kept(status.st_size, status.st_mtime, status.st_atime)
            self.stored_bytes += status.st_size
            if status.st_size > LARGE_BYTES:
                self._changed[place.name] = None
            if are_suspects:
                place.chmod(_SUSPECT_MODE)
            if are_suspects or stat.S_IMODE(status.st_mode) != STORED_MODE:
                self.suspects.add(place.name)
        elif _PARTIAL_NAME.fullmatch(place.name):
            self._partials.load(place.name)
        elif not stat.S_ISDIR(status.st_mode):  # A mounted disk has `lost+found`.
            place.unlink()  # An upload that the previous agent did not finish.

    def trust(self, name: str) -> None:
        """Note that a suspect was read and is right."""
        self.suspects.discard(name)
        with suppress(OSError):  # Without the mode, the next agent reads it again.
            (self._folder / name).chmod(STORED_MODE)

    def path_of(self, name: str) -> Path:
        """Return the path of a file, or of a captured output."""
        captured = None if name in self.files() else self._captured.path_of(name)
        return captured or self._folder / name

    def protect(self, name: str, size_bytes: int, until_s: float) -> None:
        """Add a file, or protect one that is used now, until a time.

        Raises:
            OSError: it is not in the folder.
        """
        used_s = self._now_s()
        os.utime(self._folder / name, (used_s, until_s))
        files = self.files()
        before = files.get(name)
        if before is None and self._is_reported(name, size_bytes):
            self._changed[name] = None
        self.stored_bytes += size_bytes - (before.size_bytes if before else 0)
        files[name] = Kept(size_bytes, until_s, used_s)

    def expire(self, name: str) -> None:
        """End the protection of a file, which was not used again.

        Raises:
            OSError: it is not in the folder.
        """
        kept, now_s = self.files()[name], self._now_s()
        os.utime(self._folder / name, (kept.used_s, now_s))
        self.files()[name] = kept._replace(until_s=now_s)

    def delete(self, name: str) -> None:
        """Delete a file."""
        (self._folder / name).unlink(missing_ok=True)
        self.forget(name)

    def forget(self, name: str) -> None:
        """Remove a file that is not in the folder any more."""
        size_bytes = self.files().pop(name).size_bytes
        self.stored_bytes -= size_bytes
        if self._is_reported(name, size_bytes):
            self._trees.discard(name)
            self._changed[name] = None
        self.flushed.discard(name)
        self.suspects.discard(name)

    def mark_tree(self, name: str) -> None:
        """Note that all contents of the tree with this manifest are here."""
        if name in self.files() and name not in self._trees:
            self._trees.add(name)
            self._changed[name] = None

    @property
    def has_changes(self) -> bool:
        """Return True if large files or trees came or went since `take_changes`."""
        return bool(self._changed) or self._captured.has_changes

    def take_changes(self) -> tuple[list[str], list[str]]:
        """Return the large files and trees that came, and those that went.

        Each change is returned once; the most recent is last.
        """
        changed, self._changed = self._changed, {}
        changed.update(dict.fromkeys(self._captured.take_changes()))
        files = self.files()
        here = {
            name: None
            for name in changed
            if name in self._captured
            or (name in files and self._is_reported(name, files[name].size_bytes))
        }
        return list(here), [name for name in changed if name not in here]

    def _is_reported(self, name: str, size_bytes: int) -> bool:
        return size_bytes > LARGE_BYTES or name in self._trees


def _boot_id() -> bytes:
    """Return what differs after each start of the machine, or of the agent at least."""
    try:
        return BOOT_ID.read_bytes()
    except OSError:  # Some sandboxes hide it.
        return secrets.token_bytes()
