"""Rules of the style that no linter checks, and questions of taste.

A breach of a rule fails `make check`. A question is only printed.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.structure.functions import FUNCTION_LINES_MAX, functions
from tests.structure.source import Edge, Module

FOLDER_MODULES_MAX = 15  #: what a reader takes in at a glance; `__init__.py` included
FOLDERS_OF_MANY = ("cli/commands", "api/routes")
"""Folders of modules with one form, which a reader looks up by name."""
MODULE_LINES_ASKED = 700  #: more may be two modules
MODULE_LINES_SMALL = 120  #: fewer, used only next door, may be a part of the neighbour

ENTRANCES = ("octaskly", "octaskly.__main__", "octaskly.joblib")  #: imported by users

#: Words that no name contains, and their replacements.
WORDS = {
    "master": "dispatcher",
    "coordinator": "dispatcher",
    "slave": "standby",
    "job": "task",
    "jobs": "tasks",
    "daemon": "agent",
    "util": "the noun it is about",
    "utils": "the noun it is about",
    "helpers": "the noun it is about",
    "misc": "the noun it is about",
}

#: Names that other libraries chose.
FOREIGN = {"n_jobs", "effective_n_jobs", "default_n_jobs"}


def folder_sizes(modules: Iterable[Module]) -> Counter[Path]:
    """Return the number of modules in each folder, those of many excepted."""
    return Counter(module.path.parent for module in modules if not _is_of_many(module))


def _is_of_many(module: Module) -> bool:
    return str(module.path.parent).endswith(FOLDERS_OF_MANY)


def crowded_folders(modules: Iterable[Module]) -> list[str]:
    """Return the folders with too many modules."""
    return [
        f"{'/'.join(folder.parts[-2:])}/ has {count} modules, "
        f"the limit is {FOLDER_MODULES_MAX}: make a folder per subsystem"
        for folder, count in sorted(folder_sizes(modules).items())
        if count > FOLDER_MODULES_MAX
    ]


def long_functions(modules: Iterable[Module]) -> list[str]:
    """Return the functions with too many lines that are no tables."""
    return [
        f"{function.module}:{function.line}: {function.name} has {function.lines} "
        f"lines, the limit is {FUNCTION_LINES_MAX}: split it"
        for function in functions(modules)
        if function.lines > FUNCTION_LINES_MAX and not function.is_table
    ]


def wrong_names(modules: Iterable[Module]) -> list[str]:
    """Return the names with a word that is not used here."""
    wrong = []
    for module in modules:
        last = module.name.rpartition(".")[2]
        if "manager" in last:
            wrong.append(f"{module.name}: name it after what it owns")
        wrong += sorted(
            f"{module.name}: {name}: say {WORDS[word]}"
            for name in {last, *_names_bound_in(module.tree)} - FOREIGN
            for word in words_of(name)
            if word in WORDS
        )
    return wrong


def _names_bound_in(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr
            case _:
                pass


def words_of(name: str) -> list[str]:
    """Return `lease`, `table` for `lease_table`, `LeaseTable` and `_LEASE_TABLE`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [word.lower() for word in spaced.split("_") if word]


def unused_modules(modules: dict[str, Module], edges: set[Edge]) -> list[str]:
    """Return the modules that no other module imports or names."""
    used = {target for _, target in edges}
    return [
        f"{name} is imported by no module: delete it"
        for name, module in modules.items()
        if name not in used and not module.is_package and name not in ENTRANCES
        # A module that runs in a process of its own is named in a string.
        if not any(
            re.search(rf"\b{re.escape(name)}\b", other.text)
            for other in modules.values()
            if other is not module
        )
    ]


def undocumented_tests(modules: Iterable[Module]) -> list[str]:
    """Return the tests whose docstring, with the reason of the test, is missing."""
    return [
        f"{module.name}:{node.lineno}: {node.name} has no docstring: give its reason"
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]


def large_modules(modules: Iterable[Module]) -> list[str]:
    """Return the modules that may be two, with their numbers of lines."""
    return [
        f"{module.name} ({module.lines})"
        for module in modules
        if module.lines > MODULE_LINES_ASKED
    ]


def small_modules(modules: dict[str, Module], edges: set[Edge]) -> list[str]:
    """Return the small modules with one importer, in the same folder.

    In a folder of many modules with one form, that importer is their list.
    """
    importers: dict[str, list[Module]] = {}
    for importer, target in edges:
        importers.setdefault(target, []).append(modules[importer])
    return [
        f"{name} ({module.lines})"
        for name, module in modules.items()
        if module.lines < MODULE_LINES_SMALL and not module.is_package
        if not _is_of_many(module)
        if [user.path.parent for user in importers.get(name, [])]
        == [module.path.parent]
    ]
