"""Trees that are to be sent: what `--in` names, and everything that cannot be sent."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.files import local_tree
from octaskly.files.digest_index import RACY_NS, DigestIndex
from octaskly.files.local_tree import (
    CHUNK_BYTES,
    FileChanged,
    LocalTree,
    Skipped,
    name_path,
    scan_tree,
    split_at_place,
)
from octaskly.files.manifest import ManifestError, TreeFile, TreeLink, decode_manifest

NOBODY = 65534

NOT_HERE = "name a file or folder that is here, and that you may read"


def write(top: Path, *paths: str, text: str = "") -> None:
    for path in paths:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)


def scan(
    top: Path, *named: str, index: DigestIndex | None = None, sends_all: bool = False
) -> LocalTree:
    return scan_tree(
        [name_path(*split_at_place(text, str(top)), str(top)) for text in named],
        index=index or DigestIndex(None, time.time_ns),
        includes_ignored=sends_all,
    )


def paths(tree: LocalTree) -> list[str]:
    return [file.path for file in tree.manifest.files]


def content(tree: LocalTree, path: str) -> bytes:
    [file] = [file for file in tree.manifest.files if file.path == path]
    return b"".join(tree.read_content(file.sha256.hex()))


def error_of(top: Path, *named: str) -> str:
    """The message and the hint, with TOP for the folder."""
    with pytest.raises(ManifestError) as caught:
        scan(top, *named)
    return f"{caught.value.message} | {caught.value.hint}".replace(str(top), "TOP")


# --- What is sent ------------------------------------------------------------------


def test_a_tree_has_the_contents_times_and_executable_bits(tmp_path: Path) -> None:
    """And the manifest that receivers decode."""
    write(tmp_path, "src/run.sh", text="#!")
    write(tmp_path, "src/a.c", text="int")
    (tmp_path / "src" / "run.sh").chmod(0o755)
    (tmp_path / "src" / "none").mkdir()
    (tmp_path / "src" / "up").symlink_to("run.sh")
    os.utime(tmp_path / "src" / "a.c", ns=(5, 1_234_567_891))

    tree = scan(tmp_path, "src")

    script, source = (hashlib.sha256(data).digest() for data in (b"#!", b"int"))
    times = (tmp_path / "src" / "run.sh").stat()
    assert tree.manifest.files == (
        TreeFile("src/a.c", source, 3, 1_234_567_891),
        TreeFile("src/run.sh", script, 2, times.st_mtime_ns, is_executable=True),
    )
    assert tree.manifest.links == (TreeLink("src/up", "run.sh"),)
    assert tree.manifest.empty_folders == ("src/none",)
    assert decode_manifest(tree.manifest_bytes) == tree.manifest
    assert tree.sha256 == hashlib.sha256(tree.manifest_bytes).hexdigest()
    assert tree.sizes() == {
        source.hex(): 3,
        script.hex(): 2,
        tree.sha256: len(tree.manifest_bytes),
    }
    assert content(tree, "src/a.c") == b"int"
    assert b"".join(tree.read_content(tree.sha256)) == tree.manifest_bytes


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["a"], ["a"]),
        (["./a"], ["a"]),
        (["d/b"], ["d/b"]),
        (["d//./b"], ["d/b"]),
        (["d/b=b"], ["b"]),
        (["d/b=x/./y"], ["x/y"]),
        (["d"], ["d/b", "d/e/c"]),
        (["d/"], ["d/b", "d/e/c"]),
        (["d=."], ["b", "e/c"]),
        (["d=x/"], ["x/b", "x/e/c"]),
        (["d/../a=a"], ["a"]),
        (["."], ["a", "d/b", "d/e/c", "k=v", "k=v=w"]),
        ([".", "a", "d/e", "./d/b"], ["a", "d/b", "d/e/c", "k=v", "k=v=w"]),
        (["k=v"], ["k=v"]),
        (["k=v=w"], ["k=v=w"]),
        (["k=v=x=y"], ["x=y"]),
        (["d/e", "d/e=f"], ["d/e/c", "f/c"]),
        (["TOP/a=a"], ["a"]),
        (["TOP/d=d"], ["d/b", "d/e/c"]),
        (["link"], ["link"]),
        (["folder"], ["folder/c"]),
        ([".=x", "a"], ["a", "x/a", "x/d/b", "x/d/e/c", "x/k=v", "x/k=v=w"]),
    ],
    ids=" ".join,
)
def test_a_named_path_has_one_place(
    tmp_path: Path, named: list[str], expected: list[str]
) -> None:
    """The path itself, or what stands behind `=`."""
    write(tmp_path, "a", "d/b", "d/e/c", "k=v", "k=v=w")
    if named[0] in ("link", "folder"):  # Named links stand for their targets.
        (tmp_path / "link").symlink_to("/etc/hosts")
        (tmp_path / "folder").symlink_to("d/e")
    named = [text.replace("TOP", str(tmp_path)) for text in named]

    assert paths(scan(tmp_path, *named)) == expected


def test_folders_without_files_are_sent(tmp_path: Path) -> None:
    """Commands that write into a folder expect it."""
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "one").mkdir()
    write(tmp_path, "a")

    tree = scan(tmp_path, "out", "one", "a=one/a", "one=two")

    assert tree.manifest.empty_folders == ("out/deep", "two")
    assert scan(tmp_path, "one=.").manifest.empty_folders == ()


def test_skipped_and_secret_files_are_reported(tmp_path: Path) -> None:
    """What was left out is counted; what looks secret is sent, and named."""
    write(tmp_path, ".gitignore", text="*.log\nout/\n")
    write(tmp_path, "a.log", "b.log", "out/x", ".git/HEAD", "c")
    secret = [".env", ".env.local", "deep/id_rsa", "tls/Server.KEY", "secrets.yml"]
    write(tmp_path, *secret, ".env.example", "id_rsa.pub", "monkey", "env")

    tree = scan(tmp_path, ".")

    assert tree.skipped == Skipped(files=2, folders=1, has_git=True)
    assert sorted(tree.secret_paths) == sorted(secret)
    assert scan(tmp_path, ".", sends_all=True).skipped == Skipped()
    assert {"a.log", "out/x", ".git/HEAD"} <= {
        *paths(scan(tmp_path, ".", sends_all=True))
    }
    assert paths(scan(tmp_path, "a.log", "out")) == ["a.log", "out/x"]


# --- Links -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "target", "sent"),
    [
        ("l", "a", "a"),
        ("l", "./d//b", "d/b"),
        ("l", "d/", "d"),
        ("l", ".", "."),
        ("d/l", "../a", "../a"),
        ("d/l", "..", ".."),
        ("d/e/l", "../../d/b", "../../d/b"),
        ("l", "d/../a", "a"),
        ("l", "no/such/file", "no/such/file"),
        ("l", "TOP/d/b", "d/b"),
        ("d/l", "TOP/a", "../a"),
        ("d/l", "TOP", ".."),
        ("d/l", "TOP/d/e/../b", "b"),
    ],
)
def test_a_link_inside_the_tree_stays_a_link(
    tmp_path: Path, link: str, target: str, sent: str
) -> None:
    """With a relative target, so it works wherever the tree lies."""
    write(tmp_path, "a", "d/b", "d/e/c")
    (tmp_path / link).symlink_to(target.replace("TOP", str(tmp_path)))

    assert scan(tmp_path, ".").manifest.links == (TreeLink(link, sent),)


@pytest.mark.parametrize(
    ("link", "target", "said"),
    [
        ("l", "/etc/passwd", "the link 'TOP/l' points outside 'TOP', to '/etc/passwd'"),
        ("l", "..", "the link 'TOP/l' points outside 'TOP', to '..'"),
        ("d/l", "../../x", "the link 'TOP/d/l' points outside 'TOP', to '../../x'"),
        (
            "d/l",
            "e/../../../x",
            "the link 'TOP/d/l' points outside 'TOP', to '../../x'",
        ),
        ("l", "TOP-other/a", "the link 'TOP/l' points outside 'TOP', to 'TOP-other/a'"),
    ],
)
def test_a_link_out_of_the_tree_is_an_error(
    tmp_path: Path, link: str, target: str, said: str
) -> None:
    """It would lead nowhere, or to another file, where the task runs."""
    write(tmp_path, "d/e/c")
    (tmp_path / link).symlink_to(target.replace("TOP", str(tmp_path)))

    hint = "send its target to a place of its own, and exclude the link in .gitignore"
    assert error_of(tmp_path, ".") == f"{said} | {hint}"


def test_a_link_to_another_named_file_is_sent(tmp_path: Path) -> None:
    """What it leads to is there, too."""
    write(tmp_path, "other/x/y", "d/a")
    (tmp_path / "d" / "file").symlink_to("../other/x/y")
    (tmp_path / "d" / "folder").symlink_to("../other/x")

    assert [link.target for link in scan(tmp_path, "d", "other").manifest.links] == [
        *("../other/x/y", "../other/x")
    ]
    assert "points outside" in error_of(tmp_path, "d")
    assert "points outside" in error_of(tmp_path, "d", "other=elsewhere")
    assert "points outside" in error_of(tmp_path, "d=.", "other")


@pytest.mark.parametrize("target", ["l", "d/other"])
def test_a_link_to_itself_is_an_error(tmp_path: Path, target: str) -> None:
    """Directly, or by another link."""
    write(tmp_path, "d/a")
    (tmp_path / "l").symlink_to(target)
    (tmp_path / "d" / "other").symlink_to("../l")

    assert re.match(r"the link 'TOP/\S+' leads to itself", error_of(tmp_path, "."))
    assert error_of(tmp_path, "l") == (
        f"'l' cannot be sent: Too many levels of symbolic links | {NOT_HERE}"
    )


def test_parents_behind_another_link_are_an_error(tmp_path: Path) -> None:
    """The target cannot be written without them, and may lead anywhere."""
    write(tmp_path, "d/e/c", "a")
    (tmp_path / "short").symlink_to("d/e")
    (tmp_path / "l").symlink_to("short/../../a")

    assert error_of(tmp_path, ".").startswith(
        "the link 'TOP/l' has '..' behind another link in its target 'short/../../a'"
    )


# --- Errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("", "'' names no file | None"),
        ("=x", "'' names no file | None"),
        ("no", f"'no' cannot be sent: No such file or directory | {NOT_HERE}"),
        ("no=x", f"'no' cannot be sent: No such file or directory | {NOT_HERE}"),
        ("a/x", f"'a/x' cannot be sent: Not a directory | {NOT_HERE}"),
        ("a\0", "'a\\x00' is not a path: it contains a NUL character | None"),
        (
            "../a",
            (
                "'../a' is outside this folder, so it needs a place in the task's"
                " folder | write ../a=a; in Python, {'../a': 'a'}"
            ),
        ),
        (
            "d/../a",
            (
                "'d/../a' has '..', so it is not a place in the task's folder"
                " | write a, also in the command"
            ),
        ),
        (
            "/etc/hosts",
            (
                "'/etc/hosts' is outside this folder, so it needs a place in the"
                " task's folder | write /etc/hosts=hosts; in Python, {'/etc/hosts':"
                " 'hosts'}"
            ),
        ),
        (
            "/",
            (
                "'/' is outside this folder, so it needs a place in the task's folder"
                " | write /=NAME; in Python, {'/': 'NAME'}"
            ),
        ),
        (
            "a=../x",
            (
                "'a': '../x' is not a place in the task's folder"
                " | name a path without '..' that does not begin with '/'"
            ),
        ),
        (
            "a=/x",
            (
                "'a': '/x' is not a place in the task's folder"
                " | name a path without '..' that does not begin with '/'"
            ),
        ),
        (
            "a=",
            (
                "'a': '' is not a place in the task's folder"
                " | name a path without '..' that does not begin with '/'"
            ),
        ),
        (
            "a=x/",
            (
                "'a' is a file, and its place in the task's folder has no name"
                " | give it a place with a name, without '/' at its end"
            ),
        ),
        (
            "a=.",
            (
                "'a' is a file, and its place in the task's folder has no name"
                " | give it a place with a name, without '/' at its end"
            ),
        ),
    ],
)
def test_a_path_that_cannot_be_sent_is_named(
    tmp_path: Path, named: str, said: str
) -> None:
    """With what to do, before anything is sent."""
    write(tmp_path, "a", "d/b")

    assert error_of(tmp_path, named) == said


@pytest.mark.parametrize(
    ("tail", "inside"), [("", "."), ("/d", "d"), ("/d/", "d"), ("/d/b", "d/b")]
)
def test_an_absolute_path_of_this_folder_is_not_called_outside(
    tmp_path: Path, tail: str, inside: str
) -> None:
    """The task has no such path, so the relative one is suggested."""
    write(tmp_path, "d/b")

    assert error_of(tmp_path, f"{tmp_path}{tail}") == (
        f"'TOP{tail}' is absolute, so it is not a place in the task's folder"
        f" | write {inside}, also in the command"
    )


def test_a_path_that_leaves_this_folder_and_comes_back_is_not_called_outside(
    tmp_path: Path,
) -> None:
    """Unless a link before `..` leads elsewhere."""
    write(tmp_path, "a", "d/b")
    (tmp_path / "etc").symlink_to("/etc")
    back = f"../{tmp_path.name}/a"

    assert error_of(tmp_path, back) == (
        f"'{back}' has '..', so it is not a place in the task's folder"
        " | write a, also in the command"
    )
    assert error_of(tmp_path, "etc/../a").startswith(
        "'etc/../a' is outside this folder"
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (stat.S_IFIFO, "'TOP/d/x' is a FIFO, which cannot be sent"),
        (stat.S_IFSOCK, "'TOP/d/x' is a socket, which cannot be sent"),
        (stat.S_IFCHR, "'TOP/d/x' is a device, which cannot be sent"),
    ],
)
def test_special_files_are_an_error(tmp_path: Path, kind: int, said: str) -> None:
    """In a folder the hint is to remove them; a named one, like a device, stays."""
    write(tmp_path, "d/a")
    try:
        os.mknod(tmp_path / "d" / "x", kind | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")

    hint = "remove it, or exclude it in .gitignore"
    assert error_of(tmp_path, "d") == f"{said} | {hint}"
    assert error_of(tmp_path, "d/x") == f"{said} | name a file or folder"


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder, as seen by a user who is not root."""
    folder = Path(tempfile.mkdtemp(prefix="octaskly-test-"))
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        shutil.rmtree(folder)


