"""SQL schema migrations, one per value of `PRAGMA user_version`.

A released migration never changes; a new one is appended.

`log` is the source of truth. The same transaction derives `tasks`, `attempts` and
`counts` from it. Only `outputs` holds stdout and stderr of tasks. The log row and the
attempt refer to it by id, so lists, the queue and merges never read it.
"""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x4F63746B  #: `Octk` in the header of the file

_FIRST: Final = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value ANY
) STRICT, WITHOUT ROWID;

CREATE TABLE streams (
    stream INTEGER PRIMARY KEY,
    term INTEGER NOT NULL,
    node TEXT NOT NULL,
    last_seq INTEGER NOT NULL DEFAULT 0,
    floor_seq INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE log (
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    hlc INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    body BLOB NOT NULL,
    output INTEGER,
    PRIMARY KEY (stream, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE outputs (
    id INTEGER PRIMARY KEY,
    stdout BLOB NOT NULL,
    stderr BLOB NOT NULL
) STRICT;

-- Entries about tasks whose envelope has not arrived yet.
CREATE TABLE pending_entries (
    task_id TEXT NOT NULL,
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (task_id, stream, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE tasks (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    sequence INTEGER,
    ord INTEGER NOT NULL,
    state INTEGER NOT NULL,
    node TEXT,
    cancelled_by TEXT,
    is_live INTEGER NOT NULL,
    attempt_count INTEGER NOT NULL,
    command TEXT NOT NULL,
    timeout_s INTEGER NOT NULL,
    inputs TEXT,
    outputs TEXT,
    submitter TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX tasks_queued ON tasks (ord) WHERE state = 0;
CREATE INDEX tasks_live ON tasks (key) WHERE is_live = 1 AND state > 1;
CREATE INDEX tasks_state ON tasks (state, key);
CREATE INDEX tasks_node ON tasks (node, key, state) WHERE node IS NOT NULL;
CREATE INDEX tasks_sequence ON tasks (sequence) WHERE sequence IS NOT NULL;

CREATE TABLE attempts (
    task INTEGER NOT NULL,
    term INTEGER NOT NULL,
    stream INTEGER NOT NULL,
    n INTEGER NOT NULL,
    node TEXT NOT NULL,
    state INTEGER NOT NULL,
    reason TEXT,
    exit_code INTEGER,
    signal INTEGER,
    started_ms INTEGER,
    ended_ms INTEGER,
    duration_ms INTEGER,
    stdout_bytes INTEGER,
    stderr_bytes INTEGER,
    files TEXT,
    detail TEXT,
    output INTEGER,
    PRIMARY KEY (task, term, stream, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE spool (
    key INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL,
    term INTEGER NOT NULL,
    stream INTEGER NOT NULL,
    n INTEGER NOT NULL,
    report BLOB NOT NULL,
    UNIQUE (task_id, term, stream, n)
) STRICT;

CREATE TABLE peers (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    addresses TEXT NOT NULL,
    last_contact_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE counts (
    node TEXT NOT NULL,
    state INTEGER NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (node, state)
) STRICT, WITHOUT ROWID;
"""

# Columns for compaction and snapshots. The log of a stream starts after `snapshot_seq`,
# because a snapshot brought the part before it as rows. (`stream`, `seq`) is the entry
# of the latest submission. `last_change_hlc` is the timestamp of the latest fact.
_SECOND: Final = """
ALTER TABLE streams ADD COLUMN snapshot_seq INTEGER NOT NULL DEFAULT 0;

ALTER TABLE tasks ADD COLUMN first_submitted_hlc INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN last_submitted_hlc INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN stream INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN last_change_hlc INTEGER NOT NULL DEFAULT 0;

CREATE INDEX log_tasks ON log (task_id, hlc);
UPDATE tasks SET (first_submitted_hlc, last_submitted_hlc, stream, seq) = (
    SELECT hlc, hlc, stream, seq FROM log
    WHERE task_id = tasks.id ORDER BY hlc LIMIT 1
), last_change_hlc = (SELECT max(hlc) FROM log WHERE task_id = tasks.id);
DROP INDEX log_tasks;

CREATE INDEX tasks_first_submitted ON tasks (first_submitted_hlc);
"""

# Options of tasks. `stdin` and `items` are columns of their own, as they may be large.
# `notify` is 1 until the notification of the end was sent, then 0. `shape` identifies
# the requirements of a task; each shape has its own lane in the queue. For rows of
# members of arrays, see `store.tables.arrays`.
_THIRD: Final = """
ALTER TABLE tasks ADD COLUMN options TEXT;
ALTER TABLE tasks ADD COLUMN stdin BLOB;
ALTER TABLE tasks ADD COLUMN items TEXT;
ALTER TABLE tasks ADD COLUMN shape INTEGER NOT NULL DEFAULT 0;

ALTER TABLE tasks ADD COLUMN notify INTEGER;
CREATE INDEX tasks_notify ON tasks (key) WHERE notify = 1 AND state > 1;

CREATE TABLE arrays (
    task INTEGER PRIMARY KEY,
    members INTEGER NOT NULL,
    total INTEGER NOT NULL,
    queued INTEGER NOT NULL,
    running INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    live INTEGER NOT NULL
) STRICT;

ALTER TABLE counts RENAME TO counts_before;
CREATE TABLE counts (
    kind INTEGER NOT NULL,
    node TEXT NOT NULL,
    state INTEGER NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (kind, node, state)
) STRICT, WITHOUT ROWID;
INSERT INTO counts SELECT 0, node, state, n FROM counts_before;
DROP TABLE counts_before;

ALTER TABLE attempts ADD COLUMN cpu_ms INTEGER;
ALTER TABLE attempts ADD COLUMN memory_max_kb INTEGER;

-- Number of rows per node, state and block of keys: see `store.tables.list_counts`.
CREATE TABLE block_counts (
    node TEXT NOT NULL,
    state INTEGER NOT NULL,
    block INTEGER NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (node, state, block)
) STRICT, WITHOUT ROWID;
INSERT INTO block_counts
    SELECT node, state, key >> 10, count(*) FROM tasks
    WHERE node NOT NULL GROUP BY node, state, key >> 10
    UNION ALL SELECT node, -1, key >> 10, count(*) FROM tasks
    WHERE node NOT NULL GROUP BY node, key >> 10
    UNION ALL SELECT '', state, key >> 10, count(*) FROM tasks
    GROUP BY state, key >> 10
    UNION ALL SELECT '', -1, key >> 10, count(*) FROM tasks GROUP BY key >> 10;

-- Tasks with unmet dependencies are not in the queue.
ALTER TABLE tasks ADD COLUMN is_unblocked INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN is_blocked INTEGER NOT NULL DEFAULT 0;
DROP INDEX tasks_queued;
CREATE INDEX tasks_queued ON tasks (shape, ord) WHERE state = 0 AND is_blocked = 0;
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
"""

# Facts that are not about a task: see `store.tables.records`. `recorded_hlc` is the
# hybrid timestamp of the first recording. `hlc`, `stream` and `seq` are those of the
# latest entry with this record.
_FOURTH: Final = """
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
CREATE INDEX records_entry ON records (stream, seq);
"""

# Earliest start and latest end of the ended attempts of an array.
_FIFTH: Final = """
ALTER TABLE arrays ADD COLUMN started_ms INTEGER;
ALTER TABLE arrays ADD COLUMN ended_ms INTEGER;
UPDATE arrays SET (started_ms, ended_ms) = (
    SELECT min(started_ms), max(ended_ms) FROM attempts
    WHERE attempts.task BETWEEN members AND members + total - 1
);
"""

# For the age of tasks, see `core.log.task_ages`. `stored_ms` is the wall-clock time at
# which this disk stored the latest fact, or 0 if the timestamp of the fact serves.
_SIXTH: Final = """
ALTER TABLE tasks ADD COLUMN stored_ms INTEGER NOT NULL DEFAULT 0;
CREATE INDEX tasks_stored ON tasks (stored_ms) WHERE stored_ms > 0;
CREATE TABLE clock_steps (
    number INTEGER PRIMARY KEY,
    before_ms INTEGER NOT NULL,
    gained_ms INTEGER NOT NULL
) STRICT;
"""

# Streams whose entries are all void: `streams` leaves them out. `seq` is the last void
# entry, and `digest` that of all rows up to this one: see `core.log.retired_streams`.
_SEVENTH: Final = """
CREATE TABLE retired_streams (
    no INTEGER PRIMARY KEY,
    stream INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    digest INTEGER NOT NULL
) STRICT;
CREATE INDEX retired_streams_stream ON retired_streams (stream, seq);
"""

# Ended tasks whose stdin may be freed, and the entries that hold it: see
# `store.writing.stdin_freeing`. Both indexes are empty in most logs.
_EIGHTH: Final = """
CREATE INDEX tasks_stdin ON tasks (state, submitter)
    WHERE length(stdin) > 4096 AND state > 1;
CREATE INDEX log_large ON log (task_id) WHERE length(body) > 4096;
"""

# Ids with a derived number are stored with their digits: see `rows.sequence_of`.
_DIGIT: Final = (
    " + ((instr('0123456789abcdef', substr(id, instr(substr(id, 6), '-') + {}, 1)) - 1)"
    " << {})"
)
_NINTH: Final = (
    "UPDATE tasks SET sequence = (1 << 62)"  # noqa: S608
    + "".join(_DIGIT.format(6 + n, 28 - 4 * n) for n in range(8))
    + " WHERE sequence IS NOT NULL AND sequence >= (1 << 62);"
)

# For the number of tasks that failed of late.
_TENTH: Final = """
CREATE INDEX tasks_failed ON tasks (last_change_hlc) WHERE state = 3;
"""

# For the order of cancels and successes: the terms of the epochs that wrote them.
_ELEVENTH: Final = """
ALTER TABLE tasks ADD COLUMN cancel_term INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN end_term INTEGER NOT NULL DEFAULT 0;
"""

# SQLite reads a row up to the last column that it needs, so the columns that may be
# large come last. `env` was part of `options`, which lists show. With `tasks_webhooks`
# the notifications that a subject still expects are counted; with `tasks_with_options`
# the files that unfinished tasks need are found.
_TO_THE_END: Final = """
ALTER TABLE tasks RENAME COLUMN {name} TO {name}_before;
ALTER TABLE tasks ADD COLUMN {name} {type};
UPDATE tasks SET {name} = {name}_before WHERE {name}_before IS NOT NULL;
ALTER TABLE tasks DROP COLUMN {name}_before;
"""
_TWELFTH: Final = (
    """
DROP INDEX tasks_stdin;
ALTER TABLE tasks ADD COLUMN env TEXT;
UPDATE tasks SET env = json_extract(options, '$[2]'),
    options = json_replace(options, '$[2]', json('[]'))
    WHERE json_array_length(options, '$[2]') > 0;
"""
    + "".join(_TO_THE_END.format(name=n, type="TEXT") for n in ("inputs", "outputs"))
    + _TO_THE_END.format(name="stdin", type="BLOB")
    + _TO_THE_END.format(name="items", type="TEXT")
    + """
CREATE INDEX tasks_stdin ON tasks (state, submitter)
    WHERE length(stdin) > 4096 AND state > 1;
CREATE INDEX tasks_webhooks ON tasks (submitter) WHERE notify = 1;
CREATE INDEX tasks_with_options ON tasks (state, key)
    WHERE options IS NOT NULL AND state < 2;
"""
)

MIGRATIONS: Final = (
    *(_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH, _SEVENTH),
    *(_EIGHTH, _NINTH, _TENTH, _ELEVENTH, _TWELFTH),
)
"""Item `i` migrates version `i` to `i + 1`."""

VERSION: Final = len(MIGRATIONS)
