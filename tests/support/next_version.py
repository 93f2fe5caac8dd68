"""An agent of protocol version 2, derived from this one: it sends more than version 1.

Each message has one more field, and messages of an unknown type come between.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import get_args

import msgspec

from octaskly.cli import main
from octaskly.core.node import announcements
from octaskly.core.protocol import messages
from octaskly.mesh import wire
from octaskly.mesh.links import link

VERSION = 2
UNKNOWN = msgspec.msgpack.encode((42, "what", 7))

pack, parts_of = wire._pack, wire.pack_parts


def pack_next(value: object) -> bytes:
    """Return a message with one more field, any other value unchanged."""
    if isinstance(value, get_args(messages.Message)):
        return pack([*msgspec.to_builtins(value, builtin_types=(bytes,)), "new"])
    return pack(value)


def parts_of_next(message: messages.Message, frame_bytes: int) -> list[bytes]:
    """Return a message, and one of an unknown type behind it."""
    return [*parts_of(message, frame_bytes), UNKNOWN]


if __name__ == "__main__":
    vars(announcements)["Hello"] = partial(messages.Hello, version=VERSION)
    for module in (link, wire):
        vars(module)["PROTOCOL_VERSION"] = VERSION
    vars(wire)["_pack"], vars(wire)["pack_parts"] = pack_next, parts_of_next
    sys.exit(main())
