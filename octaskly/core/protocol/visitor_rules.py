"""What passes between a visitor and a member: a table that denies by default.

A visitor is a worker that cannot give commands. Links check each message against this
table, in both directions, before its fields are decoded; members send what
`redacted_for_visitor` returns. A message that is not declared here never passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from itertools import chain
from types import MappingProxyType
from typing import Final, TypeVar, get_args

from msgspec import Struct
from msgspec.structs import replace

from octaskly.core.model.nodes import LoadSample, NodeInfo
from octaskly.core.model.tasks import (
    DETAIL_CHARS_MAX,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
)
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
    OutputPieces,
    Probe,
    ProbeOk,
    ReadOutput,
    Reattach,
    Redirect,
    Results,
    ResultsOk,
)
from octaskly.core.protocol.validity import are_printable, is_valid_node

Number = TypeVar("Number", int, float)


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
    OutputPieces: Direction.FROM_VISITOR,
    Probe: Direction.FROM_VISITOR,
    Reattach: Direction.FROM_VISITOR,
    Results: Direction.FROM_VISITOR,
    Assign: Direction.TO_VISITOR,
    Contacts: Direction.TO_VISITOR,
    Heartbeat: Direction.TO_VISITOR,
    Kill: Direction.TO_VISITOR,
    ProbeOk: Direction.TO_VISITOR,
    ReadOutput: Direction.TO_VISITOR,
    Redirect: Direction.TO_VISITOR,
    ResultsOk: Direction.TO_VISITOR,
}

VISITOR_MESSAGES: Final[Mapping[type[Message], Direction]] = MappingProxyType(
    {kind: _ALLOWED.get(kind, Direction.NEITHER) for kind in get_args(Message)}
)
"""The direction of each message; a new message has none until it is declared."""

HELLO_BYTES_MAX: Final = 64 << 10  #: of a visitor's frame until its HELLO_OK
FRAME_BYTES_MAX: Final = 4 << 20  #: of its later frames: the output of an attempt
DISPATCHER: Final = "dispatcher"
"""Where a visitor finds all files of its tasks; it learns of no other holder."""
TIME_UP_REASON: Final = "time is up"  #: in `Leave`, to a visitor
SLOTS_MAX: Final = 1 << 12  #: of one visitor
STAY_S_MAX: Final = 7 * 86_400  #: from the join of a visitor to its end
MESSAGES_PER_S: Final = 200.0  #: of one visitor, over a while; more close the link
MESSAGES_BURST: Final = 2000.0
BYTES_PER_S: Final = 8 << 20  #: that a link reads of one visitor
LINK_MESSAGES: Final = 20.0  #: messages that a new link counts as
READS_MAX: Final = 64  #: of one visitor's output at a time
ITEM_MESSAGES: Final = 1 / 16
"""Messages that an attempt or an output in a message of a visitor counts as."""
EXIT_CODE_MAX: Final = 255
SIGNAL_MAX: Final = 64
CPU_PERCENT_MAX: Final = 100.0
LOAD1_MAX: Final = 1e4
MEMORY_MB_MAX: Final = 1 << 30
_END_REASONS: Final = {
    AttemptState.OK: {EndReason.EXIT},
    AttemptState.CANCELLED: {EndReason.CANCELLED},
    AttemptState.FAILED: {
        EndReason.EXIT,
        EndReason.SIGNAL,
        EndReason.TIMEOUT,
        EndReason.LIMIT,
        EndReason.INPUTS,
        EndReason.LOST,
    },
    AttemptState.RELEASED: {
        EndReason.RETURNED,
        EndReason.DRAINING,
        EndReason.STALE,
        EndReason.ROOM,
        EndReason.INPUTS,
        EndReason.LOST,
    },
}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
"""As the setting `--name` demands it: others look like those of other nodes."""


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


def is_valid_visitor(info: NodeInfo) -> bool:
    """Return True if a visitor's description of itself can be shown and compared."""
    words = (*info.gpus, *info.pythons, *chain.from_iterable(info.labels))
    return (
        is_valid_node(info)
        and _NAME.fullmatch(info.name) is not None
        and are_printable((info.os, info.arch, *words))
        and max(info.memory_mb, info.cpus) <= MEMORY_MB_MAX
    )


