"""Fetching outputs when wrong bytes arrive, played without sockets."""

from __future__ import annotations

from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octaskly import Task
from octaskly.client.fetching import WRONG_MAX, Fetching
from octaskly.client.flows.rest_calls import Response
from octaskly.client.flows.steps import Emit
from octaskly.files.captured_tree import CapturedTree
from octaskly.files.home_folder import WrongBytes
from octaskly.files.manifest import TreeFile, make_manifest
from octaskly.files.unpacker import Fetched
from tests.unit.client.test_flows import Play

CONTENTS = [b"a" * 600, b"b" * 5000, b"c" * 600]
ENDED = msgspec.convert(
    {
        "id": "task-1",
        "status": "completed",
        "outputs": [{"path": "out", "bytes": 1}],
    },
    Task,
)


def archive(tmp_path: Path) -> bytes:
    digests = [sha256(data) for data in CONTENTS]
    for digest, data in zip(digests, CONTENTS, strict=True):
        (tmp_path / digest.hexdigest()).write_bytes(data)
    files = [
        TreeFile(f"out/{data[:1].decode()}", digest.digest(), len(data), 0)
        for digest, data in zip(digests, CONTENTS, strict=True)
    ]
    tree = CapturedTree(make_manifest(files), lambda name: tmp_path / name.hex())
    return b"".join(tree.tar_chunks(0, tree.tar.size_bytes, 1000))


def whole(data: bytes) -> list[Any]:
    head = {"etag": '"e"', "content-length": str(len(data))}
    return [Response(200, head, b""), data]


def rest(data: bytes, start: int) -> list[Any]:
    place = f"bytes {start}-{len(data) - 1}/{len(data)}"
    return [Response(206, {"etag": '"e"', "content-range": place}, b""), data[start:]]


def fetch(play: Play, home: Path) -> Fetched:
    """Do what each kind of client does."""
    with closing(Fetching(ENDED, home)) as fetching:
        for flow in fetching.flows(play.asker, play.until()):
            came: Any = None
            while True:
                try:
                    step = flow.send(came)
                except StopIteration:
                    break
                if not isinstance(step, Emit):
                    came = play._perform(step)
                elif not fetching.take(step.item):
                    break
                else:
                    came = None
        return fetching.finish()


def test_the_rest_is_asked_for_again_from_a_file_with_wrong_bytes(
    tmp_path: Path,
) -> None:
    """Nodes are told to read what they send first."""
    data = archive(tmp_path)
    damaged = data.replace(CONTENTS[1], b"?" + CONTENTS[1][1:])
    start = data.index(b"././@PaxHeader", 512)
    play = Play(*whole(damaged), *rest(data, start))

    fetched = fetch(play, tmp_path / "home")

    assert (fetched.files, fetched.bytes) == (3, 6200)
    assert (tmp_path / "home" / "out" / "b").read_bytes() == CONTENTS[1]
    first, second = play.sent
    assert (first.query, first.headers) == ({}, {})
    assert second.query == {"verify": "true"}
    assert second.headers == {"Range": f"bytes={start}-", "If-Range": '"e"'}


def test_bytes_that_are_wrong_everywhere_are_an_error_in_the_end(
    tmp_path: Path,
) -> None:
    """Each node with the outputs may have been asked by then."""
    data = archive(tmp_path)
    damaged = data.replace(CONTENTS[1], b"?" + CONTENTS[1][1:])
    start = data.index(b"././@PaxHeader", 512)
    again = [each for _ in range(WRONG_MAX - 1) for each in rest(damaged, start)]
    play = Play(*whole(damaged), *again)

    with pytest.raises(WrongBytes, match="the bytes of out/b are not those"):
        fetch(play, tmp_path / "home")

    assert len(play.sent) == WRONG_MAX
    assert not (tmp_path / "home" / "out" / "b").exists()
