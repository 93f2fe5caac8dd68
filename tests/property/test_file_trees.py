"""Manifests and packs of anybody: a tree that stays inside itself, or an error."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from itertools import pairwise
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from octaskly.files.manifest import (
    Manifest,
    ManifestError,
    TreeFile,
    TreeLink,
    decode_manifest,
    encode_manifest,
    make_manifest,
)
from octaskly.files.pack import PackReader, pack_header

names = st.sampled_from(["a", "b", "c", "a.b", "..", ".", "", "é"])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
digests = st.sampled_from([bytes(32), b"\1" * 32])
files = st.builds(
    TreeFile, paths, digests, st.integers(0, 1), st.integers(-5, 5), st.booleans()
)
links = st.builds(TreeLink, paths, paths)
trees = st.builds(
    Manifest,
    st.lists(files, max_size=5).map(tuple),
    st.lists(links, max_size=4).map(tuple),
    st.lists(paths, max_size=3).map(tuple),
)


@given(trees)
def test_a_checked_tree_can_be_made_on_disk_and_leads_nowhere_else(
    tree: Manifest,
) -> None:
    """What is accepted can be written, and every link leads into the folder."""
    try:
        tree = make_manifest(tree.files, tree.links, tree.empty_folders)
    except ManifestError:
        return
    assert decode_manifest(encode_manifest(tree)) == tree
    with tempfile.TemporaryDirectory() as outside:
        top = Path(outside, "top")
        top.mkdir()
        for folder in tree.empty_folders:
            (top / folder).mkdir(parents=True)
        for file in tree.files:
            (top / file.path).parent.mkdir(parents=True, exist_ok=True)
            with (top / file.path).open("xb"):
                pass
        for link in tree.links:
            (top / link.path).parent.mkdir(parents=True, exist_ok=True)
            (top / link.path).symlink_to(link.target)

        assert [place.name for place in Path(outside).iterdir()] == ["top"]
        real = os.path.realpath(top)
        for place in top.rglob("*"):
            assert f"{os.path.realpath(place)}/".startswith(f"{real}/")


@given(trees)
def test_a_sent_tree_is_accepted_only_in_its_one_form(tree: Manifest) -> None:
    """So a tree has one digest, whoever encodes it."""
    data = msgspec.msgpack.encode(tree)
    try:
        decoded = decode_manifest(data)
    except ManifestError:
        return
    assert encode_manifest(decoded) == data


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_an_error(data: bytes) -> None:
    """Nothing else is raised."""
    with contextlib.suppress(ManifestError):
        decode_manifest(data)


@given(
    st.lists(st.binary(max_size=40), max_size=6),
    st.lists(st.integers(0, 300), max_size=6).map(sorted),
)
def test_packs_are_read_in_any_chunks(contents: list[bytes], cuts: list[int]) -> None:
    """And nothing is left at the end."""
    pack = b"".join(
        pack_header(hashlib.sha256(one).digest(), len(one)) + one for one in contents
    )
    reader = PackReader()
    read: list[tuple[bytes, bytes]] = []
    for start, end in pairwise(
        [0, *(cut for cut in cuts if cut < len(pack)), len(pack)]
    ):
        read += reader.add_data(pack[start:end])
    reader.check_end()

    assert [content for _, content in read] == contents
