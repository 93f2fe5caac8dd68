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
from functools import cache, partial
from itertools import chain
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
    pending: list[Any] = [root]
    while pending:
        each = pending.pop()
        kind = type(each)
        part_of, contents_of = _readers(kind)  # type: ignore[arg-type]
        if contents_of is None:
            parts.append(each if part_of is None else part_of(each))
            continue
        place = places.setdefault(id(each), len(places))
        parts.append((kind.__name__, place))
        if place == len(places) - 1:
            pending += contents_of(each)
    return hash(tuple(parts))


@cache
def _readers(
    kind: type,
) -> tuple[Callable[[Any], Hashable] | None, Callable[[Any], Iterable[object]] | None]:
    """Return how to read values of this type, decided once for each type.

    Returns:
        For a value without an identity of its own, a function that returns what it
        counts as, or None if it counts as itself. For any other, a function that
        returns what it consists of, in an order that depends on nothing else.
    """
    if issubclass(kind, ATOMS):
        return None, None
    if issubclass(kind, Struct) and kind.__struct_config__.eq:
        return _hash_of, None
    for kinds, contents_of in _CONTENTS.items():
        if issubclass(kind, kinds):
            return None, contents_of
    return None, partial(_fields, _slots_of(kind))


def _hash_of(value: Struct) -> Hashable:
    try:
        return hash(value)
    except TypeError:
        return repr(value)


_CONTENTS: dict[tuple[type, ...], Callable[[Any], Iterable[object]]] = {
    (Mapping,): lambda value: chain.from_iterable(value.items()),
    (list, tuple, deque): lambda value: [len(value), *value],
    (set, frozenset): lambda value: sorted(map(repr, value)),
    (FunctionType,): lambda value: [
        value.__qualname__,
        *map(_cell, value.__closure__ or ()),
    ],
    (MethodType,): lambda value: [value.__func__.__qualname__, value.__self__],
    (partial,): lambda value: [value.func, *value.args, *value.keywords.items()],
}
"""By types, a function that returns the parts of a value."""


def _slots_of(kind: type) -> list[str]:
    names: list[str] = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else [*slots]
    return [name for name in names if name != "__dict__"]


def _fields(slots: Sequence[str], value: object) -> list[object]:
    fields = [*getattr(value, "__dict__", {}).values()]
    return fields + [getattr(value, name, None) for name in slots]


def _cell(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"
