"""Fetched outputs in a folder of the user: what is written, kept and refused."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octaskly.errors import OctasklyError
from octaskly.files import unpacker as unpacking
from octaskly.files.captured_tree import CapturedTree
from octaskly.files.home_folder import (
    FetchError,
    HomeFile,
    HomeFolder,
    HostileTree,
    KeptFile,
    WrongBytes,
)
from octaskly.files.manifest import TreeFile, TreeLink, make_manifest
from octaskly.files.unpacker import Fetched, Unpacker

NS = 1_000_000_000
ID = "task-001-aaaaaaaa"


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def archive(
    tmp_path: Path,
    files: Mapping[str, str],
    links: Mapping[str, str] | None = None,
    empty: tuple[str, ...] = (),
) -> bytes:
    """Return the archive that a worker sends for a tree; programs are executable."""
    store = tmp_path / "contents"
    store.mkdir(exist_ok=True)
    for text in files.values():
        (store / digest(text).hex()).write_text(text)
    tree = CapturedTree(
        make_manifest(
            [
                TreeFile(path, digest(text), len(text.encode()), 7 * NS, "app" in path)
                for path, text in files.items()
            ],
            [TreeLink(path, target) for path, target in (links or {}).items()],
            empty,
        ),
        lambda sha256: store / sha256.hex(),
    )
    return b"".join(tree.tar_chunks(0, tree.tar.size_bytes, 1000))


def unpack(
    folder: Path,
    data: bytes,
    *declared: str,
    sent: Mapping[str, str] | None = None,
    pieces: int = 700,
    is_cut: bool = False,
) -> Fetched:
    """Unpack an archive that arrives in pieces."""
    given = {path: digest(text) for path, text in (sent or {}).items()}
    home = HomeFolder(folder, task=ID, declared=declared, sent=given)
    unpacker = Unpacker(home)
    unpacker.begin("etag", unpacker.offset)
    try:
        for at in range(unpacker.offset, len(data), pieces):
            unpacker.add_data(data[at : at + pieces])
        return unpacker.fetched if is_cut else unpacker.finish()
    finally:
        unpacker.close()


def texts_in(folder: Path) -> dict[str, str]:
    """Return the files below a folder, and links as `-> target`."""
    return {
        str(place.relative_to(folder)): f"-> {place.readlink()}"
        if place.is_symlink()
        else place.read_text()
        for place in sorted(folder.rglob("*"))
        if place.is_symlink() or not place.is_dir()
    }


# --- placing -----------------------------------------------------------------------


def test_outputs_are_placed_with_times_bits_and_links(tmp_path: Path) -> None:
    """Folders are created; what else is there stays."""
    home = tmp_path / "home"
    (home / "build").mkdir(parents=True)
    (home / "build" / "old").write_text("old")
    (home / "build" / "app").write_text("previous")
    data = archive(
        tmp_path,
        {"build/app": "app", "build/sub/x": "x" * 2000, "log": ""},
        {"build/link": "sub/x"},
        ("build/empty",),
    )

    fetched = unpack(home, data, "build", "log")

    assert texts_in(home) == {
        "build/app": "app",
        "build/link": "-> sub/x",
        "build/old": "old",
        "build/sub/x": "x" * 2000,
        "log": "",
    }
    assert (home / "build" / "empty").is_dir()
    status = (home / "build" / "app").stat()
    umask = os.umask(0)
    os.umask(umask)
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o777 & ~umask, 7 * NS)
    assert (home / "log").stat().st_mode & 0o7777 == 0o666 & ~umask
    assert fetched == Fetched(files=4, bytes=2003)


@pytest.mark.parametrize(
    ("mode", "is_executable", "expected"),
    [
        (0o600, False, 0o600),
        (0o640, True, 0o750),
        (0o444, False, 0o444),
        (0o4775, False, 0o664),
    ],
)
def test_a_file_that_replaces_another_is_as_private(
    tmp_path: Path, mode: int, expected: int, *, is_executable: bool
) -> None:
    """A secret that was sent comes back within its folder."""
    home = tmp_path / "home"
    home.mkdir()
    name = "app" if is_executable else "log"
    (home / name).write_text("previous")
    (home / name).chmod(mode)

    unpack(home, archive(tmp_path, {name: "new"}), name)

    assert (home / name).read_text() == "new"
    assert (home / name).stat().st_mode & 0o7777 == expected


def test_a_local_file_that_changed_since_it_was_sent_is_kept(tmp_path: Path) -> None:
    """An unchanged one is replaced, as is one that was never sent."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("edited", "same", "never", "equal"):
        (home / name).write_text(name)
    data = archive(
        tmp_path, {"edited": "new", "same": "new", "never": "new", "equal": "equal"}
    )

    fetched = unpack(
        home,
        data,
        *("edited", "same", "never", "equal"),
        sent={"edited": "as it was sent", "same": "same", "equal": "before"},
    )

    assert texts_in(home) == {
        "edited": "edited",
        f"edited.octaskly-{ID}": "new",
        "same": "new",
        "never": "new",
        "equal": "equal",
    }
    assert fetched.kept == (KeptFile("edited", f"edited.octaskly-{ID}"),)


