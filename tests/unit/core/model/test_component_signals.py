"""Signals of one component to the others."""

from __future__ import annotations

from octaskly.core.model.component_signals import (
    FloorRaised,
    MembershipChanged,
    Outbox,
    RoleChanged,
)


def test_signals_are_delivered_in_the_declared_order() -> None:
    """Standbys are chosen in the epoch in force, so the role comes first."""
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


def test_a_repeated_signal_is_delivered_once() -> None:
    """Many peers may leave in one step."""
    outbox = Outbox()
    outbox.put(MembershipChanged())
    outbox.put(MembershipChanged())

    assert outbox.pop() == MembershipChanged()
    assert outbox.pop() is None