def test_unreadable_files_and_folders_are_an_error(unprivileged: Path) -> None:
    """Nothing is left out silently."""
    write(unprivileged, "d/a", "d/e/b")
    (unprivileged / "d" / "e").chmod(0)

    in_folder = error_of(unprivileged, ".")
    (unprivileged / "d" / "e").chmod(0o755)
    (unprivileged / "d" / "a").chmod(0)

    assert in_folder == "cannot read the folder 'TOP/d/e': Permission denied | None"
    assert error_of(unprivileged, "d") == (
        "'TOP/d/a' cannot be read: Permission denied"
        " | make it readable for yourself, or exclude it in .gitignore"
    )


def test_names_that_are_not_utf8_are_an_error(tmp_path: Path) -> None:
    """Manifests and the log are UTF-8."""
    (tmp_path / os.fsdecode(b"caf\xe9")).write_text("")

    assert error_of(tmp_path, ".") == "the name 'caf\\udce9' is not UTF-8 | None"


def test_names_that_are_too_long_for_a_tree_are_an_error(tmp_path: Path) -> None:
    """Below a place that the user chose, for example."""
    write(tmp_path, "a")

    assert "is too long" in error_of(tmp_path, f"a={'x' * 256}")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["a", "d/a=a"], "'TOP/a' and 'TOP/d/a' collide at 'a'"),
        (["d=.", "."], "'TOP/d/a' and 'TOP/a' collide at 'a'"),
        (["a=x", "d=x"], "'TOP/a' and 'TOP/d/a' collide at 'x'"),
        (["d=x", "a=x"], "'TOP/a' and 'TOP/d/a' collide at 'x'"),
        (["l=x", "a=x/l/y"], "'TOP/l' and 'TOP/a' collide at 'x/l'"),
    ],
)
def test_named_paths_that_collide_are_an_error(
    tmp_path: Path, named: list[str], said: str
) -> None:
    """One of the files would be lost."""
    write(tmp_path, "a", "d/a")
    if named[0] == "l=x":
        (tmp_path / "l").mkdir()
        (tmp_path / "l" / "l").symlink_to("y")
        said = said.replace("'TOP/l'", "'TOP/l/l'")

    assert error_of(tmp_path, *named) == (
        f"{said} in the task's folder"
        " | give one of them another place in the task's folder"
    )


