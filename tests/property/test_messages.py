"""Any value survives encoding; no plain data breaks the decoder."""

from __future__ import annotations

from enum import Enum
from types import NoneType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    get_args,
    get_origin,
    get_type_hints,
)

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct, msgpack, to_builtins

from octaskly.core.log.facts import Entry, Fact
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import NodeId, StreamId, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import Message
from octaskly.errors import RemoteProtocolError
from octaskly.mesh import wire

BASE: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    NoneType: st.none(),
    NodeId: st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=16, max_size=16),
    TaskId: st.text("abcXYZ019._~-", min_size=1, max_size=64),
    StreamId: st.integers(1, 2**63 - 1),
}
LENGTH_MAX = 20
ITEMS_MAX = 3
PACKER = wire.WirePacker()
NUMBERS = sorted(
    kind.__struct_config__.tag for kind in (*get_args(Message), *get_args(Fact))
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for a type hint of the core, within its bounds.

    Nothing is registered with Hypothesis, so other modules are not affected.
    """
    if hint in BASE:
        return BASE[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(*args)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.tuples(*map(values_of, args))
    if args:
        return st.one_of(*map(values_of, args))
    if issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    hints = get_type_hints(hint, include_extras=True)
    return st.builds(
        hint,
        **{
            name: values_of(inner)
            for name, inner in hints.items()
            if get_origin(inner) is not ClassVar
        },
    )


def _bounded(hint: Any, meta: Meta) -> st.SearchStrategy[Any]:
    if hint is int:
        low = meta.ge if meta.gt is None else meta.gt + 1
        high = meta.le if meta.lt is None else meta.lt - 1
        assert low is not None
        assert high is not None
        return st.integers(int(low), int(high))
    if hint is float:
        return st.floats(meta.ge, meta.le)
    least = meta.min_length or 0
    if hint is bytes:
        return st.binary(min_size=least, max_size=LENGTH_MAX)
    if hint is str:
        letters = st.characters(exclude_categories=["Cs"])
        return st.text(letters, min_size=least, max_size=LENGTH_MAX)
    items = values_of(get_args(hint)[0])
    return st.lists(items, min_size=least, max_size=ITEMS_MAX).map(tuple)


MESSAGES: st.SearchStrategy[Message] = values_of(Message)
FACTS: st.SearchStrategy[Fact] = values_of(Fact)
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=30,
)


def decode_body(*bodies: bytes) -> list[Message]:
    """Decode messages as a peer does."""
    decoder = wire.Decoder(Limits())
    return decoder.receive_data(wire.build_frame(bodies))


@given(MESSAGES)
def test_any_message_round_trips(message: Message) -> None:
    """The decoded message equals the encoded one."""
    assert decode_body(PACKER.pack(message)) == [message]


@given(values_of(Entry))
def test_any_entry_round_trips(entry: Entry) -> None:
    """Every node reads the same facts."""
    place = entry.stream, entry.seq, entry.hlc

    assert PACKER.unpack_entry(*place, PACKER.pack(entry.fact)) == entry


@given(values_of(TaskRecord))
def test_any_record_round_trips(record: TaskRecord) -> None:
    """Records keep all their parts."""
    assert PACKER.unpack(PACKER.pack(record), TaskRecord) == record


@given(PLAIN)
def test_plain_data_decodes_or_is_refused_properly(plain: Any) -> None:
    """Bad data raises nothing but RemoteProtocolError."""
    try:
        decode_body(msgpack.encode(plain))
    except RemoteProtocolError:
        return


@given(st.sampled_from(NUMBERS), st.lists(PLAIN, max_size=15))
def test_wrong_row_decodes_or_is_refused_properly(number: int, row: list[Any]) -> None:
    """The same behind each type number, in frames and in the log."""
    body = msgpack.encode([number, *row])
    for decode in (
        decode_body,
        lambda body: PACKER.unpack_entry(StreamId(1), 1, 1, body),
    ):
        try:
            decode(body)
        except RemoteProtocolError:
            continue


@given(MESSAGES, st.data())
def test_damaged_message_decodes_or_is_refused_properly(
    message: Message, data: st.DataObject
) -> None:
    """A message with one field replaced is refused, or still of that class."""
    number, *values = plain_of(message)
    if values:
        at = data.draw(st.integers(0, len(values) - 1))
        values[at] = data.draw(PLAIN)
    try:
        (back,) = decode_body(msgpack.encode([number, *values]))
    except RemoteProtocolError:
        return
    assert type(back) is type(message)


def plain_of(value: Struct) -> list[Any]:
    """Return a value as an array in wire format."""
    plain: list[Any] = to_builtins(value, builtin_types=(bytes,))
    return plain
