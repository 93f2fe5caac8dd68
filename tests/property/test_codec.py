"""Any value survives encoding; no plain data breaks the decoder."""

from __future__ import annotations

from enum import Enum
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.log.facts import Entry, Fact
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import NodeId, StreamId, TaskId
from octaskly.core.protocol import codec
from octaskly.core.protocol.codec import NUMBERS
from octaskly.core.protocol.messages import Message
from octaskly.errors import RemoteProtocolError

BASE: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    bytes: st.binary(max_size=20),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    NoneType: st.none(),
    NodeId: st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=16, max_size=16),
    TaskId: st.text("abcXYZ019._~-", min_size=1, max_size=64),
    StreamId: st.integers(1, 2**63 - 1),
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for a type hint of the core.

    Nothing is registered with Hypothesis, so that other modules are left alone.
    """
    if hint in BASE:
        return BASE[hint]
    args = get_args(hint)
    if get_origin(hint) is tuple:
        if args[1:] == (...,):
            return st.lists(values_of(args[0]), max_size=3).map(tuple)
        return st.tuples(*map(values_of, args))
    if args:
        return st.one_of(*map(values_of, args))
    if issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    hints = get_type_hints(hint)
    return st.builds(hint, **{name: values_of(inner) for name, inner in hints.items()})


MESSAGES: st.SearchStrategy[Message] = values_of(Message)
FACTS: st.SearchStrategy[Fact] = values_of(Fact)
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner).map(tuple) | st.lists(inner) | st.dictionaries(st.text(), inner)
    ),
    max_leaves=30,
)


@given(MESSAGES)
def test_any_message_round_trips(message: Message) -> None:
    """What is decoded is what was encoded."""
    assert codec.decode_message(packed(codec.encode(message))) == message


@given(FACTS)
def test_any_fact_round_trips(fact: Fact) -> None:
    """The same facts on every node, whatever they hold."""
    assert codec.decode_fact(packed(codec.encode(fact))) == fact


@given(values_of(Entry) | values_of(TaskRecord))
def test_any_stored_value_round_trips(value: Entry | TaskRecord) -> None:
    """Entries and records keep all their parts."""
    assert codec.decode(packed(codec.encode(value))) == value


@given(PLAIN)
def test_plain_data_decodes_or_is_refused_properly(plain: Any) -> None:
    """Nothing but RemoteProtocolError ever comes out of bad data."""
    try:
        codec.decode(plain)
    except RemoteProtocolError:
        return


@given(st.sampled_from(sorted(NUMBERS.values())), st.lists(PLAIN, max_size=15))
def test_a_wrong_row_decodes_or_is_refused_properly(
    number: int, row: list[Any]
) -> None:
    """The same behind each type number."""
    try:
        codec.decode((number, row))
    except RemoteProtocolError:
        return


@given(MESSAGES, st.data())
def test_a_damaged_message_decodes_or_is_refused_properly(
    message: Message, data: st.DataObject
) -> None:
    """One field replaced by anything: refused, or still a message of that class."""
    number, row = codec.encode(message)
    values = list(row)
    if values:
        at = data.draw(st.integers(0, len(values) - 1))
        values[at] = data.draw(PLAIN)
    try:
        back = codec.decode_message((number, values))
    except RemoteProtocolError:
        return
    assert type(back) is type(message)


def packed(plain: Any) -> Any:
    """Send plain data through msgpack, as wire and store do."""
    return msgpack.unpackb(msgpack.packb(plain), use_list=False)
