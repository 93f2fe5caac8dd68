"""Which streams are left out of vectors, and how nodes compare what they left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.log.retired_streams import RetiredStreams
from octaskly.core.model.ids import StreamId

PAIRS = st.lists(
    st.tuples(st.integers(1, 6).map(StreamId), st.integers(1, 4)), max_size=12
)


def retired(*pairs: tuple[int, int]) -> RetiredStreams:
    """Return streams that were retired in this order."""
    made = RetiredStreams()
    for stream, end in pairs:
        made.add(StreamId(stream), end)
    return made


def test_a_stream_that_is_not_retired_has_no_end() -> None:
    """Nothing of it is void."""
    made = retired((7, 3))

    assert made.end_of(StreamId(7)) == 3
    assert made.end_of(StreamId(8)) == 0
    assert StreamId(7) in made
    assert StreamId(8) not in made


def test_a_set_is_known_to_who_knew_it_first() -> None:
    """A node that learnt more since recognises what another one still goes by."""
    early, late = retired((1, 1), (2, 2)), retired((1, 1), (2, 2), (3, 3))

    assert late.includes(early.digest)
    assert late.position_of(early.digest) == 2
    assert not early.includes(late.digest)
    assert late.includes(RetiredStreams().digest)


def test_a_set_of_another_past_is_unknown_until_all_of_it_is_here() -> None:
    """Halves of a split retire different streams."""
    here, there = retired((1, 1), (2, 2)), retired((1, 1), (9, 9), (8, 8))
    assert not here.includes(there.digest)
    assert not there.includes(here.digest)

    before = there.digest
    for stream, end, _ in here.rows_after(0):
        there.add(StreamId(stream), end)
    there.note_included(here.digest)

    assert there.includes(here.digest)
    assert there.includes(before)


def test_who_lacks_the_end_of_a_retired_stream_does_not_hold_it() -> None:
    """Of the streams after those that it knows."""
    made = retired((1, 1), (2, 5), (3, 3))

    assert made.are_held_after(1, {StreamId(2): 5, StreamId(3): 4})
    assert not made.are_held_after(1, {StreamId(2): 4, StreamId(3): 3})
    assert not made.are_held_after(1, {StreamId(3): 3})
    assert made.are_held_after(3, {})


@given(PAIRS, PAIRS)
def test_sets_with_equal_pairs_have_equal_digests(
    some: list[tuple[StreamId, int]], others: list[tuple[StreamId, int]]
) -> None:
    """In whatever order they were learnt, and how often; else the digests differ."""
    one, two = retired(*some, *others), retired(*others, *some, *others)

    assert one.digest == two.digest
    assert one.entries == two.entries
    assert (retired(*some).digest == one.digest) == (set(some) >= set(others))
    assert one.entries == sum(
        max(end for s, end in (*some, *others) if s == stream)
        for stream in {s for s, _ in (*some, *others)}
    )


@given(PAIRS)
def test_what_is_stored_is_read_as_it_was(pairs: list[tuple[StreamId, int]]) -> None:
    """With the digests of the past, by which others are recognised."""
    made = retired(*pairs)

    again = RetiredStreams(made.rows_after(0))

    assert again == made
    assert again.entries == made.entries
    assert again.digest == made.digest
    for _, _, digest in made.rows_after(0):
        assert again.position_of(digest) == made.position_of(digest)
