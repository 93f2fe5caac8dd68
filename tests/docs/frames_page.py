"""What is in a frame, for docs/reference/wire-protocol.md: sizes, messages, values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from octaskly.core.model.settings import Limits
from octaskly.core.protocol.codec import NUMBERS
from octaskly.core.protocol.messages import Message
from octaskly.mesh import wire
from octaskly.mesh import wire as counting

_PLAIN = {
    str: "text",
    bytes: "bytes",
    bool: "boolean",
    int: "integer",
    float: "number",
    NoneType: "nil",
}


def sizes() -> str:
    """Return the bounds on what a peer may send."""
    limits = Limits()
    rows = [
        ("the length before a frame", f"{wire.HEADER_BYTES} bytes"),
        ("a frame, before the connection is complete", _bytes(limits.hello_bytes)),
        ("a frame, after that", _bytes(limits.frame_bytes)),
        ("the items of one array", f"{wire.ARRAY_ITEMS_MAX:,}"),
        ("the values of one frame, arrays and items", f"{counting.VALUES_MAX:,}"),
        ("a message whose batch goes into one", _bytes(wire.SPLIT_FRAME_BYTES)),
        ("entries in an answer to Pull", _bytes(limits.pull_bytes)),
        ("the type number of a message", f"{wire.MESSAGE_NUMBERS_END - 1}"),
    ]
    return "| What | At most |\n| --- | --- |\n" + "".join(
        f"| {what} | {most} |\n" for what, most in rows
    )


def messages() -> str:
    """Return a row for each message, by number."""
    kinds = sorted(get_args(Message), key=NUMBERS.__getitem__)
    rows = (f"| {NUMBERS[kind]} | {kind.__name__} | {_row(kind)} |\n" for kind in kinds)
    return "| Number | Message | Fields, in order |\n| --- | --- | --- |\n" + "".join(
        rows
    )


def values() -> str:
    """Return a row for each value that stands in messages, by name."""
    found = {kind.__name__: kind for kind in _reached(get_args(Message))}
    for kind in get_args(Message):
        found.pop(kind.__name__, None)
    rows = (
        f"| {name} | {NUMBERS.get(kind, '')} | {_row(kind)} |\n"
        for name, kind in sorted(found.items())
    )
    return "| Value | Number | Fields, in order |\n| --- | --- | --- |\n" + "".join(
        rows
    )


def _bytes(size: int) -> str:
    return f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB"


def _row(kind: type) -> str:
    if issubclass(kind, Enum):
        names = (f" {m.name.lower()}" if issubclass(kind, int) else "" for m in kind)
        members = zip(kind, names, strict=True)
        return "one of " + ", ".join(f"`{m.value}`{name}" for m, name in members)
    hints = get_type_hints(kind)
    return ", ".join(
        f"`{name}` {_said(hints[name])}{' *' if may_lack else ''}"
        for name, may_lack in _fields(kind)
    )


def _fields(kind: type) -> Iterator[tuple[str, bool]]:
    """Yield each field, and whether the row may end before it."""
    if is_dataclass(kind):
        for field in fields(kind):
            yield field.name, field.default is not MISSING
    else:
        for name in kind._fields:  # type: ignore[attr-defined]
            yield name, name in kind._field_defaults  # type: ignore[attr-defined]


def _said(hint: Any) -> str:
    hint = getattr(hint, "__supertype__", hint)
    origin = get_origin(hint)
    if origin is tuple:
        items = get_args(hint)
        if items[-1] is ...:
            return f"array of {_said(items[0])}"
        return f"({', '.join(map(_said, items))})"
    if origin in (Union, UnionType):
        return " or ".join(map(_said, get_args(hint)))
    return _PLAIN.get(hint) or str(hint.__name__)


def _reached(kinds: Any) -> Iterator[type]:
    """Yield all classes that rows are made of, from these on."""
    waiting, seen = list(kinds), set()
    while waiting:
        hint = waiting.pop()
        hint = getattr(hint, "__supertype__", hint)
        if get_origin(hint) is not None:
            waiting.extend(get_args(hint))
        elif isinstance(hint, type) and hint not in _PLAIN and hint not in seen:
            seen.add(hint)
            yield hint
            if not issubclass(hint, Enum):
                waiting.extend(get_type_hints(hint).values())
