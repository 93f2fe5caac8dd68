"""TLS link to a peer: handshake, frames and a bounded outbox.

Both sides send HELLO after the TLS handshake, and HELLO_OK to accept the other's HELLO.
A link is connected once both have sent HELLO_OK. With TLS 1.3, a dialler does not know
earlier whether its certificate was accepted. The peer's node id comes from its
certificate, never from its messages.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from octaskly.core.model.ids import Address, NodeId, is_visitor
from octaskly.core.model.keyring_state import OUTDATED_REASON
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
from octaskly.core.protocol.visitor_rules import (
    BYTES_PER_S,
    FRAME_BYTES_MAX,
    FROM_VISITOR,
    HELLO_BYTES_MAX,
    TO_VISITOR,
    may_pass,
    redacted_for_visitor,
)
from octaskly.errors import RemoteProtocolError, TrustError, VersionMismatch
from octaskly.mesh import wire
from octaskly.mesh.links.receive import DiskProgress, Receiver
from octaskly.mesh.links.tcp import dialable_peer_address
from octaskly.trust.tls import ALPN, MeshTls, VisitorTls

FRAME_SOFT_BYTES: Final = 256 * 1024
"""Messages are combined into one frame up to this size."""

WRITE_HIGH_BYTES: Final = 512 * 1024
"""Above this write buffer size, messages wait in the outbox."""

PART_OVERHEAD_BYTES: Final = 64  #: memory per message in the outbox beside its bytes

REASON_CHARS_MAX: Final = 200

NOT_ACCEPTED: Final = "peer does not accept our mesh secret"
HANDSHAKE_TIMED_OUT: Final = "no handshake in time"
REJECTION_S: Final = 2.0
"""If a peer closes within this time after connecting, it rejects our certificate.
A later close may be a timeout of a peer on a busy machine."""
OVERFLOW: Final = "outbox overflow"


LinkTls = MeshTls | VisitorTls
"""Certificates of this node: of a member, or of a visitor."""


class LinkOwner(Protocol):
    """Callbacks of a link, called in the order of its life."""

    def on_open(self, link: Link) -> str | None:
        """Handle the end of the TLS handshake; return why to close, or None."""

    def on_hello(self, link: Link) -> str | None:
        """Handle the peer's HELLO; return why the peer is refused, or None."""

    def on_connected(self, link: Link) -> None:
        """Handle the link's HELLO_OK from both sides."""

    def on_messages(self, link: Link, messages: Sequence[Message]) -> None:
        """Handle messages that arrived on a connected link."""

    def on_ended(self, link: Link) -> None:
        """Handle the end of the link, for `link.reason`; called once."""

    def on_closed(self, link: Link) -> None:
        """Handle the close of the TCP connection; called after `on_ended`."""


