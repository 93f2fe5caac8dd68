"""An agent of protocol version 2, made of this one: it says more than version 1 knows.

Each of its messages has one more field, and messages of an unknown type come between.
"""

from __future__ import annotations

import sys
from typing import Any, get_args

import msgpack

from octaskly.cli import main
from octaskly.core.protocol import codec, messages
from octaskly.mesh import wire
from octaskly.mesh.links import link

VERSION = 2
UNKNOWN = msgpack.packb((42, ["what", 7]))

encode, parts_of = codec.encode, wire.pack_parts


def encode_next(value: object) -> tuple[int, Any]:
    """Return a message with one more field, anything else as it is."""
    number, row = encode(value)
    return number, [*row, "new"] if isinstance(
        value, get_args(messages.Message)
    ) else row


def parts_of_next(message: messages.Message, frame_bytes: int) -> list[bytes]:
    """Return a message, and one of an unknown type behind it."""
    return [*parts_of(message, frame_bytes), UNKNOWN]


if __name__ == "__main__":
    defaults = messages.Hello.__init__.__kwdefaults__
    assert defaults is not None
    defaults["version"] = VERSION
    for module in (link, wire):
        vars(module)["PROTOCOL_VERSION"] = VERSION
    vars(codec)["encode"], vars(wire)["pack_parts"] = encode_next, parts_of_next
    sys.exit(main())
