"""Trees as tar archives: byte for byte from a manifest, and a strict reader of them.

An archive is uncompressed, its entries are ordered by path, and equal trees have equal
archives. Each part of one can be made anew, so an interrupted transfer resumes at any
byte. The SHA-256 of each file is a comment in its pax header, which other programs
ignore. The reader accepts only what this module writes: files, links and folders.

Source: POSIX pax, "pax Interchange Format"; GNU tar and Python read it, too.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from octaskly.errors import OctasklyError
from octaskly.files.manifest import (
    ENTRIES_MAX,
    PATH_BYTES_MAX,
    Entry,
    Manifest,
    TreeFile,
    TreeLink,
    entry_path,
)

BLOCK_BYTES: Final = 512
END_BYTES: Final = 2 * BLOCK_BYTES  #: two blocks of zeros end an archive
NAME_BYTES: Final = 100  #: longer names are in a pax header
OCTAL_SIZE_MAX: Final = 8**11 - 1  #: of a file; larger sizes are in a pax header
PAX_BYTES_MAX: Final = 4 * PATH_BYTES_MAX
DIGEST_PREFIX: Final = "sha256="  #: of the comment with the digest of a file
NS: Final = 1_000_000_000

_FILE, _LINK, _FOLDER, _PAX = b"0", b"2", b"5", b"x"
_EXECUTABLE, _PLAIN = 0o755, 0o644
_TIME = re.compile(r"(?P<sign>-?)(?P<s>\d{1,11})(\.(?P<fraction>\d{1,9}))?", re.ASCII)
_OCTAL = re.compile(rb"[0-7]{1,11}")
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_DIGEST = re.compile(DIGEST_PREFIX.encode() + rb"([0-9a-f]{64})")
_PAX_KEYS = (b"path", b"linkpath", b"size", b"mtime", b"comment")


class TarError(OctasklyError):
    """An archive is damaged, or is not of the form that nodes send."""


class ContentPart(NamedTuple):
    """A part of a file's content inside an archive."""

    file: TreeFile
    start: int
    end: int


class TarLayout:
    """The archive of a tree: which bytes lie where."""

    def __init__(self, manifest: Manifest) -> None:
        self._entries = manifest.entries()
        self._starts = array("Q")
        end = 0
        for entry in self._entries:
            self._starts.append(end)
            size = _size_of(entry)
            end += len(entry_header(entry)) + size + padding(size)
        self._content_end = end
        self.size_bytes = end + END_BYTES

    def parts(self, start: int, end: int) -> Iterator[bytes | ContentPart]:
        """Yield what the bytes from `start` to `end` consist of."""
        index = max(bisect_right(self._starts, start) - 1, 0)
        for at in range(index, len(self._entries)):
            entry, begin = self._entries[at], self._starts[at]
            if begin >= end:
                return
            header, size = entry_header(entry), _size_of(entry)
            yield header[max(start - begin, 0) : max(end - begin, 0)]
            begin += len(header)
            if isinstance(entry, TreeFile):
                first, last = max(start - begin, 0), min(end - begin, size)
                if first < last:
                    yield ContentPart(entry, first, last)
            begin += size
            pad = bytes(padding(size))
            yield pad[max(start - begin, 0) : max(end - begin, 0)]
        tail = bytes(END_BYTES)
        begin = self._content_end
        yield tail[max(start - begin, 0) : max(end - begin, 0)]


def padding(size_bytes: int) -> int:
    """Return the number of zeros after a content of this size."""
    return -size_bytes % BLOCK_BYTES


