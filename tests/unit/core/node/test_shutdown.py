"""How a node leaves: whom it asks to succeed it."""

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


def reigning() -> Components:
    """Return the machines of a dispatcher with one follower."""
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
    """Return the way out of a node with these machines."""
    return Shutdown(
        settings().timing,
        machines.journal,
        machines.election,
        machines.dispatcher_transfer,
        machines.worker,
        machines.timers,
    )


def transfers(effects: list[Effect]) -> list[Transfer]:
    """Return what successors are asked."""
    return [
        message
        for effect in effects
        for message in getattr(effect, "messages", ())
        if isinstance(message, Transfer)
    ]


def test_a_successor_that_was_asked_while_the_disk_failed_is_asked_again() -> None:
    """It may be ready by now; else this node would leave without a successor."""
    machines = reigning()
    departure = shutdown_of(machines)
    machines.dispatcher_transfer.ask_next_successor(moment())

    departure.start_shutdown(30.0, moment(0.1))
    effects = departure.on_time(moment(0.1))

    assert transfers(effects) == [Transfer(epoch(), ())]


def test_patience_with_the_worker_is_not_that_with_the_disk() -> None:
    """A paused node has none, but what is on its way to the disk needs a successor."""
    machines = reigning()
    departure = shutdown_of(machines)
    machines.journal.save(term=1)
    departure.start_shutdown(0.0, moment())

    assert departure.on_time(moment()) == []
    machines.journal.on_persisted(machines.journal.last_number)
    effects = departure.on_time(moment(0.1))

    assert transfers(effects) == [Transfer(epoch(), ())]


def test_a_disk_that_takes_nothing_holds_up_nobody_for_long() -> None:
    """And the clock wakes the node in time to leave."""
    machines = reigning()
    departure = shutdown_of(machines)
    machines.journal.save(term=1)
    departure.start_shutdown(0.0, moment())
    departure.on_time(moment())

    assert machines.timers.next_at() == moment(DISK_FLUSH_S).mono_s
    assert departure.on_time(moment(DISK_FLUSH_S))[-1] == Stopped()