def test_a_local_file_with_the_longest_name_is_kept(tmp_path: Path) -> None:
    """The names of fetched ones are shorter, valid text, and differ."""
    home = tmp_path / "home"
    home.mkdir()
    names = ["é" * 127 + "a", "é" * 127 + "b"]
    for name in names:
        (home / name).write_text(name)
    data = archive(tmp_path, dict.fromkeys(names, "new"))

    fetched = unpack(home, data, *names, sent=dict.fromkeys(names, "as it was sent"))

    assert [kept.path for kept in fetched.kept] == names
    places = {kept.saved_as for kept in fetched.kept}
    assert len(places) == 2
    assert texts_in(home) == {name: name for name in names} | dict.fromkeys(
        places, "new"
    )


def test_something_in_the_way_is_kept(tmp_path: Path) -> None:
    """A folder, a file in place of a folder, a link, a pipe."""
    home, away = tmp_path / "home", tmp_path / "away"
    away.mkdir()
    (home / "out" / "folder").mkdir(parents=True)
    (home / "out" / "file").write_text("file")
    (home / "out" / "link").symlink_to(away / "file")
    (home / "out" / "linked").symlink_to(away)
    os.mkfifo(home / "out" / "pipe")
    names = ("folder", "file/x", "link", "linked/x", "pipe")
    data = archive(tmp_path, {f"out/{name}": "new" for name in names})

    fetched = unpack(home, data, "out")

    assert {kept.path for kept in fetched.kept} == {
        *("out/folder", "out/file", "out/link", "out/linked", "out/pipe")
    }
    for name in names:
        first, *rest = name.split("/")
        place = "/".join([f"{first}.octaskly-{ID}", *rest])
        assert (home / "out" / place).read_text() == "new"
    assert (home / "out" / "file").read_text() == "file"
    assert list(away.iterdir()) == []


@pytest.mark.parametrize("declared", ["build", "build/x", "build/*"])
def test_a_link_that_the_user_named_is_followed(tmp_path: Path, declared: str) -> None:
    """Build folders are often links to another disk."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    (home / "build").symlink_to(away)

    fetched = unpack(home, archive(tmp_path, {"build/x": "new"}), declared)

    assert texts_in(away) == {"x": "new"}
    assert (home / "build").is_symlink()
    assert not fetched.kept


def test_a_file_that_the_user_named_may_be_a_link(tmp_path: Path) -> None:
    """Its target is replaced by rename, too."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    (away / "real").write_text("old")
    (home / "result").symlink_to("../away/real")
    (home / "dangling").symlink_to("../away/none")

    data = archive(tmp_path, {"result": "new", "dangling": "new"})
    fetched = unpack(home, data, "result", "dangling")

    assert texts_in(away) == {"real": "new"}
    assert (home / "result").is_symlink()
    assert fetched.kept == (KeptFile("dangling", f"dangling.octaskly-{ID}"),)


