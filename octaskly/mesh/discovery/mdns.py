"""mDNS over zeroconf: opens the sockets, announces, browses and reads records.

This is the only module that imports zeroconf. `discovery` interprets the records.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Sequence

from zeroconf import DNSQuestionType, IPVersion, ServiceStateChange
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from octaskly.core.model.ids import Address, NodeId
from octaskly.mesh.discovery.adverts import SERVICE, ServiceRecord, parse_service_record
from octaskly.mesh.discovery.interfaces import (
    ADDRESSES_MAX,
    LocalAddress,
    dial_order,
    dialable_address,
)

MDNS_PORT = 5353
OPEN_S = 2.0
CLOSE_S = 2.0
GOODBYE_GAP_S = 0.02  #: the goodbye is sent twice, as one may be lost
RESOLVE_MS = 1500

# Its warnings contain unescaped names from the network. `discovery` logs its own.
logging.getLogger("zeroconf").setLevel(logging.CRITICAL)


class Mdns:
    """mDNS sockets with one service and one browser; created by `open_mdns`."""

    def __init__(self, zeroconf: AsyncZeroconf, service: str) -> None:
        self._zeroconf = zeroconf
        self._service = service
        self._browser: AsyncServiceBrowser | None = None
        self._is_registered = False

    async def announce(
        self,
        node: NodeId,
        *,
        port: int,
        hosts: Sequence[str],
        txt: dict[str, str | bytes | None],
    ) -> None:
        """Register this node or update its records; the repeats take half a second.

        Do not make concurrent calls: the repeats of the first would undo the second.
        """
        info = AsyncServiceInfo(
            self._service,
            f"{node}.{self._service}",
            port=port,
            server=f"{node}.local.",
            parsed_addresses=list(hosts),
            properties=txt,
        )
        with contextlib.suppress(ZeroconfError, OSError):
            if self._is_registered:
                announced = await self._zeroconf.async_update_service(info)
            else:
                # Instance names are random, so a probe for conflicts is not needed.
                announced = await self._zeroconf.async_register_service(
                    info, cooperating_responders=True
                )
                self._is_registered = True
            await announced

    def browse(self, on_change: Callable[[str, bool], None]) -> None:
        """Start a new browser, which also reports the names in the cache again.

        Args:
            on_change: Called with a service name, and True if the service has left.
        """
        self.stop_browsing()

        def changed(name: str, state_change: ServiceStateChange, **_: object) -> None:
            on_change(name, state_change is ServiceStateChange.Removed)

        self._browser = AsyncServiceBrowser(
            self._zeroconf.zeroconf,
            self._service,
            handlers=[changed],
            # A unicast answer reaches only one of several agents on one machine.
            question_type=DNSQuestionType.QM,
        )

    def stop_browsing(self) -> None:
        """Stop the browser."""
        if self._browser is not None:
            # The public `async_cancel` does the same, but is a coroutine.
            self._browser._async_cancel()  # noqa: SLF001
            self._browser = None

    def read_cached(self, node: NodeId) -> ServiceRecord | None:
        """Return the cached records of a node, or None if one is missing.

        Raises:
            MalformedAdvert: The records are malformed.
        """
        info = self._info(node)
        if not info.load_from_cache(self._zeroconf.zeroconf):
            return None
        return _record_of(node, info)

    async def resolve_node(self, node: NodeId) -> ServiceRecord | None:
        """Return the records of a node; query missing ones for at most 1.5 s.

        Raises:
            MalformedAdvert: The records are malformed.
        """
        info = self._info(node)
        is_complete = False
        with contextlib.suppress(ZeroconfError, OSError):
            is_complete = await info.async_request(
                self._zeroconf.zeroconf, RESOLVE_MS, DNSQuestionType.QM
            )
        return _record_of(node, info) if is_complete else None

    async def close(self, *, has_goodbye: bool = True) -> None:
        """Send the goodbye and close the sockets, within `CLOSE_S`.

        zeroconf would send it for a quarter of a second, which every agent would take
        longer to stop. It is a hint: peers see the end of this node by their links.

        Args:
            has_goodbye: False: others may still dial this node.
        """
        self.stop_browsing()
        zeroconf = self._zeroconf.zeroconf
        goodbye = zeroconf.generate_unregister_all_services()
        if goodbye is not None and has_goodbye:
            with contextlib.suppress(ZeroconfError, OSError):
                zeroconf.async_send(goodbye)
                await asyncio.sleep(GOODBYE_GAP_S)
                zeroconf.async_send(goodbye)
        await _close(self._zeroconf)

    def _info(self, node: NodeId) -> AsyncServiceInfo:
        return AsyncServiceInfo(self._service, f"{node}.{self._service}")


async def open_mdns(
    local: Sequence[LocalAddress], *, is_guest: bool = False, service: str = SERVICE
) -> Mdns:
    """Open mDNS on these addresses; fall back to IPv4 alone if IPv6 fails.

    Args:
        local: The addresses of this machine to use.
        is_guest: Query from an ephemeral port. Answers are unicast and come at once.
            Over multicast, a node may not answer within a second of its announcement.
            Announcements cannot be received or sent.
        service: The service to announce and to query.

    Raises:
        OSError: Port 5353 is not available, or no interface supports multicast.
    """
    if not is_guest:
        require_shareable_port()
    interfaces, version = _zeroconf_options(local)
    try:
        zeroconf = AsyncZeroconf(
            interfaces=interfaces, ip_version=version, unicast=is_guest
        )
    except (OSError, RuntimeError):  # RuntimeError: an IPv6 interface is gone.
        interfaces = [each for each in interfaces if isinstance(each, str)]
        zeroconf = AsyncZeroconf(
            interfaces=interfaces, ip_version=IPVersion.V4Only, unicast=is_guest
        )
    try:
        # If the start itself were cancelled, zeroconf could not be closed.
        has_started = await asyncio.shield(_has_started(zeroconf))
    except asyncio.CancelledError:
        await _close(zeroconf)
        raise
    if not has_started:
        await _close(zeroconf)
        raise OSError(errno.ENODEV, "mDNS did not start")
    if not zeroconf.zeroconf.engine.senders:
        # Without this check, mDNS would start, but neither send nor receive.
        await _close(zeroconf)
        raise OSError(errno.ENODEV, "no interface takes part in multicast")
    return Mdns(zeroconf, service)


def reachable_addresses(
    record: ServiceRecord, local: Sequence[LocalAddress]
) -> tuple[Address, ...]:
    """Return the advertised addresses on our own networks, in dial order."""
    hosts = (dialable_address(host, local) for host in record.hosts)
    dialled = [Address(host, record.port) for host in hosts if host is not None]
    return dial_order(dialled, local)


def require_shareable_port() -> None:
    """Check that port 5353 can be shared: zeroconf leaks sockets if it cannot.

    Raises:
        OSError: Another program has bound the port exclusively.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("", MDNS_PORT))


