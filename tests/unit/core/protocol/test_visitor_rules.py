"""The table of what passes between visitors and members denies by default."""

from typing import get_args

import pytest
from msgspec.structs import replace

from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.core.protocol.messages import Assign, Hello, Message
from octaskly.core.protocol.visitor_rules import (
    FRAME_BYTES_MAX,
    FROM_VISITOR,
    HELLO_BYTES_MAX,
    TO_VISITOR,
    VISITOR_MESSAGES,
    Direction,
    is_possible_outcome,
    redacted_for_visitor,
)
from octaskly.errors import FrameTooLarge, RemoteProtocolError
from octaskly.mesh import wire
from tests.support.sample_messages import ATTEMPT, EPOCH, MESSAGES, SPEC

SENT = {
    *("Hello", "HelloOk", "Leave", "HeartbeatOk", "OutputPieces", "Probe", "Reattach"),
    "Results",
}
"""All that a visitor may send."""

RECEIVED = {
    *("Hello", "HelloOk", "Leave", "Assign", "Contacts", "Heartbeat", "Kill"),
    *("ProbeOk", "ReadOutput", "Redirect", "ResultsOk"),
}
"""All that a visitor gets."""

by_name = pytest.mark.parametrize(
    "message", MESSAGES, ids=lambda one: type(one).__name__
)


def visitors_decoder() -> wire.Decoder:
    """Return the decoder of a link on which a visitor sends."""
    decoder = wire.Decoder(Limits())
    decoder.restrict(
        FROM_VISITOR, hello_bytes=HELLO_BYTES_MAX, frame_bytes=FRAME_BYTES_MAX
    )
    return decoder


def test_the_table_has_every_message() -> None:
    """A new message is in the table, and denied."""
    assert set(VISITOR_MESSAGES) == set(get_args(Message))
    assert {kind.__name__ for kind in VISITOR_MESSAGES} >= SENT | RECEIVED
    denied = [d for d in VISITOR_MESSAGES.values() if d is Direction.NEITHER]
    assert len(denied) == len(VISITOR_MESSAGES) - len(SENT | RECEIVED)


@by_name
def test_only_declared_messages_pass_from_a_visitor(message: Message) -> None:
    """Others are refused by their number, before their fields are decoded."""
    frame = wire.encode([message])

    if type(message).__name__ in SENT:
        assert visitors_decoder().receive_data(frame) == [message]
    else:
        with pytest.raises(RemoteProtocolError, match="may not pass"):
            visitors_decoder().receive_data(frame)


@by_name
def test_only_declared_messages_pass_to_a_visitor(message: Message) -> None:
    """A member cannot send anything else by mistake, and a visitor ignores it."""
    is_declared = type(message).__name__ in RECEIVED

    assert (redacted_for_visitor(message) is not None) is is_declared
    number = type(message).__struct_config__.tag
    assert (number in TO_VISITOR) is is_declared


def test_an_unknown_message_is_refused_whatever_version_the_visitor_speaks() -> None:
    """A member skips messages of newer peers, but not those of visitors."""
    hello = next(one for one in MESSAGES if isinstance(one, Hello))
    decoder = visitors_decoder()
    decoder.receive_data(wire.encode([replace(hello, version=99)]))

    with pytest.raises(RemoteProtocolError, match="may not pass"):
        decoder.receive_data(bytes.fromhex("00000007dd00000001915f"))


def test_frames_of_a_visitor_are_smaller() -> None:
    """It announces a frame that a member might send."""
    size = (HELLO_BYTES_MAX + 1).to_bytes(4, "big")

    with pytest.raises(FrameTooLarge):
        visitors_decoder().receive_data(size)


def test_a_hello_tells_a_visitor_nothing_about_the_log() -> None:
    """Neither streams, nor the dispatcher, nor what the machine has."""
    hello = next(one for one in MESSAGES if isinstance(one, Hello))

    told = redacted_for_visitor(hello)

    assert isinstance(told, Hello)
    assert (told.vector, told.dispatcher, told.followers) == ((), None, 0)
    assert (told.node.labels, told.node.addresses, told.node.slots) == ((), (), 0)


def test_an_assignment_has_only_what_the_attempt_needs() -> None:
    """Not who asked for it, nor the URL to call, nor which nodes have its files."""
    options = TaskOptions(
        name="thesis",
        labels=(("client", "acme"),),
        env=(("A", "1"),),
        notify_url="https://hooks.example/secret",
    )
    holders = ((7, (EPOCH.node,)),)
    spec = replace(SPEC, options=options)

    told = redacted_for_visitor(Assign(EPOCH, ((ATTEMPT, spec),), holders))

    bare = replace(SPEC, submitter="", options=TaskOptions(env=(("A", "1"),)))
    assert told == Assign(EPOCH, ((ATTEMPT, bare),))


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(AttemptState.FAILED, EndReason.EXIT, 0),
        Outcome(AttemptState.FAILED, EndReason.EXIT, 1 << 40),
        Outcome(AttemptState.FAILED, EndReason.EXIT, -5),
        Outcome(AttemptState.FAILED, EndReason.SIGNAL, 137, 9999),
        Outcome(AttemptState.OK, EndReason.EXIT, 5),
        Outcome(AttemptState.OK, EndReason.EXIT, None),
        Outcome(AttemptState.OK, EndReason.EXIT, 0, 9),
        Outcome(AttemptState.OK, EndReason.SIGNAL, 0),
    ],
    ids=str,
)
def test_an_end_that_no_command_has_is_impossible(outcome: Outcome) -> None:
    """`octaskly wait` would end with 0 for a task that failed, for example."""
    assert not is_possible_outcome(outcome)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(AttemptState.OK, EndReason.EXIT, 0),
        Outcome(AttemptState.FAILED, EndReason.EXIT, 255),
        Outcome(AttemptState.FAILED, EndReason.SIGNAL, 137, 9),
        Outcome(AttemptState.FAILED, EndReason.TIMEOUT, 124),
        Outcome(AttemptState.FAILED, EndReason.INPUTS),
        Outcome(AttemptState.RELEASED, EndReason.DRAINING),
    ],
    ids=str,
)
def test_ends_of_commands_are_possible(outcome: Outcome) -> None:
    """As an honest visitor reports them."""
    assert is_possible_outcome(outcome)
