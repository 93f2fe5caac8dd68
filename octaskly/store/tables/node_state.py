"""Node state: term, vector, spooled results, peers and clock steps.

The core decides when these are saved, and what waits for that: see
`core.election.election` and `core.replication.journal`. Clock steps are steps of the
wall clock ahead, which age nothing that was stored before them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from octaskly.core.effects import Save, Spool, Unspool
from octaskly.core.events import PeerHint, SavedState
from octaskly.core.log.task_ages import ClockStep, TaskAges, join_steps
from octaskly.core.model.ids import (
    Address,
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    is_visitor,
)
from octaskly.core.model.nodes import OperatorHold
from octaskly.core.protocol.messages import Report
from octaskly.ports.store import Packer
from octaskly.store.tables import mesh_records, rows
from octaskly.store.tables.floors import (
    read_floor,
    read_meta_numbers,
    read_retired_streams,
)

PEER_DAYS: Final = 7  #: a peer without contact for longer is not dialled at start
PEERS_MAX: Final = 1024

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class PeerContact:
    """The last contact with a peer, in UTC milliseconds since 1970."""

    peer: NodeId
    name: str
    addresses: tuple[Address, ...]
    last_contact_ms: int


def write_saves(db: sqlite3.Connection, saves: Iterable[Save]) -> None:
    """Write the fields that are not None, except streams: `TableWriter` adds those."""
    values: dict[str, int | str] = {}
    for save in saves:
        if save.term is not None:
            values["term"] = save.term
        if save.epoch is not None:
            values["epoch_term"], values["epoch_node"] = save.epoch
        if save.name is not None:
            values["name"] = save.name
        mesh_records.merge_records(db, save.records)
        if save.log_version is not None:
            values["log_version"] = save.log_version
        if save.hold is not None:
            values["is_drained"], values["is_paused"] = map(int, save.hold)
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())


def write_peers(db: sqlite3.Connection, peers: Iterable[PeerContact]) -> None:
    """Write the names, addresses and times of the last contact with peers."""
    db.executemany(
        "INSERT OR REPLACE INTO peers (id, name, addresses, last_contact_ms)"
        " VALUES (?, ?, ?, ?)",
        [
            (met.peer, met.name, json.dumps(met.addresses), met.last_contact_ms)
            for met in {met.peer: met for met in peers}.values()
        ],
    )


def forget_visitors(db: sqlite3.Connection, wall_ms: int) -> None:
    """Delete visitors that came long ago and ran no task that is left.

    A visitor has another id at each visit.
    """
    db.execute("DELETE FROM counts WHERE n = 0")
    found = db.execute(
        "SELECT id FROM peers WHERE last_contact_ms < ?"
        " AND id NOT IN (SELECT node FROM counts)",
        (wall_ms - PEER_DAYS * _DAY_MS,),
    ).fetchall()
    gone = [(node,) for (node,) in found if is_visitor(node)]
    db.executemany("DELETE FROM peers WHERE id = ?", gone)


def write_spool(
    db: sqlite3.Connection, packer: Packer, items: Sequence[Spool | Unspool]
) -> None:
    """Write and delete spooled results. A result in both lists is not written."""
    kept: dict[tuple[TaskId, AttemptId], Report] = {}
    removed: list[tuple[TaskId, AttemptId]] = []
    for item in items:
        if isinstance(item, Spool):
            kept.update(((r.task, r.attempt), r) for r in item.reports)
            continue
        removed += item.items
        for key in item.items:
            kept.pop(key, None)
    db.executemany(
        "DELETE FROM spool WHERE task_id = ? AND stream = ? AND seq = ?",
        [(task, attempt.stream, attempt.seq) for task, attempt in removed],
    )
    db.executemany(
        "INSERT OR REPLACE INTO spool (task_id, stream, seq, report)"
        " VALUES (?, ?, ?, ?)",
        [
            (task, attempt.stream, attempt.seq, packer.pack(report))
            for (task, attempt), report in kept.items()
        ],
    )


def read_saved(db: sqlite3.Connection, packer: Packer, wall_ms: int) -> SavedState:
    """Return the saved state, with the peers of the last `PEER_DAYS`, latest first."""
    meta: dict[str, Any] = dict(db.execute("SELECT key, value FROM meta"))
    reports = db.execute("SELECT report FROM spool ORDER BY key")
    names = db.execute("SELECT id, name FROM peers ORDER BY id")
    return SavedState(
        term=meta.get("term", 0),
        epoch=Epoch(meta.get("epoch_term", 0), NodeId(meta.get("epoch_node", ""))),
        vector=read_vector(db),
        epochs=_read_epochs(db),
        hlc=read_hlc(db),
        floor=read_floor(db),
        sequence=rows.sequence_max(db),
        name=meta.get("name"),
        reports=tuple(packer.unpack(report, Report) for (report,) in reports),
        peers=_read_peers(db, wall_ms - PEER_DAYS * _DAY_MS),
        names=tuple((NodeId(node), name) for node, name in names),
        hold=OperatorHold(bool(meta.get("is_drained")), bool(meta.get("is_paused"))),
        records=mesh_records.read_unlisted(db),
        log_version=meta.get("log_version", 1),
        retired=read_retired_streams(db),
    )


def read_vector(db: sqlite3.Connection) -> tuple[tuple[StreamId, int], ...]:
    """Return the vector, ordered by stream, without empty and retired streams."""
    found = db.execute(
        "SELECT stream, last_seq FROM streams WHERE last_seq > 0 ORDER BY stream"
    )
    return tuple((StreamId(stream), have) for stream, have in found)


def _read_epochs(db: sqlite3.Connection) -> tuple[tuple[StreamId, Epoch], ...]:
    found = db.execute("SELECT stream, term, node FROM streams ORDER BY stream")
    return tuple((StreamId(stream), Epoch(*epoch)) for stream, *epoch in found)


def read_hlc(db: sqlite3.Connection) -> int:
    """Return the highest hybrid timestamp of any entry, compacted ones included."""
    # Timestamps grow within a stream, so the last entry of each stream suffices.
    kept = read_meta_numbers(db).get("hlc", 0)
    found = db.execute(
        "SELECT max((SELECT hlc FROM log WHERE log.stream = streams.stream"
        " ORDER BY seq DESC LIMIT 1)) FROM streams"
    ).fetchone()
    return max(found[0] or 0, kept)


def _read_peers(db: sqlite3.Connection, since_ms: int) -> tuple[PeerHint, ...]:
    found = db.execute(
        "SELECT id, addresses FROM peers"
        " WHERE last_contact_ms >= ? AND addresses != '[]'"
        " ORDER BY last_contact_ms DESC, id LIMIT ?",
        (since_ms, PEERS_MAX),
    )
    return tuple(
        PeerHint(
            node=NodeId(node),
            addresses=tuple(Address(*pair) for pair in json.loads(addresses)),
        )
        for node, addresses in found
        if not is_visitor(node)  # Nobody dials a visitor.
    )


def write_clock_step(db: sqlite3.Connection, step: ClockStep) -> None:
    """Add a step, and delete those before every task that is left."""
    (oldest_hlc,) = db.execute("SELECT min(first_submitted_hlc) FROM tasks").fetchone()
    (oldest_ms,) = db.execute(
        "SELECT min(stored_ms) FROM tasks WHERE stored_ms > 0"
    ).fetchone()
    kept = [s for s in read_clock_steps(db) if _affects(s, oldest_hlc, oldest_ms)]
    db.execute("DELETE FROM clock_steps")
    db.executemany(
        "INSERT INTO clock_steps (before_ms, gained_ms) VALUES (?, ?)", [*kept, step]
    )


def read_clock_steps(db: sqlite3.Connection) -> tuple[ClockStep, ...]:
    """Return all steps in their order."""
    found = db.execute("SELECT before_ms, gained_ms FROM clock_steps ORDER BY number")
    return tuple(ClockStep(*row) for row in found)


def read_task_ages(
    db: sqlite3.Connection, wall_ms: int, unrecorded: ClockStep | None
) -> TaskAges:
    """Return what the age of a task is computed from.

    Args:
        db: A reader in a transaction.
        wall_ms: The wall clock now.
        unrecorded: A step that may not be stored yet, found before the transaction
            began. A step that is stored since then counts twice, so tasks seem younger.
    """
    return TaskAges(wall_ms, join_steps(read_clock_steps(db), unrecorded))


def _affects(step: ClockStep, oldest_hlc: int | None, oldest_ms: int | None) -> bool:
    """Return True if a task may have been stored before a step."""
    if oldest_ms is not None and oldest_ms <= step.before_ms:
        return True
    if oldest_hlc is None:
        return False
    return TaskAges(0, (step,)).since_hlc(oldest_hlc, 0) > oldest_hlc
