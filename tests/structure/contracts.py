"""The import contracts in pyproject.toml, and the lists of files in them."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from tests.structure.source import Module

LISTED_MIN = 4  #: files of one folder in a contract; fewer are exceptions


def read_contracts(project: Path) -> list[dict[str, Any]]:
    """Return the contracts of a pyproject.toml."""
    settings = tomllib.loads(project.read_text())
    contracts: list[dict[str, Any]] = settings["tool"]["importlinter"]["contracts"]
    return contracts


def file_lists(contracts: list[dict[str, Any]], modules: dict[str, Module]) -> set[str]:
    """Return the packages whose files the contracts list one by one as sources.

    Such a list grows with each new file, and a missing file is not checked. The layers
    of a contract are no such list: they are an order, and complete.
    """
    listed = set()
    for contract in contracts:
        named = contract.get("source_modules", [])
        files = [n for n in named if n in modules and not modules[n].is_package]
        parents = Counter(name.rpartition(".")[0] for name in files)
        listed |= {parent for parent, many in parents.items() if many >= LISTED_MIN}
    return listed
