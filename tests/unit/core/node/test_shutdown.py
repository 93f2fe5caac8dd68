"""Shutdown of a node, and the choice of its successor."""

from __future__ import annotations

from octaskly.core.effects import Effect, Stopped
from octaskly.core.election.phases import Attachment, Dispatching
from octaskly.core.events import PeerUp, SavedState
from octaskly.core.model.ids import Address, DispatcherEpoch
from octaskly.core.node.components import Components, build_components
from octaskly.core.node.shutdown import DISK_FLUSH_S, Shutdown
from octaskly.core.protocol.messages import Hello, Transfer
from tests.support.builders import STREAM, epoch, moment, node_id, settings

PEER = node_id("b")


def components_of_dispatcher() -> Components:
    """Return the components of a dispatcher with one follower."""
    components = build_components(settings(), SavedState())
    current, own = (
        DispatcherEpoch(epoch(), STREAM),
        Attachment(node_id("a"), epoch(), 1),
    )
    components.election.phase = Dispatching(current, own)
    components.election.dispatcher_epoch = current
    hello = Hello(node=settings("b").node, epoch=epoch(), dispatcher=node_id("a"))
    components.peer_table.on_peer_up(
        PeerUp(PEER, hello, hello, Address("10.0.0.2", 7878)), moment()
    )
    components.peer_table.confirm_follower(PEER, epoch(), ())
    return components


def shutdown_of(components: Components) -> Shutdown:
    """Return the shutdown of a node with these components."""
    return Shutdown(
        settings().timing,
        components.journal,
        components.election,
        components.dispatcher_transfer,
        components.worker,
        components.timers,
    )


def transfers(effects: list[Effect]) -> list[Transfer]:
    """Return the transfer messages to successors."""
    return [
        message
        for effect in effects
        for message in getattr(effect, "messages", ())
        if isinstance(message, Transfer)
    ]


def test_a_successor_is_asked_again_after_a_disk_failure() -> None:
    """It may be ready by now; else this node would leave without a successor."""
    components = components_of_dispatcher()
    departure = shutdown_of(components)
    components.dispatcher_transfer.ask_next_successor(moment())

    departure.start_shutdown(30.0, moment(0.1))
    effects = departure.on_time(moment(0.1))

    assert transfers(effects) == [Transfer(epoch(), ())]


def test_the_timeouts_for_worker_and_disk_are_independent() -> None:
    """A paused node does not wait for tasks, but pending writes need a successor."""
    components = components_of_dispatcher()
    departure = shutdown_of(components)
    components.journal.save(term=1)
    departure.start_shutdown(0.0, moment())

    assert departure.on_time(moment()) == []
    components.journal.on_persisted(components.journal.last_number)
    effects = departure.on_time(moment(0.1))

    assert transfers(effects) == [Transfer(epoch(), ())]


def test_a_failing_disk_delays_the_shutdown_for_a_bounded_time() -> None:
    """The clock wakes the node in time to leave."""
    components = components_of_dispatcher()
    departure = shutdown_of(components)
    components.journal.save(term=1)
    departure.start_shutdown(0.0, moment())
    departure.on_time(moment())

    assert components.timers.next_at() == moment(DISK_FLUSH_S).mono_s
    assert departure.on_time(moment(DISK_FLUSH_S))[-1] == Stopped()