async def _has_started(zeroconf: AsyncZeroconf) -> bool:
    """Wait for the start; return False if it failed, or was ended by a close."""
    try:
        await zeroconf.zeroconf.async_wait_for_start(timeout=OPEN_S)
    except ZeroconfError:
        return False
    return True


async def _close(zeroconf: AsyncZeroconf) -> None:
    with contextlib.suppress(TimeoutError, ZeroconfError, OSError):
        async with asyncio.timeout(CLOSE_S):
            await zeroconf.async_close()


def _zeroconf_options(
    local: Sequence[LocalAddress],
) -> tuple[list[str | int], IPVersion]:
    """Return zeroconf's arguments: an IPv4 address and an index per interface.

    Loopback uses IPv4 only: it has no IPv6 multicast.
    """
    first: dict[str, str] = {}
    scopes: dict[int, None] = {}
    for one in local:
        if ":" not in one.host:
            first.setdefault(one.interface, one.host)
        elif not one.network.is_loopback:
            scopes[one.scope] = None
    version = IPVersion.All if scopes else IPVersion.V4Only
    return [*first.values(), *scopes], version


def _record_of(node: NodeId, info: AsyncServiceInfo) -> ServiceRecord:
    return parse_service_record(
        node,
        txt_bytes=len(info.text),
        txt=info.properties,
        port=info.port,
        hosts=info.parsed_scoped_addresses()[:ADDRESSES_MAX],
    )
