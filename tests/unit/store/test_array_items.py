"""Items of arrays, of which one block is read at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from octaskly.store.tables.array_items import (
    BLOCK_ITEMS,
    HEAD_BYTES,
    ItemReader,
    decode_items,
    encode_items,
)

ODD = ('"', "\\", "\n", "[", ",", "é", "\x00", "")
LISTS = [
    (),
    ("one",),
    ODD,
    tuple(f"{n}" for n in range(BLOCK_ITEMS)),
    tuple(f"{n}{ODD[n % len(ODD)]}" for n in range(3 * BLOCK_ITEMS + 1)),
]


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    """A database with one row."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE tasks (key INTEGER PRIMARY KEY, items TEXT)")
        connection.execute("INSERT INTO tasks VALUES (7, NULL)")
        yield connection


def write(db: sqlite3.Connection, items: tuple[str, ...]) -> ItemReader:
    db.execute("UPDATE tasks SET items = ?", (encode_items(items),))
    return ItemReader(db, 7)


@pytest.mark.parametrize("items", LISTS, ids=len)
def test_items_are_read_as_they_were_written(
    db: sqlite3.Connection, items: tuple[str, ...]
) -> None:
    """All together, and each alone in any order."""
    reader = write(db, items)
    (text,) = db.execute("SELECT items FROM tasks").fetchone()

    assert decode_items(text) == items
    backwards = [reader.read_item(n) for n in reversed(range(len(items)))]
    assert tuple(reversed(backwards)) == items


def test_one_item_of_a_million_is_read_with_its_block_alone(
    db: sqlite3.Connection,
) -> None:
    """To decode all would take 80 ms, and hold up all other requests."""
    items = tuple(str(n) for n in range(1_000_000))
    reader = write(db, items)

    assert reader.read_item(999_999) == "999999"
    assert reader.read_item(1000) == "1000"
    assert len(reader._block) == BLOCK_ITEMS
    assert len(str(encode_items(items)).partition("\n")[0]) > HEAD_BYTES


def test_items_that_an_earlier_program_wrote_are_read(db: sqlite3.Connection) -> None:
    """It wrote one JSON array, however many there were."""
    text = "[" + ",".join(f'"{n}"' for n in range(2000)) + "]"
    db.execute("UPDATE tasks SET items = ?", (text,))

    assert decode_items(text) == tuple(str(n) for n in range(2000))
    assert ItemReader(db, 7).read_item(1999) == "1999"
