"""Who is given the secret when it is renewed because of a revoked node."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.effects import Effect
from octaskly.core.events import PeerUp, SavedState
from octaskly.core.key_rotation.rotation import RENEWING_REASON, KeyRotation
from octaskly.core.log.mesh_records import RecordTable
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.consequences import Outbox
from octaskly.core.model.ids import NO_EPOCH, Address, Moment, NodeId
from octaskly.core.model.keyring_state import (
    REVOKED_REASON,
    ChangeKeyring,
    KeyringChanged,
    KeyringState,
    KeyringStep,
    SendKeyring,
)
from octaskly.core.model.nodes import NodeState, Role
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.protocol.messages import Hello, Roster, RosterEntry
from tests.support.builders import epoch, moment, node_id, node_info, settings

KNOWN, HIDDEN, GONE = map(node_id, ("b", "c", "d"))
URGENT = KeyringState(newest=2, is_urgent=True, revoked=(GONE,))


def hello(name: str) -> Hello:
    info = node_info(name)
    return Hello(
        version=1,
        version_min=1,
        node=info,
        epoch=NO_EPOCH,
        dispatcher=None,
        uptime_s=1.0,
    )


def roster(*names: str) -> Roster:
    listed = (
        RosterEntry(
            id=node_id(name),
            name=name,
            role=Role.WORKER,
            state=NodeState.READY,
            addresses=(),
            lan_port=1,
            slots=1,
        )
        for name in names
    )
    return Roster(epoch(), 1, tuple(listed))


def rotation() -> KeyRotation:
    """Return one with three peers, of which rosters have shown two."""
    members = PeerTable(settings("a"), SavedState(), TimerHeap(), Outbox())
    registry = RosterBuilder((), members)
    registry.set_roster(roster("a", "b", "d"))
    for peer in (KNOWN, HIDDEN, GONE):
        up = PeerUp(peer, hello("a"), hello(peer), Address("10.0.0.1", 1), 0.5)
        members.on_peer_up(up, moment())
    registry.set_roster(
        roster("a", "d")
    )  # The dispatcher, `d`, says that `b` has left.
    return KeyRotation(
        settings("a"), members, registry, RecordTable(()), KeyringState(), TimerHeap()
    )


def given(effects: list[Effect]) -> list[NodeId]:
    return [effect.peer for effect in effects if isinstance(effect, SendKeyring)]


def test_a_peer_that_no_roster_shows_is_not_given_the_secret() -> None:
    """Nobody could see it in `octaskly nodes`; it may be the revoked node itself."""
    rules = rotation()

    effects = rules.on_keyring_changed(KeyringChanged(URGENT), moment())

    assert given(effects) == [KNOWN]
    assert rules.links_to_close(moment()) == [
        (HIDDEN, RENEWING_REASON),
        (GONE, REVOKED_REASON),
    ]


def test_once_the_old_secret_is_over_tls_alone_lets_in() -> None:
    """Also where a node learns of the revocation so late that it is over by then."""
    rules = rotation()
    over = KeyringState(oldest=2, generation=2, newest=2, revoked=(GONE,))

    effects = rules.on_keyring_changed(KeyringChanged(over), moment())

    assert given(effects) == [KNOWN]
    assert rules.link_refusal(HIDDEN) == RENEWING_REASON
    rules.lift_link_refusal()
    assert rules.link_refusal(HIDDEN) is None


def test_an_urgent_renewal_leaves_out_who_was_never_shown() -> None:
    """Whoever has the secret that has to go could have made that identity."""
    rules = rotation()

    effects = rules.on_keyring_changed(
        KeyringChanged(KeyringState(newest=2, is_urgent=True)), moment()
    )

    assert given(effects) == [KNOWN, GONE]
    assert rules.links_to_close(moment()) == [(HIDDEN, RENEWING_REASON)]


def test_a_plain_renewal_leaves_nobody_out() -> None:
    """Who has the old secret is a member, and is to have the new one."""
    rules = rotation()

    effects = rules.on_keyring_changed(KeyringChanged(KeyringState(newest=2)), moment())

    assert given(effects) == [KNOWN, HIDDEN, GONE]
    assert rules.links_to_close(moment()) == []


DAY_S = 86_400.0
SPREAD = KeyringState(newest=2, phase_since_ms=moment().wall_ms)
SWITCHED = replace(SPREAD, generation=2)


def alone(keys: KeyringState) -> KeyRotation:
    """Return one that has just learnt of a phase, with nobody in reach."""
    members = PeerTable(settings("a"), SavedState(), TimerHeap(), Outbox())
    registry = RosterBuilder((), members)
    registry.set_roster(roster("a", "b"))  # It sleeps.
    rules = KeyRotation(
        settings("a"), members, registry, RecordTable(()), KeyringState(), TimerHeap()
    )
    rules.on_keyring_changed(KeyringChanged(keys), moment())
    return rules


def at(seconds: float, *, ahead_s: float = 0.0) -> Moment:
    """Return a moment at which the wall clock is off."""
    now = moment(seconds)
    return now._replace(wall_ms=now.wall_ms + round(ahead_s * 1000))


@pytest.mark.parametrize("keys", [SPREAD, SWITCHED])
def test_a_clock_that_jumps_ahead_locks_nobody_out(keys: KeyringState) -> None:
    """Nodes that sleep have as long as was said to learn of the new secret."""
    rules = alone(keys)
    assert rules.on_time(at(1.0)) == []

    assert rules.on_time(at(2.0, ahead_s=3650 * DAY_S)) == []


def test_a_clock_that_goes_back_keeps_no_secret_alive() -> None:
    """That of a revoked node is over within seconds, whatever the clock says."""
    rules = alone(replace(SWITCHED, is_urgent=True))
    assert rules.on_time(at(1.0)) == []

    assert rules.on_time(at(7.0, ahead_s=-DAY_S)) == [ChangeKeyring(KeyringStep.SETTLE)]


def test_a_phase_that_began_by_a_clock_ahead_of_ours_ends_in_time() -> None:
    """The dispatcher that took the step is gone, and so is its clock."""
    ahead_ms = round(DAY_S * 1000)
    rules = alone(
        replace(
            SWITCHED, is_urgent=True, phase_since_ms=SPREAD.phase_since_ms + ahead_ms
        )
    )
    assert rules.on_time(at(1.0)) == []

    assert rules.on_time(at(7.0)) == [ChangeKeyring(KeyringStep.SETTLE)]


def test_what_has_passed_while_nothing_ran_counts() -> None:
    """All nodes may have been off for a week."""
    rules = alone(SWITCHED)

    assert rules.on_time(at(1.0, ahead_s=8 * DAY_S)) == [
        ChangeKeyring(KeyringStep.SETTLE)
    ]
