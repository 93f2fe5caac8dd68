"""Unpacking fetched outputs as they arrive, so that an interrupted fetch resumes.

While a fetch is incomplete, a file in the target folder holds its state: what has
arrived, and the file that is being written.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

import msgspec

from octaskly.files.home_folder import (
    PARTIAL_PREFIX,
    STATE_PREFIX,
    FetchError,
    HomeFile,
    HomeFolder,
    HostileTree,
    KeptFile,
    WrongBytes,
)
from octaskly.files.manifest import MANIFEST_BYTES_MAX
from octaskly.files.tree_tar import TarEntry, TarError, TarReader, padding

SAVE_BYTES: Final = 64 << 20  #: a killed fetch loses at most so many bytes
STATE_BYTES_MAX: Final = 2 * MANIFEST_BYTES_MAX


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """The result of fetching the outputs of one task."""

    files: int = 0  #: number of files and links
    bytes: int = 0
    kept: tuple[KeptFile, ...] = ()
    skipped_links: tuple[str, ...] = ()
    """Links that would have led out of a folder that is itself reached by a link."""
    missing: tuple[str, ...] = ()  #: declared outputs that were missing at the end


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an incomplete fetch."""

    etag: str
    offset: int  #: in the archive
    entry: TarEntry | None = None  #: whose content was arriving
    remaining_bytes: int = 0
    partial: str = ""  #: name of the file with its beginning
    files: int = 0
    bytes: int = 0
    kept: tuple[KeptFile, ...] = ()
    placed: tuple[str, ...] = ()  #: paths of entries


