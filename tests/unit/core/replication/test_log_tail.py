"""The log tail: recent entries in memory, and their division into messages."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Append
from octaskly.core.log.facts import (
    Entry,
    Fact,
    Finished,
    Floor,
    StreamFloor,
    Submitted,
    TaskCancelled,
)
from octaskly.core.model.ids import DispatcherEpoch, StreamId, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import OutputFile
from octaskly.core.protocol.messages import HelloOk, Replicate
from octaskly.core.replication.log_tail import (
    LogTail,
    append_size_bytes,
    replicate_messages,
)
from octaskly.mesh import wire
from tests.support.builders import STREAM, attempt, epoch, node_id, outcome, spec

OTHER = StreamId(5)
REIGN = DispatcherEpoch(epoch(), STREAM)
SMALL = TaskCancelled(TaskId("t"), "x")


def entry(seq: int, fact: Fact = SMALL, stream: StreamId = STREAM) -> Entry:
    """Return one entry."""
    return Entry(stream, seq, seq, fact)


def tail(*appends: Append, limits: Limits | None = None) -> LogTail:
    """Return a tail that started with an empty own stream."""
    made = LogTail(limits or Limits())
    made.restart_from({STREAM: 0, OTHER: 3})
    for append in appends:
        made.add(append, append_size_bytes(append))
    return made


def test_a_peer_with_the_log_before_the_tail_lacks_the_whole_tail() -> None:
    """A peer with a part of the tail lacks the rest."""
    one, two = Append(1, (entry(1),)), Append(2, (entry(2), entry(3)))
    kept = tail(one, two)

    assert kept.appends_missing_in({OTHER: 3}) == [one, two]
    assert kept.appends_missing_in({OTHER: 3, STREAM: 2}) == [
        Append(1, ()),
        Append(2, (entry(3),)),
    ]


def test_a_peer_without_the_log_before_the_tail_must_pull() -> None:
    """The tail alone would leave a gap."""
    assert tail(Append(1, (entry(1),))).appends_missing_in({OTHER: 2}) is None
    assert tail().appends_missing_in({}) is None


def test_a_peer_without_entries_below_a_floor_gets_none_of_the_tail() -> None:
    """No row has them either: the half of a split with the tasks kept them."""
    floor = Floor(
        1, (StreamFloor(STREAM, 1, epoch()), StreamFloor(OTHER, 4, epoch(1, "b")))
    )
    one, two, last = Append(1, (entry(1),)), Append(2, (entry(2, floor),)), entry(3)
    kept = tail(one, two, Append(3, (last,)))

    assert kept.appends_missing_in({OTHER: 4}) is None
    assert kept.appends_missing_in({OTHER: 3, STREAM: 2}) is None
    assert kept.appends_missing_in({OTHER: 4, STREAM: 2}) == [
        *(Append(1, ()), Append(2, ()), Append(3, (last,))),
    ]


def test_more_entries_than_the_bound_push_out_the_oldest() -> None:
    """Memory does not grow with the backlog."""
    one, two, three = (Append(n, (entry(n),)) for n in (1, 2, 3))
    kept = tail(one, two, three, limits=Limits(tail_entries=2))

    assert kept.appends_missing_in({OTHER: 3}) is None
    assert kept.appends_missing_in({OTHER: 3, STREAM: 1}) == [two, three]


def test_more_bytes_than_the_bound_push_out_the_oldest() -> None:
    """Even all, if one append is larger than the whole tail."""
    large = Append(2, (entry(2, Submitted(spec(command="x" * 1000))),))
    kept = tail(Append(1, (entry(1),)), large, limits=Limits(tail_bytes=2000))

    assert kept.appends_missing_in({OTHER: 3, STREAM: 1}) is None
    assert kept.appends_missing_in({OTHER: 3, STREAM: 2}) == []


def test_writers_of_new_streams_come_with_their_entries() -> None:
    """Also after a new standby has caught up."""
    absorbed = Append(1, (entry(4, stream=OTHER),), ((OTHER, epoch(1, "b")),))
    missing = tail(absorbed).appends_missing_in({OTHER: 3})

    assert missing is not None
    assert replicate_messages(REIGN, missing, 9, 1000) == (
        Replicate(
            epoch(),
            9,
            absorbed.entries,
            ((STREAM, epoch()), (OTHER, epoch(1, "b"))),
        ),
    )


def test_a_complete_peer_gets_one_empty_message() -> None:
    """Its acknowledgement puts a standby in sync."""
    assert replicate_messages(REIGN, (), 9, 1000) == (
        Replicate(epoch(), 9, (), ((STREAM, epoch()),)),
    )


def test_a_large_append_is_split_and_only_the_last_part_has_its_number() -> None:
    """An entry above the bound travels alone."""
    fact = Submitted(spec(command="x" * 200))
    append = Append(1, (entry(1), entry(2, fact), entry(3)))

    parts = replicate_messages(REIGN, (append,), 1, 500)

    assert [(p.number, [e.seq for e in p.entries]) for p in parts] == [
        (0, [1]),
        (0, [2]),
        (1, [3]),
    ]


def test_each_part_names_the_writers_of_its_new_streams() -> None:
    """A standby refuses entries of a stream whose writer it does not know."""
    writers = ((OTHER, epoch(1, "b")), (StreamId(6), epoch(2, "c")))
    append = Append(1, (entry(4, stream=OTHER), entry(1, stream=StreamId(6))), writers)

    parts = replicate_messages(REIGN, (append,), 1, 1)

    assert [part.epochs for part in parts] == [((STREAM, epoch()), *writers)] * 2


def test_every_text_of_an_entry_counts() -> None:
    """A message larger than a frame would never arrive."""
    chars = 10_000
    paths = ("x" * chars,)
    task = spec()
    for fact in (
        Submitted(spec(command="x" * chars)),
        Submitted(replace(task, inputs=paths)),
        Submitted(replace(task, outputs=paths)),
        TaskCancelled(task.id, "x" * chars),
        Finished(task.id, attempt(), node_id("b"), outcome(stdout=b"x" * chars)),
        Finished(task.id, attempt(), node_id("b"), outcome(detail="x" * chars)),
        Finished(
            task.id,
            attempt(),
            node_id("b"),
            replace(outcome(), outputs=(OutputFile("x" * chars, 1),)),
        ),
    ):
        assert append_size_bytes(Append(1, (entry(1, fact),))) >= chars, fact


def test_every_stream_of_a_floor_counts() -> None:
    """A peer refuses a message above 1 MiB that could have been split."""
    streams = [StreamId((1 << 62) + n) for n in range(1000)]
    marks = tuple(StreamFloor(one, 1 << 40, epoch()) for one in streams)
    floor = Floor(1, marks, tuple((one, 1 << 40) for one in streams))
    append = Append(1, tuple(entry(seq + 1, floor) for seq in range(60)))

    parts = replicate_messages(REIGN, [append], 1, Limits().entries_bytes)

    decoder = wire.Decoder(Limits())
    messages = decoder.receive_data(wire.encode([HelloOk()]))
    for part in parts:
        messages += decoder.receive_data(wire.encode([part]))
    assert messages == [HelloOk(), *parts]
