"""Recipients of a secret that is renewed because of a revoked node."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.effects import Effect
from octaskly.core.events import PeerUp, SavedState
from octaskly.core.key_rotation.rotation import RENEWING_REASON, KeyRotation
from octaskly.core.log.mesh_records import RecordTable
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import NO_EPOCH, Address, Moment, NodeId
from octaskly.core.model.keyring_state import (
    REVOKED_REASON,
    ChangeKeyring,
    KeyringChanged,
    KeyringState,
    KeyringStatus,
    KeyringStep,
    SendKeyring,
)
from octaskly.core.model.nodes import NodeState, Role, RosterEntry
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.protocol.messages import Hello, Roster
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
    """Return a rotation with three peers; rosters have shown two of them."""
    members = PeerTable(settings("a"), SavedState(), TimerHeap(), Outbox())
    registry = RosterBuilder((), members)
    registry.set_roster(roster("a", "b", "d"), moment())
    for peer in (KNOWN, HIDDEN, GONE):
        up = PeerUp(peer, hello("a"), hello(peer), Address("10.0.0.1", 1), 0.5)
        members.on_peer_up(up, moment())
    # The dispatcher, `d`, reports that `b` has left.
    registry.set_roster(roster("a", "d"), moment())
    return KeyRotation(
        settings("a"), members, registry, RecordTable(()), KeyringState(), TimerHeap()
    )


def ask_for_keyring(rules: KeyRotation, peer: NodeId) -> list[Effect]:
    """Let a peer report that it has only the old secret."""
    return rules.on_keyring_message(peer, KeyringStatus(KeyringState()))


def given(effects: list[Effect]) -> list[NodeId]:
    return [effect.peer for effect in effects if isinstance(effect, SendKeyring)]


def test_a_peer_missing_from_rosters_does_not_get_the_secret() -> None:
    """`octaskly nodes` never showed it; it may be the revoked node itself."""
    rules = rotation()

    effects = rules.on_keyring_changed(KeyringChanged(URGENT), moment())

    assert given(effects) == [KNOWN]
    assert rules.links_to_close(moment()) == [
        (HIDDEN, RENEWING_REASON),
        (GONE, REVOKED_REASON),
    ]


def test_after_the_old_secret_only_tls_admits_a_peer() -> None:
    """Also where a node learns of the revocation only after the old secret ended."""
    rules = rotation()
    over = KeyringState(oldest=2, generation=2, newest=2, revoked=(GONE,))

    effects = rules.on_keyring_changed(KeyringChanged(over), moment())

    assert given(effects) == [KNOWN]
    assert rules.link_refusal(HIDDEN) == RENEWING_REASON
    rules.lift_link_refusal()
    assert rules.link_refusal(HIDDEN) is None


def test_an_urgent_renewal_excludes_unlisted_nodes() -> None:
    """Any holder of the compromised secret could have made that identity."""
    rules = rotation()

    effects = rules.on_keyring_changed(
        KeyringChanged(KeyringState(newest=2, is_urgent=True)), moment()
    )

    assert given(effects) == [KNOWN, GONE]
    assert rules.links_to_close(moment()) == [(HIDDEN, RENEWING_REASON)]


def restarted(keys: KeyringState) -> KeyRotation:
    """Return a rotation of a new process, to which rosters had shown `b` before."""
    members = PeerTable(settings("a"), SavedState(), TimerHeap(), Outbox())
    registry = RosterBuilder([(node_id("a"), "a"), (KNOWN, "b")], members)
    return KeyRotation(
        settings("a"), members, registry, RecordTable(()), keys, TimerHeap()
    )


@pytest.mark.parametrize("revoked", [(), (GONE,)])
def test_a_restart_admits_no_unlisted_node_to_an_urgent_renewal(
    revoked: tuple[NodeId, ...],
) -> None:
    """It may happen at any time before the old secret ends."""
    rules = restarted(replace(URGENT, revoked=revoked))

    assert rules.link_refusal(HIDDEN) == RENEWING_REASON
    assert given(ask_for_keyring(rules, HIDDEN)) == []
    assert given(ask_for_keyring(rules, KNOWN)) == [KNOWN]


def test_a_restart_after_the_old_secret_refuses_no_node() -> None:
    """TLS refuses the old secret by then."""
    over = KeyringState(oldest=2, generation=2, newest=2, revoked=(GONE,))

    assert restarted(over).link_refusal(HIDDEN) is None


def test_a_plain_renewal_excludes_no_node() -> None:
    """A holder of the old secret is a member, and gets the new one."""
    rules = rotation()

    effects = rules.on_keyring_changed(KeyringChanged(KeyringState(newest=2)), moment())

    assert given(effects) == [KNOWN, HIDDEN, GONE]
    assert rules.links_to_close(moment()) == []


DAY_S = 86_400.0
SPREAD = KeyringState(newest=2, phase_since_ms=moment().wall_ms)
SWITCHED = replace(SPREAD, generation=2)


def alone(keys: KeyringState) -> KeyRotation:
    """Return a rotation that has just learnt of a phase, with no peer in reach."""
    members = PeerTable(settings("a"), SavedState(), TimerHeap(), Outbox())
    registry = RosterBuilder((), members)
    registry.set_roster(roster("a", "b"), moment())  # The machine is suspended.
    rules = KeyRotation(
        settings("a"), members, registry, RecordTable(()), KeyringState(), TimerHeap()
    )
    rules.on_keyring_changed(KeyringChanged(keys), moment())
    return rules


def at(seconds: float, *, ahead_s: float = 0.0) -> Moment:
    """Return a moment at which the wall clock is wrong."""
    now = moment(seconds)
    return now._replace(wall_ms=now.wall_ms + round(ahead_s * 1000))


@pytest.mark.parametrize("keys", [SPREAD, SWITCHED])
def test_a_clock_that_jumps_ahead_locks_no_node_out(keys: KeyringState) -> None:
    """Suspended nodes have the announced time to learn the new secret."""
    rules = alone(keys)
    assert rules.on_time(at(1.0)) == []

    assert rules.on_time(at(2.0, ahead_s=3650 * DAY_S)) == []


def test_a_clock_that_goes_back_does_not_prolong_an_old_secret() -> None:
    """The secret of a revoked node ends within seconds, whatever the clock says."""
    rules = alone(replace(SWITCHED, is_urgent=True))
    assert rules.on_time(at(1.0)) == []

    assert rules.on_time(at(7.0, ahead_s=-DAY_S)) == [ChangeKeyring(KeyringStep.SETTLE)]


def test_a_phase_that_started_by_a_fast_clock_ends_in_time() -> None:
    """The dispatcher that started it is gone, and so is its clock."""
    ahead_ms = round(DAY_S * 1000)
    rules = alone(
        replace(
            SWITCHED, is_urgent=True, phase_since_ms=SPREAD.phase_since_ms + ahead_ms
        )
    )
    assert rules.on_time(at(1.0)) == []

    assert rules.on_time(at(7.0)) == [ChangeKeyring(KeyringStep.SETTLE)]


def test_time_without_a_running_node_counts() -> None:
    """All nodes may have been off for a week."""
    rules = alone(SWITCHED)

    assert rules.on_time(at(1.0, ahead_s=8 * DAY_S)) == [
        ChangeKeyring(KeyringStep.SETTLE)
    ]
