"""The table of threats: every threat has an existing test."""

from __future__ import annotations

import ast
import re

from tests.docs.test_docs import ROOT, page

ROW = re.compile(r"^\| ([TB]\d\d) \|.* \| ([^|]*) \|$", re.MULTILINE)
NAME = re.compile(r"`(test_\w+)`")
THREATS = [f"T{number:02}" for number in range(1, 31)]
BAD_INPUTS = [f"B{number:02}" for number in range(1, 46)]
EVALUATING = {"eval", "exec", "compile", "__import__"}
"""Functions that execute data as code; regular expressions do not count."""
UNPACKING = {"pickle", "marshal", "shelve", "dill", "pip", "ensurepip"}


def functions(folder: str) -> set[str]:
    """Return the name of every function in a folder."""
    return {
        node.name
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_threat_and_every_bad_input_has_a_test_that_exists() -> None:
    """A renamed or deleted test is found here."""
    text = page("explanation/security.md")
    rows, named = ROW.findall(text), set(NAME.findall(text))

    assert [row for row, _ in rows] == [*THREATS, *BAD_INPUTS]
    assert [row for row, tests in rows if not NAME.search(tests)] == []
    assert named - functions("tests") == set()


def test_no_received_data_is_executed_as_code() -> None:
    """Threat 28: no received data runs as Python, and no code is fetched to run.

    The calls of an executor are the exception: they run in the program that submitted
    them and in the process of their task. The import contracts keep their modules out
    of agents.
    """
    found = []
    for path in (ROOT / "octaskly").rglob("*.py"):
        if path.parent.name == "executor":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            found += [f"{path.name}: {what}" for what in _dangers(node)]

    assert found == []


def _dangers(node: ast.AST) -> set[str]:
    match node:
        case ast.Call(func=ast.Name(name)):
            return {name} & EVALUATING
        case ast.Import(names):
            return {alias.name.partition(".")[0] for alias in names} & UNPACKING
        case ast.ImportFrom(module=str(module)):
            return {module.partition(".")[0]} & UNPACKING
        case _:
            return set()


def test_dangerous_calls_are_found() -> None:
    """Otherwise the test above would prove nothing."""
    source = "import pickle\nfrom marshal import loads\neval('1')\nre.compile('x')"

    found = [what for node in ast.walk(ast.parse(source)) for what in _dangers(node)]

    assert sorted(found) == ["eval", "marshal", "pickle"]
