"""The journal: sequence numbers, streams and actions that wait for the disk."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.effects import Append, Effect, LogLine, Save
from octaskly.core.events import SavedState
from octaskly.core.log.facts import Entry, Floor, StreamFloor, TaskCancelled
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.hlc import HLC_MAX, hlc_next, hlc_of, wall_ms_of
from octaskly.core.model.ids import Moment, StreamId, TaskId
from octaskly.core.model.tasks import PRIORITY_SHIFT, TaskSpec
from octaskly.core.replication.journal import Journal, WhenDurable
from tests.support.builders import (
    START_MS,
    STREAM,
    attempt,
    epoch,
    journal,
    moment,
    spec,
)
from tests.support.effects import note_events

FACT = TaskCancelled(TaskId("t"), "x")
OTHER = StreamId(5)


def note(name: str) -> WhenDurable:
    """Return a deferred action that leaves a trace."""
    return lambda _: [LogLine("info", name)]


def foreign(*seqs: int) -> list[Entry]:
    """Return entries of another node's stream."""
    return [Entry(OTHER, seq, 10, FACT) for seq in seqs]


def born(wall_ms: int) -> TaskSpec:
    """Return a task with this time of acceptance."""
    return replace(spec(), ord=(50 << PRIORITY_SHIFT) | hlc_of(wall_ms))


def persisted(log: Journal, number: int) -> list[Effect]:
    """Return the actions that a commit releases."""
    log.on_persisted(number)
    return log.run_deferred(moment())


def test_own_facts_are_numbered_without_gaps() -> None:
    """Each entry follows the one before, across appends."""
    log = journal()

    first = log.append([FACT, FACT], moment())
    second = log.append([FACT], moment())

    assert [entry.seq for entry in first.entries] == [1, 2]
    assert [entry.seq for entry in second.entries] == [3]
    assert [first.number, second.number, log.last_number] == [1, 2, 2]
    assert log.vector_items() == ((STREAM, 3),)


def test_timestamps_only_grow_though_the_wall_clock_jumps_back() -> None:
    """The hybrid clock follows the wall clock, but never back."""
    log = journal()

    stamps = [
        log.reserve_timestamps(moment(5.0)),
        log.reserve_timestamps(moment(0.0)),
        log.reserve_timestamps(moment(9.0)),
    ]

    assert stamps == sorted(set(stamps))
    wall_ms = wall_ms_of(stamps[2])
    assert wall_ms == moment(9.0).wall_ms
    assert hlc_next(stamps[2], 0) == stamps[2] + 1


def test_deferred_actions_are_released_in_order_by_their_commit() -> None:
    """No action that needs durability runs before it."""
    log = journal()
    log.append([FACT], moment())
    log.defer_until_durable(note("one"))
    log.append([FACT], moment())
    log.defer_until_durable(note("two"))
    log.defer_until_durable(note("three"))

    assert not log.is_all_durable
    assert note_events(persisted(log, 1)) == ["one"]
    assert note_events(persisted(log, 2)) == ["two", "three"]
    assert persisted(log, 2) == []
    assert log.is_all_durable


def test_a_released_action_may_defer_another() -> None:
    """An action that appends is followed by the actions that wait for its commit."""
    log = journal()
    log.append([FACT], moment())

    def again(now: Moment) -> list[Effect]:
        append = log.append([FACT], now)
        log.defer_until_durable(note("later"))
        return [append]

    log.defer_until_durable(again)

    released = persisted(log, 1)

    assert [type(effect) for effect in released] == [Append]
    assert note_events(persisted(log, 2)) == ["later"]


def test_timestamps_continue_after_a_restart() -> None:
    """None is repeated, though the clock is half an hour back."""
    last = hlc_of(moment(1800.0).wall_ms)
    log = Journal(SavedState(vector=((OTHER, 4),), hlc=last), Outbox())

    assert log.reserve_timestamps(moment()) == last + 1
    assert log.vector == {OTHER: 4}


@pytest.mark.parametrize("latest", [HLC_MAX - 1, hlc_of(moment(1e9).wall_ms)])
def test_a_fast_clock_is_followed_for_at_most_an_hour(latest: int) -> None:
    """One bad clock could use up all numbers for every writer; its entries are kept."""
    heard, saved = journal(), Journal(SavedState(hlc=latest), Outbox())
    entry = Entry(OTHER, 1, latest, FACT)

    append = heard.append_remote([entry], [(OTHER, epoch())])

    hour = hlc_of(moment(3600.0).wall_ms)
    assert append is not None
    assert append.entries == (entry,)
    assert [heard.reserve_timestamps(moment()), heard.reserve_timestamps(moment())] == [
        hour + 1,
        hour + 2,
    ]
    assert saved.reserve_timestamps(moment()) == hour + 1


def test_foreign_entries_are_accepted_up_to_a_gap() -> None:
    """Later entries come with the next PULL."""
    log = journal()

    append = log.append_remote(foreign(1, 2, 4), [(OTHER, epoch(1, "b"))])

    assert append == Append(1, tuple(foreign(1, 2)), epochs=((OTHER, epoch(1, "b")),))
    assert log.vector[OTHER] == 2


def test_known_entries_are_not_written_again() -> None:
    """PULL may bring known entries again."""
    log = journal()
    log.append_remote(foreign(1), [])

    assert log.append_remote(foreign(1), []) is None


