"""Network interfaces: the addresses to listen on, to advertise and to dial.

By default, loopback, container bridges and point-to-point links are excluded. This
module opens no sockets. Listing reads `/sys` and blocks for about a millisecond;
selection is pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import ifaddr

from octaskly.core.model.ids import Address
from octaskly.errors import ConfigError

ADDRESSES_MAX = 16  #: addresses advertised by a machine, or kept for a peer

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_V4 = 4
_PAIR = 2  #: addresses of a /31, which has no broadcast address

_CONTAINER_NAME = re.compile(
    r"(docker|br-[0-9a-f]{12}|veth|cni|virbr|lxc|lxd|podman|flannel|cali|kube-|nerdctl)"
)
_LINK_NAME = re.compile(r"(tun|tap|wg|ppp|tailscale|zt|utun|sit|gre|ipip|nebula)\d*")
_SYS = Path("/sys/class/net")
_IFF_UP, _IFF_LOOPBACK, _IFF_POINTOPOINT = 0x1, 0x8, 0x10


class InterfaceKind(StrEnum):
    """The kind of an interface; by default, only `LAN` is used."""

    LAN = "lan"
    LOOPBACK = "loopback"
    CONTAINER = "container bridge"
    POINT_TO_POINT = "point-to-point"
    DOWN = "down"


class LocalAddress(NamedTuple):
    """One address of this machine."""

    host: str  #: IPv6 link-local addresses include the interface: `fe80::1%eth0`
    prefix: int  #: length of the network prefix in bits
    interface: str
    scope: int  #: index of the interface, for IPv6

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """The network that this address reaches without a router."""
        return _network(self.host.partition("%")[0], self.prefix)

    @property
    def is_link_local(self) -> bool:
        """Return True if the address is valid on its own link only."""
        return ipaddress.ip_address(self.host).is_link_local

    @property
    def is_scoped(self) -> bool:
        """Return True if dialling the address requires the interface name."""
        return "%" in self.host


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface that has addresses."""

    name: str
    kind: InterfaceKind
    addresses: tuple[LocalAddress, ...]


def list_interfaces() -> tuple[Interface, ...]:
    """Return the interfaces of this machine that have an address.

    Blocks for about a millisecond.
    """
    found = []
    for adapter in ifaddr.get_adapters():
        name = str(adapter.name).partition(":")[0]
        index = adapter.index or 0
        addresses = tuple(_local_address(ip, name, index) for ip in adapter.ips)
        if addresses:
            found.append(Interface(name, _classify_interface(name, _SYS), addresses))
    return tuple(found)


def select_addresses(
    interfaces: Iterable[Interface],
    names: Sequence[str] = (),
    *,
    must_exist: bool = True,
) -> tuple[LocalAddress, ...]:
    """Return the addresses to listen on and to advertise, best first.

    The order is IPv4, global IPv6, link-local IPv6. A machine with no interface but
    loopback uses loopback, so that agents on it still find each other.

    Args:
        interfaces: The result of `list_interfaces`.
        names: Use exactly these interfaces, of any kind; empty: use the default choice.
        must_exist: Reject unknown names. Pass False after start-up: an interface may
            disappear when a cable is unplugged.

    Raises:
        ConfigError: A name is unknown; the hint lists the known names.
    """
    interfaces = tuple(interfaces)
    if names:
        known = {interface.name for interface in interfaces}
        unknown = [name for name in names if name not in known]
        if unknown and must_exist:
            raise ConfigError(
                f"no interface named {unknown[0]} has an address on this machine",
                hint="--interface takes one of: " + ", ".join(sorted(known)),
                field="interface",
            )
        chosen = [each for each in interfaces if each.name in names]
    else:
        chosen = [each for each in interfaces if each.kind is InterfaceKind.LAN]
        chosen = chosen or [
            each for each in interfaces if each.kind is InterfaceKind.LOOPBACK
        ]
    listed = dict.fromkeys(one for each in chosen for one in each.addresses)
    return tuple(sorted(listed, key=_preference)[:ADDRESSES_MAX])


def local_addresses(
    names: Sequence[str] = (), *, must_exist: bool = True
) -> tuple[LocalAddress, ...]:
    """Apply `select_addresses` to `list_interfaces`; blocks for about 1 ms."""
    return select_addresses(list_interfaces(), names, must_exist=must_exist)