def test_a_fetched_link_never_leads_out_of_a_followed_folder(tmp_path: Path) -> None:
    """`..` is another folder there than in the tree."""
    home, away = tmp_path / "home", tmp_path / "away"
    (home / "src").mkdir(parents=True)
    away.mkdir()
    (home / "build").symlink_to(away)
    links = {"build/up": "../src", "build/sub/up": "../x"}

    fetched = unpack(home, archive(tmp_path, {"build/x": ""}, links), "build")

    assert texts_in(away) == {"x": "", "sub/up": "-> ../x"}
    assert fetched.skipped_links == ("build/up",)


def test_two_fetches_at_once_leave_whole_files(tmp_path: Path) -> None:
    """Each is a copy of one of the two."""
    home = tmp_path / "home"
    first, second = (
        archive(tmp_path, {"a": text * 3000, "b": text * 3000}) for text in "12"
    )
    unpackers = [
        Unpacker(HomeFolder(home, task=f"task-{n}", declared=("a", "b"))) for n in "12"
    ]
    for unpacker in unpackers:
        unpacker.begin("etag", 0)
    for at in range(0, len(first), 100):
        for unpacker, data in zip(unpackers, (first, second), strict=True):
            unpacker.add_data(data[at : at + 100])
    for unpacker in unpackers:
        unpacker.finish()
        unpacker.close()

    assert set(texts_in(home)) == {"a", "b"}
    assert set(texts_in(home).values()) <= {"1" * 3000, "2" * 3000}


# --- resuming ----------------------------------------------------------------------


