"""Keys that an object of a body names twice: the decoder takes the last of them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from octaskly.api.problems import INVALID_VALUE, Problem

AT_ONCE_BYTES_MAX: Final = 1 << 20
SHOWN_CHARS: Final = 80  #: of such a key
_encoder = msgspec.json.Encoder()
_raws = msgspec.json.Decoder(list[msgspec.Raw])

Pairs = list[tuple[str, object]]


class _Found(Exception):
    """An object names a key twice."""


@dataclass(frozen=True, slots=True)
class _Twice:
    """Stands for such an object."""

    name: str  #: the first of its keys that comes again


def refuse(body: bytes, value: object) -> None:
    """Raise `Problem` where an object names a key twice; leave out a large body.

    As `named`.
    """
    if len(body) <= AT_ONCE_BYTES_MAX:
        _refuse(body, value)


async def refuse_in_large(body: bytes, value: object) -> None:
    """Raise `Problem` where `refuse` did not look, while others have their turns."""
    if len(body) > AT_ONCE_BYTES_MAX:
        await asyncio.to_thread(_refuse, body, value)


def _refuse(body: bytes, value: object) -> None:
    if (found := named(body, value)) is not None:
        place, name = found
        hint = f"`{name}` is given twice"
        raise Problem(400, INVALID_VALUE, hint=hint, field=f"{place}.{name}")


def named(body: bytes, value: object) -> tuple[str, str] | None:
    """Return where an object names a key twice, and the key; None if none does.

    Most bodies are not read again in Python for it. Written again, a body has as many
    colons as it had, unless a key was dropped: one of two, or one that says what holds
    anyway, which `RequestBody` leaves out. Text keeps its colons, but for one that is escaped.

    Args:
        body: What was decoded without a fault.
        value: What the decoder made of it: one `RequestBody`, or a list of them.
    """
    is_escaped = b"\\u003" in body
    if not is_escaped and body.count(b":") == _encoder.encode(value).count(b":"):
        return None
    try:
        json.loads(body, object_pairs_hook=_look)
    except _Found:
        return next(_in_parts(body, value))
    return None


def _look(pairs: Pairs) -> None:
    """Keep nothing of an object that names each key once."""
    if len(dict(pairs)) < len(pairs):
        raise _Found


def _in_parts(body: bytes, value: object) -> Iterator[tuple[str, str]]:
    """Look again, for the place; one task at a time, since a tree takes much memory."""
    if not isinstance(value, list):
        yield from _places(json.loads(body, object_pairs_hook=_object), "$")
        return
    for index, raw in enumerate(_raws.decode(body)):
        read = json.loads(bytes(raw), object_pairs_hook=_object)
        yield from _places(read, f"$[{index}]")


def _object(pairs: Pairs) -> dict[str, object] | _Twice:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    times = Counter(name for name, _ in pairs)
    return _Twice(next(name for name, n in times.items() if n > 1)[:SHOWN_CHARS])


def _places(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Walk a body, which is not deep: it was one that has a meaning."""
    if isinstance(value, _Twice):
        yield place, value.name
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _places(part, f"{place}.{name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _places(part, f"{place}[{index}]")
