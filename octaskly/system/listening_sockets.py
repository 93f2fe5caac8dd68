"""Listening sockets of the agent; two agents never share a port."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence

from octaskly.config.defaults import API_PORT, LAN_PORT, LOOPBACK, PEER_PORT
from octaskly.config.settings import AgentOptions
from octaskly.errors import ConfigError
from octaskly.system.log import Logger
from octaskly.system.machine_stats import process_on_port

WILDCARD_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104  peers are authenticated by TLS

NEXT_PORT_TRIES = 100  #: ports to try, from the default port on
ANY_PORT_TRIES = 20  #: for port 0: a random port must be free on every address


def bind_port(
    flag: str,
    *,
    requested: int | None,
    default: int,
    addresses: Sequence[str],
    process_on: Callable[[int], str | None],
) -> list[socket.socket]:
    """Return one bound TCP socket per address, all with one port.

    Args:
        flag: The command-line flag of this port, for errors.
        requested: The requested port, 0 for any; None: the default or the next free
            one.
        default: The first port to try if none is requested.
        addresses: IP addresses; IPv6 addresses that this machine lacks are skipped.
        process_on: Returns the name of the process that listens on a port, if known.

    Raises:
        ConfigError: The requested port is taken, or no port could be bound.
    """
    if requested is None:
        candidates = range(default, default + NEXT_PORT_TRIES)
    else:
        candidates = range(requested, requested + 1)
    if requested == 0:
        return _bind_ephemeral(flag, addresses)
    for port in candidates:
        sockets = _bind_all(flag, addresses, port)
        if sockets:
            return sockets
    if requested is not None:
        by = process_on(requested)
        raise ConfigError(
            f"port {requested} is taken" + (f" by {by}" if by else ""),
            hint=f"octaskly agent {flag} 0 takes any free port",
            field=flag,
        )
    raise ConfigError(
        f"no free port from {default} to {default + NEXT_PORT_TRIES - 1}", field=flag
    )


def bind_ports(
    options: AgentOptions, lan: Sequence[str], log: Logger
) -> list[list[socket.socket]]:
    """Return the sockets of the local API, of the peer port and of the LAN API.

    Raises:
        ConfigError: As `bind_port`.
    """
    wanted: tuple[tuple[str, int | None, int, Sequence[str]], ...] = (
        ("--api-port", options.api_port, API_PORT, LOOPBACK),
        ("--peer-port", options.peer_port, PEER_PORT, lan),
        ("--lan-port", options.lan_port, LAN_PORT, lan),
    )
    bound: list[list[socket.socket]] = []
    for flag, requested, default, addresses in wanted:
        sockets = bind_port(
            flag,
            requested=requested,
            default=default,
            addresses=addresses,
            process_on=process_on_port,
        )
        if requested is None and port_of(sockets) != default:
            log.warning(
                "port taken",
                port=default,
                holder=process_on_port(default) or "another process",
                using=port_of(sockets),
            )
        bound.append(sockets)
    return bound


def port_of(sockets: Sequence[socket.socket]) -> int:
    """Return the port that these sockets share."""
    port: int = sockets[0].getsockname()[1]
    return port


def _bind_ephemeral(flag: str, addresses: Sequence[str]) -> list[socket.socket]:
    for _ in range(ANY_PORT_TRIES):
        first = _bind_one(addresses[0], 0)
        port = port_of([first])
        rest = _bind_all(flag, addresses[1:], port) if addresses[1:] else []
        if rest is not None:
            return [first, *rest]
        first.close()
    raise ConfigError("no port is free on every address", field=flag)


def _bind_all(
    flag: str, addresses: Sequence[str], port: int
) -> list[socket.socket] | None:
    """Bind every address; return None if the port is taken on one of them."""
    sockets: list[socket.socket] = []
    for address in addresses:
        try:
            sockets.append(_bind_one(address, port))
        except OSError as error:
            if ":" in address and error.errno in (
                errno.EADDRNOTAVAIL,
                errno.EAFNOSUPPORT,
            ):
                continue  # IPv6 is disabled on this machine.
            for bound in sockets:
                bound.close()
            if error.errno == errno.EADDRINUSE:
                return None
            raise ConfigError(
                f"cannot bind {address} port {port}: {error.strerror}", field=flag
            ) from error
    return sockets


def _bind_one(address: str, port: int) -> socket.socket:
    family, kind, _, _, target = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    bound = socket.socket(family, kind)
    try:
        # Allow a restart right after the old listener has closed. A port with a live
        # listener still cannot be bound.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setblocking(False)  # noqa: FBT003  no keyword there
        bound.bind(target)
        # Only a listening socket reserves the port: others set SO_REUSEADDR, too.
        bound.listen(512)
    except OSError:
        bound.close()
        raise
    return bound
