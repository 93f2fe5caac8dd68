"""Databases of agents, read without disturbing the agents."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from octaskly.core.model.tasks import Attempt
from octaskly.store.tables.rows import unpack_attempts

Vector = dict[int, int]


class Held(NamedTuple):
    """A task in one database; equal on all nodes that hold the same facts."""

    state: int
    cancelled_by: str | None
    attempts: tuple[Attempt, ...]


class Place(NamedTuple):
    """The position of an entry in the log."""

    stream: int
    seq: int


@contextlib.contextmanager
def opened(state: Path) -> Iterator[sqlite3.Connection]:
    """Open the database of a state folder for reading, in one snapshot."""
    uri = f"file:{quote(str(state / 'log.db'))}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as connection:
        connection.execute("BEGIN")
        yield connection


def vector(state: Path) -> Vector:
    """Return the last sequence of each stream."""
    with opened(state) as database:
        rows = database.execute("SELECT stream, last_seq FROM streams")
        return {stream: seq for stream, seq in rows if seq}


def tasks(state: Path) -> dict[str, Held]:
    """Return all tasks with their attempts, by id, because names may repeat."""
    with opened(state) as database:
        return {
            task: Held(state, cancelled_by, unpack_attempts(attempts)[0])
            for task, state, cancelled_by, attempts in database.execute(
                "SELECT id, state, cancelled_by, attempts FROM tasks"
            )
        }


def log(state: Path) -> dict[Place, tuple[int, str, bytes]]:
    """Return every entry of the log."""
    with opened(state) as database:
        return {
            Place(stream, seq): (hlc, about, body)
            for stream, seq, hlc, about, body in database.execute(
                "SELECT stream, seq, hlc, about, body FROM facts"
            )
        }


def writers(state: Path) -> dict[int, tuple[int, str]]:
    """Return the epoch that wrote each stream, as term and node."""
    with opened(state) as database:
        rows = database.execute("SELECT stream, term, node FROM streams")
        return {stream: (term, node) for stream, term, node in rows}


def spooled(state: Path) -> int:
    """Return the number of results that wait for a dispatcher's acknowledgement."""
    with opened(state) as database:
        (many,) = database.execute("SELECT count(*) FROM spool").fetchone()
        return int(many)
