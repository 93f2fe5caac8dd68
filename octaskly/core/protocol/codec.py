"""Values of the core as plain data, and back: compact rows with a type number.

A dataclass or named tuple becomes a tuple of its fields, in the order of their
declaration; a member of a union becomes `(type number, row)`, by `type_numbers`.
Fields are only ever added at the end and with a default, so that versions can differ:
`decode` ignores trailing fields that it does not know, and fills in those that are
missing.

What is decoded is hostile until proven otherwise: types, enum values, names, nesting
and the range of numbers are checked. Coders are compiled once per class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from math import isfinite
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from octaskly.core.log import facts
from octaskly.core.log.facts import Fact
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model import keys, tasks
from octaskly.core.model.ids import Address, NodeId, TaskId
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.protocol import messages
from octaskly.core.protocol.messages import Message
from octaskly.errors import LocalProtocolError, RemoteProtocolError

NUMBERS: Final[dict[type, int]] = {
    messages.Hello: 1,
    messages.HelloOk: 2,
    messages.Heartbeat: 3,
    messages.HeartbeatOk: 4,
    messages.Probe: 5,
    messages.ProbeOk: 6,
    messages.Claim: 7,
    messages.ClaimOk: 8,
    messages.ClaimRejected: 9,
    messages.Roster: 10,
    messages.Redirect: 11,
    messages.Pull: 12,
    messages.Entries: 13,
    messages.Assign: 14,
    messages.Kill: 15,
    messages.Results: 16,
    messages.ResultsOk: 17,
    messages.Reattach: 18,
    messages.Transfer: 19,
    messages.Leave: 20,
    messages.Replicate: 21,
    messages.ReplicateOk: 22,
    messages.Snapshot: 24,
    messages.RecordBatch: 25,
    keys.KeyringStatus: 28,
    keys.KeyringTransfer: 29,
    facts.Submitted: 100,
    facts.TaskCancelled: 101,
    facts.Assigned: 102,
    facts.Finished: 103,
    facts.Floor: 104,
    facts.Unblocked: 105,
    facts.Notified: 106,
    facts.Recorded: 107,
    facts.Entry: 120,
    TaskRecord: 121,
    messages.Report: 122,
    tasks.TaskSpec: 123,
    tasks.Outcome: 124,
    tasks.Attempt: 125,
    NodeInfo: 126,
    messages.RosterEntry: 127,
    Address: 128,
    TaskOptions: 129,
}
"""A number stays with its class for ever, and is never given to another."""


INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1  #: what the log can keep
_NAMES: Final[dict[Any, re.Pattern[str]]] = {
    TaskId: re.compile(r"[A-Za-z0-9._~-]{1,96}"),
    NodeId: re.compile(r"[A-Za-z0-9._-]{0,64}"),
}
_ROW: Final = frozenset({tuple, list})
_SIGNATURES_MAX: Final = 256
"""Bound on the remembered combinations of field types per class."""

_Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Coder:
    """How one type hint is written; None stands for "as it is".

    `decode` may rely on the type of its argument being one of `types`.
    """

    types: frozenset[type]
    encode: _Convert | None = None
    decode: _Convert | None = None


def encode(value: object) -> tuple[int, Any]:
    """Return a value of a class in `NUMBERS` as `(type number, row)`.

    Raises:
        LocalProtocolError: the class has no number.
    """
    return _encode_any(value)  # type: ignore[no-any-return]


def decode(plain: object) -> Any:
    """Reverse `encode`.

    Raises:
        RemoteProtocolError: this is no value of a class in `NUMBERS`.
    """
    return _decode_any(plain)


def decode_message(plain: object) -> Message:
    """Reverse `encode` for a message.

    Raises:
        RemoteProtocolError: this is no message.
    """
    return _decode_message(plain)  # type: ignore[no-any-return]


def decode_fact(plain: object) -> Fact:
    """Reverse `encode` for a fact.

    Raises:
        RemoteProtocolError: this is no fact.
    """
    return _decode_fact(plain)  # type: ignore[no-any-return]


def _coder(hint: Any) -> _Coder:
    """Return the coder of a type hint."""
    if hint in _NAMES:
        return _Coder(frozenset({str}), None, _name_decoder(hint))
    hint = getattr(hint, "__supertype__", hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin = get_origin(hint)
    if origin is tuple:
        return _tuple_coder(get_args(hint))
    if origin in (Union, UnionType):
        return _union_coder(get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum_coder(hint)
    assert isinstance(hint, type), f"no coder for {hint!r}"
    return _class_coder(hint)


def _name_decoder(hint: Any) -> _Convert:
    fullmatch = _NAMES[hint].fullmatch

    def decode_name(text: str) -> str:
        if fullmatch(text) is None:
            raise RemoteProtocolError(f"{text[:40]!r} is no {hint.__name__}")
        return text

    return decode_name


def _decode_int(number: int) -> int:
    if number > INT_MAX:
        raise RemoteProtocolError("a number does not fit into 64 bits with sign")
    return number


def _decode_float(number: float) -> float:
    if not isfinite(number):
        raise RemoteProtocolError("a number is not finite")
    return float(number)


_PLAIN: Final[dict[Any, _Coder]] = {
    str: _Coder(frozenset({str})),
    bytes: _Coder(frozenset({bytes})),
    bool: _Coder(frozenset({bool})),
    int: _Coder(frozenset({int}), None, _decode_int),
    float: _Coder(frozenset({float, int}), None, _decode_float),
}


def _enum_coder(hint: type[Enum]) -> _Coder:
    """Code by value; a member is its value already for whatever packs it."""
    members = {member.value: member for member in hint}
    get = members.get

    def decode_enum(value: Any) -> Enum:
        member = get(value)
        if member is None:
            raise RemoteProtocolError(f"no {hint.__name__} has this value")
        return member

    return _Coder(frozenset(map(type, members)), None, decode_enum)


def _tuple_coder(hints: tuple[Any, ...]) -> _Coder:
    if len(hints) == 2 and hints[1] is ...:  # noqa: PLR2004 (item type and dots)
        return _list_coder(_coder(hints[0]))
    coders = [_coder(hint) for hint in hints]
    decode_row = _row_decoder("pair", coders, (), len(hints), tuple)
    return _Coder(_ROW, _row_encoder(tuple, coders), decode_row)


def _list_coder(item: _Coder) -> _Coder:
    item_types, item_encode, item_decode = item.types, item.encode, item.decode
    assert NoneType not in item_types

    def encode_list(values: Iterable[Any]) -> tuple[Any, ...]:
        assert item_encode is not None
        return tuple(map(item_encode, values))

    def decode_list(values: Sequence[Any]) -> tuple[Any, ...]:
        if not values:
            return ()
        if not item_types.issuperset(map(type, values)):
            raise RemoteProtocolError("an item of a list has a wrong type")
        return tuple(values if item_decode is None else map(item_decode, values))

    return _Coder(_ROW, None if item_encode is None else encode_list, decode_list)


def _union_coder(hints: tuple[Any, ...]) -> _Coder:
    if NoneType not in hints:
        return _Coder(_ROW, _tagged_encoder(hints), _tagged_decoder(hints))
    (hint,) = (hint for hint in hints if hint is not NoneType)
    inner = _coder(hint)  # Rows convert no None.
    return _Coder(inner.types | {NoneType}, inner.encode, inner.decode)


def _tagged_encoder(classes: Iterable[type]) -> _Convert:
    table = {cls: (NUMBERS[cls], _class_coder(cls).encode) for cls in classes}

    def encode_tagged(value: Any) -> tuple[int, Any]:
        try:
            number, encode_row = table[type(value)]
        except KeyError:
            raise LocalProtocolError(f"{type(value)} is never sent") from None
        return number, value if encode_row is None else encode_row(value)

    return encode_tagged


def _tagged_decoder(classes: Iterable[type]) -> _Convert:
    table = {NUMBERS[cls]: _class_coder(cls).decode for cls in classes}

    def decode_tagged(pair: Any) -> Any:
        if type(pair) not in _ROW or len(pair) != 2:  # noqa: PLR2004 (number and row)
            raise RemoteProtocolError("not a type number and its row")
        number, row = pair
        decode_row = table.get(number) if type(number) is int else None
        if decode_row is None or type(row) not in _ROW:
            raise RemoteProtocolError("unknown type number, or no row behind it")
        return decode_row(row)

    return decode_tagged


_class_coders: dict[type, _Coder] = {}


def _class_coder(cls: type) -> _Coder:
    """Return the coder of a dataclass or named tuple, compiled at first use."""
    coder = _class_coders.get(cls)
    if coder is None:
        coder = _class_coders[cls] = _compile(cls)
    return coder


def _compile(cls: type) -> _Coder:
    hints = get_type_hints(cls)
    if is_dataclass(cls):
        own = fields(cls)
        names = [field.name for field in own]
        missing = [field.default for field in own]
        assert all(field.default_factory is MISSING for field in own)
        make = _dataclass_maker(cls, names)
    else:
        names = list(cls._fields)  # type: ignore[attr-defined]
        known = cls._field_defaults  # type: ignore[attr-defined]
        missing = [known.get(name, MISSING) for name in names]
        make = cls._make  # type: ignore[attr-defined]
    coders = [_coder(hints[name]) for name in names]
    required = max(
        (i + 1 for i, default in enumerate(missing) if default is MISSING), default=0
    )
    decode_row = _row_decoder(
        cls.__name__, coders, tuple(missing[required:]), required, make
    )
    return _Coder(_ROW, _row_encoder(cls, coders, names), decode_row)


def _dataclass_maker(cls: type[Any], names: list[str]) -> _Convert:
    """Return what builds an instance from its fields in order.

    It fills the slots directly: `__init__` of a frozen class takes names and goes
    through `__setattr__`, which costs twice as much as all of the decoding.
    """
    assert not hasattr(cls, "__post_init__")
    new = object.__new__
    setters = tuple(getattr(cls, name).__set__ for name in names)

    def make(values: Iterable[Any]) -> Any:
        instance = new(cls)
        for set_field, value in zip(setters, values, strict=True):
            set_field(instance, value)
        return instance

    return make


def _row_encoder(
    cls: type, coders: Sequence[_Coder], names: Sequence[str] = ()
) -> _Convert | None:
    """Return what turns an instance into a tuple, None if it is one already."""
    converts = [(i, coder.encode) for i, coder in enumerate(coders) if coder.encode]
    read: _Convert
    if issubclass(cls, tuple):
        if not converts:
            return None
        read = list
    elif len(names) > 1:
        read = attrgetter(*names)
        if not converts:
            return read
    elif names:  # Of one name `attrgetter` makes no tuple.
        get = attrgetter(*names)
        read = lambda value: (get(value),)  # noqa: E731
    else:
        read = lambda _: ()  # noqa: E731

    def encode_row(value: Any) -> list[Any]:
        row = list(read(value))
        for i, convert in converts:
            field = row[i]
            if field is not None:
                row[i] = convert(field)
        return row

    return encode_row


def _row_decoder(
    label: str,
    coders: Sequence[_Coder],
    defaults: tuple[Any, ...],
    required: int,
    make: _Convert,
) -> _Convert:
    """Return what turns a row into a value.

    The types of all fields are checked by one look-up: combinations that were found
    right are remembered.
    """
    size = len(coders)
    converts = [(i, coder.decode) for i, coder in enumerate(coders) if coder.decode]
    good: set[tuple[type, ...]] = set()

    def decode_row(row: Sequence[Any]) -> Any:
        values = list(row)
        if len(values) != size:
            del values[size:]
            if len(values) < required:
                raise RemoteProtocolError(f"{label} lacks fields")
        signature = tuple(map(type, values))
        if signature not in good:
            _check_types(label, coders, signature)
            if len(good) < _SIGNATURES_MAX:
                good.add(signature)
        present = len(values)
        for i, convert in converts:
            if i < present and (field := values[i]) is not None:
                values[i] = convert(field)
        if present != size:
            values.extend(defaults[present - required :])
        return make(values)

    return decode_row


def _check_types(
    label: str, coders: Sequence[_Coder], signature: tuple[type, ...]
) -> None:
    for i, (kind, coder) in enumerate(zip(signature, coders, strict=False)):
        if kind not in coder.types:
            raise RemoteProtocolError(f"field {i} of {label} has a wrong type")


_encode_any = _tagged_encoder(NUMBERS)
_decode_any = _tagged_decoder(NUMBERS)
_decode_message = _tagged_decoder(get_args(Message))
_decode_fact = _tagged_decoder(get_args(Fact))
