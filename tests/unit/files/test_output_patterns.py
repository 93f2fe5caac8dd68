"""Which paths declared outputs cover."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octaskly.files.output_patterns import DeclaredOutputs, is_in_git


@pytest.mark.parametrize(
    ("declared", "path"),
    [
        ("build", "build"),
        ("build", "build/app"),
        ("build", "build/deep/app"),
        ("*.o", "a.o"),
        ("*.o", ".hidden.o"),
        ("*.o", "folder.o/inside"),
        ("a?", "ab"),
        ("[ab].txt", "b.txt"),
        ("[!ab].txt", "c.txt"),
        ("[ab].txt", "[ab].txt"),
        ("frame[1].png", "frame[1].png"),
        ("runs/**", "runs/a"),
        ("runs/**", "runs/a/b/c"),
        ("**/x", "x"),
        ("**/x", "a/b/x"),
        ("a/**/b/*.txt", "a/b/c.txt"),
        ("a/**/b/*.txt", "a/1/2/b/c.txt"),
        ("**/**/x", "a/x"),
        ("**", "anything/at/all"),
    ],
)
def test_a_declared_output_covers(declared: str, path: str) -> None:
    """Exactly its name, what it matches, and all below."""
    assert DeclaredOutputs([declared]).covers(path)


@pytest.mark.parametrize(
    ("declared", "path"),
    [
        ("build", "builder"),
        ("build", "other/build"),
        ("build/app", "build"),
        ("*.o", "a/b.o"),
        ("a?", "a"),
        ("[ab].txt", "c.txt"),
        ("runs/**", "runs"),
        ("runs/*/x", "runs/x"),
        ("a/**/b", "a/c"),
        ("**/x", "x.txt"),
    ],
)
def test_a_declared_output_does_not_cover(declared: str, path: str) -> None:
    """A wildcard stands for part of one name, `**` for whole folders."""
    assert not DeclaredOutputs([declared]).covers(path)


def test_many_wildcards_are_matched_in_short_time() -> None:
    """An expression that goes back and forth would take longer than the universe."""
    declared = DeclaredOutputs(["/".join(["**", "*a*a*a*a*b"] * 50)])

    assert not declared.covers("/".join(["a" * 100] * 200))


def test_named_folders_are_those_on_the_way() -> None:
    """A link in the place of one of them was named by the user."""
    declared = DeclaredOutputs(["build/deep", "runs/*/x"])

    assert [p for p in ("build", "build/deep", "runs", "runs/1") if declared.names(p)]
    assert not declared.names("build/deep/more")
    assert not declared.names("runs/1")


@pytest.mark.parametrize("path", [".git", "a/.git/hooks/x", ".GIT/config", "x/.Git"])
def test_git_folders_are_recognised(path: str) -> None:
    """Also where upper and lower case name the same file."""
    assert is_in_git(path)


@pytest.mark.parametrize("path", [".gitignore", "a.git", "git/x", ".github/x"])
def test_other_names_are_no_git_folders(path: str) -> None:
    """They are files of the user."""
    assert not is_in_git(path)


@given(st.lists(st.text("ab*?[/.!]", min_size=1, max_size=12), max_size=4), st.text())
def test_any_declared_output_can_be_matched(declared: list[str], path: str) -> None:
    """A user's brackets may be incomplete."""
    assert DeclaredOutputs(declared).covers(path) in (True, False)
    for each in declared:
        assert DeclaredOutputs([each]).covers(each)