def test_rules_that_leave_nothing_are_an_error(tmp_path: Path) -> None:
    """The command would find an empty folder instead of what was named."""
    write(tmp_path, "venv/.gitignore", text="*")
    write(tmp_path, "venv/lib")

    assert error_of(tmp_path, "venv") == (
        "git's ignore rules exclude everything in 'venv'"
        " | --in-all sends ignored files, too; in Python, includes_ignored"
    )


def test_too_many_files_of_several_folders_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree has one limit."""
    monkeypatch.setattr(local_tree, "ENTRIES_MAX", 3)
    write(tmp_path, "a", "d/b", "d/c", "e/d")

    assert len(paths(scan(tmp_path, "a", "d"))) == 3
    assert error_of(tmp_path, "a", "d", "e") == (
        "with 'e', there are more than 3 files and folders to send"
        " | send fewer files, or one archive of them"
    )


def test_empty_folders_count_unless_they_get_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then they need no entry of their own."""
    monkeypatch.setattr(local_tree, "ENTRIES_MAX", 3)
    write(tmp_path, "a", "d/x", "other/b")
    (tmp_path / "d" / "sub").mkdir()

    assert len(paths(scan(tmp_path, "a", "d", "other=d/sub"))) == 3
    assert error_of(tmp_path, "a", "d", "other") == (
        "with 'other', there are more than 3 files and folders to send"
        " | send fewer files, or one archive of them"
    )


