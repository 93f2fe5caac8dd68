"""Frames as every version so far has sent them: what was once sent is understood.

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
SENT = 26  #: lines that versions so far have sent; the rest is the next version's
BY_NAME = {type(message).__name__: message for message in MESSAGES}


def lines() -> list[tuple[str, bytes]]:
    """Return the name and the frame of each line."""
    found = [line.split() for line in FRAMES.read_text().splitlines()]
    return [(name, bytes.fromhex(frame)) for name, frame in found]


def bless() -> None:
    """Keep what was sent, and each message that is now written in another way."""
    sent = lines()[:SENT]
    now = [(name, wire.encode([message])) for name, message in BY_NAME.items()]
    kept = sent + [line for line in now if line not in sent]
    FRAMES.write_text("".join(f"{name} {frame.hex()}\n" for name, frame in kept))


@pytest.mark.parametrize(("name", "frame"), lines(), ids=lambda part: str(part)[:12])
def test_a_frame_of_any_version_so_far_is_understood(name: str, frame: bytes) -> None:
    """Nodes of different versions work together while a mesh is upgraded."""
    decoder = wire.Decoder(Limits())

    assert decoder.receive_data(frame) == [BY_NAME[name]]


def test_frames_are_still_written_as_they_are_kept() -> None:
    """What changes is a new line, seen by whoever reviews it; all are there."""
    if os.environ.get("BLESS"):
        bless()
    latest = dict(lines())

    assert latest == {name: wire.encode([m]) for name, m in BY_NAME.items()}
    assert set(latest) == {kind.__name__ for kind in get_args(Message)}