def dialable_address(host: str, local: Sequence[LocalAddress]) -> str | None:
    """Return the address to dial for an advertised one, or None to ignore it.

    A forged advert may contain a victim's address. Only addresses on a directly
    connected network are therefore accepted. A link-local address without a scope gets
    one if only one interface is possible.
    """
    bare, _, scope = host.partition("%")
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        return None
    if ip.is_multicast or ip.is_unspecified:
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_link_local:
        return _scoped(ip, scope, local)
    nets = (one.network for one in local if not one.is_scoped)
    return bare if any(_is_host_of(ip, net) for net in nets) else None


def dial_order(
    addresses: Iterable[Address], local: Sequence[LocalAddress]
) -> tuple[Address, ...]:
    """Return a peer's addresses in the order in which to try them.

    Directly connected networks come first, then routed addresses, then link-local ones.
    Within each group the given order is kept, because the caller starts with addresses
    that have worked.
    """
    unique = dict.fromkeys(addresses)

    def rank(address: Address) -> int:
        bare = address.host.partition("%")[0]
        try:
            if ipaddress.ip_address(bare).is_link_local:
                return 2
        except ValueError:
            return 1  # The host is a name from --join.
        return 0 if dialable_address(address.host, local) else 1

    return tuple(sorted(unique, key=rank))


@lru_cache(64)  # Every advert is compared with the few networks of this machine.
def _network(bare: str, prefix: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(f"{bare}/{prefix}", strict=False)


def _is_host_of(ip: _IP, net: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    """Return True if `ip` is in this network and is not its broadcast address."""
    if ip.version != net.version or ip not in net:
        return False
    has_broadcast = ip.version == _V4 and net.num_addresses > _PAIR
    return not (has_broadcast and ip == net.broadcast_address)


def _scoped(
    ip: ipaddress.IPv6Address, scope: str, local: Sequence[LocalAddress]
) -> str | None:
    """Return a link-local address with its interface, or None if that is ambiguous.

    All of fe80::/10 is link-local, but packets for addresses outside the link's own
    network (/64) go to its router. Those addresses are rejected.
    """
    scoped = (one for one in local if one.is_scoped and _is_host_of(ip, one.network))
    near = {one.interface: one.scope for one in scoped}
    if not scope and len(near) == 1:
        return f"{ip}%{next(iter(near))}"
    for name, number in near.items():
        if scope in (name, str(number)):
            return f"{ip}%{name}"
    return None


def _preference(one: LocalAddress) -> tuple[int, int]:
    """Sort key: IPv4 first, link-local last."""
    return (one.is_link_local, ":" in one.host)


def _local_address(ip: ifaddr.IP, interface: str, index: int) -> LocalAddress:
    """Convert one address of an adapter."""
    host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
    parsed: _IP = ipaddress.ip_address(host)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.is_link_local:
        host = f"{host}%{interface}"
    return LocalAddress(host, int(ip.network_prefix), interface, index)


def _classify_interface(name: str, sys: Path) -> InterfaceKind:
    """Classify an interface by `/sys` if it is readable, else by its name."""
    flags = _flags(sys / name / "flags")
    if (name == "lo") if flags is None else flags & _IFF_LOOPBACK:
        return InterfaceKind.LOOPBACK
    if flags is not None and not flags & _IFF_UP:
        return InterfaceKind.DOWN
    if _is_point_to_point(name, flags, sys):
        return InterfaceKind.POINT_TO_POINT
    if _CONTAINER_NAME.match(name) or _is_portless_bridge(name, sys):
        return InterfaceKind.CONTAINER
    return InterfaceKind.LAN


def _is_point_to_point(name: str, flags: int | None, sys: Path) -> bool:
    """Return True if the interface is a tunnel or another point-to-point link."""
    if flags is not None and flags & _IFF_POINTOPOINT:
        return True
    return (sys / name / "tun_flags").exists() or bool(_LINK_NAME.fullmatch(name))


def _is_portless_bridge(name: str, sys: Path) -> bool:
    """Return True if the interface is a bridge without a hardware port.

    A bridge without one connects containers only. The LAN of a virtualisation host is a
    bridge, too, but one of its ports is a network card.
    """
    if not (sys / name / "bridge").is_dir():
        return False
    ports = (sys / name / "brif").glob("*")
    return not any((sys / port.name / "device").exists() for port in ports)


def _flags(path: Path) -> int | None:
    """Return the flags of an interface, or None if they cannot be read."""
    try:
        return int(path.read_text(encoding="ascii").strip(), 16)
    except (OSError, ValueError):
        return None
