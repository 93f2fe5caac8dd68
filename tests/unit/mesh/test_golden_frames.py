"""Golden frames: every version reads the frames of all earlier ones.

Each line of `tests/golden/frames.txt` is the name of a message and a frame in hex.
What a version sent is never changed. When a field is added, `BLESS=1` adds a line with
it, and the line before shows that a frame without it is still read. Until the next
version, that line is replaced when another field follows.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import Message
from octaskly.mesh import wire
from tests.support.sample_messages import MESSAGES

FRAMES = Path(__file__).parents[2] / "golden" / "frames.txt"
SENT = 0  #: lines of released versions; the rest belongs to the next version
BY_NAME = {type(message).__name__: message for message in MESSAGES}


def lines() -> list[tuple[str, bytes]]:
    """Return the name and the frame of each line."""
    found = [line.split() for line in FRAMES.read_text().splitlines()]
    return [(name, bytes.fromhex(frame)) for name, frame in found]


def bless() -> None:
    """Keep the released lines, and replace each changed message."""
    sent = lines()[:SENT]
    now = [(name, wire.encode([message])) for name, message in BY_NAME.items()]
    kept = sent + [line for line in now if line not in sent]
    FRAMES.write_text("".join(f"{name} {frame.hex()}\n" for name, frame in kept))


@pytest.mark.parametrize(("name", "frame"), lines(), ids=lambda part: str(part)[:12])
def test_frames_of_all_versions_are_understood(name: str, frame: bytes) -> None:
    """Nodes of different versions work together during an upgrade."""
    decoder = wire.Decoder(Limits())

    assert decoder.receive_data(frame) == [BY_NAME[name]]


def test_the_encoding_of_each_message_is_recorded() -> None:
    """A change adds a line that a reviewer sees; no message is missing."""
    if os.environ.get("BLESS"):
        bless()
    latest = dict(lines())

    assert latest == {name: wire.encode([m]) for name, m in BY_NAME.items()}
    assert set(latest) == {kind.__name__ for kind in get_args(Message)}
