"""What a change in one state machine means for others."""

from __future__ import annotations

from octaskly.core.model.consequences import (
    FloorRaised,
    MembershipChanged,
    Outbox,
    RoleChanged,
)


def test_consequences_come_as_they_are_declared_whoever_was_first() -> None:
    """Standbys are chosen in the epoch that is in force, so the role comes first."""
    outbox = Outbox()
    outbox.put(FloorRaised())
    outbox.put(MembershipChanged())
    outbox.put(RoleChanged())

    assert [outbox.pop(), outbox.pop(), outbox.pop(), outbox.pop()] == [
        RoleChanged(),
        MembershipChanged(),
        FloorRaised(),
        None,
    ]


def test_a_consequence_is_delivered_once_however_often_it_was_put_in() -> None:
    """Many peers may go in one step."""
    outbox = Outbox()
    outbox.put(MembershipChanged())
    outbox.put(MembershipChanged())

    assert outbox.pop() == MembershipChanged()
    assert outbox.pop() is None
