"""Options of tasks: equality with and without the bytes of stdin, and of files."""

from __future__ import annotations

import hashlib

import pytest
from msgspec.structs import replace

from octaskly.core.model.drafts import TaskDraft, matches_draft
from octaskly.core.model.task_options import (
    BlobRef,
    FreedStdin,
    InputTree,
    TaskOptions,
    are_equal_options,
    is_stdin_freed,
    with_stdin_from,
    without_stdin,
)
from tests.support.builders import draft, spec

FULL = TaskOptions(name="n", stdin=b"in")
FREED = TaskOptions(
    name="n", freed_stdin=FreedStdin(hashlib.sha256(b"in").hexdigest(), 2)
)
TREE = InputTree(sha256="a" * 64, node="ash", folders=("all",), is_lent=True)
WITH_FILES = TaskOptions(tree=TREE, stdin_file=BlobRef(sha256="b" * 64, node="ash"))


def test_options_without_the_bytes_of_stdin_keep_digest_and_size() -> None:
    """A client still sees how much the task read."""
    assert without_stdin(FULL) == FREED
    assert without_stdin(FREED) == FREED
    assert (FULL.stdin_bytes, FREED.stdin_bytes) == (2, 2)
    assert (is_stdin_freed(FULL), is_stdin_freed(FREED)) == (False, True)


def test_options_without_stdin_have_nothing_to_free() -> None:
    """An empty stdin has no digest, so the task can run again."""
    assert without_stdin(TaskOptions(name="n")) == TaskOptions(name="n")
    assert not is_stdin_freed(None)


@pytest.mark.parametrize("pair", [(FULL, FREED), (FREED, FULL), (FREED, FREED)])
def test_a_freed_stdin_equals_the_bytes(pair: tuple[TaskOptions, TaskOptions]) -> None:
    """A repeated request finds its task."""
    assert are_equal_options(*pair)


@pytest.mark.parametrize(
    "other",
    [
        None,
        replace(FULL, stdin=b"no"),
        replace(FULL, stdin=b""),
        replace(FULL, name="m"),
    ],
)
def test_a_freed_stdin_differs_from_other_options(other: TaskOptions | None) -> None:
    """Another request under the same name is a conflict."""
    assert not are_equal_options(FREED, other)
    assert not are_equal_options(other, FREED)


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (replace(WITH_FILES, tree=replace(TREE, is_lent=False)), True),
        (replace(WITH_FILES, tree=replace(TREE, node="elm")), True),
        (replace(WITH_FILES, stdin_file=BlobRef(sha256="b" * 64, node="elm")), True),
        (replace(WITH_FILES, stdin_file=BlobRef(sha256="c" * 64, node="ash")), False),
        (replace(WITH_FILES, tree=replace(TREE, sha256="c" * 64)), False),
        (replace(WITH_FILES, tree=replace(TREE, folders=())), False),
        (replace(WITH_FILES, tree=None), False),
        (replace(WITH_FILES, stdin_file=None), False),
    ],
)
def test_files_are_compared_by_content(other: TaskOptions, *, is_same: bool) -> None:
    """A node still has what was lent for the first start of a command."""
    assert are_equal_options(WITH_FILES, other) is is_same
    assert are_equal_options(other, WITH_FILES) is is_same


@pytest.mark.parametrize(
    ("other", "joined"),
    [
        (FULL, FULL),
        (replace(FULL, name="m"), FULL),
        (replace(FULL, stdin=b"no"), FREED),
        (FREED, FREED),
        (None, FREED),
    ],
)
def test_only_the_same_bytes_replace_a_freed_stdin(
    other: TaskOptions | None, joined: TaskOptions
) -> None:
    """The digest decides."""
    assert with_stdin_from(FREED, other) == joined


@pytest.mark.parametrize(
    ("asked", "is_same"),
    [
        (draft(), False),
        (TaskDraft(command="true", options=FULL), True),
        (TaskDraft(command="true", options=FREED), True),
        (TaskDraft(command="false", options=FULL), False),
        (TaskDraft(command="true", options=replace(FULL, stdin=b"no")), False),
    ],
)
def test_a_draft_matches_its_task_after_the_stdin_was_freed(
    asked: TaskDraft, is_same: bool
) -> None:
    """Everything but the bytes is compared as before."""
    ended = replace(spec(), options=FREED)

    assert matches_draft(asked, ended) is is_same
