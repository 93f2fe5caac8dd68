"""While many frames arrive at many links, they are read together; else each at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial

import pytest

from octaskly.mesh.links import batched_reads
from octaskly.mesh.links.batched_reads import READS_MANY, BatchedReads

NEVER_S = 3600.0
TURNS = 5  #: of the event loop, in which it sees what is readable


class Links:
    """Links whose other ends are here, and how many bytes were read from them."""

    def __init__(self, reads: BatchedReads, sockets: ExitStack) -> None:
        self.reads = reads
        self._sockets = sockets
        self._ends: list[tuple[socket.socket, socket.socket]] = []
        self.read_count = 0
        self._has_read = asyncio.Event()

    def add(self, count: int) -> None:
        """Add links."""
        for _ in range(count):
            here, there = socket.socketpair()
            here.setblocking(False)
            there.setblocking(False)
            self._ends.append((here, there))
            self._sockets.enter_context(here)
            self._sockets.enter_context(there)
            self.reads.add_reader(here.fileno(), partial(self._read, here))

    def _read(self, here: socket.socket) -> None:
        self.read_count += len(here.recv(1))
        self._has_read.set()

    def send(self, links: int) -> None:
        """Send a byte by each of the first links."""
        for _, there in self._ends[:links]:
            there.send(b".")

    def remove(self, link: int) -> bool:
        """Stop reading from a link."""
        return self.reads.remove_reader(self._ends[link][0].fileno())

    async def until_read(self, count: int) -> None:
        """Wait until so many bytes were read."""
        async with asyncio.timeout(10):
            while self.read_count < count:
                self._has_read.clear()
                await self._has_read.wait()


@pytest.fixture
async def links() -> AsyncIterator[Links]:
    """Return the links of this test."""
    with ExitStack() as sockets:
        reads = BatchedReads()
        yield Links(reads, sockets)
        reads.close()


@pytest.fixture(autouse=True)
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each read of all links be a window."""
    monkeypatch.setattr(batched_reads, "WINDOW_S", 0.0)


async def test_after_many_reads_the_next_ones_wait_for_each_other(
    links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop is not woken for each."""
    monkeypatch.setattr(batched_reads, "BATCH_S", NEVER_S)
    links.add(READS_MANY)
    links.send(READS_MANY)
    await links.until_read(READS_MANY)

    links.send(1)
    for _ in range(TURNS):
        await asyncio.sleep(0)

    assert links.read_count == READS_MANY


async def test_what_waits_is_read_soon_and_then_each_frame_at_once(
    links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch with few frames is the last one."""
    links.add(READS_MANY)
    links.send(READS_MANY)
    links.send(1)
    await links.until_read(READS_MANY + 1)
    monkeypatch.setattr(batched_reads, "BATCH_S", NEVER_S)

    links.send(1)
    await links.until_read(READS_MANY + 2)
    links.send(READS_MANY - 1)
    await links.until_read(2 * READS_MANY + 1)
    links.send(1)

    await links.until_read(2 * READS_MANY + 2)


async def test_a_node_with_few_links_reads_each_frame_at_once(
    links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the frames of a busy client are one after the other."""
    monkeypatch.setattr(batched_reads, "BATCH_S", NEVER_S)
    monkeypatch.setattr(batched_reads, "LINKS_MANY", READS_MANY + 1)
    links.add(READS_MANY)
    links.send(READS_MANY)
    await links.until_read(READS_MANY)

    links.send(1)

    await links.until_read(READS_MANY + 1)


async def test_a_link_that_is_removed_is_not_read(links: Links) -> None:
    """Not even if its frame arrived with those of others."""
    links.add(3)
    links.send(3)

    assert links.remove(1)
    assert not links.remove(1)

    await links.until_read(2)
    for _ in range(TURNS):
        await asyncio.sleep(0)
    assert links.read_count == 2


async def test_a_link_whose_reading_fails_keeps_no_other_from_being_read(
    links: Links,
) -> None:
    """The event loop reports it, as for any of its readers."""
    reported: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    broken, other = socket.socketpair()
    with broken, other:
        other.send(b".")  # It is not read, so the link stays readable.
        links.reads.add_reader(broken.fileno(), partial(int, "no number"))
        links.add(3)
        links.send(3)

        await links.until_read(3)
        links.reads.remove_reader(broken.fileno())

    assert {type(each["exception"]) for each in reported} == {ValueError}
