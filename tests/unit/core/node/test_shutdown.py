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
    machines = build_components(settings(), SavedState())
    reign, own = DispatcherEpoch(epoch(), STREAM), Attachment(node_id("a"), epoch(), 1)
    machines.election.phase = Dispatching(reign, own)
    machines.election.dispatcher_epoch = reign
    hello = Hello(node=settings("b").node, epoch=epoch(), dispatcher=node_id("a"))
    machines.peer_table.on_peer_up(
        PeerUp(PEER, hello, hello, Address("10.0.0.2", 7878)), moment()
    )
    machines.peer_table.confirm_follower(PEER, epoch(), ())
    return machines


def shutdown_of(machines: Components) -> Shutdown:
    """Return the shutdown of a node with these components."""
    return Shutdown(
        settings().timing,
        machines.journal,
        machines.election,
        machines.dispatcher_transfer,
        machines.worker,
        machines.timers,
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
    machines = components_of_dispatcher()
    departure = shutdown_of(machines)
    machines.dispatcher_transfer.ask_next_successor(moment())

    departure.start_shutdown(30.0, moment(0.1))
    effects = departure.on_time(moment(0.1))

    assert transfers(effects) == [Transfer(epoch(), ())]


def test_the_timeouts_for_worker_and_disk_are_independent() -> None:
    """A paused node does not wait for tasks, but pending writes need a successor."""
    machines = components_of_dispatcher()
    departure = shutdown_of(machines)
    machines.journal.save(term=1)
    departure.start_shutdown(0.0, moment())

    assert departure.on_time(moment()) == []
    machines.journal.on_persisted(machines.journal.last_number)
    effects = departure.on_time(moment(0.1))

    assert transfers(effects) == [Transfer(epoch(), ())]


def test_a_failing_disk_delays_the_shutdown_for_a_bounded_time() -> None:
    """The clock wakes the node in time to leave."""
    machines = components_of_dispatcher()
    departure = shutdown_of(machines)
    machines.journal.save(term=1)
    departure.start_shutdown(0.0, moment())
    departure.on_time(moment())

    assert machines.timers.next_at() == moment(DISK_FLUSH_S).mono_s
    assert departure.on_time(moment(DISK_FLUSH_S))[-1] == Stopped()
