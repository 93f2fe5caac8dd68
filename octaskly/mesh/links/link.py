"""One TLS connection to a peer: handshake, frames, bounded outbox.

Both sides send HELLO as soon as TLS is done; who accepts the other's HELLO answers
HELLO_OK. A link is connected when both were said: with TLS 1.3 a dialler cannot tell
before that whether its certificate was accepted. The peer's node id comes from its
certificate, never from what it says.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from octaskly.core.model.ids import Address, NodeId
from octaskly.core.model.keys import OUTDATED_REASON
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import (
    PROTOCOL_PREFIX,
    PROTOCOL_VERSION,
    VERSION_MIN,
    Hello,
    HelloOk,
    Leave,
    Message,
    PackedMessage,
)
from octaskly.errors import RemoteProtocolError, TrustError, VersionMismatch
from octaskly.mesh import wire
from octaskly.mesh.links.receive import DiskProgress, Receiver
from octaskly.mesh.links.tcp import dialable_peer_address
from octaskly.trust import MeshTls
from octaskly.trust.tls import ALPN

FRAME_SOFT_BYTES: Final = 256 * 1024
"""Messages are gathered into one frame up to this size."""

WRITE_HIGH_BYTES: Final = 512 * 1024
"""Above this, what is sent waits in the outbox instead of the TLS layer."""

PART_OVERHEAD_BYTES: Final = (
    64  #: what a message in the outbox takes beside its own bytes
)

REASON_CHARS_MAX: Final = 200

NOT_ACCEPTED: Final = "peer does not accept our mesh secret"
HANDSHAKE_TIMED_OUT: Final = "no handshake in time"
REJECTION_S: Final = 2.0
"""From the connection on: a peer that hangs up so soon does not accept our certificate.
One that does so later may just have waited for it long enough, on a busy machine."""
OVERFLOW: Final = "outbox overflow"


class LinkOwner(Protocol):
    """What a link tells the transport that made it, always in order."""

    def on_open(self, link: Link) -> str | None:
        """TLS is done; return why the link is not wanted, or None."""

    def on_hello(self, link: Link) -> str | None:
        """The peer introduced itself; return why it is refused, or None."""

    def on_connected(self, link: Link) -> None:
        """Both sides said HELLO_OK."""

    def on_messages(self, link: Link, messages: Sequence[Message]) -> None:
        """Messages arrived on a connected link."""

    def on_ended(self, link: Link) -> None:
        """The link is of no more use, because of `link.reason`; called once."""

    def on_closed(self, link: Link) -> None:
        """Nothing of the connection is left."""


class Link(asyncio.Protocol):
    """The state of one connection.

    Args:
        owner: Is told what happens.
        trust: Knows whose certificate the peer shows.
        limits: Bounds on frames.
        packing: Packs what is sent; shared by all links.
        hello: Asked once, for what this node says of itself.
        dialled: The address that was dialled; None if the peer dialled.
        outbox_bytes: A send that finds more than this waiting ends the link.
        progress: How far this node has written what it was told.
    """

    def __init__(
        self,
        owner: LinkOwner,
        trust: MeshTls,
        limits: Limits,
        packer: wire.MessagePacker,
        hello: Callable[[], Hello],
        *,
        dialled: Address | None,
        outbox_bytes: int,
        progress: DiskProgress,
    ) -> None:
        self.dialled = dialled
        self.remote: Address | None = None  #: the other end of the socket
        self.peer = NodeId("")  #: known once TLS is done
        self.own_hello: Hello | None = None
        self.peer_hello: Hello | None = None  #: what the peer said
        self.has_accepted = False  #: this node said HELLO_OK
        self.is_connected = False
        self.reason: str | None = None  #: why it ended
        self.was_closed_by_peer = False  #: the peer ended it, and said why
        self.has_peer_violated = False  #: the peer sent what is no message now
        self.was_closed_before_hello = (
            False  #: dialled, the peer hung up without a HELLO
        )
        self.handshake_over = asyncio.Event()  #: connected or ended
        self.closed = asyncio.Event()  #: nothing of the connection is left
        self._opened_s = asyncio.get_running_loop().time()
        self._owner = owner
        self._trust = trust
        self._packer = packer
        self._make_hello = hello
        self._receiver = Receiver(
            wire.Decoder(limits), self._on_received, self._close_on_violation, progress
        )
        self._outbox_bytes_max = outbox_bytes
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._is_paused = False
        self._is_flush_due = False
        self._transport: asyncio.Transport | None = None
        self._tls: ssl.SSLObject | None = None

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn who the peer is, and introduce this node."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        name = transport.get_extra_info("peername")
        if name is None:
            self.abort("reset")  # It is gone already.
            return
        self.remote = dialable_peer_address(name)
        tls = self._tls = transport.get_extra_info("ssl_object")
        try:
            self.peer = self._trust.peer_node_id(tls)
        except TrustError as error:
            self.abort(str(error))
            return
        if tls.selected_alpn_protocol() != ALPN:
            self.abort(f"peer does not speak {ALPN}")
            return
        refusal = self._owner.on_open(self)
        if refusal is not None:
            self.close(refusal)
            return
        self.own_hello = self._make_hello()
        self._receiver.attach_transport(transport)
        self._write([self.own_hello])

    def data_received(self, data: bytes) -> None:
        """Handle what the peer sent."""
        if self.reason is None:
            self._receiver.receive_data(data)

    def pause_writing(self) -> None:
        """Keep what is sent in the outbox: the peer reads too slowly."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Go on with the outbox."""
        self._is_paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone, once what came before that is taken."""
        self._transport = None
        self._receiver.drain(lambda: self._on_connection_lost(exc))

    # Called by the transport

    @property
    def is_open(self) -> bool:
        """Whether TLS was done and the connection is not gone yet."""
        return self._transport is not None

    @property
    def age_s(self) -> float:
        """Seconds since it was dialled or accepted."""
        return asyncio.get_running_loop().time() - self._opened_s

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the peer to read, as far as this process holds them."""
        buffered = 0
        if self._transport is not None:
            buffered = self._transport.get_write_buffer_size()
        return self._outbox_bytes + buffered

    def send(self, messages: Sequence[Message | PackedMessage]) -> None:
        """Queue messages; all of one turn of the event loop share frames.

        Raises:
            LocalProtocolError: a message cannot be sent; those before it are queued.
        """
        if self.reason is not None or self._transport is None:
            return
        if self.queued_bytes > self._outbox_bytes_max:
            # One burst may be large; what must not be is a peer that does not read.
            self.abort(OVERFLOW)
            return
        for message in messages:
            for part in self._packer.pack_parts(message):
                self._outbox.append(part)
                self._outbox_bytes += len(part) + PART_OVERHEAD_BYTES
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def close(self, reason: str) -> None:
        """Tell the peer why, then close once that is sent."""
        if self.reason is None and self._transport is not None:
            self._flush()
            # What still waits is given up; a slow peer would hold us up.
            self._write([Leave(reason[:REASON_CHARS_MAX])])
            self._transport.close()
        self._mark_ended(reason)

    def abort(self, reason: str) -> None:
        """Close at once, without a word."""
        if self._transport is not None:
            self._transport.abort()
        self._mark_ended(reason)

    # Inside

    def _on_connection_lost(self, exc: Exception | None) -> None:
        if self.dialled and self.peer and self.peer_hello is None:
            self.was_closed_before_hello = self.reason is None
            reason = NOT_ACCEPTED if self.age_s < REJECTION_S else HANDSHAKE_TIMED_OUT
        elif exc is None:
            reason = "eof"
        else:
            reason = "timeout" if isinstance(exc, TimeoutError) else "reset"
        self._mark_ended(reason)
        self.closed.set()
        self._owner.on_closed(self)

    def _close_on_violation(self, error: RemoteProtocolError) -> None:
        self.has_peer_violated = True
        self.close(f"{PROTOCOL_PREFIX}{error}")

    def _on_received(self, messages: Sequence[Message]) -> None:
        if self.reason is not None:
            return
        try:
            self._handle_messages(messages)
        except VersionMismatch as error:
            self.close(str(error))  # It breaks nothing, and may be upgraded any time.
        except RemoteProtocolError as error:
            self._close_on_violation(error)

    def _handle_messages(self, messages: Sequence[Message]) -> None:
        taken = 0
        for message in messages:
            if self.is_connected:
                break
            taken += 1
            self._handle_handshake(message)
            if self.reason is not None:
                return
        rest = messages[taken:]
        words = [m for m in rest if isinstance(m, Hello | HelloOk | Leave)]
        if not words:
            if rest:
                self._owner.on_messages(self, rest)
            return
        end = rest.index(words[0])
        if end:
            self._owner.on_messages(self, rest[:end])
        match words[0]:
            case Leave(reason):
                self._handle_leave(reason)
            case word:
                raise RemoteProtocolError(f"{type(word).__name__} came again")

    def _handle_handshake(self, message: Message) -> None:
        """Handle a message before the link is connected."""
        match message:
            case Hello() if self.peer_hello is None:
                self._handle_hello(message)
            case HelloOk() if self.has_accepted and not self._is_current():
                self.close(OUTDATED_REASON)
            case HelloOk() if self.has_accepted:
                self.is_connected = True
                self._owner.on_connected(self)
                self.handshake_over.set()
            case Leave(reason):
                self._handle_leave(reason)
            case _:
                name = type(message).__name__
                raise RemoteProtocolError(f"{name} came before HELLO_OK")

    def _is_current(self) -> bool:
        """Whether the secret was not renewed while the peer greeted, without it."""
        assert self._tls is not None
        return self._trust.is_generation_accepted(self._tls)

    def _handle_hello(self, hello: Hello) -> None:
        assert self.own_hello is not None
        if hello.node.id != self.peer:
            raise RemoteProtocolError("the HELLO is that of another node")
        newest = min(hello.version, PROTOCOL_VERSION)
        if newest < max(hello.version_min, VERSION_MIN):
            raise VersionMismatch(
                f"the peer speaks versions {hello.version_min} to {hello.version}, "
                f"this node {VERSION_MIN} to {PROTOCOL_VERSION}"
            )
        self.peer_hello = hello
        refusal = self._owner.on_hello(self)
        if refusal is None:
            self.has_accepted = True
            self._write([HelloOk()])
        else:
            self.close(refusal)

    def _handle_leave(self, reason: str) -> None:
        """End the link, since the peer said that it does."""
        self.was_closed_by_peer = self.reason is None
        if self._transport is not None:
            self._transport.close()
        self._mark_ended(reason[:REASON_CHARS_MAX])

    def _write(self, messages: Sequence[Message]) -> None:
        """Send at once, before what waits in the outbox."""
        if self._transport is not None:
            self._transport.write(wire.encode(messages))

    def _flush(self) -> None:
        self._is_flush_due = False
        transport = self._transport
        if transport is None or self.reason is not None:
            return
        while self._outbox and not self._is_paused:
            transport.write(wire.build_frame(self._next_parts()))

    def _next_parts(self) -> list[bytes]:
        """Take messages for one frame: at least one, then up to the soft bound."""
        parts: list[bytes] = []
        size = 0
        while self._outbox:
            size += len(self._outbox[0])
            if parts and size > FRAME_SOFT_BYTES:
                break
            parts.append(self._outbox.popleft())
        self._outbox_bytes -= sum(map(len, parts)) + PART_OVERHEAD_BYTES * len(parts)
        return parts

    def _mark_ended(self, reason: str) -> None:
        if self.reason is not None:
            return
        self.reason = reason
        self.is_connected = False
        self._receiver.stop()
        self._outbox.clear()
        self._outbox_bytes = 0
        self._owner.on_ended(self)
        self.handshake_over.set()
