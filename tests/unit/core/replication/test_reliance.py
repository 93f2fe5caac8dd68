"""Whether a standby may take over as in sync."""

from __future__ import annotations

import pytest

from octaskly.core.replication.standby_appends import HEARTBEATS_MAX, AckGuarantee

SOLO_S = 2.0
BEAT_S = 0.3


class Link:
    """A dispatcher with a heartbeat each 0.3 s; its peer answers after a delay."""

    def __init__(self, way_s: float = 0.0) -> None:
        self.reliance = AckGuarantee(SOLO_S)
        self.way_s = way_s  #: of a frame, in each direction
        self.received = self.acked = 0
        self._confirmed: list[tuple[float, float]] = []

    def beat(self, number: int) -> float:
        """Deliver heartbeat `number`; return its time."""
        sent_s = number * BEAT_S
        now_s = sent_s + self.way_s
        heard = [name for name, at_s in self._confirmed if at_s + self.way_s <= sent_s]
        self.reliance.on_heartbeat(
            *(sent_s, heard[-1] if heard else 0.0, now_s),
            received=self.received,
            acked=self.acked,
        )
        self._confirmed.append((sent_s, now_s))
        return now_s

    def beats(self, until: int, first: int = 1) -> float:
        """Deliver many heartbeats; return the time of the last one."""
        return [self.beat(number) for number in range(first, until + 1)][-1]


def test_a_standby_without_a_confirmation_is_not_in_sync() -> None:
    """It may lack any entry that an answer promised."""
    assert not Link().reliance.is_guaranteed(0.0)


@pytest.mark.parametrize("way_s", [0.0, 0.05, 0.25])
def test_a_standby_that_keeps_up_is_in_sync_at_any_time(way_s: float) -> None:
    """A dispatcher may die right before its next heartbeat."""
    link = Link(way_s)
    link.beats(6)

    for number in range(7, 20):
        before_s = number * BEAT_S + way_s
        assert link.reliance.is_guaranteed(before_s)
        link.beat(number)


def test_silence_ends_sync() -> None:
    """Two seconds after the last message the dispatcher may have given it up."""
    link = Link()
    last_s = link.beats(10)

    assert not link.reliance.is_guaranteed(last_s + SOLO_S)


def test_frames_with_a_latency_over_one_second_end_sync() -> None:
    """The oldest message in flight may be that old."""
    link = Link(way_s=1.2)
    last_s = link.beats(20)

    assert not link.reliance.is_guaranteed(last_s)


def test_a_long_unacknowledged_append_ends_sync() -> None:
    """Its disk is blocked: the dispatcher waits for two seconds, and no longer."""
    link = Link()
    link.beats(10)
    link.received = 1
    came_s = 10 * BEAT_S

    last_s = link.beats(17, first=11)

    assert link.reliance.is_guaranteed(came_s + SOLO_S / 2)
    assert not link.reliance.is_guaranteed(last_s + BEAT_S)


def test_constant_appends_in_flight_do_not_end_sync() -> None:
    """Each one is acknowledged soon, and then another one is not."""
    link, last = Link(), 40
    for number in range(1, last + 1):
        link.received, link.acked = number, number - 1
        link.beat(number)

    assert link.reliance.is_guaranteed((last + 1) * BEAT_S)


def test_a_late_acknowledgement_restores_sync() -> None:
    """The dispatcher waits for the standby once more, and says so."""
    link = Link()
    link.beats(10)
    link.received = 1
    link.beats(20, first=11)
    link.acked = 1

    last_s = link.beats(24, first=21)

    assert link.reliance.is_guaranteed(last_s)


def test_a_standby_that_does_not_count_is_not_in_sync() -> None:
    """The dispatcher's newest statement prevails."""
    link = Link()
    last_s = link.beats(10)
    link.reliance.end_guarantee()

    assert not link.reliance.is_guaranteed(last_s)


def test_an_unknown_heartbeat_number_says_nothing() -> None:
    """It was confirmed on another link, or never."""
    reliance = AckGuarantee(SOLO_S)
    for number in range(10):
        reliance.on_heartbeat(number, 77.0, number, received=0, acked=0)

    assert not reliance.is_guaranteed(9.0)


def test_memory_is_bounded() -> None:
    """A dispatcher may send any number of heartbeats at once."""
    reliance = AckGuarantee(SOLO_S)
    for number in range(10_000):
        reliance.on_heartbeat(number, 0.0, 0.0, received=0, acked=0)

    assert len(reliance._heartbeats) == HEARTBEATS_MAX
