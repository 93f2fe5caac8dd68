"""F33: rotation of the mesh secret while machines start, stop, and are cut off."""

from __future__ import annotations

import pytest

from octaskly.core.key_rotation.rotation import STEP_RETRY_S
from octaskly.core.model.ids import NodeId
from octaskly.core.model.keyring_state import (
    RotationNotStarted,
    RotationPhase,
    RotationStarted,
)
from octaskly.core.model.settings import URGENT_STEP_S
from tests.simulation.checks.kept import (
    all_nodes_use_the_same_records,
    records_are_kept,
)
from tests.simulation.keyrings import FIRST, KEEP_S, SPREAD_S, KeyringWorld

SEEDS = 10


def formed(seed: int = 1, nodes: int = 3) -> KeyringWorld:
    world = KeyringWorld(seed, nodes=nodes)
    world.start_all()
    assert world.run_until(lambda: len(world.dispatchers()) == 1, 20.0)
    world.run(3.0)
    return world


def phases(world: KeyringWorld) -> set[RotationPhase]:
    return {world.secrets[node].keys.phase for node in world.live}


def others(world: KeyringWorld) -> list[NodeId]:
    return [node for node in world.live if node != world.dispatchers()[0]]


def is_whole(world: KeyringWorld) -> bool:
    """Return True if all running nodes have one keyring and one dispatcher."""
    keyrings = {world.secrets[node].to_text() for node in world.live}
    return len(keyrings) == 1 and len(world.dispatchers()) == 1


def test_rotation_takes_effect_once_all_nodes_know_the_secret() -> None:
    """The old secret stays accepted for its time, and is then dropped."""
    world = formed()
    world.rotate(world.dispatchers()[0])

    assert world.run_until(lambda: phases(world) == {RotationPhase.SWITCHED}, 5.0)
    assert not world.run_until(
        lambda: RotationPhase.SETTLED in phases(world), KEEP_S - 5.0
    )
    assert world.run_until(lambda: phases(world) == {RotationPhase.SETTLED}, 10.0)
    assert is_whole(world)
    assert not {*FIRST.generations} & {*world.secrets[world.live[0]].generations}
    assert isinstance(world.replies[0], RotationStarted)


def test_rotation_waits_for_an_offline_node_which_learns_it_on_return() -> None:
    """No node shows the new generation to a node that cannot know it."""
    world = formed()
    away = others(world)[0]
    world.crash(away)
    world.rotate(world.dispatchers()[0])

    assert not world.run_until(
        lambda: RotationPhase.SWITCHED in phases(world), SPREAD_S - 5.0
    )
    world.start(away)
    assert world.run_until(lambda: phases(world) == {RotationPhase.SWITCHED}, 5.0)
    assert is_whole(world)


def test_late_node_learns_the_new_secret_through_the_old_one() -> None:
    """A node that knows only the old generation is let in while that is accepted."""
    world = formed()
    away = others(world)[0]
    world.crash(away)
    world.rotate(world.dispatchers()[0])
    world.run(SPREAD_S + 5.0)
    assert phases(world) == {RotationPhase.SWITCHED}

    world.start(away)

    assert world.run_until(lambda: is_whole(world), 10.0)


def test_node_that_missed_the_whole_rotation_stays_out() -> None:
    """The node needs a new invite; with its keyring renewed, it is back."""
    world = formed()
    away = others(world)[0]
    world.crash(away)
    world.rotate(world.dispatchers()[0])
    world.run(SPREAD_S + KEEP_S + 10.0)
    assert phases(world) == {RotationPhase.SETTLED}
    world.start(away)
    assert not world.run_until(lambda: is_whole(world), 30.0)

    world.crash(away)
    world.secrets[away] = world.secrets[world.dispatchers()[0]]
    world.start(away)

    assert world.run_until(lambda: is_whole(world), 20.0)


@pytest.mark.parametrize("when_s", [0.0, 0.05, 0.3, SPREAD_S / 2, SPREAD_S + 10.0])
def test_new_dispatcher_continues_a_rotation(when_s: float) -> None:
    """In every phase, the new dispatcher finds the next step in its own keyring."""
    world = formed(nodes=4)
    away = others(world)[0]
    world.crash(away)
    first = world.dispatchers()[0]
    world.rotate(first)
    world.run(when_s)

    world.crash(first)
    assert world.run_until(lambda: len(world.dispatchers()) == 1, 20.0)
    if world.secrets[world.dispatchers()[0]] == FIRST:
        # The dispatcher died before another node knew.
        world.rotate(world.dispatchers()[0])
    world.run(SPREAD_S + 5.0)
    world.start(first)
    world.start(away)

    assert world.run_until(lambda: is_whole(world), 20.0)
    assert world.run_until(
        lambda: phases(world) == {RotationPhase.SETTLED}, KEEP_S + 20.0
    )
    assert is_whole(world)


