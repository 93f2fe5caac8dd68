"""Contents of a frame, for docs/reference/wire-protocol.md: sizes, messages, values."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import NODEFAULT, Struct, structs

from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import Message
from octaskly.mesh import wire

_PLAIN = {
    str: "text",
    bytes: "bytes",
    bool: "boolean",
    int: "integer",
    float: "number",
    NoneType: "nil",
}


def sizes() -> str:
    """Return the limits on a peer's frames."""
    limits = Limits()
    rows = [
        ("the length before a frame", f"{wire.HEADER_BYTES} bytes"),
        ("a frame, before the connection is complete", _bytes(limits.hello_bytes)),
        ("a frame, after that", _bytes(limits.frame_bytes)),
        ("the messages of one frame", f"{wire.MESSAGES_MAX:,}"),
        ("a message whose batch goes into one", _bytes(wire.SPLIT_FRAME_BYTES)),
        ("entries in an answer to Pull", _bytes(limits.pull_bytes)),
        ("the type number of a message", f"{wire.MESSAGE_NUMBERS_END - 1}"),
    ]
    return "| What | At most |\n| --- | --- |\n" + "".join(
        f"| {what} | {most} |\n" for what, most in rows
    )


def messages() -> str:
    """Return a row for each message, by number."""
    kinds = sorted(get_args(Message), key=_number)
    rows = (f"| {_number(kind)} | {kind.__name__} | {_row(kind)} |\n" for kind in kinds)
    return "| Number | Message | Fields, in order |\n| --- | --- | --- |\n" + "".join(
        rows
    )


def values() -> str:
    """Return a row for each value in messages, by name."""
    found = {kind.__name__: kind for kind in _reached(get_args(Message))}
    for kind in get_args(Message):
        found.pop(kind.__name__, None)
    rows = (
        f"| {name} | {_number(kind)} | {_row(kind)} |\n"
        for name, kind in sorted(found.items())
    )
    return "| Value | Number | Fields, in order |\n| --- | --- | --- |\n" + "".join(
        rows
    )


def _bytes(size: int) -> str:
    return f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB"


def _number(kind: type) -> int | str:
    """Return the type number, or nothing if only the position defines the type."""
    tag = kind.__struct_config__.tag if issubclass(kind, Struct) else None
    return "" if tag is None else tag


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
    if issubclass(kind, Struct):
        for field in structs.fields(kind):
            yield field.name, field.default is not NODEFAULT
    else:
        for name in kind._fields:  # type: ignore[attr-defined]
            yield name, name in kind._field_defaults  # type: ignore[attr-defined]


def _said(hint: Any) -> str:
    hint = _bare(hint)
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(f"`{one}`" for one in get_args(hint))
    if origin is tuple:
        items = get_args(hint)
        if items[-1] is ...:
            return f"array of {_said(items[0])}"
        return f"({', '.join(map(_said, items))})"
    if origin in (Union, UnionType):
        return " or ".join(map(_said, get_args(hint)))
    return _PLAIN.get(hint) or str(hint.__name__)


def _bare(hint: Any) -> Any:
    """Return the type behind a name or within bounds."""
    while True:
        if hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        elif hasattr(hint, "__metadata__"):
            hint = hint.__origin__
        else:
            return hint


def _reached(kinds: Any) -> Iterator[type]:
    """Yield all classes that rows consist of, from these on."""
    waiting, seen = list(kinds), set()
    while waiting:
        hint = _bare(waiting.pop())
        if get_origin(hint) is not None:
            waiting.extend(get_args(hint))
        elif isinstance(hint, type) and hint not in _PLAIN and hint not in seen:
            seen.add(hint)
            yield hint
            if not issubclass(hint, Enum):
                waiting.extend(get_type_hints(hint).values())