def entry_header(entry: Entry) -> bytes:
    """Return the header of an entry, with a pax header if it needs one."""
    path, target, mtime_ns, records = entry_path(entry), "", 0, b""
    kind, mode, size = _FOLDER, _EXECUTABLE, _size_of(entry)
    if isinstance(entry, TreeFile):
        kind, mtime_ns = _FILE, entry.mtime_ns
        mode = _EXECUTABLE if entry.is_executable else _PLAIN
        records = _record("comment", DIGEST_PREFIX + entry.sha256.hex())
    elif isinstance(entry, TreeLink):
        kind, target = _LINK, entry.target
    if _needs_record(path):
        records += _record("path", path)
    if _needs_record(target):
        records += _record("linkpath", target)
    if size > OCTAL_SIZE_MAX:
        records += _record("size", str(size))
    if mtime_ns % NS or not 0 <= mtime_ns // NS <= OCTAL_SIZE_MAX:
        records += _record("mtime", _time_text(mtime_ns))
    pax = b""
    if records:
        pax = _block(b"././@PaxHeader", _PLAIN, len(records), 0, _PAX, b"")
        pax += records + bytes(padding(len(records)))
    seconds = min(max(mtime_ns // NS, 0), OCTAL_SIZE_MAX)
    shown = min(size, OCTAL_SIZE_MAX)
    return pax + _block(_cut(path), mode, shown, seconds, kind, _cut(target))


class TarEntry(NamedTuple):
    """The header of an entry in a received archive; nothing in it can be trusted."""

    path: str
    kind: bytes
    size_bytes: int = 0  #: of the content that follows
    mtime_ns: int = 0
    is_executable: bool = False
    target: str = ""
    sha256: str = ""  #: of the content of a file, in hexadecimal

    @property
    def is_file(self) -> bool:
        """Return True for a regular file."""
        return self.kind == _FILE

    @property
    def is_link(self) -> bool:
        """Return True for a symbolic link."""
        return self.kind == _LINK


class TarReader:
    """Takes the entries out of a received archive; holds at most one header.

    Args:
        entry: The entry that an earlier reader had begun, to resume inside it.
        remaining_bytes: Bytes of its content and padding that have not arrived.
    """

    def __init__(self, entry: TarEntry | None = None, remaining_bytes: int = 0) -> None:
        self.entry = entry  #: the entry whose content is arriving
        self.began_inside = entry is not None
        self.remaining_bytes = remaining_bytes
        self.is_over = False  #: the end of the archive has arrived
        self._buffer = bytearray()
        self._pax: dict[bytes, bytes] = {}
        self._pax_bytes = 0  #: of a pax header that has not arrived completely
        self._count = 0
        self._total_bytes = 0  #: of earlier calls
        self.entry_end = 0  #: number of bytes up to the end of the last taken entry
        self.content_end = remaining_bytes  #: the same for the entry that is arriving

    def add_data(self, data: bytes) -> Iterator[TarEntry | memoryview | None]:
        """Yield each entry, then its content in pieces, then None at its end.

        Raises:
            TarError: nodes do not send such an archive.
        """
        view = memoryview(data)
        while True:
            if self.entry is not None:
                content = self.remaining_bytes - padding(self.entry.size_bytes)
                if content > 0 and view:
                    yield view[:content]
                arrived = min(self.remaining_bytes, len(view))
                view = view[arrived:]
                self.remaining_bytes -= arrived
                if self.remaining_bytes:
                    break
                self.entry = None
                yield None
                # Not before the caller has taken it: else a failure would skip it.
                self.entry_end = self.content_end
            missing = max(self._pax_bytes, BLOCK_BYTES) - len(self._buffer)
            self._buffer += view[:missing]
            if len(view) < missing:
                break
            view = view[missing:]
            entry = self._read_block(bytes(self._buffer))
            self._buffer.clear()
            if entry is not None:
                self.entry = entry
                self.remaining_bytes = entry.size_bytes + padding(entry.size_bytes)
                taken_bytes = self._total_bytes + len(data) - len(view)
                self.content_end = taken_bytes + self.remaining_bytes
                yield entry
        self._total_bytes += len(data)

    def _read_block(self, block: bytes) -> TarEntry | None:
        """Read a header, or the records of a pax header."""
        if self._pax_bytes:
            self._pax_bytes = 0
            self._pax = _records(block)
            return None
        if not any(block):
            self.is_over = True
            return None
        if self.is_over:
            raise TarError("the archive goes on after its end")
        _check_sum(block)
        kind, size = block[156:157], _octal(block[124:136])
        if kind == _PAX:
            if self._pax or not 0 < size <= PAX_BYTES_MAX:
                raise TarError("the archive has an invalid pax header")
            self._pax_bytes = size + padding(size)
            return None
        self._count += 1
        if self._count > ENTRIES_MAX:
            raise TarError(f"the archive has more than {ENTRIES_MAX} entries")
        pax, self._pax = self._pax, {}
        return _entry(block, kind, size, pax)


def _entry(
    block: bytes, kind: bytes, size_bytes: int, pax: dict[bytes, bytes]
) -> TarEntry:
    path = _text(pax.get(b"path", block[:NAME_BYTES].split(b"\0", 1)[0]))
    if kind not in (_FILE, _LINK, _FOLDER):
        raise TarError(f"{path[:200]!r} is not a file, link or folder")
    if b"size" in pax:
        if not _DECIMAL.fullmatch(pax[b"size"]):
            raise TarError("the archive has an invalid size")
        size_bytes = int(pax[b"size"])
    if size_bytes and kind != _FILE:
        raise TarError("the archive has a link or folder with a content")
    mtime_ns = _octal(block[136:148]) * NS
    if b"mtime" in pax:
        mtime_ns = _time_ns(pax[b"mtime"])
    target = _text(pax.get(b"linkpath", block[157:257].split(b"\0", 1)[0]))
    is_executable = bool(_octal(block[100:108]) & 0o100)
    if kind == _FOLDER:
        path = path.removesuffix("/")
    digest = _DIGEST.fullmatch(pax.get(b"comment", b""))
    if kind == _FILE and digest is None:
        raise TarError(f"the archive has no SHA-256 of {path[:200]!r}")
    sha256 = digest[1].decode() if digest else ""
    return TarEntry(path, kind, size_bytes, mtime_ns, is_executable, target, sha256)


def _size_of(entry: Entry) -> int:
    return entry.size_bytes if isinstance(entry, TreeFile) else 0


def _needs_record(text: str) -> bool:
    return len(text) > NAME_BYTES or not text.isascii()


def _cut(text: str) -> bytes:
    """Return a name for readers that know no pax headers."""
    return text.encode("ascii", "replace")[:NAME_BYTES]


def _record(key: str, value: str) -> bytes:
    """Return a record of a pax header, which begins with its own length."""
    rest = f" {key}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def _records(block: bytes) -> dict[bytes, bytes]:
    """Return the records of a pax header; the zeros after them are padding."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(block) and block[at]:
        length, _, _ = block[at : at + 6].partition(b" ")
        if not _DECIMAL.fullmatch(length):
            raise TarError("the archive has an invalid pax header")
        record = block[at + len(length) + 1 : at + int(length)]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or at + int(length) > len(block):
            raise TarError("the archive has an invalid pax header")
        if key not in _PAX_KEYS or key in records:
            raise TarError(f"the archive has a pax record {key[:40]!r}")
        records[key] = value[:-1]
        at += int(length)
    return records


def _time_text(time_ns: int) -> str:
    sign = "-" if time_ns < 0 else ""
    seconds, fraction = divmod(abs(time_ns), NS)
    return f"{sign}{seconds}.{fraction:09}"


def _time_ns(text: bytes) -> int:
    match = _TIME.fullmatch(text.decode("ascii", "replace"))
    if match is None:
        raise TarError("the archive has an invalid time")
    time_ns = int(match["s"]) * NS + int(f"{match['fraction'] or '0':0<9}")
    time_ns = -time_ns if match["sign"] else time_ns
    return min(max(time_ns, -(1 << 63)), (1 << 63) - 1)


def _block(
    name: bytes, mode: int, size: int, mtime_s: int, kind: bytes, target: bytes
) -> bytes:
    head = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name.ljust(NAME_BYTES, b"\0"),
        mode,
        0,
        0,
        size,
        mtime_s,
    )
    tail = kind + target.ljust(NAME_BYTES, b"\0") + b"ustar\00000"
    tail = tail.ljust(BLOCK_BYTES - len(head) - 8, b"\0")
    total = sum(head) + sum(tail) + 8 * ord(" ")
    return head + b"%06o\0 " % total + tail


def _check_sum(block: bytes) -> None:
    total = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    if block[257:263] != b"ustar\0" or _octal(block[148:156]) != total:
        raise TarError("the archive is damaged")


def _octal(field: bytes) -> int:
    text = field.rstrip(b" \0")
    if not _OCTAL.fullmatch(text):
        raise TarError("the archive is damaged")
    return int(text, 8)


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise TarError(f"the archive has the name {name[:80]!r}") from None