# --- Files that change -------------------------------------------------------------


def _change_while_read(monkeypatch: pytest.MonkeyPatch, *changes: Path) -> None:
    """Append to a file at each of the next reads, as another program would."""
    left = list(changes)
    read = os.read

    def read_and_change(descriptor: int, size_bytes: int) -> bytes:
        data = read(descriptor, size_bytes)
        if left:
            with left.pop().open("a") as file:
                file.write("more")
        return data

    monkeypatch.setattr(os, "read", read_and_change)


def test_a_file_that_changes_once_while_it_is_hashed_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree has its new content."""
    write(tmp_path, "a", text="text")
    _change_while_read(monkeypatch, tmp_path / "a")

    tree = scan(tmp_path, "a")

    assert content(tree, "a") == b"textmore"


def test_a_file_that_changes_all_the_time_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one retry."""
    write(tmp_path, "a", text="text")
    _change_while_read(monkeypatch, *[tmp_path / "a"] * 9)

    with pytest.raises(FileChanged) as caught:
        scan(tmp_path, "a")

    assert caught.value.message == f"{str(tmp_path / 'a')!r} changes while it is sent"
    assert caught.value.hint == "wait until no program writes to it, or send a copy"


def test_a_file_without_a_true_size_is_an_error() -> None:
    """As in /proc: it would be sent as an empty one."""
    with pytest.raises(FileChanged, match="'/proc/self/status' changes"):
        scan(Path("/"), "/proc/self/status=status")


