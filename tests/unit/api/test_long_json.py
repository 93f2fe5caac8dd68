"""Values with long texts are encoded in pieces, to the same bytes as in one step."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octaskly.api.schemas import long_json
from octaskly.api.schemas.long_json import json_pieces
from octaskly.system import cooperative
from octaskly.system.cooperative import join_in_turns


class Inner(msgspec.Struct):
    """A value in another one."""

    text: str
    values: list[str] = []


class Outer(msgspec.Struct):
    """A value with all that answers have: another name, an unset field, an object."""

    text: str = msgspec.field(name="stdout")
    named: dict[str, str]
    inner: Inner | None
    unset: int | msgspec.UnsetType = msgspec.UNSET
    number: float | None = None


class Empty(msgspec.Struct):
    """A value without fields."""


TEXT = st.text(max_size=20)


@given(
    text=TEXT,
    named=st.dictionaries(TEXT, TEXT, max_size=3),
    inner=st.none() | st.builds(Inner, TEXT, st.lists(TEXT, max_size=3)),
    unset=st.just(msgspec.UNSET) | st.integers(0, 9),
)
def test_pieces_make_the_same_json(
    text: str,
    named: dict[str, str],
    inner: Inner | None,
    unset: int | msgspec.UnsetType,
) -> None:
    """Whatever is escaped, and wherever a piece ends."""
    value = Outer(text, named, inner, unset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_json, "PIECE_CHARS", 3)
        assert b"".join(json_pieces(value)) == msgspec.json.encode(value)


@pytest.mark.parametrize("value", [Empty(), {}, "", None, [1, "a"]])
def test_small_values_have_the_same_json(value: object) -> None:
    """An object may have no fields."""
    assert b"".join(json_pieces(value)) == msgspec.json.encode(value)


async def test_a_long_text_leaves_turns_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One after each piece, if a piece takes as long as a step may."""
    monkeypatch.setattr(cooperative, "JOIN_S", -1.0)
    monkeypatch.setattr(long_json, "PIECE_CHARS", 1000)
    turns = 0

    async def wait_turn() -> None:
        nonlocal turns
        turns += 1

    await join_in_turns(json_pieces({"stdout": "\1" * 10_000}), wait_turn)

    assert turns >= 10
