"""The one door to zeroconf: opens mDNS on chosen addresses, says and hears records.

Owns the sockets on port 5353 and the quirks of the library. What the records mean is
decided in `discovery`.
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
CLOSE_S = 2.0  #: a goodbye takes a quarter of a second
RESOLVE_MS = 1500

# Its warnings show strangers' names as they came; what matters, we note ourselves.
logging.getLogger("zeroconf").setLevel(logging.CRITICAL)


class Mdns:
    """Sockets, one service and one browser; made by `open_mdns`."""

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
        """Register this node, or renew its records; the repeats take half a second.

        Two calls at once would let the repeats of the first undo the second.
        """
        info = AsyncServiceInfo(
            self._service,
            f"{node}.{self._service}",
            port=port,
            server=f"{node}.local.",
            parsed_addresses=list(hosts),
            properties=txt,
        )
        if self._is_registered:
            said = await self._zeroconf.async_update_service(info)
        else:
            # Instance names are random, so nobody has to be asked about ours.
            said = await self._zeroconf.async_register_service(
                info, cooperating_responders=True
            )
            self._is_registered = True
        with contextlib.suppress(ZeroconfError, OSError):
            await said

    def browse(self, on_change: Callable[[str, bool], None]) -> None:
        """Ask afresh; names in the cache are reported again.

        Args:
            on_change: Gets a service name, and whether its goodbye was heard.
        """
        self.stop_browsing()

        def changed(name: str, state_change: ServiceStateChange, **_: object) -> None:
            on_change(name, state_change is ServiceStateChange.Removed)

        self._browser = AsyncServiceBrowser(
            self._zeroconf.zeroconf,
            self._service,
            handlers=[changed],
            # A unicast answer reaches only one of several agents of one machine.
            question_type=DNSQuestionType.QM,
        )

    def stop_browsing(self) -> None:
        """Ask no more."""
        if self._browser is not None:
            # The public form does the same, but only as a coroutine.
            self._browser._async_cancel()  # noqa: SLF001
            self._browser = None

    def read_cached(self, node: NodeId) -> ServiceRecord | None:
        """Return what the cache says of a node, None where it lacks a record.

        Raises:
            MalformedAdvert: the records are not of the form that ours have.
        """
        info = self._info(node)
        if not info.load_from_cache(self._zeroconf.zeroconf):
            return None
        return _record_of(node, info)

    async def resolve_node(self, node: NodeId) -> ServiceRecord | None:
        """As `read_cached`, but ask for what the cache lacks, for 1.5 s at most.

        Raises:
            MalformedAdvert: the records are not of the form that ours have.
        """
        info = self._info(node)
        is_complete = False
        with contextlib.suppress(ZeroconfError, OSError):
            is_complete = await info.async_request(
                self._zeroconf.zeroconf, RESOLVE_MS, DNSQuestionType.QM
            )
        return _record_of(node, info) if is_complete else None

    async def rebind(self, local: Sequence[LocalAddress]) -> None:
        """Use these addresses from now on; those that fail are left out."""
        interfaces, version = _zeroconf_options(local)
        with contextlib.suppress(ZeroconfError, OSError):
            await self._zeroconf.async_update_interfaces(interfaces, version)

    async def close(self) -> None:
        """Say goodbye and close, within a bounded time."""
        self.stop_browsing()
        await _close(self._zeroconf)

    def _info(self, node: NodeId) -> AsyncServiceInfo:
        return AsyncServiceInfo(self._service, f"{node}.{self._service}")


async def open_mdns(
    local: Sequence[LocalAddress], *, is_guest: bool = False, service: str = SERVICE
) -> Mdns:
    """Open mDNS on these addresses, on IPv4 alone where the two do not go together.

    Args:
        local: Of this machine, one for each interface to use.
        is_guest: Ask from a port of our own. Answers come at once and to us alone,
            also where nodes have just announced themselves and so must not repeat it
            for a second; but announcements are not heard, and none can be made.
        service: What is announced and asked for.

    Raises:
        OSError: port 5353 cannot be had, or no interface takes part in multicast.
    """
    if not is_guest:
        require_shareable_port()
    interfaces, version = _zeroconf_options(local)
    try:
        zeroconf = AsyncZeroconf(
            interfaces=interfaces, ip_version=version, unicast=is_guest
        )
    except OSError:
        interfaces = [each for each in interfaces if isinstance(each, str)]
        zeroconf = AsyncZeroconf(
            interfaces=interfaces, ip_version=IPVersion.V4Only, unicast=is_guest
        )
    try:
        # Cancelled in there, it could never be closed.
        await asyncio.shield(zeroconf.zeroconf.async_wait_for_start(timeout=OPEN_S))
    except ZeroconfError as error:
        await _close(zeroconf)
        raise OSError(errno.ENODEV, "mDNS did not start") from error
    except asyncio.CancelledError:
        await _close(zeroconf)
        raise
    if not zeroconf.zeroconf.engine.senders:
        # Without this check it would be deaf and dumb and look healthy.
        await _close(zeroconf)
        raise OSError(errno.ENODEV, "no interface takes part in multicast")
    return Mdns(zeroconf, service)


def reachable_addresses(
    record: ServiceRecord, local: Sequence[LocalAddress]
) -> tuple[Address, ...]:
    """Return where on our networks a node says it is, in the order for dialling."""
    hosts = (dialable_address(host, local) for host in record.hosts)
    dialled = [Address(host, record.port) for host in hosts if host is not None]
    return dial_order(dialled, local)


def require_shareable_port() -> None:
    """Find out whether port 5353 can be shared; zeroconf would leak its sockets.

    Raises:
        OSError: another program has it for itself alone.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("", MDNS_PORT))


async def _close(zeroconf: AsyncZeroconf) -> None:
    with contextlib.suppress(TimeoutError, ZeroconfError, OSError):
        async with asyncio.timeout(CLOSE_S):
            await zeroconf.async_close()


def _zeroconf_options(
    local: Sequence[LocalAddress],
) -> tuple[list[str | int], IPVersion]:
    """Return what zeroconf is to use: an IPv4 address and the number per interface.

    Loopback is IPv4 only: its IPv6 side has no multicast.
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
