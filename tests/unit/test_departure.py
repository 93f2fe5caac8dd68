"""How a node leaves: whom it asks to succeed it."""

from __future__ import annotations

from octaskly.core.departure import Departure
from octaskly.core.events import PeerUp, Saved
from octaskly.core.machines import assemble
from octaskly.core.messages import Hello, Transfer
from octaskly.core.model import Address
from octaskly.core.phases import Attachment, Reigning
from octaskly.core.succession import Reign
from tests.builders import STREAM, epoch, moment, node_id, settings

PEER = node_id("b")


def test_a_successor_that_was_asked_while_the_disk_failed_is_asked_again() -> None:
    """It may be ready by now; else this node would leave without a successor."""
    machines = assemble(settings(), Saved())
    reign, own = Reign(epoch(), STREAM), Attachment(node_id("a"), epoch(), 1)
    machines.election.phase = Reigning(reign, own)
    machines.election.reign = reign
    hello = Hello(node=settings("b").node, epoch=epoch(), dispatcher=node_id("a"))
    machines.members.on_peer_up(
        PeerUp(PEER, hello, hello, Address("10.0.0.2", 7878)), moment()
    )
    machines.members.confirm(PEER, epoch(), ())
    departure = Departure(machines)
    machines.handover.step(moment())

    departure.begin(30.0, moment(0.1))
    effects = departure.on_time(moment(0.1))

    transfers = [
        message
        for effect in effects
        for message in getattr(effect, "messages", ())
        if isinstance(message, Transfer)
    ]
    assert transfers == [Transfer(epoch(), ())]
