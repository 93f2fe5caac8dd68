"""F33: the mesh secret is renewed while machines come, go, and are cut off."""

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
from tests.simulation.checks.kept import all_go_by_the_same_records, records_are_kept
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
    """Whether all that run have one keyring, and one dispatcher."""
    keyrings = {world.secrets[node].to_text() for node in world.live}
    return len(keyrings) == 1 and len(world.dispatchers()) == 1


def test_a_secret_that_all_know_comes_into_force_at_once() -> None:
    """Then the old one stays accepted for its time, and goes."""
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


def test_a_node_that_is_off_is_waited_for_and_learns_it_when_it_comes() -> None:
    """Nobody shows the new generation to a node that cannot know it."""
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


def test_a_node_that_comes_after_the_switch_learns_it_over_the_old_one() -> None:
    """While the old generation is accepted, whoever knows only that is let in."""
    world = formed()
    away = others(world)[0]
    world.crash(away)
    world.rotate(world.dispatchers()[0])
    world.run(SPREAD_S + 5.0)
    assert phases(world) == {RotationPhase.SWITCHED}

    world.start(away)

    assert world.run_until(lambda: is_whole(world), 10.0)


def test_a_node_that_slept_through_it_all_stays_out() -> None:
    """It has to be invited again; with its keyring renewed it is back."""
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
def test_another_dispatcher_goes_on_with_a_rotation(when_s: float) -> None:
    """In every phase: it finds in its own keyring what there is to do."""
    world = formed(nodes=4)
    away = others(world)[0]
    world.crash(away)
    first = world.dispatchers()[0]
    world.rotate(first)
    world.run(when_s)

    world.crash(first)
    assert world.run_until(lambda: len(world.dispatchers()) == 1, 20.0)
    if world.secrets[world.dispatchers()[0]] == FIRST:
        world.rotate(world.dispatchers()[0])  # It died before anybody knew.
    world.run(SPREAD_S + 5.0)
    world.start(first)
    world.start(away)

    assert world.run_until(lambda: is_whole(world), 20.0)
    assert world.run_until(
        lambda: phases(world) == {RotationPhase.SETTLED}, KEEP_S + 20.0
    )
    assert is_whole(world)


@pytest.mark.parametrize("returns", [False, True])
def test_who_has_confirmed_and_sleeps_is_not_waited_for_by_the_next_dispatcher(
    returns: bool,
) -> None:
    """It had told only the one that is gone, or that has begun anew since."""
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
    all_go_by_the_same_records(world)


def test_a_step_that_fails_is_tried_again_only_after_a_while() -> None:
    """A disk that takes no secret is not asked for it a hundred times a second."""
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


def test_a_second_rotation_is_refused_until_the_first_is_in_force() -> None:
    """Who asks is told why."""
    world = formed()
    world.crash(others(world)[0])
    world.rotate(world.dispatchers()[0])
    world.run(2.0)

    world.rotate(world.dispatchers()[0])
    world.run(2.0)

    assert isinstance(world.replies[-1], RotationNotStarted)


def test_an_urgent_one_ends_the_old_secret_within_seconds() -> None:
    """Nobody is revoked for it; who is away has to be invited again."""
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


def test_an_urgent_one_overtakes_one_that_waits_for_a_node() -> None:
    """Neither the old secret nor the one that was on its way is accepted after it."""
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


def test_an_urgent_one_is_not_asked_for_twice() -> None:
    """It is on its way already."""
    world = formed()
    asked = world.dispatchers()[0]

    world.rotate(asked, is_urgent=True)
    world.rotate(asked, is_urgent=True)
    world.run(0.5)

    assert {type(reply) for reply in world.replies} == {
        RotationStarted,
        RotationNotStarted,
    }


def test_two_halves_that_both_renew_it_agree_when_they_meet() -> None:
    """One of the two new generations counts, on all nodes."""
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


def test_a_revoked_node_is_out_at_once_and_stays_out() -> None:
    """The others go on together; it takes no work, also after a restart."""
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
def test_who_is_revoked_gains_nothing_by_another_identity(when_s: float) -> None:
    """One that nobody knew, made with the secret that is accepted for a moment yet."""
    world = KeyringWorld(3, nodes=5)
    first, slow, third, gone, disguised = world.machines
    for node in (first, slow, third, gone):
        world.start(node)
    assert world.run_until(lambda: len(world.dispatchers()) == 1, 20.0)
    world.run(3.0)
    world.broken.add(slow)  # So long the others wait for it.
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


def test_who_was_cut_off_for_a_moment_learns_the_secret_without_the_revoked() -> None:
    """A member is known by the roster, whoever reigns meanwhile.

    Whether it meets one while its old secret counts is a matter of luck: else it has to
    be invited again.
    """
    assert sum(map(meets_who_was_cut_off, range(8)))


def meets_who_was_cut_off(seed: int) -> bool:
    """Whether who misses a revocation by seconds meets a member; then it learns."""
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


def test_who_was_away_makes_no_secret_of_its_own_for_a_revoked_node() -> None:
    """The two may meet; the mesh has a newer secret already, and says that it has."""
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
def test_a_dispatcher_can_be_revoked(seed: int) -> None:
    """Another node does it, and another one reigns."""
    world = formed(seed, nodes=5)
    gone = world.dispatchers()[0]
    world.rotate(others(world)[0], revoked=gone)

    world.run(30.0)

    rest = [node for node in world.live if node != gone]
    assert len(world.dispatchers()) == 1
    assert gone not in world.dispatchers()
    assert len({world.secrets[node].to_text() for node in rest}) == 1


@pytest.mark.parametrize(("seed", "gap_s"), [(1, 0.05), (2, 0.0), (5, 0.05), (6, 0.1)])
def test_of_two_that_are_revoked_at_once_neither_has_the_new_secret(
    seed: int, gap_s: float
) -> None:
    """Each of the nodes that are asked gives its new secret to the other one's."""
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


def test_a_node_does_not_revoke_itself() -> None:
    """It would lock itself out of what it then has to make."""
    world = formed()
    node = others(world)[0]
    world.rotate(node, revoked=node)
    world.run(2.0)

    assert isinstance(world.replies[-1], RotationNotStarted)
    assert world.secrets[node] == FIRST


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_fails_meanwhile_all_have_one_secret_in_the_end(seed: int) -> None:
    """Crashes, splits and sleeping machines, each shorter than the window."""
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
        elif (reigning := world.dispatchers()) and world.random.random() < 0.5:
            world.rotate(reigning[0])
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