@pytest.mark.parametrize("returns", [False, True])
def test_next_dispatcher_does_not_wait_for_a_confirmed_node_that_sleeps(
    returns: bool,
) -> None:
    """Only the previous dispatcher, or its former process, had the confirmation."""
    world = formed(nodes=5)
    first = world.dispatchers()[0]
    asleep, away, *_ = others(world)
    world.crash(away)
    world.rotate(first)
    world.run(3.0)
    assert world.secrets[asleep].keys.newest == 2
    world.crash(asleep)
    world.crash(first)
    if returns:
        for node in world.live:
            world.crash(node)
        world.start(first)
    assert world.run_until(lambda: len(world.dispatchers()) == 1, 10.0)
    for node in world.machines:
        if node != asleep:
            world.start(node)

    assert world.run_until(lambda: phases(world) == {RotationPhase.SWITCHED}, 5.0)
    world.start(asleep)
    assert world.run_until(lambda: is_whole(world), 10.0)
    records_are_kept(world)
    all_nodes_use_the_same_records(world)


def test_failed_rotation_step_is_retried_after_a_pause() -> None:
    """A disk that refuses a secret is not asked a hundred times a second."""
    world = formed()
    world.crash(others(world)[0])
    world.rotate(world.dispatchers()[0])
    world.run(3.0)
    world.broken.update(world.live)

    world.run(SPREAD_S + STEP_RETRY_S)
    assert 1 <= world.failures <= 3
    world.broken.clear()

    assert world.run_until(
        lambda: phases(world) == {RotationPhase.SWITCHED}, STEP_RETRY_S + 5.0
    )


def test_second_rotation_is_refused_until_the_first_takes_effect() -> None:
    """The error gives the reason."""
    world = formed()
    world.crash(others(world)[0])
    world.rotate(world.dispatchers()[0])
    world.run(2.0)

    world.rotate(world.dispatchers()[0])
    world.run(2.0)

    assert isinstance(world.replies[-1], RotationNotStarted)


def test_urgent_rotation_ends_the_old_secret_within_seconds() -> None:
    """No node is revoked; a node that was away needs a new invite."""
    world = formed()
    away, asked = others(world)
    world.crash(away)

    world.rotate(asked, is_urgent=True)
    world.run(URGENT_STEP_S + 3.0)

    assert phases(world) == {RotationPhase.SETTLED}
    assert is_whole(world)
    kept = world.secrets[asked]
    assert not kept.revoked
    assert not {*FIRST.generations} & {*kept.generations}
    world.start(away)
    world.run(20.0)
    assert world.secrets[away] == FIRST


def test_urgent_rotation_overtakes_one_that_waits_for_a_node() -> None:
    """Afterwards, neither the old secret nor the pending one is accepted."""
    world = formed()
    world.crash(others(world)[0])
    asked = world.dispatchers()[0]
    world.rotate(asked)
    world.run(2.0)
    (waiting,) = {world.secrets[node].newest for node in world.live}

    world.rotate(asked, is_urgent=True)

    assert world.run_until(
        lambda: phases(world) == {RotationPhase.SETTLED}, URGENT_STEP_S + 3.0
    )
    assert world.secrets[asked].first_number == waiting + 1
    assert is_whole(world)


def test_second_urgent_rotation_is_refused() -> None:
    """The first one is already under way."""
    world = formed()
    asked = world.dispatchers()[0]

    world.rotate(asked, is_urgent=True)
    world.rotate(asked, is_urgent=True)
    world.run(0.5)

    assert {type(reply) for reply in world.replies} == {
        RotationStarted,
        RotationNotStarted,
    }


def test_halves_that_both_rotated_agree_when_they_meet() -> None:
    """One of the two new generations wins on all nodes."""
    world = formed(nodes=4)
    nodes = world.live
    world.network.split([nodes[:2], nodes[2:]])
    assert world.run_until(lambda: len(world.dispatchers()) == 2, 30.0)
    for node in world.dispatchers():
        world.rotate(node)
    world.run(2.0)
    assert len({world.secrets[node].keys.fingerprint for node in nodes}) == 2

    world.network.heal_all()

    assert world.run_until(lambda: is_whole(world), 15.0)


def test_revoked_node_is_out_at_once_and_stays_out() -> None:
    """The other nodes go on; the revoked one gets no work, also after a restart."""
    world = formed(nodes=4)
    gone = others(world)[0]
    asked = others(world)[1]
    world.rotate(asked, revoked=gone)
    world.run(0.5)
    assert not any(world.network.is_up(gone, node) for node in world.machines)

    world.run(30.0)
    rest = [node for node in world.live if node != gone]
    assert len({world.secrets[node].to_text() for node in rest}) == 1
    assert world.secrets[rest[0]].keys.phase is RotationPhase.SETTLED
    assert gone not in world.dispatchers()
    world.crash(gone)
    world.start(gone)
    world.run(20.0)
    assert not any(world.network.is_up(gone, node) for node in world.machines)
    assert gone not in world.dispatchers()
    assert len(world.dispatchers()) == 1