def bounded_load(load: LoadSample) -> LoadSample:
    """Return a visitor's load within what a machine can have."""
    free_mb = load.disk_free_mb
    return LoadSample(
        cpu_percent=_within(load.cpu_percent, CPU_PERCENT_MAX),
        load1=_within(load.load1, LOAD1_MAX),
        memory_used_mb=_within(load.memory_used_mb, MEMORY_MB_MAX),
        process_mb=_within(load.process_mb, MEMORY_MB_MAX),
        stalled_percent=_within(load.stalled_percent, CPU_PERCENT_MAX),
        disk_free_mb=None if free_mb is None else _within(free_mb, MEMORY_MB_MAX),
    )


def _between(least: int, number: int | None, most: int) -> int | None:
    return None if number is None else min(max(number, least), most)


def _within(number: Number, most: Number) -> Number:
    return min(max(number, 0), most)


def cost_of_message(message: Message) -> float:
    """Return how many messages a visitor's message counts as."""
    items = 0
    match message:
        case Results(reports):
            items = len(reports) + sum(len(r.outcome.outputs) for r in reports)
        case Reattach(running):
            items = len(running)
        case _:
            pass
    return 1.0 + ITEM_MESSAGES * items


def is_possible_outcome(outcome: Outcome) -> bool:
    """Return True if a worker could report this state for this reason.

    Commands that wait for a task end with its exit code, so a failure has another one
    than a success.
    """
    code, signal = outcome.exit_code, outcome.signal
    if outcome.reason not in _END_REASONS.get(outcome.state, ()):
        return False
    if code is not None and not 0 <= code <= EXIT_CODE_MAX:
        return False
    if signal is not None and not 0 < signal <= SIGNAL_MAX:
        return False
    if outcome.state is AttemptState.FAILED:
        return code != 0
    return outcome.state is not AttemptState.OK or (code == 0 and signal is None)


def bounded_outcome(outcome: Outcome, spec: TaskSpec, wall_ms: int) -> Outcome:
    """Return a visitor's outcome, corrected where a false one would do harm.

    Its times lie between the submission and now. Outputs that were not declared are
    left out.
    """
    declared = set(spec.outputs)
    outputs = {each.path: each for each in outcome.outputs if each.path in declared}
    begin_ms, now_ms = spec.created_ms, max(wall_ms, spec.created_ms)
    return replace(
        outcome,
        outputs=tuple(outputs.values()),
        detail=outcome.detail[:DETAIL_CHARS_MAX],
        started_ms=_between(begin_ms, outcome.started_ms, now_ms),
        ended_ms=_between(begin_ms, outcome.ended_ms, now_ms),
        duration_ms=_between(0, outcome.duration_ms, now_ms - begin_ms),
    )


def answers_read(read: ReadOutput, answer: OutputPieces) -> bool:
    """Return True if a visitor's answer has only what was asked for, in order."""
    offsets = dict(enumerate(read.starts))
    for piece in answer.pieces:
        offset = offsets.get(piece.stream)
        if offset is None or piece.offset < offset:
            return False
        offsets[piece.stream] = piece.offset + len(piece.data)
    return True


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
        tree = options.tree and replace(options.tree, node=DISPATCHER, is_lent=False)
        stdin = options.stdin_file and replace(options.stdin_file, node=DISPATCHER)
        options = replace(
            options,
            name="",
            labels=(),
            notify_url="",
            after=None,
            retry_of="",
            call="",
            tree=tree,
            stdin_file=stdin,
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
