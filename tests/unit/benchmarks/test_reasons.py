"""Why a goal is missed is told of figures that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks import reasons

FOLDER_PLACEHOLDER = Path(reasons.__file__).parent


def is_begun_by(node: ast.AST, begin: str) -> bool:
    """Whether a text in the code begins so; what is filled in may be any number."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value.startswith(begin)
    if not isinstance(node, ast.JoinedStr):
        return False
    pattern = "".join(
        re.escape(str(part.value)) if isinstance(part, ast.Constant) else "[0-9]+"
        for part in node.values
    )
    return re.fullmatch(pattern, begin) is not None


def is_a_figure(begin: str) -> bool:
    """Whether a figure of the benchmarks has a name that begins so."""
    return any(
        is_begun_by(node, begin)
        for path in FOLDER_PLACEHOLDER.glob("*.py")
        if path.name != Path(reasons.__file__).name
        for node in ast.walk(ast.parse(path.read_text()))
    )


@pytest.mark.parametrize("begin", reasons.REASONS)
def test_each_reason_is_that_of_a_figure(begin: str) -> None:
    """A figure that gets another name would be missed for no known reason."""
    assert is_a_figure(begin)


def test_another_figure_is_missed_for_no_known_reason() -> None:
    """It is not known to be missed, and the test above would notice."""
    assert not is_a_figure("64 slots of sleep 2")
    assert reasons.reason("64 slots of sleep 2") == reasons.UNKNOWN


def test_the_page_has_the_section_that_each_reason_names() -> None:
    """Who reads a reason looks there for more."""
    page = (FOLDER_PLACEHOLDER.parent / reasons.PAGE).read_text()

    assert f"## {reasons.HEADING}" in page.splitlines()
    assert reasons.reason("bulk accept").endswith(f"{reasons.PAGE}, {reasons.HEADING}")
