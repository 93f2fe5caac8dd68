"""Placing fetched outputs in a folder of the user.

What comes from a worker is hostile. Nothing is written outside the folder and the
declared outputs, and nothing is deleted. Each file is written beside its place and then
renamed into it. A link in the folder is followed only if the user named it among the
outputs. A local file that changed since it was sent is kept.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Final, NamedTuple

from octaskly.errors import OctasklyError
from octaskly.files.manifest import ManifestError, TreeLink, check_link, check_path
from octaskly.files.output_patterns import DeclaredOutputs, is_in_git, prefixes
from octaskly.files.tree_tar import TarEntry

STATE_PREFIX: Final = ".octaskly-fetch-"  #: of the file with the state of a fetch
ID_CHARS_MAX: Final = 100
PARTIAL_PREFIX: Final = ".octaskly-"  #: of files that are not complete
NAME_BYTES_MAX: Final = 255  #: as in all file systems of Linux
READ_BYTES: Final = 1 << 20

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._~-]")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DISK_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT)
_IN_THE_WAY: Final = (errno.ENOTDIR, errno.ELOOP, errno.ENOENT)


class FetchError(OctasklyError):
    """Fetched outputs could not be placed."""


class HostileTree(FetchError):
    """A worker sent outputs that no honest worker sends."""


class WrongBytes(FetchError):
    """The content of a file is not what its worker captured."""


class KeptFile(NamedTuple):
    """A local file that was kept because it changed, and the fetched one."""

    path: str
    saved_as: str


class _Parent(NamedTuple):
    """The open folder of an entry."""

    fd: int
    names: list[
        str
    ]  #: parts of the entry's path here; some differ from those in the tree
    followed: int  #: number of names up to the last link that was followed


class HomeFolder:
    """A folder of the user that receives the outputs of one task.

    Args:
        folder: The folder; it is created.
        task: Id of the task, for the names of files beside local ones.
        declared: The outputs that the user asked for.
        sent: SHA-256 of the files that were sent, by their paths in the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        task: str,
        declared: Iterable[str],
        sent: Mapping[str, bytes] | None = None,
    ) -> None:
        self.folder = folder
        self.task = _UNSAFE.sub("_", task)[:ID_CHARS_MAX]  # A node may send any text.
        self.kept: list[KeptFile] = []
        self.skipped_links: list[str] = []
        self._declared = DeclaredOutputs(declared)
        self._sent = sent or {}
        self._suffix = f".octaskly-{self.task}"
        self.placed: set[str] = set()  #: paths of entries so far
        self._folders_above: set[str] = set()

    def expect_again(self, path: str) -> None:
        """Expect an entry anew that did not arrive as it is."""
        self.placed.discard(path)

    def start_over(self) -> None:
        """Expect a whole tree anew; what is in its place stays until it is replaced."""
        self.kept.clear()
        self.skipped_links.clear()
        self.placed.clear()
        self._folders_above.clear()

    def check_entry(self, entry: TarEntry) -> None:
        """Raise HostileTree for an entry that no honest worker sends."""
        path = entry.path
        try:
            check_path(path)
            if entry.is_link:
                check_link(TreeLink(path, entry.target))
        except ManifestError as error:
            raise self._hostile(path, str(error)) from None
        above = [*prefixes(path)][:-1]
        if is_in_git(path) or path.startswith(STATE_PREFIX):
            raise self._hostile(path, "it has a reserved name")
        if not self._declared.covers(path):
            raise self._hostile(path, "it is not a declared output")
        if entry.is_link and self._declared.names(path):
            raise self._hostile(path, "a declared output must not become a link")
        if path in self.placed or path in self._folders_above:
            raise self._hostile(path, "it occurs twice")
        if any(folder in self.placed for folder in above):
            raise self._hostile(path, "it lies below a file or link")
        self.placed.add(path)
        self._folders_above.update(above)

    def _hostile(self, path: str, why: str) -> HostileTree:
        return HostileTree(
            f"the worker sent {path[:200]!r}, which was refused: {why}",
            hint=f"octaskly show {self.task}    names the worker",
        )

    def open_file(self, entry: TarEntry, partial: str = "") -> HomeFile:
        """Open a file beside the place of an entry.

        Args:
            entry: The entry, which `check_entry` has accepted.
            partial: Name of the file of an interrupted fetch; default: a new one.

        Raises:
            FetchError: it cannot be created.
        """
        try:
            parent = self._open_parent(entry.path, may_follow_last=True)
            try:
                name = partial or f"{PARTIAL_PREFIX}{secrets.token_hex(8)}"
                mode = 0o777 if entry.is_executable else 0o666
                replaced = _file_mode(parent.names[-1], parent.fd)
                if replaced is not None:  # It may be private.
                    mode = stat.S_IRUSR | stat.S_IWUSR
                flags = _REOPEN if partial else _CREATE
                fd = _open_locked(name, flags, mode, parent.fd)
                if replaced is not None:
                    _take_over_mode(fd, replaced, is_executable=entry.is_executable)
            except BaseException:
                os.close(parent.fd)
                raise
        except OSError as error:
            raise self.local_error(entry.path, error) from None
        return HomeFile(self, entry, parent.fd, parent.names[-1], name, fd)

    def place_link(self, entry: TarEntry) -> None:
        """Create a link, unless it would lead out of a folder reached by a link."""
        names = entry.target.split("/")
        ups = next((n for n, name in enumerate(names) if name != ".."), len(names))
        try:
            parent = self._open_parent(entry.path, may_follow_last=False)
            try:
                if parent.followed and ups > len(parent.names) - 1 - parent.followed:
                    self.skipped_links.append(entry.path)
                    return
                name = f"{PARTIAL_PREFIX}{secrets.token_hex(8)}"
                os.symlink(entry.target, name, dir_fd=parent.fd)
                self.rename(entry.path, parent.fd, name, parent.names[-1], None)
            finally:
                os.close(parent.fd)
        except OSError as error:
            raise self.local_error(entry.path, error) from None

    def place_folder(self, entry: TarEntry) -> None:
        """Create an empty folder."""
        try:
            parent = self._open_parent(f"{entry.path}/.", may_follow_last=False)
            os.close(parent.fd)
        except OSError as error:
            raise self.local_error(entry.path, error) from None

    def rename(
        self, path: str, dir_fd: int, name: str, place: str, sha256: bytes | None
    ) -> None:
        """Rename a finished file or link into its place, or beside a local file.

        Args:
            path: Its path in the tree.
            dir_fd: The folder of both names.
            name: Its name so far.
            place: Its new name, unless a local file must be kept.
            sha256: Digest of the file; None for a link.
        """
        if self._is_kept(path, dir_fd, place, sha256):
            place = self._name_beside(place)
            self.kept.append(KeptFile(path, _sibling(path, place)))
        try:
            os.rename(name, place, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except OSError:
            with suppress(OSError):
                os.unlink(name, dir_fd=dir_fd)
            raise

    def local_error(self, path: str, error: OSError) -> FetchError:
        """Return the error of this machine's disk or folders."""
        if error.errno in _DISK_ERRORS:
            to = "" if self.folder == Path() else f" --to {quote(str(self.folder))}"
            return FetchError(
                f"the disk of this machine has no space for {path}",
                hint=f"octaskly fetch {self.task}{to}    when there is space",
            )
        reason = error.strerror or str(error)
        return FetchError(f"{self.folder / path} cannot be written: {reason}")

    def _is_kept(
        self, path: str, dir_fd: int, place: str, sha256: bytes | None
    ) -> bool:
        """Return True if there is something local that must not be replaced."""
        try:
            mode = os.stat(place, dir_fd=dir_fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISLNK(mode):
            return sha256 is not None
        if not stat.S_ISREG(mode):
            return True
        if path not in self._sent:
            return False
        local = file_digest(place, dir_fd)
        return local not in (self._sent[path], sha256)

    def _open_parent(self, path: str, *, may_follow_last: bool) -> _Parent:
        """Open the folder of an entry; create the folders on the way.

        If something local is in the way of a folder, one beside it is taken.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.folder, _FOLDER)
        names, followed = path.split("/"), 0
        try:
            for index, name in enumerate(names[:-1]):
                may_follow = self._declared.names("/".join(names[: index + 1]))
                below_fd = _enter(fd, name, may_follow=may_follow)
                if below_fd is None:
                    names[index] = self._name_beside(name)
                    self._keep_folder(
                        "/".join(path.split("/")[: index + 1]), names[index]
                    )
                    below_fd = _enter_folder(fd, names[index])
                elif may_follow and _is_link(fd, name):
                    followed = index + 1
                fd = _replaced(fd, below_fd)
            if may_follow_last and self._declared.names(path):
                fd, names[-1] = _follow(fd, names[-1])
        except BaseException:
            os.close(fd)
            raise
        return _Parent(fd, names, followed)

    def _name_beside(self, name: str) -> str:
        """Return the name beside a local one that is kept; no other has the same."""
        room_bytes = NAME_BYTES_MAX - len(self._suffix)
        data = os.fsencode(name)  # A link may have named it.
        if len(data) <= room_bytes:
            return name + self._suffix
        end = f"-{hashlib.sha256(data).hexdigest()[:16]}{self._suffix}"
        return data[: NAME_BYTES_MAX - len(end)].decode(errors="ignore") + end

    def _keep_folder(self, path: str, name: str) -> None:
        kept = KeptFile(path, _sibling(path, name))
        if kept not in self.kept:
            self.kept.append(kept)


class HomeFile:
    """A fetched file that is being written beside its place."""

    def __init__(
        self,
        home: HomeFolder,
        entry: TarEntry,
        dir_fd: int,
        place: str,
        name: str,
        fd: int,
    ) -> None:
        self.entry = entry
        self.name = name  #: until it is in its place
        self._home = home
        self._dir_fd = dir_fd
        self._place = place
        self._fd = fd
        self._digest = hashlib.sha256()

    def read_beginning(self, size_bytes: int) -> None:
        """Take what an interrupted fetch has written.

        Raises:
            OSError: it is less than that.
        """
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size < size_bytes:
            raise OSError(errno.EINVAL, "not what was written")
        os.truncate(self._fd, size_bytes)
        left = size_bytes
        while left:
            data = os.read(self._fd, min(left, READ_BYTES))
            if not data:
                raise OSError(errno.EINVAL, "it ended early")
            self._digest.update(data)
            left -= len(data)

    def write(self, data: memoryview) -> None:
        """Append bytes.

        Raises:
            FetchError: the disk is full.
        """
        self._digest.update(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self.discard()
            raise self._home.local_error(self.entry.path, error) from None

    def finish(self) -> None:
        """Move the file into its place.

        Raises:
            WrongBytes: it has another content than was announced.
            FetchError: it cannot be placed.
        """
        path = self.entry.path
        if self._digest.hexdigest() != self.entry.sha256:
            self.discard()
            raise WrongBytes(
                f"the bytes of {path[:200]} are not those that its task wrote",
                hint=f"octaskly show {self._home.task}    names the worker, whose disk"
                " may be failing",
            )
        try:
            with suppress(OverflowError):
                os.utime(self._fd, ns=(self.entry.mtime_ns, self.entry.mtime_ns))
            sha256 = self._digest.digest()
            self._home.rename(path, self._dir_fd, self.name, self._place, sha256)
        except OSError as error:
            self.discard()
            raise self._home.local_error(path, error) from None
        self.close()

    def discard(self) -> None:
        """Delete the file."""
        if self._fd >= 0:
            with suppress(OSError):
                os.unlink(self.name, dir_fd=self._dir_fd)
        self.close()

    def close(self) -> None:
        """Close the file; it stays beside its place."""
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._dir_fd)
            self._fd = -1


def file_digest(name: str, dir_fd: int | None = None) -> bytes:
    """Return the SHA-256 of a regular file.

    Raises:
        OSError: it cannot be read.
    """
    with os.fdopen(os.open(name, _READ, dir_fd=dir_fd), "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _file_mode(name: str, dir_fd: int) -> int | None:
    """Return the mode of a regular file; None if there is none."""
    try:
        mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    return stat.S_IMODE(mode) if stat.S_ISREG(mode) else None


def _take_over_mode(fd: int, mode: int, *, is_executable: bool) -> None:
    """Let those read and write a file who could, and run it if they can read it."""
    runners = (mode & 0o444) >> 2 if is_executable else 0
    with suppress(PermissionError):  # Some file systems have one mode for all files.
        os.fchmod(fd, mode & 0o666 | runners)


def _open_locked(name: str, flags: int, mode: int, dir_fd: int) -> int:
    """Open a file to write it; raise OSError if another fetch is writing it."""
    fd = os.open(name, flags, mode, dir_fd=dir_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:
        pass  # Some network disks have no locks.
    return fd


def _enter_folder(dir_fd: int, name: str, flags: int = os.O_NOFOLLOW) -> int:
    """Open a folder, which is created; raise OSError if that is impossible."""
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=dir_fd)
    return os.open(name, _FOLDER | flags, dir_fd=dir_fd)


def _enter(dir_fd: int, name: str, *, may_follow: bool) -> int | None:
    """Open a folder, which is created; None if something else is in its place."""
    try:
        return _enter_folder(dir_fd, name, 0 if may_follow else os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _IN_THE_WAY:
            return None
        raise


def _is_link(dir_fd: int, name: str) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)


def _follow(dir_fd: int, name: str) -> tuple[int, str]:
    """Return folder and name of the file that a link leads to, or the same ones."""
    try:
        if not _is_link(dir_fd, name):
            return dir_fd, name
        file = os.path.realpath(f"/proc/self/fd/{dir_fd}/{name}", strict=True)
        if not Path(file).is_file():
            return dir_fd, name
    except OSError:
        return dir_fd, name  # There is nothing, or a link that leads nowhere.
    folder, _, name = file.rpartition("/")
    return _replaced(dir_fd, os.open(folder or "/", _FOLDER)), name


def _replaced(fd: int, new_fd: int) -> int:
    os.close(fd)
    return new_fd


def _sibling(path: str, name: str) -> str:
    """Return the path of another file in the folder of a path."""
    folder, slash, _ = path.rpartition("/")
    return folder + slash + name