@pytest.mark.parametrize(
    "change", ["longer", "shorter", "same size", "removed", "fifo"]
)
def test_a_file_that_changed_since_the_scan_is_not_sent(
    tmp_path: Path, change: str
) -> None:
    """Not a byte of it, and opening it waits for nobody."""
    write(tmp_path, "a", text="text")
    tree = scan(tmp_path, "a")
    place = tmp_path / "a"
    match change:
        case "longer":
            place.write_text("texts")
        case "shorter":
            place.write_text("t")
        case "same size":
            place.write_text("next")
        case "removed":
            place.unlink()
        case _:
            place.unlink()
            os.mkfifo(place)

    with pytest.raises(ManifestError, match=r"/a' (changes|cannot be read)"):
        list(tree.read_content(tree.manifest.files[0].sha256.hex()))


def test_a_change_during_the_sending_withholds_the_last_chunk(tmp_path: Path) -> None:
    """Even one that leaves size and times: no receiver gets all of a wrong content."""
    write(tmp_path, "a", text="x" * (CHUNK_BYTES + 5))
    tree = scan(tmp_path, "a")
    chunks = tree.read_content(tree.manifest.files[0].sha256.hex())

    assert len(next(chunks)) == CHUNK_BYTES
    with (tmp_path / "a").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"y")

    with pytest.raises(FileChanged):
        next(chunks)


def test_a_second_scan_reads_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else comes from the index."""
    write(tmp_path, *[f"d/{number}" for number in range(20)], text="text")
    later_ns = time.time_ns() + 2 * RACY_NS
    path = tmp_path / "index"
    with DigestIndex(path, lambda: later_ns) as index:
        first = scan(tmp_path, "d", index=index)
    write(tmp_path, "d/7", text="other")
    opened = []
    real_open = os.open

    def open_and_note(path: str, flags: int) -> int:
        opened.append(path)
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", open_and_note)

    with DigestIndex(path, lambda: later_ns) as index:
        second = scan(tmp_path, "d", index=index)

    assert opened == [f"{tmp_path}/d/7"]
    changed = {*second.manifest.files} - {*first.manifest.files}
    assert [file.path for file in changed] == ["d/7"]
    assert content(second, "d/7") == b"other"


def test_large_files_are_not_held_in_memory(tmp_path: Path) -> None:
    """Neither when they are hashed nor when they are sent."""
    with (tmp_path / "a").open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        tree = scan(tmp_path, "a")
        total = sum(map(len, tree.read_content(tree.manifest.files[0].sha256.hex())))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert total == 64 << 20
    assert peak_bytes < 8 * CHUNK_BYTES


def test_a_tree_can_be_scanned_in_a_thread(tmp_path: Path) -> None:
    """As asynchronous clients do; an index belongs to the thread that opened it."""
    write(tmp_path, "a")
    trees = []

    def scan_here() -> None:
        with DigestIndex(tmp_path / "index", time.time_ns) as index:
            trees.append(scan(tmp_path, "a", index=index))

    thread = threading.Thread(target=scan_here)
    thread.start()
    thread.join()

    assert paths(trees[0]) == ["a"]
