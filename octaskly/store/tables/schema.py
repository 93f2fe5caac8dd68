"""SQL schema, and its migrations: one per value of `PRAGMA user_version`.

A released migration never changes; a new one is appended.

`log` is the source of truth. The same transaction derives `tasks` and `counts` from it.
A task is one row, with its attempts. Only `outputs` holds stdout and stderr of tasks.
The log row and the attempt refer to it by id, so lists, the queue and merges never read
it.
"""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x4F63746B  #: `Octk` in the header of the file

_FIRST: Final = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value ANY
) STRICT, WITHOUT ROWID;

-- The log of a stream starts after `snapshot_seq`, because a snapshot brought the part
-- before it as rows. `task_seq` is the last entry in the log about a task.
CREATE TABLE streams (
    stream INTEGER PRIMARY KEY,
    term INTEGER NOT NULL,
    node TEXT NOT NULL,
    last_seq INTEGER NOT NULL DEFAULT 0,
    task_seq INTEGER NOT NULL DEFAULT 0,
    floor_seq INTEGER NOT NULL DEFAULT 0,
    snapshot_seq INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Streams whose entries are all void: `streams` leaves them out. `seq` is the last void
-- entry, and `digest` that of all rows up to this one: see `core.log.retired_streams`.
CREATE TABLE retired_streams (
    no INTEGER PRIMARY KEY,
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    digest INTEGER NOT NULL
) STRICT;
CREATE INDEX retired_streams_stream ON retired_streams (stream, seq);

-- The facts of one commit and stream: see `store.tables.log_rows`. Without rowids, the
-- inner pages of the tree would hold whole rows, which are large.
CREATE TABLE log (
    key INTEGER PRIMARY KEY,
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    n INTEGER NOT NULL,
    hlc INTEGER NOT NULL,
    task_id TEXT,
    heads TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (stream, seq)
) STRICT;
CREATE INDEX log_large ON log (task_id) WHERE task_id IS NOT NULL;

-- One line for each fact of the log, for people. A fact is a msgpack array: its type
-- number, then its fields. `about` is the id of its task, or the kind of a record. The
-- id is the first field, or the first field of the first field of a submission.
CREATE VIEW facts AS
WITH entries AS (
    SELECT stream, log.seq + head.key AS seq,
        log.hlc - json_extract(head.value, '$[1]') AS hlc,
        substr(log.body, json_extract(head.value, '$[0]') + 1,
            ifnull(json_extract(log.heads, '$[' || (head.key + 1) || '][0]'),
            length(log.body)) - json_extract(head.value, '$[0]')) AS body
    FROM log, json_each(log.heads) AS head
), named AS (
    SELECT *, CASE hex(substr(body, 2, 1))
        WHEN '64' THEN 'Submitted' WHEN '65' THEN 'TaskCancelled'
        WHEN '66' THEN 'Assigned' WHEN '67' THEN 'Finished' WHEN '68' THEN 'Floor'
        WHEN '69' THEN 'Unblocked' WHEN '6A' THEN 'Notified'
        WHEN '6B' THEN 'Recorded' WHEN '6C' THEN 'Decided'
        WHEN '6D' THEN 'Reprioritized' WHEN '6E' THEN 'MembersAssigned'
        WHEN '6F' THEN 'MembersSucceeded' END AS fact,
        substr(body, iif(substr(body, 2, 1) = x'64', 4, 3), 100) AS text
    FROM entries
)
SELECT stream, seq, hlc,
    strftime('%Y-%m-%dT%H:%M:%fZ', (hlc >> 15) / 1000.0 + 1577836800, 'unixepoch')
        AS time,
    fact,
    CAST(CASE
        WHEN fact = 'Floor' THEN NULL
        WHEN substr(text, 1, 1) = x'd9'
        THEN substr(text, 3, unicode(CAST(substr(text, 2, 1) AS TEXT)))
        ELSE substr(text, 2, instr(
            x'a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf',
            substr(text, 1, 1)) - 1)
    END AS TEXT) AS about,
    body
FROM named;

CREATE TABLE outputs (
    id INTEGER PRIMARY KEY,
    stdout BLOB NOT NULL,
    stderr BLOB NOT NULL
) STRICT;

-- Entries about tasks whose envelope has not arrived yet. The log has them, too.
CREATE TABLE pending_entries (
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    hlc INTEGER NOT NULL,
    body BLOB NOT NULL,
    output INTEGER,
    PRIMARY KEY (stream, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX pending_entries_task ON pending_entries (task_id);

-- `cancel_term` and `has_succeeded` are of verdicts of dispatchers: see
-- `core.log.merge`. (`stream`, `seq`) is the entry of the latest submission.
-- `last_change_hlc` is the timestamp of the latest fact, and `stored_ms` the time at
-- which this disk stored it by its wall clock, or 0 if the timestamp serves. `notify`
-- is 1 until the notification of the end was sent, then 0. `runs_on` is 1 if the latest
-- attempt runs although the task is in a final state. `shape` identifies the
-- requirements of a task; that of an array is inverted. Each shape of each submitter
-- has its own lane in the queue; members have no submitter. `place` replaces `ord` in
-- the queue after a change of the priority, which is in `reprioritized` as term,
-- timestamp and priority. `attempts` has all attempts in msgpack: see
-- `store.tables.rows`. For rows of members of arrays, see `store.tables.arrays`. SQLite
-- reads a row up to the last column that it needs, so the columns that may be large
-- come last.
CREATE TABLE tasks (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    sequence INTEGER,
    ord INTEGER NOT NULL,
    state INTEGER NOT NULL,
    node TEXT,
    cancelled_by TEXT,
    runs_on INTEGER NOT NULL DEFAULT 0,
    command TEXT NOT NULL,
    timeout_s INTEGER NOT NULL,
    submitter TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    first_submitted_hlc INTEGER NOT NULL DEFAULT 0,
    last_submitted_hlc INTEGER NOT NULL DEFAULT 0,
    stream INTEGER NOT NULL DEFAULT 0,
    seq INTEGER NOT NULL DEFAULT 0,
    last_change_hlc INTEGER NOT NULL DEFAULT 0,
    options TEXT,
    shape INTEGER NOT NULL DEFAULT 0,
    place INTEGER,
    reprioritized TEXT,
    notify INTEGER,
    is_unblocked INTEGER NOT NULL DEFAULT 0,
    is_blocked INTEGER NOT NULL DEFAULT 0,
    stored_ms INTEGER NOT NULL DEFAULT 0,
    cancel_term INTEGER NOT NULL DEFAULT 0,
    has_succeeded INTEGER NOT NULL DEFAULT 0,
    attempts BLOB,
    env BLOB,
    inputs TEXT,
    outputs TEXT,
    stdin BLOB,
    items TEXT
) STRICT;
-- Tasks with unmet dependencies are not in the queue.
CREATE INDEX tasks_queued ON tasks (shape, submitter, ifnull(place, ord))
    WHERE state = 0 AND is_blocked = 0;
CREATE INDEX tasks_live ON tasks (key) WHERE runs_on = 1;
CREATE INDEX tasks_state ON tasks (state, key);
-- By block, so that a commit writes few pages, and without the state, so that an end
-- writes none.
CREATE INDEX tasks_node ON tasks (key >> 10, node) WHERE node IS NOT NULL;
CREATE INDEX tasks_sequence ON tasks (sequence) WHERE sequence IS NOT NULL;
CREATE INDEX tasks_first_submitted ON tasks (first_submitted_hlc);
CREATE INDEX tasks_stored ON tasks (stored_ms) WHERE stored_ms > 0;
CREATE INDEX tasks_notify ON tasks (key) WHERE notify = 1 AND state > 1;
-- The notifications that a subject still expects.
CREATE INDEX tasks_webhooks ON tasks (submitter) WHERE notify = 1;
-- The files that unfinished tasks need.
CREATE INDEX tasks_with_options ON tasks (state, key)
    WHERE options IS NOT NULL AND state < 2;
-- The number of tasks that failed of late.
CREATE INDEX tasks_failed ON tasks (last_change_hlc) WHERE state = 3;
-- Ended tasks whose stdin may be freed: see `store.writing.stdin_freeing`.
CREATE INDEX tasks_stdin ON tasks (state, submitter)
    WHERE state > 1 AND length(stdin) > 4096;

-- `started_ms` and `ended_ms` are the earliest start and the latest end of an attempt.
CREATE TABLE arrays (
    task INTEGER PRIMARY KEY,
    members INTEGER NOT NULL,
    total INTEGER NOT NULL,
    queued INTEGER NOT NULL,
    running INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    live INTEGER NOT NULL,
    started_ms INTEGER,
    ended_ms INTEGER
) STRICT;

-- Members without rows of their own that were assigned together: see
-- `store.tables.member_ranges`. `key` is that of the first of `n`; `live` of them run.
CREATE TABLE member_ranges (
    key INTEGER PRIMARY KEY,
    n INTEGER NOT NULL,
    live INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX member_ranges_live ON member_ranges (key) WHERE live > 0;

CREATE TABLE dependencies (
    parent TEXT NOT NULL,
    child INTEGER NOT NULL,
    wanted_end INTEGER NOT NULL,
    status INTEGER NOT NULL,
    PRIMARY KEY (parent, child)
) STRICT, WITHOUT ROWID;
CREATE INDEX dependencies_child ON dependencies (child, status);
CREATE TABLE unblocked_tasks (
    child INTEGER PRIMARY KEY
) STRICT;

CREATE TABLE counts (
    kind INTEGER NOT NULL,
    node TEXT NOT NULL,
    state INTEGER NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (kind, node, state)
) STRICT, WITHOUT ROWID;

-- Number of rows per state and block of keys: see `store.tables.list_counts`.
CREATE TABLE block_counts (
    state INTEGER NOT NULL,
    block INTEGER NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (state, block)
) STRICT, WITHOUT ROWID;
-- One row for all states, so that the end of a task changes one.
CREATE TABLE node_block_counts (
    block INTEGER NOT NULL,
    node TEXT NOT NULL,
    running INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    PRIMARY KEY (block, node)
) STRICT, WITHOUT ROWID;

-- Facts that are not about a task: see `store.tables.mesh_records`. `recorded_hlc` is
-- the hybrid timestamp of the first recording. `hlc`, `stream` and `seq` are those of
-- the latest entry with this record.
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    body BLOB NOT NULL,
    expires_ms INTEGER NOT NULL,
    recorded_hlc INTEGER NOT NULL,
    hlc INTEGER NOT NULL,
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    UNIQUE (kind, key)
) STRICT;
CREATE INDEX records_recorded_hlc ON records (kind, recorded_hlc, key);
CREATE INDEX records_expires ON records (kind, expires_ms);
CREATE INDEX records_entry ON records (stream, seq);

-- For the age of tasks: see `core.log.task_ages`.
CREATE TABLE clock_steps (
    number INTEGER PRIMARY KEY,
    before_ms INTEGER NOT NULL,
    gained_ms INTEGER NOT NULL
) STRICT;

-- Parts of snapshots of peers: see `store.tables.staged_parts`.
CREATE TABLE staged_parts (
    key INTEGER PRIMARY KEY,
    snapshot INTEGER NOT NULL,
    peer TEXT NOT NULL,
    is_last INTEGER NOT NULL,
    is_merged INTEGER NOT NULL DEFAULT 0,
    stored_ms INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX staged_parts_snapshot ON staged_parts (snapshot, is_merged);
CREATE INDEX staged_parts_last ON staged_parts (snapshot) WHERE is_last = 1;

CREATE TABLE spool (
    key INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL,
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    report BLOB NOT NULL,
    UNIQUE (task_id, stream, seq)
) STRICT;

CREATE TABLE peers (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    addresses TEXT NOT NULL,
    last_contact_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

OLDEST_VERSION: Final = 12
"""Of a file that can be used; earlier ones were never released."""

MIGRATIONS: Final = (_FIRST,)
"""The first one creates `OLDEST_VERSION`; each other one raises the version by 1."""

VERSION: Final = OLDEST_VERSION + len(MIGRATIONS) - 1
