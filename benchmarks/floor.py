"""The least that one durable task costs in Python: what an agent is compared with.

A server with a raw asyncio protocol writes two commits for a task (its submission and
its end, SQLite with `synchronous=FULL`), and a second process starts the command and
captures its output. There is no mesh, no validation, no token and no timeout.

usage: python -m benchmarks.floor {server SOCKET DATABASE | launcher FD}
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMAND = "/bin/true"
TABLES = """
PRAGMA journal_mode=WAL;
PRAGMA synchronous=FULL;
CREATE TABLE tasks(
    key INTEGER PRIMARY KEY, id TEXT UNIQUE, command TEXT, state INTEGER, code INTEGER
);
CREATE INDEX queue ON tasks(state, key);
CREATE TABLE log(seq INTEGER PRIMARY KEY, body BLOB);
"""
BODY_BYTES = 80  #: of one entry of the log
QUEUED, ENDED = 1, 2


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[socket.socket]:
    """Run the server for the length of a block; yield a connection to it."""
    path = folder / "floor.sock"
    words = [sys.executable, "-m", "benchmarks.floor", "server", str(path)]
    server = subprocess.Popen(
        [*words, str(folder / "floor.db")], stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        server.stdout.readline()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            yield connection
    finally:
        server.terminate()  # Its launcher ends with its socket.
        server.wait()
        server.stdout.close()


class Floor:
    """Accepts a task, has it run, and answers with its end."""

    def __init__(self, database: str, launcher: socket.socket) -> None:
        self._database = sqlite3.connect(database, isolation_level=None)
        self._database.executescript(TABLES)
        self._launcher = launcher
        self._count = 0
        self._client: Connection | None = None

    def accept(self, task: dict[str, Any], client: Connection) -> None:
        """Start a task, and commit it meanwhile."""
        self._count += 1
        self._client = client
        self._launcher.send(task["command"].encode())
        insert = "INSERT INTO tasks VALUES (?, ?, ?, ?, NULL)"
        self._commit(insert, self._count, f"task-{self._count}", COMMAND, QUEUED)

    def end(self) -> None:
        """Commit the end that the launcher reports, and answer."""
        code = int(self._launcher.recv(4096))
        update = "UPDATE tasks SET state = ?, code = ? WHERE key = ?"
        self._commit(update, ENDED, code, self._count)
        assert self._client is not None
        self._client.answer({"id": f"task-{self._count}", "exit_code": code})

    def _commit(self, statement: str, *values: object) -> None:
        execute = self._database.execute
        execute("BEGIN IMMEDIATE")
        execute(statement, values)
        execute("INSERT INTO log(body) VALUES (?)", (bytes(BODY_BYTES),))
        execute("COMMIT")


class Connection(asyncio.Protocol):
    """Reads requests that arrive whole, one at a time."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._floor.accept(json.loads(data.partition(b"\r\n\r\n")[2]), self)

    def answer(self, fields: dict[str, Any]) -> None:
        """Send a response."""
        body = json.dumps(fields).encode()
        head = f"HTTP/1.1 201 Created\r\nContent-Length: {len(body)}\r\n\r\n"
        assert self._transport is not None
        self._transport.write(head.encode() + body)


def start_launcher() -> socket.socket:
    """Start the launcher; return its socket."""
    ours, theirs = socket.socketpair()
    words = ["-m", "benchmarks.floor", "launcher", str(theirs.fileno())]
    subprocess.Popen([sys.executable, *words], pass_fds=[theirs.fileno()])
    theirs.close()  # The launcher has a copy.
    return ours


async def serve(path: str, database: str, launcher: socket.socket) -> None:
    """Serve tasks on a socket until the process is ended."""
    floor = Floor(database, launcher)
    loop = asyncio.get_running_loop()
    loop.add_reader(launcher.fileno(), floor.end)
    await loop.create_unix_server(lambda: Connection(floor), path)
    print("ready", flush=True)
    await asyncio.Event().wait()


def launch(fd: int) -> None:
    """Run a command for each message on a socket, until that is closed."""
    with socket.socket(fileno=fd) as orders:
        while orders.recv(4096):
            orders.send(str(run_captured()).encode())


def run_captured() -> int:
    """Run the command, read both of its streams, and return its exit code."""
    out, its_out = os.pipe2(os.O_CLOEXEC)
    err, its_err = os.pipe2(os.O_CLOEXEC)
    streams = [(os.POSIX_SPAWN_DUP2, its_out, 1), (os.POSIX_SPAWN_DUP2, its_err, 2)]
    pid = os.posix_spawn(COMMAND, [COMMAND], os.environ, file_actions=streams)
    os.close(its_out)
    os.close(its_err)
    for stream in (out, err):
        while os.read(stream, 65536):
            pass
        os.close(stream)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["server", path, database]:
            asyncio.run(serve(path, database, start_launcher()))
        case ["launcher", fd]:
            launch(int(fd))
        case _:
            sys.exit(__doc__)
