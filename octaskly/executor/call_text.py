"""A call as people write it, such as `simulate(3, seed=7)`, bounded and escaped.

Arguments may be of any size and any class. Only values of known types are shown: the
`repr` of any other class may be slow, long, or have side effects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from numbers import Number
from pathlib import PurePath
from typing import Any, Final

CALL_CHARS_MAX: Final = 120  #: as the API has it
VALUE_CHARS_MAX: Final = 30  #: of one argument
ITEMS_MAX: Final = 3  #: shown of a collection
DEPTH_MAX: Final = 2  #: of nested collections
BITS_MAX: Final = 96  #: of an integer; the next ones have 30 digits

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and named arguments of one call."""

_BRACKETS: Final[Mapping[type, tuple[str, str]]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("{", "}"),
    dict: ("{", "}"),
}
_CUT: Final = "..."


def describe_calls(
    function: Callable[..., Any], first: Arguments, count: int = 1
) -> str:
    """Return the first of some calls of a function, and the number of the others."""
    arguments, named = first
    while isinstance(function, partial):
        arguments = (*function.args, *arguments)
        named = {**function.keywords, **named}
        function = function.func
    more = f" and {count - 1} more" if count > 1 else ""
    room = CALL_CHARS_MAX - len(more)
    name = _cut(function_name(function), room - len(f"({_CUT})"))
    shown = f"{name}({_join(arguments, named, room - len(name) - len('()'))})"
    return shown + more


def function_name(function: Callable[..., Any]) -> str:
    """Return the name of a function, or of the class of a callable object."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    # A function that another one made has the place where as a part of its name.
    return _escape(str(name).rpartition("<locals>.")[2]) or "call"


def _join(arguments: Sequence[Any], named: Mapping[str, Any], room: int) -> str:
    """Return the arguments that fit, and dots for the others."""
    texts = chain(
        (_short(value) for value in arguments),
        (f"{_escape(str(key))}={_short(value)}" for key, value in named.items()),
    )
    left = len(arguments) + len(named)
    shown: list[str] = []
    for text in texts:
        left -= 1
        line = ", ".join([*shown, text])
        if len(line) + (len(f", {_CUT}") if left else 0) > room:
            return ", ".join([*shown, _CUT])
        shown.append(text)
    return ", ".join(shown)


def _short(value: object, depth: int = 0) -> str:
    """Return a value as Python writes it, shortened; of other classes only the name."""
    kind = type(value)
    if kind is str or kind is bytes:
        return _quote(value)  # type: ignore[arg-type]
    if isinstance(value, PurePath):
        return _quote(str(value))
    if kind in _BRACKETS and depth < DEPTH_MAX:
        return _cut(_collection(value, depth), VALUE_CHARS_MAX)
    if kind is int and value.bit_length() > BITS_MAX:  # type: ignore[attr-defined]
        return "<int>"
    if value is None or isinstance(value, Number):
        try:
            return _cut(_escape(repr(value)), VALUE_CHARS_MAX)
        except Exception:  # noqa: BLE001 - the caller's class may raise anything
            return _class_name(value)
    if callable(value) and isinstance(getattr(value, "__qualname__", None), str):
        return _cut(function_name(value), VALUE_CHARS_MAX)
    return _class_name(value)


def _collection(value: Any, depth: int) -> str:
    opening, closing = _BRACKETS[type(value)]
    first: Iterable[Any] = islice(value, ITEMS_MAX)
    if type(value) is dict:
        first = islice(value.items(), ITEMS_MAX)
        shown = [f"{_short(k, depth + 1)}: {_short(v, depth + 1)}" for k, v in first]
    else:
        shown = [_short(item, depth + 1) for item in first]
    if len(value) > ITEMS_MAX:
        shown.append(_CUT)
    comma = "," if type(value) is tuple and len(value) == 1 else ""
    return f"{opening}{', '.join(shown)}{comma}{closing}"


def _quote(text: str | bytes) -> str:
    shown = _escape(repr(text[:VALUE_CHARS_MAX]))
    is_cut = len(text) > VALUE_CHARS_MAX
    return f"{shown}{_CUT}" if is_cut else shown


def _class_name(value: object) -> str:
    return _cut(f"<{_escape(type(value).__name__)}>", VALUE_CHARS_MAX)


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - len(_CUT)] + _CUT


def _escape(text: str) -> str:
    """Return a text with an escape for each character that shows nothing."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
