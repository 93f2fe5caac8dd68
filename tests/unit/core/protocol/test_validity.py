"""Values outside the bounds of their type are refused by the decoder."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from octaskly.core.log.facts import Assigned, Entry, Fact, Submitted, TaskCancelled
from octaskly.core.log.mesh_records import AUDIT
from octaskly.core.model.hlc import HLC_MAX
from octaskly.core.model.ids import (
    NO_EPOCH,
    STREAMS_MAX,
    Address,
    Epoch,
    StreamId,
    TaskId,
)
from octaskly.core.model.nodes import NO_LOAD, Role
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import After, Requirements, Retry, TaskLimits
from octaskly.core.protocol.messages import (
    ENTRIES_MAX,
    Assign,
    Entries,
    Heartbeat,
    HeartbeatOk,
    HelloOk,
    Message,
    Pull,
    Reattach,
    Redirect,
    Results,
    Snapshot,
    SnapshotCursor,
)
from octaskly.errors import RemoteProtocolError
from octaskly.mesh import wire
from tests.support.builders import attempt, outcome, report, spec
from tests.unit.core.node.test_message_checks import (
    EMPTY,
    FACT,
    KNOWN,
    LATE,
    ME,
    OTHER,
    PEER,
    READY,
    RECORD,
    THEIRS,
    demanding,
    ended,
    hello_of,
    listing,
    submitting,
    telling,
)

END: Any = "maybe"


def written(fact: Fact) -> Entries:
    """Return entries with this fact."""
    return telling(Entry(KNOWN, 5, 9, fact))


def reported(**how: Any) -> Results:
    """Return the result of one attempt."""
    return Results((report(**how),), 1)


WRONG: dict[str, Message] = {
    "heartbeat of a negative term": Heartbeat(Epoch(-1, PEER), 0.0),
    "a time that cannot be": telling(Entry(KNOWN, 5, HLC_MAX, FACT)),
    "a time before all": telling(Entry(KNOWN, 5, -1, FACT)),
    "an attempt without end": telling(
        Entry(KNOWN, 5, 9, Assigned(TaskId("t"), attempt((1 << 63) - 1), ME))
    ),
    "a task of the far future": written(Submitted(LATE)),
    "a result of the far future": Results(
        (report(end=replace(outcome(), ended_ms=1 << 62)),), 1
    ),
    "output of less than nothing": telling(ended(stdout_bytes=-1)),
    "a record of the far future in a snapshot": Snapshot(
        rows=(),
        cursor=SnapshotCursor(9, 0),
        has_more=True,
        records=(replace(RECORD, kind=AUDIT, hlc=HLC_MAX),),
    ),
    "a member with a name without end": listing(name="n" * 129),
    "a member that is to be at an address without end": Redirect(
        THEIRS, OTHER, (Address("1" * 129, 1),)
    ),
    "a member that moved to an address without end": HeartbeatOk(
        THEIRS, 0.0, READY, 1, NO_LOAD, addresses=("1" * 129,)
    ),
    "a member that is everywhere": listing(addresses=(Address("10.0.0.1", 1),) * 65),
    "a snapshot behind which none can come": Snapshot(
        rows=(), cursor=SnapshotCursor(HLC_MAX, 0), has_more=True, head=EMPTY
    ),
    "a task behind all that can be": telling(
        Entry(KNOWN, 5, 9, Submitted(replace(spec(), ord=(1 << 63) - 1)))
    ),
    "somebody without end who cancels": telling(
        Entry(KNOWN, 5, 9, TaskCancelled(TaskId("t"), "x" * 1025))
    ),
    "somebody without end who asks": telling(
        Entry(KNOWN, 5, 9, Submitted(replace(spec(), submitter="x" * 513)))
    ),
    "a wait for no end of ours": telling(
        submitting(after=After(tasks=("t",), end=END))
    ),
    "a worker's word of such a wait": Results(
        (replace(report(), spec=demanding(after=After(tasks=(), end=END))),), 1
    ),
    "memory of less than nothing": telling(
        submitting(requires=Requirements(memory_mb=-1))
    ),
    "processes without end": telling(submitting(limits=TaskLimits(processes=1 << 62))),
    "a grace without end": telling(submitting(grace_s=1 << 62)),
    "attempts without end": telling(submitting(retry=Retry(retries=1 << 62))),
    "an attempt zero": Reattach(((attempt(0), spec()),), 1, READY),
    "an order of the far future": Assign(THEIRS, ((attempt(), LATE),)),
    "a vector of negative numbers": Pull(((KNOWN, -1),)),
    "a vector of huge numbers": Pull(((KNOWN, 1 << 62),)),
    "an answer without end": Entries(
        tuple(
            Entry(KNOWN, i + 1, 1, TaskCancelled(TaskId("t"), "me"))
            for i in range(ENTRIES_MAX + 1)
        ),
        (),
        False,
        (),
    ),
    "a vector without end": Pull(
        tuple((StreamId(i + 1), 1) for i in range(STREAMS_MAX + 1))
    ),
}
TOO_MUCH: tuple[dict[str, Any], ...] = (
    {"name": "n" * 64},
    {"boot": "b" * 129},
    {"version": "v" * 129},
    {"addresses": ("10.0.0.1",) * 65},
    {"labels": tuple((f"k{n}", "v") for n in range(65))},
    {"labels": (("k", "v" * 64),)},
    {"gpus": tuple(map(str, range(65)))},
    {"os": "x" * 64},
    {"memory_mb": -1},
    {"peer_port": 65_536},
    {"lan_port": -1},
)


def decode(message: Message) -> list[Message]:
    """Return a message after HELLO_OK as the peer reads it."""
    decoder = wire.Decoder(Limits())
    return decoder.receive_data(wire.encode([HelloOk(), message]))[1:]


@pytest.mark.parametrize("message", WRONG.values(), ids=list(WRONG))
def test_a_message_outside_the_bounds_of_its_fields_is_refused(
    message: Message,
) -> None:
    """The link ends before any rule of the mesh sees it."""
    with pytest.raises(RemoteProtocolError):
        decode(message)


@pytest.mark.parametrize("too_much", TOO_MUCH)
def test_the_description_of_a_node_is_bounded(
    too_much: dict[str, Any],
) -> None:
    """It is kept for each node, and is in every roster."""
    hello = hello_of(NO_EPOCH)

    assert decode(hello) == [hello]
    with pytest.raises(RemoteProtocolError):
        decode(replace(hello, node=replace(hello.node, **too_much)))


def test_the_entries_of_a_roster_are_bounded() -> None:
    """A correct dispatcher has refused such nodes itself."""
    with pytest.raises(RemoteProtocolError):
        decode(listing(id=OTHER, name="c", role=Role.WORKER, gpus=("x" * 64,)))
