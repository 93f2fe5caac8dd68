"""A reader that changes dispatchers misses no event, or learns that it may have."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.change_feed import (
    FeedCursor,
    FeedPosition,
    StreamExtent,
    resume_cursor,
)
from octaskly.core.log.facts import Entry
from octaskly.core.model.ids import Epoch, NodeId, StreamId
from tests.contract import log_kit as kit

STREAMS = tuple(StreamId(n) for n in (9, 4, 7, 2))
"""In the order of their epochs alone."""

Held = dict[StreamId, int]


@dataclass(frozen=True)
class Log:
    """All entries that were ever written, by clocks that disagree."""

    hlcs: dict[StreamId, list[int]]

    def read(self, held: Held, bookmark: FeedCursor) -> list[Entry]:
        """Return a node's entries beyond a bookmark, by time."""
        entries = [
            Entry(stream, seq, hlc, kit.submitted(seq))
            for stream, hlcs in self.hlcs.items()
            for seq, hlc in enumerate(hlcs[: held[stream]], 1)
            if seq > bookmark.vector.get(stream, 0)
        ]
        return sorted(entries, key=lambda e: (e.hlc, e.stream, e.seq))

    def reaches(self, held: Held, hlc: int) -> list[StreamExtent]:
        return [
            StreamExtent(
                stream,
                Epoch(STREAMS.index(stream) + 1, NodeId("n")),
                sum(each <= hlc for each in hlcs[: held[stream]]),
                0,
            )
            for stream, hlcs in self.hlcs.items()
        ]


@st.composite
def logs(draw: st.DrawFn) -> Log:
    hlcs = {}
    for stream in STREAMS:
        steps = draw(st.lists(st.integers(1, 4), max_size=5))
        start = draw(st.integers(0, 8))
        hlcs[stream] = [start + sum(steps[: n + 1]) for n in range(len(steps))]
    return Log(hlcs)


def holdings(log: Log) -> st.SearchStrategy[Held]:
    return st.fixed_dictionaries(
        {stream: st.integers(0, len(hlcs)) for stream, hlcs in log.hlcs.items()}
    )


def places(
    log: Log, held: list[Held], own: StreamId
) -> list[tuple[FeedPosition, Held]]:
    """Return the positions that a client gets, each with the entries sent before it.

    Its dispatcher holds more from time to time, as other halves of a split merge.
    """
    bookmark = FeedCursor(0, {}, own)
    found = [(bookmark.position, dict(bookmark.vector))]
    for holds in held:
        found += [
            (bookmark.position, dict(bookmark.vector))
            for entry in log.read(holds, bookmark)
            if bookmark.advance_past(entry)
        ]
    return found


@given(st.data())
def test_no_event_is_missed_silently(data: st.DataObject) -> None:
    """Whichever entries the next dispatcher holds, and whatever the clocks show."""
    log = data.draw(logs())
    first, more, other = (data.draw(holdings(log)) for _ in range(3))
    grown = {stream: max(first[stream], more[stream]) for stream in STREAMS}
    own, successor = (data.draw(st.sampled_from(STREAMS)) for _ in range(2))
    found = places(log, [first, grown], own)
    place, told = data.draw(st.sampled_from(found))

    bookmark, is_exact = resume_cursor(place, log.reaches(other, place.hlc), successor)

    if is_exact:
        skipped = {
            stream: (seq, told.get(stream, 0))
            for stream, seq in bookmark.vector.items()
            if seq > told.get(stream, 0)
        }
        assert skipped == {}


@given(st.data())
def test_same_log_is_always_recognised(data: st.DataObject) -> None:
    """A client that comes back to the same log never has to start over."""
    log = data.draw(logs())
    held, own = data.draw(holdings(log)), data.draw(st.sampled_from(STREAMS))
    # A dispatcher has all of its own entries, and its clock is ahead of those it
    # received.
    del log.hlcs[own][held[own] :]
    last = max((h for s in STREAMS for h in log.hlcs[s][: held[s]]), default=0)
    log.hlcs[own] += [last + 1, last + 2, last + 3]
    held[own] = len(log.hlcs[own])
    place, told = data.draw(st.sampled_from(places(log, [held], own)[-4:]))

    bookmark, is_exact = resume_cursor(place, log.reaches(held, place.hlc), own)

    assert is_exact
    assert {s: n for s, n in bookmark.vector.items() if n} == told