def test_no_peer_writes_into_the_own_stream() -> None:
    """A stream has one writer."""
    log = journal()

    assert log.append_remote([Entry(STREAM, 1, 10, FACT)], []) is None
    assert log.vector[STREAM] == 0


def test_own_timestamps_follow_those_of_others() -> None:
    """An entry that is written after a read is later than the entry read."""
    log = journal()
    theirs = hlc_of(moment(1800.0).wall_ms)
    log.append_remote([Entry(OTHER, 1, theirs, FACT)], [])

    assert log.reserve_timestamps(moment()) > theirs


def test_a_stream_never_resumes() -> None:
    """After the end of an epoch its stream is closed for good."""
    log = journal()
    log.close_stream()

    with pytest.raises(AssertionError):
        log.append([FACT], moment())
    with pytest.raises(AssertionError):
        log.open_stream(STREAM)


def test_node_state_is_numbered_with_the_entries() -> None:
    """One writer makes both durable in one order."""
    log = journal()
    log.append([FACT], moment())

    assert log.save(term=3) == Save(number=2, term=3)


def test_an_attempt_below_the_floor_is_recognised() -> None:
    """An attempt in an unmarked stream is not below it, nor is a newer task's."""
    made = journal()
    old = born(START_MS)
    made.raise_floor(Floor(hlc_of(START_MS + 1), (StreamFloor(OTHER, 9, epoch()),)))

    assert made.is_below_floor(attempt(stream=OTHER), old)
    assert made.is_below_floor(attempt(2), old)
    assert not made.is_below_floor(attempt(stream=StreamId(6)), old)
    assert not made.is_below_floor(attempt(2), born(START_MS + 2))


def retiring(stream: StreamId, end: int) -> Floor:
    """Return a floor that retires one stream."""
    return Floor(9, (), retired=((stream, end),))


def test_a_retired_stream_leaves_vector_floor_and_epochs() -> None:
    """All that is known of it is void, so no message needs to name it."""
    made = journal()
    made.append_remote(
        [Entry(OTHER, n, n, FACT) for n in (1, 2, 3)], [(OTHER, epoch(1, "b"))]
    )
    horizon = hlc_of(START_MS + 1)
    made.raise_floor(Floor(horizon, (StreamFloor(OTHER, 3, epoch(1, "b")),)))
    before = made.entry_count

    made.raise_floor(retiring(OTHER, 3))

    assert OTHER not in made.vector
    assert OTHER not in made.epochs
    assert made.floor == Floor(horizon, ())
    assert made.entry_count == before
    assert made.holds([(OTHER, 3)])
    assert not made.holds([(OTHER, 4)])
    assert made.is_below_floor(attempt(stream=OTHER), born(START_MS))


def test_a_late_entry_of_a_retired_stream_is_new() -> None:
    """Its writer went on where nobody saw it; void entries stay void."""
    made = journal()
    made.raise_floor(retiring(OTHER, 3))
    late = [Entry(OTHER, n, n, FACT) for n in (2, 3, 4, 6)]

    append = made.append_remote(late, [(OTHER, epoch(1, "b"))])

    assert append is not None
    assert append.entries == (late[2],)
    assert made.vector[OTHER] == 4
    assert made.epochs[OTHER] == epoch(1, "b")


def test_a_stream_of_which_more_is_known_is_not_left_out() -> None:
    """The node that retired it knew fewer entries."""
    made = journal()
    made.append_remote(
        [Entry(OTHER, n, n, FACT) for n in (1, 2, 3)], [(OTHER, epoch(1, "b"))]
    )

    made.raise_floor(retiring(OTHER, 2))

    assert made.vector[OTHER] == 3


def test_the_own_stream_is_left_out_once_it_is_closed() -> None:
    """Another node may think that it was over; here it goes on, and says its epoch."""
    made = journal()
    made.save(stream=(STREAM, epoch()))
    made.append([FACT], moment())

    made.raise_floor(retiring(STREAM, 1))
    more = made.append([FACT], moment())
    made.raise_floor(retiring(STREAM, 2))
    assert made.vector == {STREAM: 2}
    made.close_stream()

    assert more.epochs == ((STREAM, epoch()),)
    assert more.entries[0].seq == 2
    assert made.vector == {}


def test_a_floor_of_who_knows_less_returns_no_stream() -> None:
    """Its marks lie below the end that is known here."""
    made = journal()
    made.raise_floor(retiring(OTHER, 3))

    made.raise_floor(Floor(9, (StreamFloor(OTHER, 2, epoch(1, "b")),)))

    assert OTHER not in made.vector
    assert made.floor.ends == ()


def test_what_another_node_has_retired_counts_as_part_of_its_log() -> None:
    """Until it is known here, it may hold more; then it holds nothing more."""
    made, theirs = journal(), journal()
    for each in (made, theirs):
        each.raise_floor(retiring(OTHER, 3))
    old = theirs.retired_summary()
    theirs.raise_floor(retiring(StreamId(6), 1))

    assert made.holds_log((), old)
    assert theirs.holds_log((), old)
    assert not made.holds_log((), theirs.retired_summary())
    assert theirs.retired_count_of(old.digest) == 1
    assert made.retired_count_of(theirs.retired.digest) is None


def test_a_pull_names_what_the_peer_still_names() -> None:
    """So the peer sees that nothing of it is missing here."""
    made = journal()
    made.raise_floor(retiring(OTHER, 3))

    assert made.vector_for([OTHER, StreamId(6)]) == ((OTHER, 3), (STREAM, 0))
