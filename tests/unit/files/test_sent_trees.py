"""Records of trees that were sent: which are found, and how many are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octaskly.files import sent_trees
from octaskly.files.digest_index import DigestIndex
from octaskly.files.local_tree import LocalTree, name_path, scan_tree
from octaskly.files.sent_trees import Origin, SentTrees


def tree_in(folder: Path, text: str) -> tuple[LocalTree, Origin]:
    """Return the tree of a folder with one file, and its origin."""
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text(text)
    os.utime(folder / "file", (1, 1))  # It is a part of the tree.
    with DigestIndex(folder.parent / "digests.db", lambda: 0) as index:
        tree = scan_tree([name_path("file", None, str(folder))], index=index)
    return tree, Origin(bytes(folder), ["file"])


def test_a_tree_of_two_folders_has_two_records(tmp_path: Path) -> None:
    """The one that was saved last comes first; another tree has none."""
    records = SentTrees(tmp_path / "sent")
    sent = [tree_in(tmp_path / name, "same") for name in ("one", "two")]
    for tree, origin in sent:
        records.save(tree, origin)

    found = records.find_all(sent[0][0].sha256)

    assert [one.origin for one in found] == [sent[1][1], sent[0][1]]
    assert records.find(tree_in(tmp_path / "three", "other")[0].sha256) is None
    assert SentTrees(tmp_path / "nowhere").find(sent[0][0].sha256) is None


@pytest.mark.parametrize("limit", ["RECORDS_MAX", "RECORDS_BYTES_MAX"])
def test_the_oldest_records_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """The last one is kept, however large it is."""
    monkeypatch.setattr(sent_trees, limit, 1)
    records = SentTrees(tmp_path / "sent")
    trees = [tree_in(tmp_path / "folder", text) for text in ("first", "second")]
    for tree, origin in trees:
        records.save(tree, origin)

    assert records.find(trees[0][0].sha256) is None
    assert records.find(trees[1][0].sha256) is not None