class Link(asyncio.Protocol):
    """The state of one connection.

    Args:
        owner: Receives the callbacks.
        trust: Checks the peer's certificate.
        limits: Bounds on frames.
        packer: Packs outgoing messages; shared by all links.
        hello: Returns this node's HELLO; called once.
        dialled: The address that was dialled; None if the peer dialled.
        outbox_bytes: A send that finds more than this queued ends the link.
        progress: Returns how far this node has written received entries to disk.
    """

    def __init__(
        self,
        owner: LinkOwner,
        trust: LinkTls,
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
        self.peer = NodeId("")  #: known after the TLS handshake
        self.visit_ends_ms: int | None = None  #: if the peer is a visitor
        self.invited_by = ""  #: subject, if the peer is a visitor
        self.own_hello: Hello | None = None
        self.peer_hello: Hello | None = None
        self.has_accepted = False  #: this node has sent HELLO_OK
        self.is_connected = False
        self.reason: str | None = None  #: why the link ended
        self.was_closed_by_peer = False  #: the peer sent Leave with a reason
        self.has_peer_violated = False  #: the peer broke the protocol
        self.was_closed_before_hello = False  #: the dialled peer closed without a HELLO
        self.handshake_over = asyncio.Event()  #: connected or ended
        self.closed = asyncio.Event()  #: the TCP connection is closed
        self._opened_s = asyncio.get_running_loop().time()
        self._owner = owner
        self._trust = trust
        self._packer = packer
        self._make_hello = hello
        self._receiver = Receiver(
            wire.Decoder(limits), self._on_received, self._close_on_violation, progress
        )
        self._limits = limits
        self._outgoing: Callable[[Message], Message | None] | None = None
        """Returns what a peer gets of a message; None: it gets all of it."""
        self._outbox_bytes_max = outbox_bytes
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._is_paused = False
        self._is_flush_due = False
        self._transport: asyncio.Transport | None = None
        self._tls: ssl.SSLSocket | None = None

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check the peer's certificate and send HELLO."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        name = transport.get_extra_info("peername")
        if name is None:
            self.abort("reset")  # The peer has already disconnected.
            return
        self.remote = dialable_peer_address(name)
        tls = self._tls = transport.get_extra_info("ssl_object")
        try:
            identity = self._trust.peer_identity(tls)
        except TrustError as error:
            self.abort(str(error))
            return
        self.peer, self.visit_ends_ms, self.invited_by = identity
        if tls.selected_alpn_protocol() != ALPN:
            self.abort(f"peer does not speak {ALPN}")
            return
        refusal = self._owner.on_open(self)
        if refusal is not None:
            self.close(refusal)
            return
        self.own_hello = self._make_hello()
        self._receiver.attach_transport(transport)
        self._restrict_messages()
        self._write([self.own_hello])

    def data_received(self, data: bytes) -> None:
        """Handle received bytes."""
        if self.reason is None:
            self._receiver.receive_data(data)

    def pause_writing(self) -> None:
        """Keep messages in the outbox: the peer reads too slowly."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Send the outbox."""
        self._is_paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the lost connection after all bytes received before it."""
        self._transport = None
        self._receiver.drain(lambda: self._on_connection_lost(exc))

    # Called by the transport

    @property
    def is_open(self) -> bool:
        """Return True if TLS is established and the connection is not lost."""
        return self._transport is not None

    @property
    def age_s(self) -> float:
        """Seconds since the connection was dialled or accepted."""
        return asyncio.get_running_loop().time() - self._opened_s

    @property
    def queued_bytes(self) -> int:
        """Bytes in the outbox and the write buffer, without the kernel's buffers."""
        buffered = 0
        if self._transport is not None:
            buffered = self._transport.get_write_buffer_size()
        return self._outbox_bytes + buffered

    def send(self, messages: Sequence[Message | PackedMessage]) -> None:
        """Queue messages; those of one turn of the event loop share frames.

        Raises:
            LocalProtocolError: A message cannot be packed; those before it are queued.
        """
        if self.reason is not None or self._transport is None:
            return
        if self.queued_bytes > self._outbox_bytes_max:
            # The check comes before the burst is added: one burst may be large, but a
            # peer that does not read must not fill the memory.
            self.abort(OVERFLOW)
            return
        for message in messages if self._outgoing is None else self._passing(messages):
            for part in self._packer.pack_parts(message):
                self._outbox.append(part)
                self._outbox_bytes += len(part) + PART_OVERHEAD_BYTES
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def close(self, reason: str) -> None:
        """Send Leave with the reason, then close."""
        if self.reason is None and self._transport is not None:
            self._flush()
            # The rest of the outbox is dropped: a slow peer would delay the close.
            self._write([Leave(reason[:REASON_CHARS_MAX])])
            self._transport.close()
        self._mark_ended(reason)

    def abort(self, reason: str) -> None:
        """Close at once, without sending Leave."""
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
            # This is no violation: the peer may be upgraded and dial again.
            self.close(str(error))
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
        controls = [m for m in rest if isinstance(m, Hello | HelloOk | Leave)]
        if not controls:
            if rest:
                self._owner.on_messages(self, rest)
            return
        end = rest.index(controls[0])
        if end:
            self._owner.on_messages(self, rest[:end])
        match controls[0]:
            case Leave(reason):
                self._handle_leave(reason)
            case repeated:
                raise RemoteProtocolError(f"{type(repeated).__name__} came again")

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
        """Return True if the secret generation of the peer is still accepted.

        The secret may be renewed during the handshake.
        """
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
        """End the link for the peer's reason."""
        self.was_closed_by_peer = self.reason is None
        if self._transport is not None:
            self._transport.close()
        self._mark_ended(reason[:REASON_CHARS_MAX])

    def _restrict_messages(self) -> None:
        """Let only the messages pass that a visitor may send, or may get."""
        is_own_visit = is_visitor(self._trust.node_id)
        if self.visit_ends_ms is not None:
            self._outgoing = redacted_for_visitor
            self._receiver.restrict(
                FROM_VISITOR,
                hello_bytes=HELLO_BYTES_MAX,
                frame_bytes=FRAME_BYTES_MAX,
                bytes_per_s=BYTES_PER_S,
            )
        elif is_own_visit:
            self._outgoing = lambda m: m if may_pass(m, FROM_VISITOR) else None
            frame_bytes = self._limits.frame_bytes
            self._receiver.restrict(
                TO_VISITOR, hello_bytes=HELLO_BYTES_MAX, frame_bytes=frame_bytes
            )

    def _passing(
        self, messages: Iterable[Message | PackedMessage]
    ) -> list[Message | PackedMessage]:
        """Return what a peer gets of these messages; one packed for members, never."""
        assert self._outgoing is not None
        unpacked = (m for m in messages if not isinstance(m, PackedMessage))
        passing = map(self._outgoing, unpacked)
        return [message for message in passing if message is not None]

    def _write(self, messages: Sequence[Message]) -> None:
        """Send messages before those in the outbox."""
        if self._transport is not None:
            if self._outgoing is not None:
                passing = map(self._outgoing, messages)
                messages = [each for each in passing if each is not None]
            self._transport.write(wire.encode(messages))

    def _flush(self) -> None:
        self._is_flush_due = False
        transport = self._transport
        if transport is None or self.reason is not None:
            return
        while self._outbox and not self._is_paused:
            transport.write(wire.build_frame(self._next_parts()))

    def _next_parts(self) -> list[bytes]:
        """Remove packed messages for one frame: at least one, up to the soft limit."""
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
