"""Manifests: the bytes of a tree, and the ones that must be refused."""

from __future__ import annotations

import hashlib
import re

import msgspec
import pytest
from msgspec import structs

from octaskly.files import manifest as manifests
from octaskly.files.manifest import (
    ENTRIES_MAX,
    MANIFEST_BYTES_MAX,
    Manifest,
    ManifestError,
    TreeFile,
    TreeLink,
    decode_manifest,
    encode_manifest,
    make_manifest,
    merge_trees,
    select_folders,
)

DIGEST = hashlib.sha256(b"text").digest()
OTHER = hashlib.sha256(b"other").digest()


def file(path: str, sha256: bytes = DIGEST, size_bytes: int = 4) -> TreeFile:
    return TreeFile(path, sha256, size_bytes, 1_700_000_000_000_000_000)


def link(path: str, target: str) -> TreeLink:
    return TreeLink(path, target)


def sent(
    *files: TreeFile, links: tuple[TreeLink, ...] = (), folders: tuple[str, ...] = ()
) -> bytes:
    """The bytes of a manifest that nobody has checked."""
    return msgspec.msgpack.encode(Manifest(files, links, folders))


def test_a_tree_survives_its_encoding() -> None:
    """Files, links and empty folders, with all their attributes."""
    tree = make_manifest(
        [
            TreeFile("run.sh", OTHER, 5, -1, is_executable=True),
            file("a/b"),
            file("a-b"),
            file("é 😀\n"),
        ],
        [link("a/up", "../run.sh"), link("here", "."), link("a/top", "..")],
        ["z/empty"],
    )

    assert decode_manifest(encode_manifest(tree)) == tree
    assert [one.path for one in tree.files] == ["a-b", "a/b", "run.sh", "é 😀\n"]
    assert tree.total_bytes == 17
    assert tree.sizes() == {DIGEST: 4, OTHER: 5}


def test_equal_trees_have_one_digest() -> None:
    """In whatever order the entries were found."""
    files = [file("b"), file("a-b"), file("a.b"), file("a/c")]

    assert encode_manifest(make_manifest(files)) == encode_manifest(
        make_manifest(reversed(files))
    )


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/etc/passwd", "..", "../a", "a/..", "a/../b", ".", "./a", "a/."),
        *("a//b", "a/", "\0", "a\0b", "a/\0", "\ud800", "a" * 256, "a/" * 2048 + "b"),
        *("é" * 128, "aa/" * 1365 + "aaa"),
    ],
    ids=ascii,
)
def test_no_entry_leaves_the_tree(path: str) -> None:
    """Neither a path with `..` nor an absolute or overlong one, for any kind."""
    for files, links, folders in (
        ((file(path),), (), ()),
        ((), (link(path, "a"),), ()),
        ((), (), (path,)),
    ):
        with pytest.raises(ManifestError):
            make_manifest(files, links, folders)
        try:
            data = sent(*files, links=links, folders=folders)
        except UnicodeError:
            continue  # The encoder refuses it itself.
        with pytest.raises(ManifestError):
            decode_manifest(data)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("a", "/etc/passwd"),
        ("a", ".."),
        ("a", "../a"),
        ("a/b", "../../c"),
        ("a/b", "../.."),
        ("a", "b/../../c"),
        ("a", "b/.."),
        ("a", "./b"),
        ("a", "b/./c"),
        ("a", "b//c"),
        ("a", "b/"),
        ("a", "../"),
        ("a", "b\0"),
        ("a", ""),
        ("a", "/"),
    ],
)
def test_no_link_leaves_the_tree(path: str, target: str) -> None:
    """A target must be relative and normalised, or a link on its way changes it."""
    with pytest.raises(ManifestError):
        make_manifest([], [link(path, target)])
    with pytest.raises(ManifestError):
        decode_manifest(sent(links=(link(path, target),)))


@pytest.mark.parametrize(
    ("files", "links", "folders"),
    [
        (["a", "a/b"], [], []),
        (["a", "a-b", "a/b/c/d"], [], []),
        (["a/b"], [("a", "c")], []),
        (["a/b/c"], [], ["a/b"]),
        ([], [("a/b", "c")], ["a"]),
        ([], [("a", "b"), ("a/b", "c")], []),
        ([], [], ["a", "a/b"]),
    ],
)
def test_nothing_lies_below_a_file_or_a_link(
    files: list[str], links: list[tuple[str, str]], folders: list[str]
) -> None:
    """Otherwise a link would lead the files below it to another place."""
    with pytest.raises(
        ManifestError, match=r"lies below 'a(/b)?', which is not a folder"
    ):
        make_manifest(map(file, files), [link(*one) for one in links], folders)


def test_no_path_occurs_twice() -> None:
    """Not among files, and not as a file and a link."""
    with pytest.raises(ManifestError, match="two entries are called 'a'"):
        make_manifest([file("a"), file("a")])
    with pytest.raises(ManifestError, match="two entries are called 'a'"):
        make_manifest([file("a")], [link("a", "b")])
    with pytest.raises(ManifestError, match="two entries are called 'a'"):
        make_manifest([], [link("a", "b")], ["a"])
    with pytest.raises(ManifestError):
        decode_manifest(sent(file("a"), file("a")))


def test_paths_that_only_look_alike_are_no_tree_error() -> None:
    """Names that sort between a folder and what lies in it."""
    tree = make_manifest([file("a b"), file("a-b"), file("a.b"), file("a/b/c")])

    assert len(tree.files) == 4