@pytest.mark.parametrize("when_s", [0.3, 2.0, 4.5])
def test_revoked_node_gains_nothing_by_another_identity(when_s: float) -> None:
    """The new identity is unknown; its secret is still accepted for a moment."""
    world = KeyringWorld(3, nodes=5)
    first, slow, third, gone, disguised = world.machines
    for node in (first, slow, third, gone):
        world.start(node)
    assert world.run_until(lambda: len(world.dispatchers()) == 1, 20.0)
    world.run(3.0)
    world.broken.add(slow)  # The other nodes wait that long for it.
    world.crash(gone)
    world.rotate(first, revoked=gone)
    world.run(when_s)

    world.start(disguised)
    world.run(3.0)
    world.broken.clear()
    world.run(40.0)

    assert world.secrets[disguised] == FIRST
    assert {world.secrets[node].newest for node in (first, third)} == {2}
    assert not any(world.network.is_up(disguised, node) for node in (first, third))


def test_node_cut_off_for_a_moment_learns_the_secret_without_the_revoked_node() -> None:
    """The roster knows a member, whichever node is dispatcher.

    It meets a member while its old secret counts only by luck; otherwise it needs a new
    invite.
    """
    assert sum(map(meets_a_member_after_a_cut, range(8)))


def meets_a_member_after_a_cut(seed: int) -> bool:
    """Return True if a node that just missed a revocation learns of it."""
    world = formed(seed, nodes=5)
    first = world.dispatchers()[0]
    asked, gone, flapping, *_ = others(world)
    world.network.split([[n for n in world.machines if n != flapping], [flapping]])
    world.run(2.0)
    world.rotate(asked, revoked=gone)
    world.run(0.5)
    world.crash(first)
    world.network.heal_all()

    rest = [node for node in world.live if node not in (gone, flapping)]
    has_met = world.run_until(
        lambda: any(world.network.is_up(flapping, node) for node in rest), 4.0
    )
    learns = world.run_until(lambda: world.secrets[flapping].newest == 2, 2.0)
    assert learns == has_met
    return has_met


def test_node_that_was_away_makes_no_secret_with_a_revoked_node() -> None:
    """The two may meet; the mesh already has a newer secret, and says so."""
    world = formed(nodes=4)
    away, asked, gone = others(world)
    world.crash(away)
    world.rotate(asked, revoked=gone)
    world.run(10.0)

    world.start(away)
    world.run(30.0)

    assert world.network.is_up(away, gone)
    assert world.secrets[away] == FIRST


@pytest.mark.parametrize("seed", range(8))
def test_dispatcher_can_be_revoked(seed: int) -> None:
    """Another node revokes it, and another one becomes dispatcher."""
    world = formed(seed, nodes=5)
    gone = world.dispatchers()[0]
    world.rotate(others(world)[0], revoked=gone)

    world.run(30.0)

    rest = [node for node in world.live if node != gone]
    assert len(world.dispatchers()) == 1
    assert gone not in world.dispatchers()
    assert len({world.secrets[node].to_text() for node in rest}) == 1


@pytest.mark.parametrize(("seed", "gap_s"), [(1, 0.05), (2, 0.0), (5, 0.05), (6, 0.1)])
def test_two_nodes_revoked_at_once_both_lack_the_new_secret(
    seed: int, gap_s: float
) -> None:
    """Each request gives its new secret to the node that the other one revokes."""
    world = formed(seed, nodes=5)
    asked, asked_too, gone, gone_too = others(world)

    world.rotate(asked, revoked=gone)
    world.run(gap_s)
    world.rotate(asked_too, revoked=gone_too)
    world.run(40.0)

    rest = [node for node in world.live if node not in (gone, gone_too)]
    assert len({world.secrets[node].to_text() for node in rest}) == 1
    accepted = {*world.secrets[rest[0]].generations}
    assert not accepted & {*world.secrets[gone].generations}
    assert not accepted & {*world.secrets[gone_too].generations}


def test_node_does_not_revoke_itself() -> None:
    """The node would lock itself out of the secret that it has to make."""
    world = formed()
    node = others(world)[0]
    world.rotate(node, revoked=node)
    world.run(2.0)

    assert isinstance(world.replies[-1], RotationNotStarted)
    assert world.secrets[node] == FIRST


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_all_nodes_end_with_one_secret_despite_faults(seed: int) -> None:
    """Faults are crashes, splits and sleeping machines, each within the window."""
    world = formed(seed, nodes=4)
    world.rotate(world.dispatchers()[0])
    for _ in range(6):
        node = world.random.choice([*world.machines])
        fault = world.random.randrange(4)
        if fault == 0:
            world.crash(node)
        elif fault == 1:
            world.network.split(
                [[node], [other for other in world.machines if other != node]]
            )
        elif fault == 2:
            world.sleep(node, world.random.uniform(0.1, 15.0))
        elif (dispatchers := world.dispatchers()) and world.random.random() < 0.5:
            world.rotate(dispatchers[0])
        world.run(world.random.uniform(0.0, 8.0))
        if world.random.random() < 0.6:
            world.network.heal_all()
        world.start_all()
    world.network.heal_all()
    world.run(20.0)

    assert is_whole(world)
    assert world.run_until(
        lambda: phases(world) == {RotationPhase.SETTLED}, 2 * (SPREAD_S + KEEP_S)
    )
    assert is_whole(world)
