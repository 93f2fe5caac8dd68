"""When a dispatcher may say that it does not know a task."""

from __future__ import annotations

from octaskly.core.completeness import Completeness
from octaskly.core.events import PeerUp, Saved
from octaskly.core.exchange import Exchange
from octaskly.core.membership import Membership
from octaskly.core.messages import Hello
from octaskly.core.model import NO_EPOCH, Address
from tests.builders import epoch, journal, moment, node_id, settings

PEER = node_id("b")
EPOCH = epoch(term=1, name="a")


def test_a_peer_that_does_not_follow_yet_may_have_accepted_what_is_unknown_here() -> (
    None
):
    """What it said in HELLO is old as soon as it is dispatcher itself."""
    log = journal()
    members = Membership(settings("a"), Saved())
    completeness = Completeness(log, members, Exchange(log))
    completeness.begin(EPOCH, None, NO_EPOCH, 0.0)
    hello = Hello(node=settings("b").node, epoch=NO_EPOCH, dispatcher=None)
    sent = Hello(node=settings("a").node, epoch=EPOCH, dispatcher=node_id("a"))
    members.on_peer_up(PeerUp(PEER, sent, hello, Address("10.0.0.2", 1)), moment())

    assert not completeness.is_complete(0.0)

    members.confirm(PEER, EPOCH, ())
    assert completeness.is_complete(0.0)