def test_a_file_that_another_fetch_writes_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers of one file would leave a hole in it for a while."""
    monkeypatch.setattr(unpacking, "SAVE_BYTES", 100)
    home, data = tmp_path / "home", archive(tmp_path, {"a": "a" * 5000})
    first = Unpacker(HomeFolder(home, task=ID, declared=["a"]))
    first.begin("etag", 0)
    first.add_data(data[:2000])
    assert f".octaskly-fetch-{ID}" in texts_in(home)

    second = Unpacker(HomeFolder(home, task=ID, declared=["a"]))
    assert second.offset == 0
    second.begin("etag", 0)
    second.add_data(data)
    second.finish()
    assert (home / "a").read_text() == "a" * 5000
    first.add_data(data[2000:])
    first.finish()

    for each in (first, second):
        each.close()
    assert texts_in(home) == {"a": "a" * 5000}


def test_an_interrupted_fetch_resumes_at_every_byte(tmp_path: Path) -> None:
    """By another process, with nothing received twice except a header."""
    data = archive(
        tmp_path, {"a": "a" * 600, "d/app": "app" * 500, "z": "z"}, {"l": "a"}, ("e",)
    )
    for cut in range(1, len(data), 97):
        home = tmp_path / f"home{cut}"
        first = Unpacker(HomeFolder(home, task=ID, declared=["*"]))
        first.begin("etag", 0)
        first.add_data(data[:cut])
        first.close()

        second = Unpacker(HomeFolder(home, task=ID, declared=["*"]))
        assert cut - 2048 <= second.offset <= cut
        second.begin("etag", second.offset)
        second.add_data(data[second.offset :])
        fetched = second.finish()
        second.close()

        assert (fetched.files, fetched.bytes) == (4, 2101)
        assert texts_in(home) == {
            "a": "a" * 600,
            "d/app": "app" * 500,
            "l": "-> a",
            "z": "z",
        }
        assert (home / "d" / "app").stat().st_mode & 0o100


@pytest.mark.parametrize(
    ("owner", "method"),
    [(HomeFolder, "open_file"), (HomeFile, "write"), (HomeFile, "finish")],
)
def test_a_fetch_that_was_interrupted_while_it_unpacked_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    """One part of the archive has the ends of several files."""
    texts = {f"f{n}": str(n) * 900 for n in range(8)}
    data = archive(tmp_path, texts)
    for count in range(1, 9):
        home = tmp_path / f"home{count}"
        with monkeypatch.context() as patch:
            interrupt = interrupting(getattr(owner, method), count)
            patch.setattr(owner, method, interrupt)
            with pytest.raises(KeyboardInterrupt):
                unpack(home, data, "*", pieces=5000)
        later = Unpacker(HomeFolder(home, task=ID, declared=["*"]))
        later.close()

        assert later.offset or count <= 2  # Nothing is known of the first part.
        assert unpack(home, data, "*", pieces=5000).files == len(texts)
        assert texts_in(home) == texts


def test_a_resumed_fetch_knows_what_had_arrived(tmp_path: Path) -> None:
    """Other members of an array must not replace it."""
    home, data = tmp_path / "home", archive(tmp_path, {"a": "a", "b": "b" * 5000})
    for cut in (4000, 5000):
        unpack(home, data[:cut], "*", is_cut=True)

    last = Unpacker(HomeFolder(home, task=ID, declared=["*"]))

    assert last.placed == {"a", "b"}
    last.begin("other", 0)
    assert last.placed == set()
    last.close()


def interrupting(method: Callable[..., object], count: int) -> Callable[..., object]:
    """Return a method whose call with this number is interrupted."""
    calls = itertools.count(1)

    def call(*args: object) -> object:
        if next(calls) == count:
            raise KeyboardInterrupt
        return method(*args)

    return call


@pytest.mark.parametrize("wrong", ["a", "d/app", "z"])
def test_a_file_with_wrong_bytes_is_discarded_and_may_arrive_again(
    tmp_path: Path, wrong: str
) -> None:
    """What was in its place stays until then; other files arrive once."""
    texts = {"a": "a" * 600, "d/app": "app" * 500, "z": "z" * 700}
    data = archive(tmp_path, texts)
    text = texts[wrong].encode()
    damaged = data.replace(text, text[:-1] + b"?")
    home = tmp_path / "home"
    (home / "d").mkdir(parents=True)
    (home / wrong).write_text("old")
    unpacker = Unpacker(HomeFolder(home, task=ID, declared=["*"]))
    unpacker.begin("etag", 0)

    with pytest.raises(WrongBytes, match=f"the bytes of {wrong} are not those"):
        unpacker.add_data(damaged)

    assert (home / wrong).read_text() == "old"
    assert damaged[: unpacker.offset] == data[: unpacker.offset]
    assert data[unpacker.offset :].count(b"PaxHeader") == 3 - [*texts].index(wrong)
    for more in (damaged, data):  # Another node has wrong bytes, too.
        unpacker.begin("etag", unpacker.offset)
        with contextlib.suppress(WrongBytes):
            unpacker.add_data(more[unpacker.offset :])
    assert unpacker.finish().files == 3
    unpacker.close()
    assert texts_in(home) == texts


def test_wrong_bytes_of_an_earlier_fetch_are_found(tmp_path: Path) -> None:
    """What it has left of a file is part of the digest; then all starts over."""
    data = archive(tmp_path, {"a": "a", "b": "b" * 5000})
    damaged = data.replace(b"b" * 5000, b"?" + b"b" * 4999)
    home = tmp_path / "home"
    unpack(home, damaged[:4000], "a", "b", is_cut=True)
    unpacker = Unpacker(HomeFolder(home, task=ID, declared=["a", "b"]))
    unpacker.begin("etag", unpacker.offset)

    with pytest.raises(WrongBytes):
        unpacker.add_data(data[unpacker.offset :])

    assert (unpacker.etag, unpacker.offset) == ("", 0)
    unpacker.begin("etag", 0)
    unpacker.add_data(data)
    assert unpacker.finish().files == 2
    unpacker.close()
    assert texts_in(home) == {"a": "a", "b": "b" * 5000}


def test_a_file_that_could_not_be_placed_is_not_skipped_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its bytes had arrived."""
    home = tmp_path / "home"
    data = archive(tmp_path, {"a": "a", "b": "b"})
    rename = os.rename

    def fail(name: str, place: str, **folders: int) -> None:
        if place == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(name, place, **folders)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(FetchError):
        unpack(home, data, "a", "b")
    monkeypatch.undo()

    unpack(home, data, "a", "b")

    assert texts_in(home) == {"a": "a", "b": "b"}


