"""What was appended lately, and how it is cut into messages."""

from __future__ import annotations

from dataclasses import replace

from octaskly.core.effects import Append
from octaskly.core.log.facts import (
    CancelAsked,
    Entry,
    Fact,
    Finished,
    Floor,
    Mark,
    Submitted,
)
from octaskly.core.model.ids import Reign, StreamId, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import OutputFile
from octaskly.core.protocol.messages import Repl
from octaskly.core.replication.log_tail import Tail, repl_of, size_of
from tests.builders import STREAM, attempt, epoch, node_id, outcome, spec

OTHER = StreamId(5)
REIGN = Reign(epoch(), STREAM)
SMALL = CancelAsked(TaskId("t"), "x")


def entry(seq: int, fact: Fact = SMALL, stream: StreamId = STREAM) -> Entry:
    """Return one entry."""
    return Entry(stream, seq, seq, fact)


def test_the_last_message_says_whether_rows_say_more() -> None:
    """The others complete nothing."""
    some = [Append(9, (entry(1), entry(2)))]

    parts = repl_of(REIGN, some, 9, 1, is_ahead=True)

    assert [(part.number, part.is_ahead) for part in parts] == [(0, False), (9, True)]
    assert [part.is_ahead for part in repl_of(REIGN, some, 9, 1)] == [False, False]


def tail(*appends: Append, limits: Limits | None = None) -> Tail:
    """Return a tail that began when the own stream was empty."""
    made = Tail(limits or Limits())
    made.begin({STREAM: 0, OTHER: 3})
    for append in appends:
        made.add(append, size_of(append))
    return made


def test_who_holds_what_was_before_lacks_the_whole_tail() -> None:
    """And who holds part of it, the rest."""
    one, two = Append(1, (entry(1),)), Append(2, (entry(2), entry(3)))
    kept = tail(one, two)

    assert kept.beyond({OTHER: 3}) == [one, two]
    assert kept.beyond({OTHER: 3, STREAM: 2}) == [
        Append(1, ()),
        Append(2, (entry(3),)),
    ]


def test_who_lacks_what_was_before_is_not_helped_by_the_tail() -> None:
    """It has to pull."""
    assert tail(Append(1, (entry(1),))).beyond({OTHER: 2}) is None
    assert tail().beyond({}) is None


def test_who_lacks_what_a_floor_has_passed_is_given_none_of_it() -> None:
    """It is in no row either: the half of a split that has the tasks kept them."""
    floor = Floor(1, (Mark(STREAM, 1, epoch()), Mark(OTHER, 4, epoch(1, "b"))))
    one, two, last = Append(1, (entry(1),)), Append(2, (entry(2, floor),)), entry(3)
    kept = tail(one, two, Append(3, (last,)))

    assert kept.beyond({OTHER: 4}) is None
    assert kept.beyond({OTHER: 3, STREAM: 2}) is None
    assert kept.beyond({OTHER: 4, STREAM: 2}) == [
        *(Append(1, ()), Append(2, ()), Append(3, (last,))),
    ]


def test_more_entries_than_the_bound_push_out_the_oldest() -> None:
    """Memory does not follow the backlog."""
    one, two, three = (Append(n, (entry(n),)) for n in (1, 2, 3))
    kept = tail(one, two, three, limits=Limits(tail_entries=2))

    assert kept.beyond({OTHER: 3}) is None
    assert kept.beyond({OTHER: 3, STREAM: 1}) == [two, three]


def test_more_bytes_than_the_bound_push_out_the_oldest() -> None:
    """Even all, where one append is larger than the tail may be."""
    large = Append(2, (entry(2, Submitted(spec(command="x" * 1000))),))
    kept = tail(Append(1, (entry(1),)), large, limits=Limits(tail_bytes=2000))

    assert kept.beyond({OTHER: 3, STREAM: 1}) is None
    assert kept.beyond({OTHER: 3, STREAM: 2}) == []


def test_who_wrote_new_streams_comes_with_their_entries() -> None:
    """Also after a newcomer has been brought level."""
    absorbed = Append(1, (entry(4, stream=OTHER),), ((OTHER, epoch(1, "b")),))
    missing = tail(absorbed).beyond({OTHER: 3})

    assert missing is not None
    assert repl_of(REIGN, missing, 9, 1000) == (
        Repl(
            epoch(),
            9,
            absorbed.entries,
            ((STREAM, epoch()), (OTHER, epoch(1, "b"))),
        ),
    )


def test_nothing_missing_is_one_empty_message() -> None:
    """Its acknowledgement is what makes a standby level."""
    assert repl_of(REIGN, (), 9, 1000) == (Repl(epoch(), 9, (), ((STREAM, epoch()),)),)


def test_a_large_append_is_cut_and_only_the_last_part_has_its_number() -> None:
    """An entry above the bound goes alone."""
    fact = Submitted(spec(command="x" * 200))
    append = Append(1, (entry(1), entry(2, fact), entry(3)))

    parts = repl_of(REIGN, (append,), 1, 500)

    assert [(p.number, [e.seq for e in p.entries]) for p in parts] == [
        (0, [1]),
        (0, [2]),
        (1, [3]),
    ]


def test_each_part_names_the_writers_of_the_streams_that_begin_in_it() -> None:
    """A standby that knows no writer of a stream takes none of its entries."""
    writers = ((OTHER, epoch(1, "b")), (StreamId(6), epoch(2, "c")))
    append = Append(1, (entry(4, stream=OTHER), entry(1, stream=StreamId(6))), writers)

    parts = repl_of(REIGN, (append,), 1, 1)

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
        Finished(task.id, attempt(), node_id("b"), outcome(stdout=b"x" * chars)),
        Finished(task.id, attempt(), node_id("b"), outcome(detail="x" * chars)),
        Finished(
            task.id,
            attempt(),
            node_id("b"),
            replace(outcome(), outputs=(OutputFile("x" * chars, 1),)),
        ),
    ):
        assert size_of(Append(1, (entry(1, fact),))) >= chars, fact
