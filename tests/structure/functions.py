"""Lengths of functions, with tables recognised."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable
from dataclasses import dataclass

from tests.structure.source import Module

Definition = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTION_LINES_MAX = 50  #: beyond that a reader has to scroll
COMPOUND = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.With,
    ast.AsyncWith,
    ast.Try,
    ast.TryStar,
    ast.Match,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
)
DISPLAYS = (ast.Dict, ast.List, ast.Set, ast.Tuple)


@dataclass(frozen=True)
class Function:
    """One function or method."""

    name: str
    module: str
    line: int
    lines: int  #: signature and docstring included, decorators not
    undocumented_lines: int  #: the same without the docstring
    is_table: bool  #: it consists of flat `match` statements or displays


def functions(modules: Iterable[Module]) -> list[Function]:
    """Return all functions, nested ones included."""
    return [
        Function(
            node.name,
            module.name,
            node.lineno,
            _span(node),
            _span(node) - _docstring_lines(node),
            _is_table(node),
        )
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def percentile(lengths: Iterable[int], share: float) -> int:
    """Return the least length that `share` of all lengths do not exceed."""
    ordered = sorted(lengths)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else 0


def _docstring_lines(function: Definition) -> int:
    has_one = ast.get_docstring(function, clean=False) is not None
    return _span(function.body[0]) if has_one else 0


def _is_table(function: Definition) -> bool:
    """Return True if flat statements take most lines, and the others are few enough."""
    flat = sum(_span(statement) for statement in function.body if _is_flat(statement))
    others = _span(function) - flat
    return others <= min(flat, FUNCTION_LINES_MAX)


def _is_flat(statement: ast.stmt) -> bool:
    """Return True if a statement is a `match` without further nesting, or a display."""
    match statement:
        case ast.Match(cases=cases):
            return not any(
                isinstance(inner, COMPOUND) for case in cases for inner in case.body
            )
        case ast.Assign(value=value) | ast.AnnAssign(value=value):
            return isinstance(value, DISPLAYS)
        case ast.Return(value=value):
            return isinstance(value, DISPLAYS)
        case _:
            return False


def _span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1
