"""Joining records is a join, in the core and in the tables of the store."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.log.facts import Entry, Recorded
from octaskly.core.log.mesh_records import (
    AUDIT,
    KINDS,
    TOKEN_REVOKED,
    RecordTable,
    earlier_record,
)
from octaskly.core.model.ids import StreamId
from octaskly.store.tables import mesh_records as table
from tests.contract import log_kit as kit

RECORDS = st.builds(
    Recorded,
    st.sampled_from([TOKEN_REVOKED, AUDIT]),
    st.sampled_from(["1", "2"]),
    st.sampled_from([b"", b"a"]),
    st.sampled_from([0, 1 << 46]),
    st.integers(1, 3),
)
PLACES = st.tuples(st.sampled_from([StreamId(7), StreamId(8)]), st.integers(1, 4))
SAID = st.lists(st.tuples(st.none() | PLACES, RECORDS), max_size=8)


def records_of_one_key() -> st.SearchStrategy[Recorded]:
    """Return records of one kind and key."""
    return st.builds(
        Recorded,
        st.just(TOKEN_REVOKED),
        st.just("2"),
        st.sampled_from([b"", b"a", b"b"]),
        st.integers(0, 2),
        st.integers(1, 3),
    )


@given(records_of_one_key(), records_of_one_key(), records_of_one_key())
def test_winning_record_does_not_depend_on_the_order(
    a: Recorded, b: Recorded, c: Recorded
) -> None:
    """The join is commutative, associative and idempotent."""
    assert earlier_record(a, b) == earlier_record(b, a)
    assert earlier_record(earlier_record(a, b), c) == earlier_record(
        a, earlier_record(b, c)
    )
    assert earlier_record(a, a) == a


@given(st.lists(RECORDS, max_size=8), st.randoms())
def test_nodes_with_the_same_records_apply_the_same_ones(
    said: list[Recorded], draw: object
) -> None:
    """A node's memory is a function of the set of records."""
    one, two = RecordTable(()), RecordTable(())
    for record in said:
        one.add_record(record)
    for record in sorted(said, key=lambda _: draw.random()):  # type: ignore[attr-defined]
        two.add_record(record)

    for record in said:
        mine = one.get(record.kind, record.key)
        assert mine == two.get(record.kind, record.key)
        assert (mine is None) == KINDS[record.kind].is_list_only


def rows(said: list[tuple[tuple[StreamId, int] | None, Recorded]]) -> list[object]:
    """Return the rows after these entries and these records from outside the log."""
    db = kit.database()
    for place, record in said:
        if place is None:
            table.merge_records(db, [record])
        else:
            stream, seq = place
            entry = Entry(stream, seq, 10 * seq + stream, record)
            table.apply_record(db, entry, record)
            table.delete_surplus(db, [record.kind], 0)
    found = db.execute(
        "SELECT kind, key, body, expires_ms, recorded_hlc, hlc, stream, seq"
        " FROM records"
        " ORDER BY kind, key"
    ).fetchall()
    db.close()
    return found


@given(SAID, st.randoms())
def test_the_order_of_arrival_leaves_the_same_rows(
    said: list[tuple[tuple[StreamId, int] | None, Recorded]], draw: object
) -> None:
    """The position in the log, which a floor is compared with, is also the same."""
    shuffled = sorted(said, key=lambda _: draw.random())  # type: ignore[attr-defined]

    assert rows(said) == rows(shuffled) == rows([*said, *said])