def test_a_fetch_of_other_outputs_starts_over(tmp_path: Path) -> None:
    """The worker has another tree than before, so nothing of it counts."""
    home = tmp_path / "home"
    before, data = (archive(tmp_path, {"a": text * 3000}) for text in "12")
    first = Unpacker(HomeFolder(home, task=ID, declared=["a"]))
    first.begin("one", 0)
    first.add_data(before[:2000])
    first.close()

    second = Unpacker(HomeFolder(home, task=ID, declared=["a"]))
    assert (second.etag, second.offset) == ("one", 2000)
    second.begin("two", 0)
    second.add_data(data)
    second.finish()
    second.close()

    assert texts_in(home) == {"a": "2" * 3000}


@pytest.mark.parametrize("damage", ["state", "partial", "target", "entry"])
def test_a_damaged_state_starts_over(tmp_path: Path, damage: str) -> None:
    """Nor may it lead anywhere."""
    home = tmp_path / "home"
    data = archive(tmp_path, {"a": "a" * 3000})
    (tmp_path / "secret").write_text("secret" * 1000)
    first = Unpacker(HomeFolder(home, task=ID, declared=["a"]))
    first.begin("etag", 0)
    first.add_data(data[:2000])
    first.close()
    state = home / f".octaskly-fetch-{ID}"
    [partial] = [p for p in home.iterdir() if p != state]
    match damage:
        case "state":
            state.write_text("{")
        case "partial":
            partial.write_text("short")
        case "target":
            text = state.read_text().replace(partial.name, "../secret")
            state.write_text(text)
        case _:
            state.write_text(state.read_text().replace('"a"', '"../secret"'))

    second = Unpacker(HomeFolder(home, task=ID, declared=["a"]))
    second.close()

    assert (second.etag, second.offset) == ("", 0)
    assert (tmp_path / "secret").read_text() == "secret" * 1000


# --- this machine's disk -----------------------------------------------------------


def test_a_full_disk_is_named_and_nothing_is_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says which side; the next fetch goes on."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "b").write_text("old")
    data = archive(tmp_path, {"a": "a", "b": "b" * 5000})
    write = os.write
    written = 0

    def fill(fd: int, more: memoryview) -> int:
        nonlocal written
        written += len(more)
        if written > 2000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, more)

    monkeypatch.setattr(os, "write", fill)
    with pytest.raises(FetchError, match="the disk of this machine has no space for b"):
        unpack(home, data, "a", "b")
    assert texts_in(home).keys() == {"a", "b", f".octaskly-fetch-{ID}"}
    assert (home / "b").read_text() == "old"

    monkeypatch.undo()
    fetched = unpack(home, data, "a", "b")

    assert texts_in(home) == {"a": "a", "b": "b" * 5000}
    assert (fetched.files, fetched.bytes) == (2, 5001)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """With its path. The kernel lets nobody create a file there, not even root."""
    with pytest.raises(FetchError, match="/sys/a cannot be written: "):
        unpack(Path("/sys"), archive(tmp_path, {"a": "a"}), "a")


# --- hostile workers ---------------------------------------------------------------


