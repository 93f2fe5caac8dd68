"""The text of a call: short and printable, whatever is in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octaskly.executor.call_text import CALL_CHARS_MAX, describe_calls


class Model:
    """An object whose text nobody may ask for."""

    def __repr__(self) -> NoReturn:
        raise AssertionError

    def fit(self) -> None:
        """Do nothing."""

    def __call__(self) -> None:
        """Do nothing."""


class Odd(float):
    """A number that cannot be written."""

    def __repr__(self) -> NoReturn:
        raise AssertionError


def simulate(*_values: object, **_named: object) -> None:
    pass


def made() -> Callable[..., None]:
    def inner() -> None:
        pass

    return inner


@pytest.mark.parametrize(
    ("function", "arguments", "named", "text"),
    [
        (simulate, (3,), {"seed": 7}, "simulate(3, seed=7)"),
        (simulate, (), {}, "simulate()"),
        (simulate, (None, True, 0.5, 1j, Decimal("2.5")), {},
         "simulate(None, True, 0.5, 1j, Decimal('2.5'))"),
        (simulate, ("a\nb\x1b[2J\u202e", b"\0"), {},
         r"simulate('a\nb\x1b[2J\u202e', b'\x00')"),
        (simulate, ("x" * 31,), {}, f"simulate('{'x' * 30}'...)"),
        (simulate, (Path("a/b.png"),), {}, "simulate('a/b.png')"),
        (simulate, ([1, 2, 3, 4], (1,), {"a": [1]}, set()), {},
         "simulate([1, 2, 3, ...], (1,), {'a': [1]}, {})"),
        (simulate, ([[[1]]],), {}, "simulate([[<list>]])"),
        (simulate, (1 << 100_000, 1 << 90), {},
         "simulate(<int>, 1237940039285380274899124224)"),
        (simulate, (Model(), simulate, Model, Odd()), {},
         "simulate(<Model>, simulate, Model, <Odd>)"),
        (partial(simulate, 1, depth=2), (3,), {"seed": 7},
         "simulate(1, 3, depth=2, seed=7)"),
        (made(), (), {}, "inner()"),
        (Model().fit, (), {}, "Model.fit()"),
        (Model(), (), {}, "Model()"),
        (lambda: None, (), {}, "<lambda>()"),
        (simulate, tuple(range(1000)), {},
         "simulate(" + ", ".join(map(str, range(29))) + ", ...)"),
    ],
)  # fmt: skip
def test_a_call_is_shown_as_people_write_it(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
    text: str,
) -> None:
    """Of other classes only the name: their text may be slow, long or an error."""
    assert describe_calls(function, (arguments, named)) == text


def test_of_several_calls_the_first_is_shown() -> None:
    """And how many more there are."""
    assert describe_calls(simulate, ((0,), {}), 100) == "simulate(0) and 99 more"


VALUES = st.text() | st.binary() | st.integers() | st.floats()


@settings(max_examples=50)
@given(
    name=st.text(min_size=1, max_size=200),
    arguments=st.lists(VALUES | st.lists(VALUES) | st.dictionaries(VALUES, VALUES)),
    named=st.dictionaries(st.text(), VALUES),
    count=st.integers(1, 10**9),
)
def test_the_text_is_one_that_the_api_takes(
    name: str, arguments: list[Any], named: dict[str, Any], count: int
) -> None:
    """Printable, and of limited length."""

    def function() -> None:
        pass

    function.__qualname__ = name

    text = describe_calls(function, (tuple(arguments), named), count)

    assert text.isprintable()
    assert 1 <= len(text) <= CALL_CHARS_MAX
