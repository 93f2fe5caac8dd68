"""Placeholders compared with GNU parallel itself, and with a real shell."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octaskly.api.schemas.arrays import ArrayIn, parse_array
from octaskly.core.model.placeholders import (
    PLACEHOLDERS,
    fill_placeholders,
    placeholder_value,
)

NASTY = [
    *("a", "a.b", "a/b", "a/b.c", "a.b/c", "a/b/c.d.e", "/", "//", "/a", "//a", "/a.b"),
    *("a/", "a//", "a/b/", "a/b//", "a//b", ".", "..", "./a", "../a.b", ".a", "a."),
    *("-", "-n", "--", "a b", " a ", "it's", '"', "$HOME", "`id`", "\\", "a\tb", "*"),
    *("~", "!", "{}", "{.}", "a;b", "a&b", "a|b", "(", "#", "é.ü", "😀/😀.😀", ".a/.b"),
]
texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)


def test_placeholders_equal_those_of_gnu_parallel() -> None:
    """Each of them, for names that are hard to split."""
    if shutil.which("parallel") is None:
        pytest.skip("there is no GNU parallel; tests/setup-host brings it")
    # Marked, because GNU parallel leaves out empty values.
    marked = " ".join(f"={placeholder}" for placeholder in PLACEHOLDERS)
    done = subprocess.run(
        ["parallel", "--will-cite", "-0", "-k", "--dry-run", marked],
        input="\0".join(NASTY).encode(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    theirs = [shlex.split(line) for line in done.stdout.decode().splitlines()]
    ours = [
        [
            f"={placeholder_value(placeholder, item, position)}"
            for placeholder in PLACEHOLDERS
        ]
        for position, item in enumerate(NASTY)
    ]

    assert ours == theirs


@given(st.lists(texts, min_size=1, max_size=20))
@settings(max_examples=20, deadline=None)
def test_any_item_is_one_shell_word(items: list[str]) -> None:
    """A real shell never runs or splits any part of an item."""
    text = " ".join(PLACEHOLDERS)
    script = "\n".join(
        f"printf '%s\\0' {fill_placeholders(text, item, position, is_quoted=True)}"
        for position, item in enumerate(items)
    )
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True)

    assert done.stdout.decode().split("\0")[:-1] == [
        placeholder_value(placeholder, item, position)
        for position, item in enumerate(items)
        for placeholder in PLACEHOLDERS
    ]


@given(st.lists(texts, min_size=1, max_size=5), st.sampled_from(PLACEHOLDERS))
def test_no_member_has_a_longer_command_than_the_measured_ones(
    items: list[str], placeholder: str
) -> None:
    """The command limit holds for each member, though few members are measured."""
    command = f"echo {placeholder} x {placeholder}"
    longest = max(
        len(fill_placeholders(command, item, position, is_quoted=True).encode())
        for position, item in enumerate(items)
    )

    parse_array(ArrayIn(items=items), command, 5 * longest + 100)
    try:
        parse_array(ArrayIn(items=items), command, longest - 1)
    except ValueError:
        return
    pytest.fail("a member may have a longer command than is allowed")
