"""The rules of `.gitignore` files, compared with git itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, note
from hypothesis import strategies as st

from octaskly.files.ignore_rules import list_folder

# Git counts the bytes of a name, and the library its characters: `?` is no é for git.
FILES = (
    *("a/a/a", "a/a/b", "a/b/ab", "a/ab", "b/a", "b/b/a", "b/.b", "ab", ".b", "c/a/b"),
    *("c/ab/b", "c/ba", " a", "#a", "!a", "a b ", "c/[ab]", "c/a*", "éé"),
)
names = st.sampled_from(
    [
        *("a", "b", "ab", "c", "*", "**", "?", "a*", "*b", "[ab]", "[!a]", "[a-c]b"),
        *(".*", "\\a", "\\*", "\\[ab]", " a", "#a", "\\#a", "\\!a", "?*"),
        *("a b\\ ", "éé", "[^a]", "b."),
    ]
)
patterns = st.tuples(
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(names, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "", "/", " ", "  "]),
).map("".join)
rules = st.lists(patterns, max_size=5).map("\n".join)


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is no work tree, and a repository beside it."""
    folder = tmp_path_factory.mktemp("rules")
    subprocess.run(["git", "init", "-q", "--bare", folder / "repository"], check=True)
    for path in FILES:
        place = folder / "top" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("")
    return folder / "top"


def listed_by_git(top: Path) -> set[str]:
    done = subprocess.run(
        [
            *("git", f"--git-dir={top.parent}/repository", f"--work-tree={top}"),
            *("-c", "core.bare=false", "ls-files", "-oz", "--exclude-standard"),
        ],
        cwd=top,
        env=os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null"},
        capture_output=True,
        check=True,
    )
    return {*done.stdout.decode().split("\0")} - {""}


@given(above=rules, below=rules)
@example(above="a b\\  ", below="")  # An escaped space at the end, and one more.
def test_rules_leave_what_git_leaves(top: Path, above: str, below: str) -> None:
    """Negated, anchored, for folders only, with wildcards, on two levels."""
    note(f"{above!r} {below!r}")
    (top / ".gitignore").write_text(above)
    (top / "a" / ".gitignore").write_text(below)

    assert {*list_folder(str(top), includes_ignored=False).entries} == listed_by_git(
        top
    )
