"""Offers of clients that lend trees: what they are asked for, and until when."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from octaskly.runner.blobs import lenders
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.blobs.lenders import (
    ASK_AGAIN_S,
    ASKED_AT_ONCE_MAX,
    AWAY_RETRY_S,
    LENDER_WAIT_S,
    LenderReply,
    Lenders,
)
from tests.support.set_clock import SetClock

TREE = "1" * 64
OTHER = "2" * 64


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def blob_store(tmp_path: Path, clock: SetClock) -> BlobStore:
    return BlobStore(tmp_path / "files", clock=clock, quota_bytes=1 << 20)


def name_of(data: bytes) -> str:
    return sha256(data).hexdigest()


async def test_a_client_is_asked_once_for_what_is_missing(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """Requests for the same file wait for its only arrival."""
    desk = Lenders(blob_store, clock)
    here, wanted = b"here", b"wanted"
    blob_store.store_blob(name_of(here), here)
    with desk.open_offer(TREE) as offer:
        asking = [
            asyncio.create_task(
                desk.await_files(TREE, [name_of(here), name_of(wanted)])
            )
            for _ in range(3)
        ]
        asked = await offer.next_wanted()
        await asyncio.to_thread(blob_store.store_blob, name_of(wanted), wanted)
        answers = await asyncio.gather(*asking)

    assert asked == [name_of(wanted)]
    assert answers == [None] * 3
    assert offer.wanted == set()


async def test_a_file_that_was_deleted_again_is_asked_for_again(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """What was sent makes room for other files."""
    desk = Lenders(blob_store, clock)
    with desk.open_offer(TREE) as offer:
        for _ in range(2):
            asking = asyncio.create_task(desk.await_files(TREE, [name_of(b"x")]))
            assert await offer.next_wanted() == [name_of(b"x")]
            await asyncio.to_thread(blob_store.store_blob, name_of(b"x"), b"x")
            assert await asking is None
            blob_store.file_path(name_of(b"x")).unlink()


async def test_a_file_that_arrives_while_others_are_looked_for_is_not_wanted(
    blob_store: BlobStore, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would never be asked for again after it was deleted."""
    desk = Lenders(blob_store, clock)
    find = blob_store.missing_files

    def find_and_store(names: Sequence[str], *, keep_s: float) -> list[str]:
        missing = find(names, keep_s=keep_s)
        blob_store.store_blob(name_of(b"x"), b"x")
        return missing

    monkeypatch.setattr(blob_store, "missing_files", find_and_store)
    monkeypatch.setattr(lenders, "ARRIVAL_S", 0.0)
    with desk.open_offer(TREE) as offer:
        await desk.await_files(TREE, [name_of(b"x"), name_of(b"y")])

    assert offer.wanted == {name_of(b"y")}


async def test_many_files_are_asked_for_in_bounded_events(
    blob_store: BlobStore, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more than a node keeps in mind."""
    monkeypatch.setattr(lenders, "ARRIVAL_S", 0.0)
    monkeypatch.setattr(lenders, "WANTED_MAX", ASKED_AT_ONCE_MAX + 5)
    desk = Lenders(blob_store, clock)
    names = [f"{number:064}" for number in range(ASKED_AT_ONCE_MAX + 9)]
    with desk.open_offer(TREE) as offer:
        assert await desk.await_files(TREE, names) == LenderReply(ASK_AGAIN_S)
        first, second = await offer.next_wanted(), await offer.next_wanted()

    assert [*first, *second] == names[:-4]


async def test_a_client_that_sends_nothing_stops_no_other_lender(
    blob_store: BlobStore, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files it was asked for, and over however many offers."""
    monkeypatch.setattr(lenders, "ARRIVAL_S", 0.0)
    monkeypatch.setattr(lenders, "WANTED_MAX", 3)
    desk = Lenders(blob_store, clock)
    names = ["3" * 64, "4" * 64, "5" * 64]
    with desk.open_offer(OTHER), desk.open_offer(OTHER), desk.open_offer(TREE) as offer:
        await desk.await_files(OTHER, names)
        await desk.await_files(TREE, [name_of(b"x")])

        assert offer.wanted == {name_of(b"x")}


async def test_files_beyond_the_bound_are_asked_for_once_there_is_room(
    blob_store: BlobStore, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are wanted already take no room of the others."""
    monkeypatch.setattr(lenders, "ARRIVAL_S", 0.0)
    monkeypatch.setattr(lenders, "WANTED_MAX", 3)
    desk = Lenders(blob_store, clock)
    first, *others = [name_of(bytes([number])) for number in range(4)]
    with desk.open_offer(TREE) as offer:
        await desk.await_files(TREE, [first, *others])
        assert offer.wanted == {first, *others[:2]}
        offer.on_stored(first)
        await desk.await_files(TREE, others)

        assert offer.wanted == {*others}


async def test_a_node_without_room_says_so(
    blob_store: BlobStore, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a worker elsewhere could not say why its task waits."""
    monkeypatch.setattr(lenders, "ARRIVAL_S", 0.0)
    desk, kept = Lenders(blob_store, clock), os.urandom(1 << 19)
    await asyncio.to_thread(blob_store.store_blob, name_of(kept), kept)
    with desk.open_offer(TREE):
        fits = await desk.await_files(TREE, [name_of(b"x")], 1 << 19)
        lacks = await desk.await_files(TREE, [name_of(b"x")], 1 + (1 << 19))

    assert fits == LenderReply(ASK_AGAIN_S)
    assert lacks is not None
    assert lacks.no_room.startswith("not enough space for 524289 more bytes")


async def test_a_lender_that_is_gone_is_expected_for_ten_minutes(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """Whichever worker asks; also if an agent does not know it, as after a start."""
    desk = Lenders(blob_store, clock)
    names = [name_of(b"x")]
    assert await desk.await_files(TREE, names) == LenderReply(AWAY_RETRY_S)
    with desk.open_offer(TREE):
        clock.now_s += LENDER_WAIT_S + 1
    assert await desk.await_files(TREE, names) == LenderReply(AWAY_RETRY_S)
    assert await desk.await_files(OTHER, names) is None
    clock.now_s += LENDER_WAIT_S - 1
    assert await desk.await_files(TREE, names) == LenderReply(AWAY_RETRY_S)
    clock.now_s += 2

    assert await desk.await_files(TREE, names) is None


async def test_the_second_of_two_lenders_goes_on(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """A client may run the same command twice."""
    desk = Lenders(blob_store, clock)
    with desk.open_offer(TREE) as second:
        with desk.open_offer(TREE):
            pass
        clock.now_s += LENDER_WAIT_S + 1
        asking = asyncio.create_task(desk.await_files(TREE, [name_of(b"x")]))
        await second.next_wanted()
        await asyncio.to_thread(blob_store.store_blob, name_of(b"x"), b"x")

        assert await asking is None
