"""Files that tasks name: one thread at a time fetches each, and no lock stays."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from octaskly.core.model.task_options import BlobRef
from octaskly.runner.blobs import holder_connection
from octaskly.runner.blobs.blob_fetcher import BlobSource
from octaskly.runner.blobs.fetch import NamedLocks
from tests.support.pooling import supply_in

THREADS: Final = 6
AT_ONCE: Final = st.lists(st.sampled_from("abc"), min_size=THREADS, max_size=60)
NOWHERE: Final = BlobRef(sha256="0" * 64, node="gone")


class Failed(Exception):
    """The error that ends a block."""


@given(names=AT_ONCE, failing=st.sets(st.integers(0, 59)))
@settings(max_examples=30, deadline=None)
def test_a_lock_is_exclusive_and_leaves_nothing(
    names: list[str], failing: set[int]
) -> None:
    """This includes threads that waited while the block of another one failed."""
    locks, inside, most = NamedLocks(), Counter[str](), Counter[str]()

    def hold(number: int) -> None:
        name = names[number]
        with locks.hold_lock(name):
            inside[name] += 1
            most[name] = max(most[name], inside[name])
            os.sched_yield()  # The other threads arrive while this one is inside.
            inside[name] -= 1
            if number in failing:
                raise Failed

    with ThreadPoolExecutor(THREADS) as threads:
        done = [threads.submit(hold, number) for number in range(len(names))]

    failed = {number for number, one in enumerate(done) if one.exception()}
    assert failed == {number for number in failing if number < len(names)}
    assert most == dict.fromkeys(names, 1)
    assert len(locks) == 0


@given(data=st.binary(max_size=300), repeats=st.integers(1, 20_000), cut=st.data())
@settings(max_examples=30, deadline=None)
def test_compressed_manifest_is_read_in_bounded_parts(
    data: bytes, repeats: int, cut: st.DataObject
) -> None:
    """Wherever the stream is cut; a member may send what grows a thousandfold."""
    whole = data * repeats
    packed = gzip.compress(whole)
    at = cut.draw(st.integers(0, len(packed)))

    parts = list(holder_connection._decompressed([packed[:at], packed[at:]]))

    assert b"".join(parts) == whole
    assert max(map(len, parts)) <= holder_connection.CHUNK_BYTES


def test_missing_file_leaves_no_lock(tmp_path: Path) -> None:
    """Clients choose the names, and each lock would stay for ever."""
    fetcher = supply_in(tmp_path)
    fetcher.close()  # So that it does not look again a second later.

    missing = fetcher.fetch_blob(BlobSource(NOWHERE, lambda: ()), lambda: True)

    assert len(missing) == 1
    assert len(fetcher.file_locks) == 0
