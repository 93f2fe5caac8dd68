"""Modules of a package, and the imports between them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path

Edge = tuple[str, str]
"""The names of the importing and of the imported module."""


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str  #: dotted; of an `__init__.py` that of its package
    path: Path
    text: str

    @property
    def is_package(self) -> bool:
        """Return True if this is the `__init__.py` of a package."""
        return self.path.name == "__init__.py"

    @property
    def lines(self) -> int:
        """The number of lines."""
        return len(self.text.splitlines())

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)


def read(package: Path) -> dict[str, Module]:
    """Return the modules below the folder `package`, by name."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        modules[name] = Module(name, path, path.read_text())
    return modules


def imports(modules: dict[str, Module]) -> set[Edge]:
    """Return the imports between `modules`, those in functions included.

    The outermost `__init__.py` imports nothing here: it names what the package exports
    for type checkers, and loads it when it is used.
    """
    root = min(modules, key=len)
    return {
        (name, target)
        for name, module in modules.items()
        if name != root
        for target in _imported(module.tree, modules)
        if target != name
    }


def _imported(tree: ast.Module, modules: dict[str, Module]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in modules else node.module


def longest_chain(edges: Iterable[Edge]) -> list[str]:
    """Return the longest chain of modules in which each imports the next.

    Raises:
        graphlib.CycleError: The imports form a cycle.
    """
    imported: dict[str, set[str]] = {}
    for importer, target in sorted(edges):
        imported.setdefault(importer, set()).add(target)
    chains: dict[str, list[str]] = {}
    for name in TopologicalSorter(imported).static_order():
        below = (chains[target] for target in sorted(imported.get(name, ())))
        chains[name] = [name, *max(below, key=len, default=[])]
    return max(chains.values(), key=len, default=[])


def chain_in_one_folder(modules: dict[str, Module], edges: set[Edge]) -> list[str]:
    """Return the longest chain of imports between modules of one folder."""
    within: dict[Path, set[Edge]] = {}
    for edge in edges:
        importer, target = (modules[name] for name in edge)
        if importer.path.parent == target.path.parent:
            within.setdefault(target.path.parent, set()).add(edge)
    chains = [longest_chain(within[folder]) for folder in sorted(within)]
    return max(chains, key=len, default=[])


def between_subpackages(package: str, edges: set[Edge]) -> dict[Edge, int]:
    """Return the number of imports between each two subpackages of `package`.

    A module directly in `package` counts as a subpackage. The figure before the change
    was taken over the subpackages to which today's modules were to move.
    """
    counts: dict[Edge, int] = {}
    for importer, target in edges:
        pair = (_below(package, importer), _below(package, target))
        if all(pair) and pair[0] != pair[1]:
            counts[pair] = counts.get(pair, 0) + 1
    return counts


def _below(package: str, name: str) -> str:
    """Return the first part of `name` below `package`, or nothing if there is none."""
    _, _, rest = name.partition(f"{package}.")
    return rest.split(".")[0]