class Unpacker:
    """Unpacks the archive of a task's outputs into a folder.

    Args:
        home: The folder.
    """

    def __init__(self, home: HomeFolder) -> None:
        self._home = home
        self._file: HomeFile | None = None
        self._entry: TarEntry | None = None
        self._state_file = home.folder / f"{STATE_PREFIX}{home.task}"
        self._reset("")
        self._load_state()

    @property
    def fetched(self) -> Fetched:
        """The result so far."""
        return Fetched(
            files=self._files,
            bytes=self._bytes,
            kept=tuple(self._home.kept),
            skipped_links=tuple(self._home.skipped_links),
        )

    @property
    def placed(self) -> set[str]:
        """The paths of entries so far, also of the fetch that this one resumes."""
        return self._placed_before | self._home.placed

    def begin(self, etag: str, offset: int) -> None:
        """Expect the bytes of an archive from an offset: `self.offset`, or 0."""
        if etag != self.etag or offset != self.offset:
            assert not offset, "a part that was not asked for"
            self._discard_file()
            self._home.start_over()
            self._reset(etag)

    def add_data(self, data: bytes) -> None:
        """Unpack the next bytes.

        Raises:
            WrongBytes: a file was discarded; `offset` is where it begins.
            FetchError: an entry is refused, or cannot be written.
        """
        try:
            for part in self._reader.add_data(data):
                if isinstance(part, TarEntry):
                    self._begin_entry(part)
                elif part is None:
                    self._end_entry()
                elif self._file is not None:
                    self._file.write(part)
        except TarError as error:
            self._forget_state()
            raise HostileTree(f"the outputs cannot be unpacked: {error}") from None
        except HostileTree:
            self._forget_state()
            raise
        except WrongBytes:
            self._return_to_wrong_file()
            raise
        except FetchError:
            self._return_to_entry_end()
            raise
        self.offset += len(data)
        if self.offset - self._saved_offset >= SAVE_BYTES:
            self._save_state()

    def finish(self) -> Fetched:
        """Return what was fetched, after the whole archive arrived.

        Raises:
            FetchError: it has no end.
        """
        if not self._reader.is_over:
            self._forget_state()
            raise HostileTree("the outputs cannot be unpacked: the archive has no end")
        with suppress(OSError):
            self._state_file.unlink(missing_ok=True)
        self._is_ended = True
        return self.fetched

    def close(self) -> None:
        """Save the state of an incomplete fetch, which may have ended anywhere."""
        if self._reader.entry is None or not self.offset:
            self._discard_file()  # It arrives again from its beginning.
        if not self._is_ended and self.offset:
            self._save_state()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _reset(self, etag: str) -> None:
        self.etag = etag
        self.offset = 0  #: of the next byte
        self._saved_offset = 0
        self._start = 0  #: of what the reader reads
        self._reader = TarReader()
        self._entry = None
        self._file = None
        self._files = self._bytes = 0
        self._placed_before: set[str] = set()
        self._is_ended = False

    def _begin_entry(self, entry: TarEntry) -> None:
        self._home.check_entry(entry)
        self._entry = entry
        if entry.is_file:
            self._file = self._home.open_file(entry)
        elif entry.is_link:
            self._home.place_link(entry)
        else:
            self._home.place_folder(entry)

    def _end_entry(self) -> None:
        assert self._entry is not None
        if self._file is not None:
            self._file.finish()
            self._file = None
        self._files += self._entry.is_file or self._entry.is_link
        self._bytes += self._entry.size_bytes

    def _discard_file(self) -> None:
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _forget_state(self) -> None:
        """Start over the next time, because what arrived may not be continued."""
        self._discard_file()
        self._is_ended = True
        with suppress(OSError):
            self._state_file.unlink(missing_ok=True)

    def _return_to_wrong_file(self) -> None:
        """Continue with the header of the file that was discarded."""
        assert self._entry is not None
        self._discard_file()
        if self._reader.began_inside and not self._reader.entry_end:
            self._home.start_over()  # It is not known where the header begins.
            self._reset("")
            return
        self._home.expect_again(self._entry.path)
        self.offset = self._start = self._start + self._reader.entry_end
        self._reader, self._entry = TarReader(), None

    def _return_to_entry_end(self) -> None:
        """Continue after the last complete entry the next time."""
        if not self._reader.entry_end:
            self._forget_state()
            return
        self._discard_file()
        self._start, self._reader = self._start + self._reader.entry_end, TarReader()
        self._save_state()
        self._is_ended = True

    # -- the state -----------------------------------------------------------------

    def _save_state(self) -> None:
        """Write the state; without it, the next fetch starts over."""
        reader, arriving = self._reader, self._file
        taken_bytes = reader.content_end - reader.remaining_bytes
        state = _State(
            etag=self.etag,
            offset=self._start + (taken_bytes if arriving else reader.entry_end),
            entry=reader.entry if arriving else None,
            remaining_bytes=reader.remaining_bytes,
            partial=arriving.name if arriving else "",
            files=self._files,
            bytes=self._bytes,
            kept=tuple(self._home.kept),
            placed=tuple(self.placed),
        )
        self._saved_offset = self.offset
        partial = self._state_file.with_name(f"{self._state_file.name}.new")
        with suppress(OSError):
            fd = os.open(
                partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600
            )
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.json.encode(state))
            partial.replace(self._state_file)

    def _load_state(self) -> None:
        """Continue an incomplete fetch, if its state and its file are there."""
        try:
            fd = os.open(self._state_file, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(fd, "rb") as file:
                data = file.read(STATE_BYTES_MAX)
            state = msgspec.json.decode(data, type=_State)
            if state.entry is not None:
                self._resume_entry(state, state.entry)
        except (OSError, msgspec.MsgspecError, UnicodeError, FetchError):
            self._discard_file()
            self._home.start_over()
            self._reset("")
            return
        self.etag, self.offset = state.etag, state.offset
        self._start = self._saved_offset = state.offset
        self._files, self._bytes = state.files, state.bytes
        self._home.kept.extend(state.kept)
        self._placed_before.update(state.placed)

    def _resume_entry(self, state: _State, entry: TarEntry) -> None:
        self._home.check_entry(entry)
        self._entry = entry
        self._reader = TarReader(entry, state.remaining_bytes)
        if "/" in state.partial or not state.partial.startswith(PARTIAL_PREFIX):
            raise FetchError("the state of the fetch is damaged")
        self._file = self._home.open_file(entry, state.partial)
        pad = padding(entry.size_bytes)
        arrived = entry.size_bytes - max(state.remaining_bytes - pad, 0)
        self._file.read_beginning(arrived)
