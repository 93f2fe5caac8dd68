"""Transport over TCP and TLS: listens, dials, and keeps one link per peer."""

from __future__ import annotations

import asyncio
import socket
import ssl
import traceback
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from octaskly.config.settings import LimitOptions
from octaskly.core.effects import LogLine
from octaskly.core.events import DialFailed, Event, PeerDown, PeerUp, Received
from octaskly.core.model.ids import Address, NodeId
from octaskly.core.model.keyring_state import REVOKED_REASON
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import (
    PROTOCOL_PREFIX,
    STOPPED_REASONS,
    STOPPING_REASON,
    UNNEEDED_REASON,
    Hello,
    Message,
    PackedMessage,
)
from octaskly.errors import LocalProtocolError
from octaskly.mesh.links.batched_reads import BatchedReads
from octaskly.mesh.links.duplicates import (
    DUPLICATE,
    DUPLICATE_ID,
    OWN_NODE,
    DuplicateLinks,
)
from octaskly.mesh.links.handshake_limits import (
    LOCAL_TIMEOUT_FACTOR,
    VIOLATION_REASON,
    DialLimiter,
    ViolationBackoff,
    build_handshake_limiter,
)
from octaskly.mesh.links.link import HANDSHAKE_TIMED_OUT, Link, LinkTls
from octaskly.mesh.links.receive import DiskProgress
from octaskly.mesh.links.tcp import connect, tune_socket
from octaskly.mesh.wire import MessagePacker
from octaskly.ports.store import Clock
from octaskly.system.accepting import BACKLOG, stop_accepting
from octaskly.system.pending_handshakes import (
    MemberAddresses,
    accept_within_limits,
)
from octaskly.system.tls_transport import open_tls

HANDSHAKE_S: Final = 15.0
"""Timeout from the TCP connection to HELLO_OK. It is long because many agents may start
at once on few cores: a handshake that times out is wasted work and is repeated."""
DIALS_WAITING_MAX: Final = 1024
VISIT_OVER_REASON: Final = "the certificate of this visitor has ended"
VISITOR_HANDSHAKES_MAX: Final = 2  #: of one visitor at a time
SHUTDOWN_S: Final = 1.0
LOGGED_MAX: Final = 1024

_DEFAULT_BOUNDS: Final = LimitOptions()

UNLOGGED_REASONS: Final = frozenset(
    {
        DUPLICATE,
        OWN_NODE,
        *STOPPED_REASONS,
        UNNEEDED_REASON,
        REVOKED_REASON,
        "eof",
        "reset",
        "timeout",
        "woke",
    }
)
"""Reasons of normal operation, which are not logged."""


