"""Sends one request over many connections, again and again, and heeds no refusal.

The request comes on standard input. A connection that is closed is opened again at
once. A body of unknown length is not read: the client leaves and comes again.

usage: python -m tests.support.request_flood PORT CONNECTIONS SECONDS
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter

HEADER_BYTES_MAX = 1 << 16
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")
_WITHOUT_BODY = (b"204", b"304")


async def main(port: int, connections: int, seconds: float, request: bytes) -> None:
    """Flood the port, and print how many answers had each status, as JSON."""
    statuses = Counter[str]()
    tasks = [
        asyncio.create_task(_repeat(port, request, statuses))
        for _ in range(connections)
    ]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        assert not task.done(), task.result()
    print(json.dumps(statuses))


async def _repeat(port: int, request: bytes, statuses: Counter[str]) -> None:
    while True:
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, limit=HEADER_BYTES_MAX
            )
        except OSError:
            await asyncio.sleep(0)
            continue
        try:
            while await _ask(reader, writer, request, statuses):
                pass
        except (OSError, asyncio.IncompleteReadError):
            statuses["closed"] += 1
        finally:
            writer.transport.abort()


async def _ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: bytes,
    statuses: Counter[str],
) -> bool:
    """Send the request once; return True if the connection can be used again."""
    writer.write(request)
    header = await reader.readuntil(b"\r\n\r\n")
    status = header.split(b" ", 2)[1]
    statuses[status.decode()] += 1
    if status in _WITHOUT_BODY:
        return True
    found = _LENGTH.search(header)
    if found is None:
        return False
    await reader.readexactly(int(found[1]))
    return True


if __name__ == "__main__":
    asyncio.run(
        main(
            int(sys.argv[1]),
            int(sys.argv[2]),
            float(sys.argv[3]),
            sys.stdin.buffer.read(),
        )
    )
