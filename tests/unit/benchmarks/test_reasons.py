"""Reasons for missed goals belong to existing figures."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks import reasons

FOLDER_PLACEHOLDER = Path(reasons.__file__).parent


def starts_with(node: ast.AST, prefix: str) -> bool:
    """Return True if a text in the code starts so; placeholders match any number."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value.startswith(prefix)
    if not isinstance(node, ast.JoinedStr):
        return False
    pattern = "".join(
        re.escape(str(part.value)) if isinstance(part, ast.Constant) else "[0-9]+"
        for part in node.values
    )
    return re.fullmatch(pattern, prefix) is not None


def is_a_figure(prefix: str) -> bool:
    """Return True if a benchmark figure has a name with this prefix."""
    return any(
        starts_with(node, prefix)
        for path in FOLDER_PLACEHOLDER.glob("*.py")
        if path.name != Path(reasons.__file__).name
        for node in ast.walk(ast.parse(path.read_text()))
    )


@pytest.mark.parametrize("prefix", reasons.REASONS)
def test_each_reason_belongs_to_a_figure(prefix: str) -> None:
    """A renamed figure would lose its reason."""
    assert is_a_figure(prefix)


def test_a_figure_without_a_reason_is_not_matched() -> None:
    """Otherwise the test above could not fail."""
    assert not is_a_figure("64 slots of sleep 2")
    assert reasons.reason("64 slots of sleep 2") == reasons.UNKNOWN


def test_the_page_has_the_section_of_each_reason() -> None:
    """A reader of a reason looks there for details."""
    page = (FOLDER_PLACEHOLDER.parent / reasons.PAGE).read_text()

    assert f"## {reasons.HEADING}" in page.splitlines()
    assert reasons.reason("bulk accept").endswith(f"{reasons.PAGE}, {reasons.HEADING}")