def tar_of(*members: tuple[str, bytes, str, bytes]) -> bytes:
    """Return an archive of any members: name, type, target, content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, target, content in members:
            member = tarfile.TarInfo()
            member.name, member.type, member.linkname = name, kind, target
            member.size = len(content)
            if kind == tarfile.REGTYPE:
                sha256 = hashlib.sha256(content).hexdigest()
                member.pax_headers = {"comment": f"sha256={sha256}"}
            out.write(member.tobuf(tarfile.PAX_FORMAT))
            out.write(content + bytes(-len(content) % 512))
            tar.offset = out.tell()
    return out.getvalue()


REG, SYM, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE

HOSTILE: dict[str, tuple[tuple[str, bytes, str, bytes], ...]] = {
    "absolute": (("/etc/x", REG, "", b"x"),),
    "up": (("../x", REG, "", b"x"),),
    "up inside": (("out/../../x", REG, "", b"x"),),
    "not declared": (("src/main.c", REG, "", b"x"),),
    "git": (("out/.git/hooks/post-checkout", REG, "", b"x"),),
    "git in capitals": (("out/.GIT/config", REG, "", b"x"),),
    "link out": (("out/l", SYM, "../../x", b""),),
    "absolute link": (("out/l", SYM, "/etc", b""),),
    "link in a circle through ..": (("out/l", SYM, "a/../..", b""),),
    "link as the output": (("out", SYM, "src", b""),),
    "below a link": (("out/l", SYM, ".", b""), ("out/l/x", REG, "", b"x")),
    "below an inner link": (("out/l", SYM, "../src", b""), ("out/l/x", REG, "", b"x")),
    "below a file": (("out/f", REG, "", b""), ("out/f/x", REG, "", b"x")),
    "twice": (("out/f", REG, "", b"1"), ("out/f", REG, "", b"2")),
    "file, then link": (("out/f", REG, "", b"1"), ("out/f", SYM, "x", b"")),
    "folder, then file": (("out/d/x", REG, "", b""), ("out/d", REG, "", b"x")),
    "the state": ((f".octaskly-fetch-{ID}", REG, "", b"{}"),),
    "device": (("out/dev", tarfile.CHRTYPE, "", b""),),
    "pipe": (("out/pipe", tarfile.FIFOTYPE, "", b""),),
    "hard link": (("out/hard", tarfile.LNKTYPE, "/etc/passwd", b""),),
    "no name": (("", REG, "", b"x"),),
    "dot": ((".", DIR, "", b""),),
}


REFUSED: dict[str, tuple[str, str]] = {
    "absolute": ("/etc/x", "'/etc/x' is not a path below the folder"),
    "up": ("../x", "'../x' is not a path below the folder"),
    "up inside": ("out/../../x", "'out/../../x' is not a path below the folder"),
    "not declared": ("src/main.c", "it is not a declared output"),
    "git": ("out/.git/hooks/post-checkout", "it has a reserved name"),
    "git in capitals": ("out/.GIT/config", "it has a reserved name"),
    "link out": ("out/l", "the link 'out/l' points outside the folder"),
    "absolute link": ("out/l", "the link 'out/l' points outside the folder"),
    "link in a circle through ..": (
        "out/l",
        "'a/../..' is not a path below the folder",
    ),
    "link as the output": ("out", "a declared output must not become a link"),
    "below a link": ("out/l/x", "it lies below a file or link"),
    "below an inner link": ("out/l/x", "it lies below a file or link"),
    "below a file": ("out/f/x", "it lies below a file or link"),
    "twice": ("out/f", "it occurs twice"),
    "file, then link": ("out/f", "it occurs twice"),
    "folder, then file": ("out/d", "it occurs twice"),
    "the state": (f".octaskly-fetch-{ID}", "it has a reserved name"),
    "no name": ("", "'' is not a path below the folder"),
    "dot": (".", "'.' is not a path below the folder"),
}
"""Path and reason of each refusal."""

UNREADABLE = dict.fromkeys(
    ("device", "pipe", "hard link"), "is not a file, link or folder"
)
REFUSALS = {
    kind: f"the worker sent {path!r}, which was refused: {why}"
    for kind, (path, why) in REFUSED.items()
} | {
    kind: f"the outputs cannot be unpacked: {HOSTILE[kind][0][0]!r} {why}"
    for kind, why in UNREADABLE.items()
}


@pytest.mark.parametrize(("kind", "members"), HOSTILE.items(), ids=HOSTILE)
def test_a_hostile_archive_is_refused(
    tmp_path: Path, kind: str, members: tuple[tuple[str, bytes, str, bytes], ...]
) -> None:
    """And what was there is as it was."""
    home = tmp_path / "home"
    (home / "src").mkdir(parents=True)
    (home / "src" / "main.c").write_text("mine")
    declared = ["out", ".octaskly*"]

    with pytest.raises(HostileTree) as refused:
        unpack(home, tar_of(*members), *declared)

    assert refused.value.message == REFUSALS[kind]
    kept = {p: t for p, t in texts_in(home).items() if not p.startswith("out/")}
    assert kept == {"src/main.c": "mine"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]


@pytest.mark.parametrize("size", [0, 600, 1024 + 512])
def test_an_archive_without_its_end_is_refused(tmp_path: Path, size: int) -> None:
    """A worker that says it is complete would hide what it lost."""
    data = archive(tmp_path, {"out": "x" * 900})

    with pytest.raises(HostileTree, match="no end"):
        unpack(tmp_path / "home", data[:size], "out")


names = st.sampled_from(
    ["out", "src", "a", "l", "..", ".", "", ".git", ".GIT", "x\0y", "\u0130", "c" * 300]
)
some_paths = st.tuples(
    st.sampled_from(["", "/", "out/", "out/l/", "../"]),
    st.lists(names, min_size=1, max_size=4).map("/".join),
).map("".join)
some_members = st.tuples(
    some_paths,
    st.sampled_from([REG, REG, SYM, SYM, DIR, tarfile.LNKTYPE, tarfile.FIFOTYPE]),
    some_paths,
    st.binary(max_size=700),
)


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """Return a function that makes folders for examples."""
    count = 0

    def make() -> Path:
        nonlocal count
        count += 1
        home = tmp_path / str(count) / "home"
        (home / "src").mkdir(parents=True)
        (home / "src" / "main.c").write_text("mine")
        (home / "out").mkdir()
        (home / "out" / "away").symlink_to("../../beside")
        (home.parent / "beside").mkdir()
        (home.parent / "beside" / "file").write_text("beside")
        return home

    return make


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(some_members, max_size=6),
    cut=st.integers(0, 1 << 14),
    flip=st.none() | st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)),
)
def test_no_archive_is_unpacked_outside(
    fresh: Callable[[], Path],
    members: list[tuple[str, bytes, str, bytes]],
    cut: int,
    flip: tuple[int, int] | None,
) -> None:
    """Whatever a worker sends, also over two fetches of which the first was cut."""
    home = fresh()
    data = bytearray(tar_of(*members))
    if flip:
        data[flip[0] % len(data)] = flip[1]
    for part in (data[: cut % len(data)], data):
        with contextlib.suppress(OctasklyError):
            unpack(home, bytes(part), "out", is_cut=part is not data)

    above = home.parent
    assert (above / "beside" / "file").read_text() == "beside"
    assert [p.name for p in (above / "beside").iterdir()] == ["file"]
    assert sorted(p.name for p in above.iterdir()) == ["beside", "home"]
    assert (home / "src" / "main.c").read_text() == "mine"
    assert [p.name for p in (home / "src").iterdir()] == ["main.c"]
    visible = {p.name for p in home.iterdir() if not p.name.startswith(".octaskly-")}
    assert visible <= {"src", "out", f"out.octaskly-{ID}"}
    for place in (home / "out").rglob("*"):
        assert ".git" not in place.name.lower()
        if place.is_symlink() and place.name != "away":
            target = os.path.normpath(place.parent / place.readlink())
            assert Path(target).is_relative_to(home)
