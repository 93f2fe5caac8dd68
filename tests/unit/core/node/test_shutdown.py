"""How a node leaves: whom it asks to succeed it."""

from __future__ import annotations

from octaskly.core.effects import Effect, Stopped
from octaskly.core.election.phases import Attachment, Reigning
from octaskly.core.events import PeerUp, Saved
from octaskly.core.model.ids import Address, Reign
from octaskly.core.node.components import Machines, assemble
from octaskly.core.node.shutdown import SETTLE_S, Departure
from octaskly.core.protocol.messages import Hello, Transfer
from tests.builders import STREAM, epoch, moment, node_id, settings

PEER = node_id("b")


def reigning() -> Machines:
    """Return the machines of a dispatcher with one follower."""
    machines = assemble(settings(), Saved())
    reign, own = Reign(epoch(), STREAM), Attachment(node_id("a"), epoch(), 1)
    machines.election.phase = Reigning(reign, own)
    machines.election.reign = reign
    hello = Hello(node=settings("b").node, epoch=epoch(), dispatcher=node_id("a"))
    machines.members.on_peer_up(
        PeerUp(PEER, hello, hello, Address("10.0.0.2", 7878)), moment()
    )
    machines.members.confirm(PEER, epoch(), ())
    return machines


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
    departure = Departure(machines)
    machines.handover.step(moment())

    departure.begin(30.0, moment(0.1))
    effects = departure.on_time(moment(0.1))

    assert transfers(effects) == [Transfer(epoch(), ())]


def test_patience_with_the_worker_is_not_that_with_the_disk() -> None:
    """A paused node has none, but what is on its way to the disk needs a successor."""
    machines = reigning()
    departure = Departure(machines)
    machines.journal.save(term=1)
    departure.begin(0.0, moment())

    assert departure.on_time(moment()) == []
    machines.journal.on_persisted(machines.journal.number)
    effects = departure.on_time(moment(0.1))

    assert transfers(effects) == [Transfer(epoch(), ())]


def test_a_disk_that_takes_nothing_holds_up_nobody_for_long() -> None:
    """And the clock wakes the node in time to leave."""
    machines = reigning()
    departure = Departure(machines)
    machines.journal.save(term=1)
    departure.begin(0.0, moment())
    departure.on_time(moment())

    assert departure.deadline() == moment(SETTLE_S).mono_s
    assert departure.on_time(moment(SETTLE_S))[-1] == Stopped()
