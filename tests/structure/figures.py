"""The figures by which the structure of the code is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.structure import contracts, entered, rules, source
from tests.structure.functions import FUNCTION_LINES_MAX, functions, percentile
from tests.structure.source import Module

LINES_GOAL = 63_100  #: 2000 fewer than before
LONG_SHARE = 0.95


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    what: str
    before: int | None  #: None: not measured then
    now: int
    goal: int | None  #: at most; None: only reported

    @property
    def is_met(self) -> bool | None:
        """Return True if the goal is met, None if there is none."""
        return None if self.goal is None else self.now <= self.goal


def measure(project: Path, modules: dict[str, Module]) -> list[Figure]:
    """Return all figures of the package whose `modules` these are."""
    return [
        *_shape(modules),
        *_steps(),
        *_sizes(modules),
        *_contracts(project, modules),
    ]


def _shape(modules: dict[str, Module]) -> list[Figure]:
    edges = source.imports(modules)
    largest = max(rules.folder_sizes(modules.values()).values())
    in_one_folder = len(source.chain_in_one_folder(modules, edges))
    pairs = source.between_subpackages("octaskly.core", edges)
    return [
        Figure(
            "modules in the largest folder (commands and routes excepted)",
            83,
            largest,
            rules.FOLDER_MODULES_MAX,
        ),
        Figure("longest import chain inside one subpackage", 20, in_one_folder, 5),
        Figure(
            "longest import chain in the whole package",
            24,
            len(source.longest_chain(edges)),
            None,
        ),
        Figure(
            "pairs of core subpackages with imports between them", 68, len(pairs), 50
        ),
        Figure("imports between core subpackages", 392, sum(pairs.values()), 300),
    ]


def _steps() -> list[Figure]:
    wake_up, submission = entered.wake_up(1), entered.submission(1)
    life = entered.life_of_a_task(2)
    return [
        Figure("core files entered by an idle wake-up", 26, len(wake_up.files), 8),
        Figure(
            "core files entered by an idle wake-up, with a standby",
            27,
            len(entered.wake_up(2).files),
            None,
        ),
        Figure("core files entered by a submitted task", 40, len(submission.files), 20),
        Figure(
            "calls between core files for a submitted task",
            86,
            submission.crossings,
            None,
        ),
        Figure(
            "core files entered by a task until its end, with a standby",
            53,
            len(life.files),
            None,
        ),
        Figure(
            "calls between core files by a task until its end, with a standby",
            513,
            life.crossings,
            None,
        ),
    ]


def _sizes(modules: dict[str, Module]) -> list[Figure]:
    found = functions(modules.values())
    long = [function for function in found if function.lines >= FUNCTION_LINES_MAX]
    return [
        Figure("functions of 50 lines or more", 0, len(long), None),
        Figure(
            "functions of 50 lines or more that are no tables",
            0,
            sum(not function.is_table for function in long),
            0,
        ),
        Figure(
            "lines of a function without its docstring, 95th percentile",
            23,
            percentile((f.undocumented_lines for f in found), LONG_SHARE),
            30,
        ),
        Figure(
            "lines of octaskly/",
            65_100,
            sum(module.lines for module in modules.values()),
            LINES_GOAL,
        ),
    ]


def _contracts(project: Path, modules: dict[str, Module]) -> list[Figure]:
    read = contracts.read_contracts(project)
    lists = contracts.file_lists(read, modules)
    return [
        Figure("import contracts", 12, len(read), 8),
        Figure("lists of files in import contracts", 3, len(lists), 0),
    ]