def test_a_digest_has_one_size() -> None:
    """A receiver counts on the announced size of each content."""
    with pytest.raises(ManifestError, match="'b' has the digest of another size"):
        make_manifest([file("a"), file("b", size_bytes=5)])


def test_entries_out_of_order_are_refused() -> None:
    """Otherwise one tree would have many digests."""
    for data in (
        sent(file("b"), file("a")),
        sent(links=(link("b", "c"), link("a", "c"))),
        sent(folders=("b", "a")),
    ):
        with pytest.raises(ManifestError, match="not in order"):
            decode_manifest(data)


def test_a_tree_has_a_limited_number_of_entries() -> None:
    """As many as the limit are a tree; one more is none."""
    names = [f"f{number:06}" for number in range(ENTRIES_MAX + 1)]

    assert len(make_manifest(map(file, names[:-1])).files) == ENTRIES_MAX
    with pytest.raises(
        ManifestError, match="more than 100000 files and folders"
    ) as caught:
        make_manifest(map(file, names[:-2]), [link(n, "a") for n in names[-2:]])
    assert caught.value.hint == "send fewer files, or one archive of them"
    with pytest.raises(ManifestError, match="more than 100000 files and folders"):
        decode_manifest(msgspec.msgpack.encode(((), (), names)))


def test_a_manifest_has_a_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is checked before a byte of it is parsed."""
    with pytest.raises(ManifestError, match="too large"):
        decode_manifest(bytes(MANIFEST_BYTES_MAX + 1))
    monkeypatch.setattr(manifests, "MANIFEST_BYTES_MAX", 20)
    with pytest.raises(ManifestError, match="at most 20 are possible"):
        encode_manifest(make_manifest([file("a")]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"text",
        b"\x91" * 5000,
        msgspec.msgpack.encode({"files": []}),
        msgspec.msgpack.encode([[], [], [], []]),
        msgspec.msgpack.encode([[["a", DIGEST, 4]]]),
        msgspec.msgpack.encode([[["a", DIGEST[1:], 4, 0]]]),
        msgspec.msgpack.encode([[["a", DIGEST, -1, 0]]]),
        msgspec.msgpack.encode([[["a", DIGEST, 1 << 63, 0]]]),
        msgspec.msgpack.encode([[["a", DIGEST, 4, 0, 1]]]),
        msgspec.msgpack.encode([[["a", DIGEST, 4, 0, True, 0]]]),
        msgspec.msgpack.encode([[[b"a", DIGEST, 4, 0]]]),
        encode_manifest(make_manifest([file("a")])) + b"\x00",
        encode_manifest(make_manifest([file("a")])).replace(b"\xa1a", b"\xa1\xff"),
    ],
    ids=range(15),
)
def test_other_bytes_are_no_manifest(data: bytes) -> None:
    """Nodes and clients decode what others wrote."""
    with pytest.raises(ManifestError, match="not a manifest"):
        decode_manifest(data)


def test_folders_of_a_tree_are_placed_together() -> None:
    """Their contents become one tree, with its own checks."""
    tree = make_manifest(
        [
            file("all/a"),
            file("all/d/b"),
            file("items/1/c"),
            file("items/10/e"),
            file("z"),
        ],
        [link("all/d/l", "../a"), link("items/1/up", "../../all/a")],
        ["all/none", "items/10/d", "items/10/x"],
    )

    assert select_folders(tree, []) == tree
    assert select_folders(tree, ["all", "items/10", "no"]) == make_manifest(
        [file("a"), file("d/b"), file("e")], [link("d/l", "../a")], ["none", "x"]
    )
    with pytest.raises(ManifestError, match="the link 'up' points outside the folder"):
        select_folders(tree, ["items/1"])
    with pytest.raises(ManifestError, match="two entries are called 'a'"):
        select_folders(make_manifest([file("x/a"), file("y/a")]), ["x", "y"])


def test_trees_are_merged_into_one() -> None:
    """Equal entries count once, and a folder is empty only if all have it so."""
    one = make_manifest([file("a"), file("x/b")], [TreeLink("l", "a")], ["e", "x/e"])
    two = make_manifest([file("a"), file("e/c", OTHER)], [TreeLink("l", "a")], ["x"])

    merged = merge_trees([("one", one), ("two", two)])

    assert [*merged.paths()] == ["a", "e/c", "x/b", "l", "x/e"]
    assert merge_trees([("one", one)]) is one
    assert merge_trees([]) == Manifest()


NOT_THE_SAME = "'a' is not the same in what was sent and in the outputs"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (
            make_manifest([file("a", OTHER)]),
            NOT_THE_SAME,
        ),
        (
            make_manifest([], [TreeLink("a", "b")]),
            NOT_THE_SAME,
        ),
        (make_manifest([file("a/b")]), "'a/b' lies below 'a', which is not a folder"),
        (
            make_manifest([structs.replace(file("a"), is_executable=True)]),
            NOT_THE_SAME,
        ),
    ],
    ids=["content", "link", "folder", "mode"],
)
def test_trees_that_collide_are_not_merged(other: Manifest, why: str) -> None:
    """The error names the path, and both trees."""
    with pytest.raises(ManifestError, match=re.escape(why)):
        merge_trees(
            [("what was sent", make_manifest([file("a")])), ("the outputs", other)]
        )
