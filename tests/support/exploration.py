"""Exhaustive exploration of a model in a small scope: all its faults, at any point.

The search is bounded by delays: things happen in one default order, from which a path
may deviate a few times. Faults are free, but each kind has a budget. A path is run
again from its start wherever it branches, so the model need not be copied. A state that
was seen is not explored again.

Source: Emmi, Qadeer, Rakamarić, "Delay-bounded scheduling" (POPL 2011).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, Protocol

import pytest
from msgspec import Struct

Action = tuple[Any, ...]
Path = tuple[Action, ...]

EXPLORED = "explored"  #: name of a test's property: how much it explored, as text
RecordProperty = Callable[[str, object], None]
"""The fixture `record_property`."""


def scopes(
    small: Mapping[str, Sequence[Any]], large: Mapping[str, Sequence[Any]]
) -> list[Any]:
    """Return parameters of a test by scope; only `make soak` explores large ones."""
    soak = pytest.mark.soak
    return [
        *(pytest.param(*each, id=name) for name, each in small.items()),
        *(pytest.param(*each, id=name, marks=soak) for name, each in large.items()),
    ]


ATOMS = (int, str, float, bytes, type(None), Enum, type)


class Model(Protocol):
    """What is explored."""

    def choices(self) -> tuple[Action | None, list[Action]]:
        """Return what happens by default, None if nothing does; and what else may."""

    def do(self, action: Action) -> None:
        """Perform an action and check the state.

        Raises:
            AssertionError: The state breaks a rule.
        """

    def check_end(self) -> None:
        """Check a state in which nothing happens any more, once all faults are over.

        Raises:
            AssertionError: The state breaks a rule.
        """


@dataclass
class Explored:
    """The size of a scope, and the paths that broke a rule."""

    states: int = 0
    ends: int = 0
    is_complete: bool = True
    failures: list[tuple[Path, str]] = field(default_factory=list)

    def __str__(self) -> str:
        whole = "complete" if self.is_complete else "cut off"
        return f"{whole}: {self.states} states, {self.ends} ends"

    def describe_failures(self) -> str:
        """Return the failures by their first lines, and the shortest path to one."""
        kinds = Counter(text.splitlines()[0][:80] for _, text in self.failures)
        path, text = min(self.failures, key=lambda pair: len(pair[0]))
        steps = " ".join("/".join(map(str, action)) for action in path)
        return f"{kinds.most_common(5)}\n{len(path)} steps: {steps}\n{text}"


def explore(
    make: Callable[[], Model], *, states_max: int, failures_max: int = 1000
) -> Explored:
    """Visit all states that can be reached, up to a bound on these or on failures."""
    found = Explored()
    seen: set[int] = set()
    branches: list[Path] = [()]
    while branches:
        if len(seen) >= states_max or len(found.failures) >= failures_max:
            found.is_complete = False
            break
        path = branches.pop()
        model = make()
        try:
            for action in path:
                model.do(action)
            while (state := fingerprint(model)) not in seen:
                seen.add(state)
                usual, others = model.choices()
                branches += [(*path, action) for action in others]
                if usual is None:
                    found.ends += 1
                    path = (*path, ("end",))
                    model.check_end()
                    break
                path = (*path, usual)
                model.do(usual)
        except AssertionError as error:
            found.failures.append((path, str(error) or repr(error)))
    found.states = len(seen)
    return found


def fingerprint(root: object) -> int:
    """Return a hash of all that can be reached from an object, but not its identity."""
    parts: list[Hashable] = []
    places: dict[int, int] = {}
    pending: list[object] = [root]
    while pending:
        each = pending.pop()
        if isinstance(each, ATOMS):
            parts.append(each)
            continue
        if isinstance(each, Struct) and each.__struct_config__.eq:
            parts.append(_hash_of(each))
            continue
        place = places.setdefault(id(each), len(places))
        parts.append((type(each).__name__, place))
        if place == len(places) - 1:
            pending += _contents(each)
    return hash(tuple(parts))


def _hash_of(value: Struct) -> Hashable:
    try:
        return hash(value)
    except TypeError:
        return repr(value)


def _contents(value: object) -> Iterable[object]:
    """Return what a value consists of, in an order that depends on nothing else."""
    match value:
        case Mapping():
            return [part for pair in value.items() for part in pair]
        case list() | tuple() | deque():
            return [len(value), *value]
        case set() | frozenset():
            return sorted(map(repr, value))
        case FunctionType():
            return [value.__qualname__, *(_cell(c) for c in value.__closure__ or ())]
        case MethodType():
            return [value.__func__.__qualname__, value.__self__]
        case partial():
            return [value.func, *value.args, *value.keywords.items()]
        case _:
            return _fields(value)


def _fields(value: object) -> list[object]:
    names = [*getattr(value, "__dict__", ())]
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else [*slots]
    return [getattr(value, name, None) for name in names if name != "__dict__"]


def _cell(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"
