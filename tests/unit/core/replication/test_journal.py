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
