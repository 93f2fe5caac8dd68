"""Capturing declared outputs: copies by digest, and the manifest that names them.

The outputs of an attempt are copied into a folder of their own, each content once, with
its SHA-256 as its name. Names that a task chose are only in the manifest beside them.
Tasks may change their files at any time, also while the agent reads them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from octaskly.core.model.ids import AttemptId, TaskId, task_name
from octaskly.core.model.tasks import OutputFile
from octaskly.errors import OutputNotFound
from octaskly.files.captured_tree import CapturedTree
from octaskly.files.copying import COPY_BYTES, write_all
from octaskly.files.manifest import (
    ENTRIES_MAX,
    MANIFEST_BYTES_MAX,
    ManifestError,
    TreeFile,
    TreeLink,
    check_link,
    check_path,
    make_manifest,
)
from octaskly.files.output_patterns import (
    Glob,
    has_wildcards,
    is_git_name,
    is_in_git,
    prefixes,
)
from octaskly.runner.files.task_user_ops import TaskUserOps
from octaskly.runner.files.workdir import FolderEntry, path_components
from octaskly.runner.output.captured_contents import (
    DAMAGED_NAME,
    MANIFEST_NAME,
    CapturedContents,
    read_manifest,
    write_manifest,
)
from octaskly.runner.output.captured_folders import mark_fetched

TOO_MANY: Final = (
    f"all outputs together may have at most {ENTRIES_MAX} files and folders"
)
DISK_FULL: Final = "the disk of its worker has no space"
EXAMINED_MAX: Final = 500_000
"""Entries examined for one attempt, counted again for each overlapping output."""
PROBLEMS_MAX: Final = 10
ENTRY_BYTES: Final = 96  #: of an entry in a manifest, besides its names

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DISK_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT)
_READ_ERRORS: Final = (errno.EIO, errno.ESTALE)


class CapturedOutputs(NamedTuple):
    """Result of capturing declared outputs."""

    files: tuple[OutputFile, ...]  #: the size is None if it was not captured
    problem: str = ""  #: why existing files were not kept


def too_large_text(bytes_max: int) -> str:
    """Return why an output above the bound was not kept."""
    if bytes_max == 0:
        return "its worker has no space for outputs; octaskly doctor there says why"
    megabytes = bytes_max // 1_000_000
    bound = f"{megabytes} MB" if megabytes else f"{bytes_max} bytes"
    return f"its worker has space for {bound} of outputs of one task"


def outputs_gone(task: TaskId) -> OutputNotFound:
    """Return the error of a node that should have outputs of a task, and has none."""
    return OutputNotFound(
        f"the outputs of {task_name(task)} are not on the node that had them",
        hint="a node deletes outputs after --retention, or to make room for others"
        " (--output-quota)",
    )


def outputs_folder(outputs_dir: Path, task: TaskId, attempt: AttemptId) -> Path:
    """Return the folder of an attempt's outputs.

    A task id may be `.` or `..`, which is encoded: it would name another folder.
    """
    name = str(task)
    if path_components(name) != [name]:
        name = "%" + name.encode().hex()
    return outputs_dir / name / str(attempt)


def capture_outputs(
    workdir: Path,
    folder: Path,
    paths: Sequence[str],
    *,
    access: TaskUserOps,
    make_room: Callable[[int], int],
    contents: CapturedContents,
) -> CapturedOutputs:
    """Copy declared outputs, each of them whole or not at all.

    Args:
        workdir: The folder in which the task ran.
        folder: Destination of the copies; it is created.
        paths: The declared paths.
        access: Opens files with the rights of the tasks' user.
        make_room: Makes room for so many bytes of all outputs together, if it can;
            returns the bytes that they may have.
        contents: Is told of each copy, whose digest is right.
    """
    capture = _Capture(workdir, folder, access, make_room, contents)
    files = tuple(capture.capture_output(path) for path in dict.fromkeys(paths))
    try:
        capture.write_manifest()
    except OSError as error:
        lost = tuple(OutputFile(file.path, None) for file in files)
        return CapturedOutputs(lost, f"outputs were not kept: {_reason(error)}")
    return CapturedOutputs(files, capture.problems_text())


class _Found(NamedTuple):
    """A file, link or folder without entries that a declared output covers."""

    path: str
    entry: FolderEntry
    folder: _Found | None = None  #: the folder that contains it, if it is covered, too


class _Capture:
    """The capture of one attempt's outputs."""

    def __init__(
        self,
        workdir: Path,
        folder: Path,
        access: TaskUserOps,
        make_room: Callable[[int], int],
        contents: CapturedContents,
    ) -> None:
        self._workdir, self._folder, self._access = workdir, folder, access
        self._contents = contents
        self._make_room = make_room
        self._bytes_max = self._left_bytes = make_room(0)
        self._entries: dict[str, TreeFile | TreeLink | None] = {}  #: None: a folder
        self._counts_below = Counter[str]()  #: number of entries below each folder
        self._uses = Counter[bytes]()  #: number of files by digest
        self._manifest_bytes = 0
        self._examined_count = 0
        self._problems: list[str] = []
        self._problem_count = 0

    def capture_output(self, declared: str) -> OutputFile:
        """Copy one declared output, unless it is missing or cannot be kept."""
        count_before = len(self._entries)
        try:
            found, is_file = self._find(declared)
            self._check_room(found)
            kept = [path for each in found if (path := self._keep(declared, each))]
        except OSError as error:
            self._note(declared, error)
            self._drop_after(count_before)
            return OutputFile(declared, None)
        return self._described(declared, kept, is_file=is_file)

    def write_manifest(self) -> None:
        """Write the manifest beside the copies, if there are any.

        Raises:
            OSError: it cannot be written; then nothing is left.
        """
        if not self._entries:
            return
        entries = self._entries
        manifest = make_manifest(
            (entry for entry in entries.values() if isinstance(entry, TreeFile)),
            (entry for entry in entries.values() if isinstance(entry, TreeLink)),
            (p for p, e in entries.items() if e is None and not self._counts_below[p]),
        )
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            write_manifest(self._folder, manifest)
        except OSError:
            (self._folder / MANIFEST_NAME).unlink(missing_ok=True)
            self._drop_after(0)
            raise

    def problems_text(self) -> str:
        """Return why existing files were not kept."""
        more = self._problem_count - len(self._problems)
        also = [f"and {more} more"] if more else []
        return "; ".join(self._problems + also)

    # -- finding -------------------------------------------------------------------

    def _find(self, declared: str) -> tuple[list[_Found], bool]:
        """Return what a declared output covers, and True if it is a file.

        Raises:
            OSError: it exists, but cannot be kept.
        """
        if path_components(declared) is None or is_in_git(declared):
            raise OSError(errno.EINVAL, "not a path that can be kept")
        entry = self._find_exact(declared)
        if entry is not None and stat.S_ISREG(entry.mode):
            return [_Found(declared, entry)], True
        if entry is not None:
            _check_folder(entry.mode)
            return _bounded(self._walk(_Found(declared, entry))), False
        if not has_wildcards(declared):
            return [], False
        return _bounded(self._match(Glob(declared))), False

    def _find_exact(self, path: str) -> FolderEntry | None:
        try:
            return self._access.find_entry(self._workdir, path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            raise

    def _walk(self, top: _Found) -> Iterator[_Found]:
        """Yield what a path covers: itself, or what the folder contains."""
        if not stat.S_ISDIR(top.entry.mode):
            yield top
            return
        ahead = [top]
        while ahead:
            folder = ahead.pop()
            is_empty = True
            for listed in self._list(folder.path, is_required=folder is top):
                found = listed._replace(folder=folder)
                is_empty = False
                if stat.S_ISDIR(found.entry.mode):
                    ahead.append(found)
                else:
                    yield found
            if is_empty:
                yield folder

    def _match(self, glob: Glob) -> Iterator[_Found]:
        """Yield what a glob matches."""
        ahead = [("", glob.start)]
        while ahead:
            folder, progress = ahead.pop()
            for found in self._list(folder, is_required=not folder):
                reached = glob.advance(progress, found.entry.name)
                if glob.is_match(reached):
                    yield from self._walk(found)
                elif reached and stat.S_ISDIR(found.entry.mode):
                    ahead.append((found.path, reached))

    def _list(self, folder: str, *, is_required: bool) -> Iterator[_Found]:
        """Yield the entries of a folder, without `.git`.

        Raises:
            OSError: it has too many entries, its disk fails, or it is required and
            cannot be read.
        """
        try:
            entries = self._access.list_folder(self._workdir, folder)
        except (FileNotFoundError, NotADirectoryError):
            return  # The task removed or replaced it in the meantime.
        except OSError as error:
            if is_required or error.errno in (errno.E2BIG, *_READ_ERRORS):
                raise
            self._note(folder, error)
            return
        self._examined_count += len(entries)
        if self._examined_count > EXAMINED_MAX:
            raise OSError(errno.E2BIG, TOO_MANY)
        for entry in entries:
            if not is_git_name(entry.name):
                yield _Found(f"{folder}/{entry.name}" if folder else entry.name, entry)

    # -- copying -------------------------------------------------------------------

    def _check_room(self, found: Iterable[_Found]) -> None:
        """Raise OSError if an output is too large, before a byte is copied."""
        added = [each for each in found if each.path not in self._entries]
        if len(added) + len(self._entries) > ENTRIES_MAX:
            raise OSError(errno.E2BIG, TOO_MANY)
        files = (each.entry for each in added if stat.S_ISREG(each.entry.mode))
        needed_bytes = sum(entry.size_bytes for entry in files)
        if needed_bytes > self._left_bytes:
            copied_bytes = self._bytes_max - self._left_bytes
            self._bytes_max = self._make_room(copied_bytes + needed_bytes)
            self._left_bytes = self._bytes_max - copied_bytes
        if needed_bytes > self._left_bytes:
            raise self._too_large()

    def _too_large(self) -> OSError:
        return OSError(errno.EFBIG, too_large_text(self._bytes_max))

    def _keep(self, declared: str, found: _Found) -> str:
        """Add an entry, else its folder: that exists even if nothing in it is kept.

        Returns:
            The path of what is kept; empty if neither can be kept.

        Raises:
            OSError: the whole output cannot be kept.
        """
        each: _Found | None = found
        while each is not None:
            if each.path in self._entries or self._add(declared, each):
                return each.path
            each = each.folder
        return ""

    def _add(self, declared: str, found: _Found) -> bool:
        """Add one entry; return False if it cannot be kept, but others can.

        Raises:
            OSError: the whole output cannot be kept.
        """
        try:
            check_path(found.path)
            self._check_place(found)
            mode = found.entry.mode
            if stat.S_ISREG(mode):
                entry: TreeFile | TreeLink | None = self._copy_file(found.path)
            elif stat.S_ISLNK(mode):
                entry = TreeLink(found.path, _normalised(found.entry.target))
                check_link(entry)
            else:
                _check_folder(mode)
                entry = None
        except ManifestError as error:
            self._note_text(f"not kept: {error}")
            return False
        except (FileNotFoundError, NotADirectoryError):
            return False  # The task removed it in the meantime.
        except OSError as error:
            fatal = (errno.EFBIG, errno.EEXIST, *_DISK_ERRORS, *_READ_ERRORS)
            if error.errno in fatal or found.path == declared:
                raise
            self._note(found.path, error)
            return False
        self._entries[found.path] = entry
        if isinstance(entry, TreeFile):
            self._uses[entry.sha256] += 1
        self._counts_below.update(_folders_above(found.path))
        target = entry.target if isinstance(entry, TreeLink) else ""
        names = len(found.path.encode()) + len(target.encode())
        self._manifest_bytes += names + ENTRY_BYTES
        if self._manifest_bytes > MANIFEST_BYTES_MAX:
            raise OSError(errno.E2BIG, TOO_MANY)
        return True

    def _check_place(self, found: _Found) -> None:
        """Raise OSError if the task replaced a file by a folder, or the reverse."""
        is_folder = stat.S_ISDIR(found.entry.mode)
        if (not is_folder and self._counts_below[found.path]) or any(
            self._entries.get(path) is not None for path in _folders_above(found.path)
        ):
            raise FileExistsError(errno.EEXIST, "it is a folder of another output")

    def _copy_file(self, path: str) -> TreeFile:
        source_fd = self._access.open_output(self._workdir, path)
        try:
            status = os.fstat(source_fd)
            if status.st_size > self._left_bytes:
                raise self._too_large()
            sha256, size_bytes = self._copy_content(source_fd)
        finally:
            os.close(source_fd)
        self._left_bytes -= size_bytes
        is_executable = bool(status.st_mode & stat.S_IXUSR)
        mtime_ns = min(max(status.st_mtime_ns, -(1 << 63)), (1 << 63) - 1)
        return TreeFile(path, sha256, size_bytes, mtime_ns, is_executable)

    def _copy_content(self, source_fd: int) -> tuple[bytes, int]:
        """Copy a file under the name of its digest; return digest and size."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self._folder / "partial"
        partial.unlink(missing_ok=True)
        target_fd = os.open(partial, _CREATE, 0o600)
        digest, size_bytes = hashlib.sha256(), 0
        try:
            while data := os.read(source_fd, COPY_BYTES):
                size_bytes += len(data)
                if size_bytes > self._left_bytes:
                    raise self._too_large()
                digest.update(data)
                write_all(target_fd, data)
            place = partial.rename(self._folder / digest.hexdigest())
            self._contents.note_right(place, os.fstat(target_fd))
        finally:
            os.close(target_fd)
            partial.unlink(missing_ok=True)
        return digest.digest(), size_bytes

    def _drop_after(self, count: int) -> None:
        """Remove all entries after the first `count`, and copies only they had."""
        while len(self._entries) > count:
            path, entry = self._entries.popitem()
            self._counts_below.subtract(_folders_above(path))
            if not isinstance(entry, TreeFile):
                continue
            self._left_bytes += entry.size_bytes
            self._uses[entry.sha256] -= 1
            if not self._uses[entry.sha256]:
                (self._folder / entry.sha256.hex()).unlink(missing_ok=True)

    # -- describing ----------------------------------------------------------------

    def _described(
        self, declared: str, kept: list[str], *, is_file: bool
    ) -> OutputFile:
        """Return the size of a captured output, of a folder or glob also the files."""
        if not kept:
            return OutputFile(declared, None)
        captured = [self._entries[path] for path in kept]
        files = [entry for entry in captured if isinstance(entry, TreeFile)]
        links = [entry for entry in captured if isinstance(entry, TreeLink)]
        size_bytes = sum(entry.size_bytes for entry in files)
        return OutputFile(
            declared, size_bytes, None if is_file else len(files) + len(links)
        )

    def _note(self, path: str, error: OSError) -> None:
        self._note_text(f"output {path} was not kept: {_reason(error)}")

    def _note_text(self, text: str) -> None:
        if text in self._problems:
            return  # A folder is tried for each of its entries.
        self._problem_count += 1
        if len(self._problems) < PROBLEMS_MAX:
            self._problems.append(text)


def _bounded(found: Iterator[_Found]) -> list[_Found]:
    """Return what was found; raise OSError if it is too much."""
    entries = list(islice(found, ENTRIES_MAX + 1))
    if len(entries) > ENTRIES_MAX:
        raise OSError(errno.E2BIG, TOO_MANY)
    return entries


def _folders_above(path: str) -> list[str]:
    return list(prefixes(path))[:-1]


def _check_folder(mode: int) -> None:
    """Raise OSError for a pipe, a socket or a device."""
    if not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "not a file or folder")


def _normalised(target: str) -> str:
    """Return the target of a link without `.` and empty parts."""
    if target.startswith("/"):
        return target
    return "/".join(part for part in target.split("/") if part not in ("", "."))


def _reason(error: OSError) -> str:
    if error.errno in _DISK_ERRORS:
        return DISK_FULL
    return str(error.strerror or error)


class OutputReader:
    """Reads captured outputs; concurrent readers of a tree share it.

    Args:
        outputs_dir: Folder for captured outputs, with a subfolder for each attempt.
        contents: Finds the contents that are wrong.
    """

    def __init__(self, outputs_dir: Path, contents: CapturedContents) -> None:
        self._outputs_dir, self._contents = outputs_dir, contents
        self._trees: WeakValueDictionary[Path, CapturedTree] = WeakValueDictionary()

    def read_tree(self, task: TaskId, attempt: AttemptId) -> CapturedTree:
        """Return the outputs of an attempt that were captured here. Blocks.

        Raises:
            OutputNotFound: there are none.
        """
        folder = outputs_folder(self._outputs_dir, task, attempt)
        tree = self._trees.get(folder)
        try:
            if tree is None:
                tree = self._make_tree(folder)
                self._trees[folder] = tree
        except (OSError, ManifestError):
            raise outputs_gone(task) from None
        return tree

    def _make_tree(self, folder: Path) -> CapturedTree:
        _, manifest = read_manifest(folder)

        def path_of(sha256: bytes) -> Path:
            path = folder / sha256.hex()
            if not self._contents.is_right(path):
                raise OutputNotFound("an output was damaged on the disk of this node")
            return path

        return CapturedTree(
            manifest,
            path_of,
            mark_fetched=lambda: mark_fetched(folder),
            is_damaged=(folder / DAMAGED_NAME).exists,
            distrust=lambda: self._contents.distrust(
                folder / sha256.hex() for sha256 in manifest.sizes()
            ),
        )
