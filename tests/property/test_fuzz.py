"""Messages of strangers and members, generated for as long as there is time."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from octaskly.core.events import PeerUp, Received, TimerFired
from octaskly.core.model.ids import Address, Epoch
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import Hello, HelloOk, Message
from octaskly.errors import PairingFailed, RemoteProtocolError
from octaskly.joining.greeting import GREETING_BYTES, Greeting
from octaskly.mesh import wire
from tests.property.fuzzing import fuzz
from tests.property.test_messages import MESSAGES, values_of
from tests.property.test_pairing import GREETINGS
from tests.support import sample_messages
from tests.support.builders import moment, node_id
from tests.unit.core.node.test_message_checks import ME, PEER, Shell

LIMITS = Limits(hello_bytes=1 << 16, frame_bytes=1 << 16)
OK = wire.encode([HelloOk()])
FRAMES = [wire.encode([message]) for message in sample_messages.MESSAGES]
HELLOS: st.SearchStrategy[Hello] = values_of(Hello)
EPOCHS = st.builds(Epoch, st.integers(0, 9), st.sampled_from([ME, PEER, node_id("c")]))


@st.composite
def near_frames(draw: st.DrawFn) -> bytes:
    """Return frames in their stored form, with some bytes of them changed."""
    frames = draw(st.lists(st.sampled_from(FRAMES), min_size=1, max_size=3))
    data = bytearray(b"".join([OK, *frames]))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(len(OK), len(data) - 1))
        match draw(st.sampled_from(["set", "drop", "add"])):
            case "set":
                data[at] = draw(st.integers(0, 255))
            case "drop":
                del data[at:]
                data += b"\xc0"
            case _:
                data[at:at] = draw(st.binary(max_size=5))
    return bytes(data)


@st.composite
def near_greetings(draw: st.DrawFn) -> bytes:
    """Return a greeting with some bytes of it changed."""
    data = bytearray(draw(GREETINGS).pack())
    for at in draw(st.lists(st.integers(0, len(data) - 1), max_size=8)):
        data[at] = draw(st.integers(0, 255))
    return bytes(data)


@fuzz(near_frames() | st.binary(max_size=300))
def test_frames_are_messages_or_refused(data: bytes) -> None:
    """Frames that are nearly valid raise no other error."""
    try:
        messages = wire.Decoder(LIMITS).receive_data(data)
    except RemoteProtocolError:
        return
    assert all(type(message).__module__.startswith("octaskly.") for message in messages)


@fuzz(HELLOS)
def test_any_hello_is_accepted_or_refused(hello: Hello) -> None:
    """A node's rules hold for any announcement of a member."""
    shell = Shell()
    announced = replace(hello, node=replace(hello.node, id=PEER))
    met = PeerUp(PEER, shell.node.hello(moment()), announced, Address("::1", 7))

    shell.feed(met)
    shell.seconds += 5.0
    shell.feed(Received(PEER, ()))
    if not shell.node.is_dispatcher:
        shell.seconds += 60.0
    assert shell.node.deadline() > 0


def _with_epoch(message: Message, epoch: Epoch) -> Message:
    """Return a message with an epoch that a node may accept."""
    changed: Any = message
    return replace(changed, epoch=epoch) if hasattr(message, "epoch") else message


SAID = st.builds(_with_epoch, MESSAGES, EPOCHS)


@fuzz(st.lists(SAID, max_size=6), st.booleans())
def test_any_messages_are_handled_or_refused(
    said: list[Message], is_reigning: bool
) -> None:
    """No message of a member stops a node, whether dispatcher or follower."""
    shell = Shell()
    if is_reigning:
        shell.become_dispatcher()
    for message in said:
        shell.hear(message)
        shell.seconds += 0.2
    shell.feed(TimerFired())

    assert shell.node.deadline() > shell.seconds  # It does not spin.


@fuzz(
    st.binary(min_size=GREETING_BYTES, max_size=GREETING_BYTES) | near_greetings(),
    share=0.2,  # A few fields at fixed places.
)
def test_pairing_greetings_are_read_or_refused(data: bytes) -> None:
    """Strangers send greetings before they are known; their words are harmless."""
    try:
        greeting = Greeting.unpack(data)
        greeting.require_compatible(0)
    except PairingFailed:
        return
    for text in (greeting.name, greeting.software):
        assert text.isascii()
        assert text.isprintable()
    assert 0 <= greeting.slot_or_port < 2**16
