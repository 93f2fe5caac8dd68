"""What passes between a visitor and a member: a table that denies by default.

A visitor is a worker that cannot give commands. Links check each message against this
table, in both directions, before its fields are decoded; members send what
`redacted_for_visitor` returns. A message that is not declared here never passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, get_args

from msgspec import Struct
from msgspec.structs import replace

from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.tasks import TaskSpec
from octaskly.core.protocol.messages import (
    Assign,
    Contacts,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Kill,
    Leave,
    Message,
    Probe,
    ProbeOk,
    Reattach,
    Redirect,
    Results,
    ResultsOk,
)


class Direction(Enum):
    """The directions in which a message may pass between a visitor and a member."""

    BOTH = "both"
    FROM_VISITOR = "from a visitor"
    TO_VISITOR = "to a visitor"
    NEITHER = "neither"


_ALLOWED: Final = {
    Hello: Direction.BOTH,
    HelloOk: Direction.BOTH,
    Leave: Direction.BOTH,
    HeartbeatOk: Direction.FROM_VISITOR,
    Probe: Direction.FROM_VISITOR,
    Reattach: Direction.FROM_VISITOR,
    Results: Direction.FROM_VISITOR,
    Assign: Direction.TO_VISITOR,
    Contacts: Direction.TO_VISITOR,
    Heartbeat: Direction.TO_VISITOR,
    Kill: Direction.TO_VISITOR,
    ProbeOk: Direction.TO_VISITOR,
    Redirect: Direction.TO_VISITOR,
    ResultsOk: Direction.TO_VISITOR,
}

VISITOR_MESSAGES: Final[Mapping[type[Message], Direction]] = MappingProxyType(
    {kind: _ALLOWED.get(kind, Direction.NEITHER) for kind in get_args(Message)}
)
"""The direction of each message; a new message has none until it is declared."""

HELLO_BYTES_MAX: Final = 64 << 10  #: of a visitor's frame until its HELLO_OK
FRAME_BYTES_MAX: Final = 4 << 20  #: of its later frames: the output of an attempt
SLOTS_MAX: Final = 1 << 12  #: of one visitor
MESSAGES_PER_S: Final = 200.0  #: of one visitor, over a while; more close the link
MESSAGES_BURST: Final = 2000.0


def _type_number(kind: type[Struct]) -> int:
    number = kind.__struct_config__.tag
    assert isinstance(number, int)
    return number


def message_numbers(*directions: Direction) -> frozenset[int]:
    """Return the type numbers of the messages that pass in one of these directions."""
    return frozenset(
        _type_number(kind)
        for kind, direction in VISITOR_MESSAGES.items()
        if direction in directions
    )


FROM_VISITOR: Final = message_numbers(Direction.BOTH, Direction.FROM_VISITOR)
TO_VISITOR: Final = message_numbers(Direction.BOTH, Direction.TO_VISITOR)


def may_pass(message: Message, numbers: frozenset[int]) -> bool:
    """Return True if a message has one of these type numbers."""
    return _type_number(type(message)) in numbers


def redacted_for_visitor(message: Message) -> Message | None:
    """Return what a visitor gets of a message; None: nothing.

    It gets nothing of the log, and of its tasks only what is needed to run them.
    """
    if VISITOR_MESSAGES.get(type(message)) not in (
        Direction.BOTH,
        Direction.TO_VISITOR,
    ):
        return None
    match message:
        case Hello():
            return _redacted_hello(message)
        case Assign(epoch, items):
            return Assign(
                epoch, tuple((attempt, redacted_spec(spec)) for attempt, spec in items)
            )
        case _:
            return message


def redacted_spec(spec: TaskSpec) -> TaskSpec:
    """Return a task without its submitter, and what only people see of it."""
    options = spec.options
    if options is not None:
        options = replace(
            options, name="", labels=(), notify_url="", after=None, retry_of="", call=""
        )
    return replace(spec, submitter="", options=options)


def _redacted_hello(hello: Hello) -> Hello:
    node = hello.node
    return Hello(
        version=hello.version,
        version_min=hello.version_min,
        node=NodeInfo(
            id=node.id,
            boot=node.boot,
            name=node.name,
            slots=0,
            version=node.version,
            peer_port=node.peer_port,
            lan_port=node.lan_port,
        ),
        epoch=hello.epoch,
        dispatcher=None,
        wall_ms=hello.wall_ms,
    )