class Transport:
    """Connected peers over TCP and TLS; at most one link each.

    Args:
        trust: Certificates of this mesh.
        limits: Bounds on frames and peers.
        clock: Time, and random numbers for events.
        hello: Returns this node's HELLO.
        on_event: Called with `PeerUp`, `Received`, `PeerDown` and `DialFailed`; for
            each peer `PeerUp` and `PeerDown` alternate.
        on_note: Called with lines for the log.
        on_duplicate: Called if another process uses this node's id and keeps it.
        on_violation: Called each time a peer breaks the protocol.
        handshake_s: Timeout from a TCP connection to HELLO_OK.
        outbox_bytes: Bytes that may be queued per peer; default: two frames.
        progress: Returns how far this node has written received entries to disk.
        bounds: Limits on pending handshakes.
        members: Addresses of peers; the transport adds to them.
    """

    def __init__(
        self,
        *,
        trust: LinkTls,
        limits: Limits,
        clock: Clock,
        hello: Callable[[], Hello],
        on_event: Callable[[Event], None],
        on_note: Callable[[LogLine], None],
        on_duplicate: Callable[[], None],
        on_violation: Callable[[], None] = lambda: None,
        handshake_s: float = HANDSHAKE_S,
        outbox_bytes: int | None = None,
        progress: DiskProgress = lambda: (0, 0),
        bounds: LimitOptions = _DEFAULT_BOUNDS,
        members: MemberAddresses | None = None,
    ) -> None:
        self._trust = trust
        self._own_id = trust.node_id
        self._limits = limits
        self._packer = MessagePacker(limits.frame_bytes)
        self._clock = clock
        self._hello = hello
        self._on_event = on_event
        self._on_note = on_note
        self._on_duplicate = on_duplicate
        self._on_violation = on_violation
        self._handshake_s = handshake_s
        self._outbox_bytes = outbox_bytes or 2 * limits.frame_bytes
        self._progress = progress
        self._server_context: ssl.SSLContext  #: once peers may dial
        self._reads: BatchedReads | None = None  #: None: not started, or closed
        self._duplicates = DuplicateLinks(
            self._own_id, limits.peers, clock, on_duplicate
        )
        self._links = self._duplicates.links
        self._closing: set[Link] = set()
        self._bounds = bounds
        self._members = MemberAddresses() if members is None else members
        self._handshake_limiter = build_handshake_limiter(bounds, self._members)
        self._violators = ViolationBackoff(clock)
        self._dial_keys: set[NodeId | Address] = set()
        self._dial_limiter = DialLimiter(self._members)
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._accepting: dict[socket.socket, asyncio.Task[None]] = {}
        self._logged: set[tuple[str, str]] = set()

    async def start(
        self, tasks: asyncio.TaskGroup, sockets: Sequence[socket.socket]
    ) -> None:
        """Accept peers on these bound sockets, and dial when asked.

        Args:
            tasks: Owns all tasks of the transport until `close`.
            sockets: Bound TCP sockets; they are closed with the transport.
        """
        self._group = tasks
        self._reads = BatchedReads()
        if sockets:
            self._server_context = self._trust.server_context()
            self.listen(sockets)

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Accept peers on these bound sockets, and on no others any more."""
        for listener in self._accepting.keys() - set(sockets):
            stop_accepting(self._accepting.pop(listener), listener)
        for listener in sockets:
            if listener not in self._accepting:
                listener.settimeout(0)
                listener.listen(BACKLOG)
                limiter = self._handshake_limiter
                task = self._spawn(
                    accept_within_limits(listener, limiter, self._on_admitted)
                )
                if task is not None:
                    self._accepting[listener] = task

    @property
    def link_count(self) -> int:
        """Number of connected peers."""
        return len(self._links)

    # The `Connections` port

    def send(self, peer: NodeId, messages: Sequence[Message | PackedMessage]) -> None:
        """Queue messages; end the link if its outbox is above its bound.

        Without a link this has no effect: `PeerDown` has already been sent.
        """
        link = self._links.get(peer)
        if link is None:
            return
        try:
            link.send(messages)
        except LocalProtocolError as error:
            self._on_note(
                LogLine(
                    "error", "message not sent", (("peer", peer), ("why", str(error)))
                )
            )

    def dial(self, node: NodeId | None, addresses: Sequence[Address]) -> None:
        """Start a dial, unless `node` is connected or being dialled."""
        key = addresses[0] if node is None else node
        if node in self._links or key in self._dial_keys or self._group is None:
            return
        if len(self._dial_keys) >= DIALS_WAITING_MAX:
            self._on_event(DialFailed(node, tuple(addresses), was_refused=False))
            return
        self._dial_keys.add(key)
        self._spawn(self._dial(node, tuple(addresses), key))

    def disconnect(self, peer: NodeId, reason: str) -> None:
        """Send Leave with the reason and close the link to a peer."""
        link = self._links.get(peer)
        if link is not None:
            self._logged.add((peer, reason))  # The caller has already logged it.
            link.close(reason)

    async def close(self) -> None:
        """Close the listeners, send Leave to all peers and close their links."""
        self._group = None
        running = tuple(self._tasks)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        for listener in self._accepting:
            listener.close()
        for link in (*self._links.values(), *self._duplicates.handshaking):
            link.close(STOPPING_REASON)
        with suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):
                for link in tuple(self._closing):
                    await link.closed.wait()
        for link in tuple(self._closing):
            link.abort(STOPPING_REASON)
        reads, self._reads = self._reads, None
        if reads is not None:
            reads.close()

    # Callbacks of links; see `LinkOwner`

    def on_open(self, link: Link) -> str | None:
        """Return why a link is unwanted, or None."""
        if self._violators.is_refused(link.peer):
            return VIOLATION_REASON
        if link.visit_ends_ms is not None:
            if link.visit_ends_ms <= self._clock.now().wall_ms:
                return VISIT_OVER_REASON
            if self._duplicates.count_handshakes(link.peer) >= VISITOR_HANDSHAKES_MAX:
                return VIOLATION_REASON
        return self._duplicates.on_open(link)

    def on_hello(self, link: Link) -> str | None:
        """Return why a peer is refused, or None to accept it."""
        return self._duplicates.on_hello(link)

    def on_connected(self, link: Link) -> None:
        """Close the previous link to the peer, if any, and report `PeerUp`."""
        assert link.peer_hello is not None
        assert link.own_hello is not None
        before = self._links.get(link.peer)
        if before is not None:
            before.close(DUPLICATE)
        self._duplicates.on_connected(link)
        self._logged = {
            (who, reason)
            for who, reason in self._logged
            if who != link.peer or reason.startswith(PROTOCOL_PREFIX)
        }
        port = link.peer_hello.node.peer_port
        assert link.remote is not None
        if link.visit_ends_ms is None:
            self._members.record(link.remote.host)
        address = link.dialled or Address(link.remote.host, port)
        draw, took_ms = self._clock.draw(), round(link.age_s * 1000)
        self._on_event(
            PeerUp(
                link.peer,
                link.own_hello,
                link.peer_hello,
                address,
                draw,
                took_ms,
                link.visit_ends_ms,
                link.invited_by,
            )
        )

    def on_messages(self, link: Link, messages: Sequence[Message]) -> None:
        """Report `Received`."""
        self._duplicates.record_heard(link.peer)
        self._on_event(Received(link.peer, tuple(messages), self._clock.draw()))

    def on_ended(self, link: Link) -> None:
        """Report `PeerDown` if the link was connected, and log unusual reasons."""
        assert link.reason is not None
        was_connected = self._duplicates.on_ended(link)
        if link.is_open:
            self._closing.add(link)
        if (
            link.reason.startswith(PROTOCOL_PREFIX)
            and link.peer
            and not link.was_closed_by_peer
        ):
            self._violators.add(link.peer)
        if link.has_peer_violated:
            self._on_violation()
        if link.reason not in UNLOGGED_REASONS:
            self._warn_once(link, link.reason)
        is_told = link.was_closed_by_peer and link.visit_ends_ms is None
        if link.reason == DUPLICATE_ID and is_told:  # By a member.
            self._on_duplicate()
        if was_connected:
            self._on_event(PeerDown(link.peer, link.reason, self._clock.draw()))

    def on_closed(self, link: Link) -> None:
        """Remove a link whose connection is closed."""
        self._closing.discard(link)

    # Listening

    def _on_admitted(self, connection: socket.socket, _host: str) -> None:
        tune_socket(connection)
        self._spawn(self._run_handshake(connection))

    async def _run_handshake(self, connection: socket.socket) -> None:
        """Run the TLS and HELLO handshakes of an accepted connection, or close it.

        After the TLS handshake the peer is a member, so the connection no longer counts
        as a pending handshake.
        """
        link, limiter, admitted = (
            self._new_link(None),
            self._handshake_limiter,
            connection,
        )
        factor = LOCAL_TIMEOUT_FACTOR if limiter.is_local(connection) else 1
        certificate_s = self._bounds.handshake_s * factor

        def on_wrapped(tls: socket.socket) -> None:
            nonlocal admitted
            limiter.replace(admitted, tls)
            admitted = tls

        try:
            async with asyncio.timeout(self._handshake_s):
                is_finished = False
                try:
                    async with asyncio.timeout(certificate_s):
                        await open_tls(
                            connection,
                            self._server_context,
                            link,
                            server_hostname=None,
                            reads=self._reads,
                            on_wrapped=on_wrapped,
                        )
                    is_finished = True
                finally:
                    limiter.release(admitted, is_finished=is_finished)
                await link.handshake_over.wait()
        except OSError as error:
            link.abort(_handshake_failure(error))
            _clear_error_frames(error)

    # Dialling

    async def _dial(
        self,
        node: NodeId | None,
        addresses: tuple[Address, ...],
        key: NodeId | Address,
    ) -> None:
        refused = 0
        try:
            for address in addresses:
                try:
                    async with self._dial_limiter.limit_dial(address.host):
                        link = await self._dial_address(address)
                except ConnectionRefusedError:
                    refused += 1
                    continue
                if link is not None and node in (None, link.peer):
                    return
                if node in self._links:
                    return
        finally:
            self._dial_keys.discard(key)
        self._on_event(DialFailed(node, addresses, refused == len(addresses)))

    async def _dial_address(self, address: Address) -> Link | None:
        """Return the link if the peer is connected by it or by another link.

        Older secret generations are tried, too: a peer that was away during a renewal
        knows only an older one.

        Raises:
            ConnectionRefusedError: No process listens there.
        """
        for context in self._trust.client_contexts():
            link = await self._try_dial(address, context)
            if link is None or link.is_connected or link.reason == DUPLICATE:
                return link
            if not link.was_closed_before_hello:
                break
        return None

    async def _try_dial(self, address: Address, context: ssl.SSLContext) -> Link | None:
        """Return the link once it is connected or ended; None if TCP fails.

        Raises:
            ConnectionRefusedError: No process listens there.
        """
        link = self._new_link(address)
        try:
            connection = await connect(address)
        except ConnectionRefusedError:
            raise
        except OSError:
            return None
        try:
            async with asyncio.timeout(self._handshake_s):
                await open_tls(
                    connection,
                    context,
                    link,
                    server_hostname=self._trust.server_name,
                    reads=self._reads,
                )
                await link.handshake_over.wait()
        except OSError as error:
            link.abort(_handshake_failure(error))
            _clear_error_frames(error)
        return link

    def _new_link(self, dialled: Address | None) -> Link:
        return Link(
            self,
            self._trust,
            self._limits,
            self._packer,
            self._hello,
            dialled=dialled,
            outbox_bytes=self._outbox_bytes,
            progress=self._progress,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        if self._group is None:
            work.close()
            return None  # Closed in the meantime.
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _warn_once(self, link: Link, reason: str) -> None:
        """Log why a link ended; repeat the same reason only after the peer connects.

        `on_connected` keeps protocol violations: connecting again does not fix them.
        """
        address = link.dialled or link.remote
        host = address.host if address else ""
        who = link.peer or host
        if (who, reason) in self._logged:
            return
        if len(self._logged) >= LOGGED_MAX:
            self._logged.clear()
        self._logged.add((who, reason))
        fields = (("peer", link.peer), ("address", host), ("reason", reason))
        known = tuple((name, value) for name, value in fields if value)
        self._on_note(LogLine("warning", "link to peer refused", known))


def _handshake_failure(error: OSError) -> str:
    """Return why a handshake failed, for the log."""
    match error:
        case ssl.SSLCertVerificationError():
            return "peer is not of our mesh"
        case ssl.SSLError():
            return "peer shows no certificate, or speaks no TLS 1.3"
        case TimeoutError() | ConnectionAbortedError():
            return HANDSHAKE_TIMED_OUT
        case _:
            return "reset"


def _clear_error_frames(error: BaseException) -> None:
    """Drop the local variables in the tracebacks of an error and its contexts.

    An error whose frames refer to it is a reference cycle. asyncio makes one for each
    failed TLS handshake, so its buffers would stay until the next full collection.
    Frames that still run keep their variables.
    """
    seen = set[int]()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        traceback.clear_frames(current.__traceback__)
        current = current.__context__
