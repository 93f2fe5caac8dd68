"""Measures the structure of the code, and checks rules that no linter checks.

`python -m tests.structure` prints each figure with its value before the change and its
goal, then questions of taste, then broken rules. It fails if a rule is broken. `--json`
prints the same for programs; `names` prints the names of all modules.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tests.structure import rules, source
from tests.structure.figures import Figure, measure
from tests.structure.source import Module

ROOT = Path(__file__).parent.parent.parent
UNCHANGED = ROOT / "tests" / "executor" / "cpython"  #: tests of CPython's own


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser("python -m tests.structure", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["table", "names"], default="table")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    modules = source.read(ROOT / "octaskly")
    if arguments.what == "names":
        print("\n".join(name for name, m in modules.items() if not m.is_package))
        return 0
    figures = measure(ROOT / "pyproject.toml", modules)
    asked, broken = questions(modules), breaches(modules, tests())
    if arguments.json:
        rows = [{**asdict(figure), "met": figure.is_met} for figure in figures]
        print(json.dumps({"figures": rows, "questions": asked, "breaches": broken}))
    else:
        print(table(figures))
        for question, names in asked.items():
            print(f"\n{question} {', '.join(names) or 'none'}")
        print("\nRules:", "\n".join(broken) or "kept")
    return 1 if broken else 0


def tests() -> list[Module]:
    """Return the modules of the tests."""
    modules = source.read(ROOT / "tests").values()
    return [m for m in modules if not m.path.is_relative_to(UNCHANGED)]


def questions(modules: dict[str, Module]) -> dict[str, list[str]]:
    """Return the questions of a reviewer, with the modules concerned."""
    small = rules.small_modules(modules, source.imports(modules))
    return {
        "Are these two modules each?": rules.large_modules(modules.values()),
        "Do these belong in the neighbour that imports them?": small,
    }


def breaches(modules: dict[str, Module], tests: Iterable[Module]) -> list[str]:
    """Return each broken rule."""
    return [
        *rules.crowded_folders(modules.values()),
        *rules.long_functions(modules.values()),
        *rules.wrong_names(modules.values()),
        *rules.unused_modules(modules, source.imports(modules)),
        *rules.undocumented_tests(tests),
    ]


def table(figures: list[Figure]) -> str:
    """Return the figures as text, a row each."""
    width = max(len(figure.what) for figure in figures)
    met = {None: "", True: "yes", False: "no"}
    rows: list[tuple[str, ...]] = [("figure", "before", "now", "goal", "met")]
    rows += [
        (f.what, *(_shown(n) for n in (f.before, f.now, f.goal)), met[f.is_met])
        for f in figures
    ]
    return "\n".join(
        f"{what:{width}} {before:>6} {now:>6} {goal:>6} {is_met:>4}".rstrip()
        for what, before, now, goal, is_met in rows
    )


def _shown(number: int | None) -> str:
    return "" if number is None else str(number)


if __name__ == "__main__":
    sys.exit(main())
