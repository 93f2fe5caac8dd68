"""Listening sockets of the agent; two agents never share a port."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from octaskly.config.defaults import API_PORT, LAN_PORT, LOOPBACK, PEER_PORT
from octaskly.config.settings import AgentOptions
from octaskly.config.users import user_name
from octaskly.errors import ConfigError
from octaskly.system.log import Logger
from octaskly.system.machine_stats import process_on_port
from octaskly.system.tcp_table import listeners_on

WILDCARD_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104  peers are authenticated by TLS

NEXT_PORT_TRIES = 100  #: ports to try, from the default port on
ANY_PORT_TRIES = 20  #: for port 0: a random port must be free on every address
FIRST_INHERITED_FD: Final = 3  #: SD_LISTEN_FDS_START of sd_listen_fds(3)


@dataclass(frozen=True, slots=True)
class LoopbackPort:
    """The port of the local API, held for the lifetime of the process.

    Plain HTTP does not prove who answers. The agent therefore never replaces a port
    that another user holds: programs would go on sending tokens to that user.
    """

    sockets: tuple[socket.socket, ...] = ()
    port: int | None = None  #: None: another user holds `taken_port`
    taken_port: int | None = None
    holder: str = ""  #: who holds `taken_port`

    @property
    def warnings(self) -> tuple[str, ...]:
        """Public text about a missing port."""
        if self.port is not None:
            return ()
        where = f"this machine's port {self.taken_port}"
        return (f"the API is not on {where}: another user holds it",)

    def listeners(self) -> list[socket.socket]:
        """Return duplicates of the sockets; the caller closes them."""
        return [each.dup() for each in self.sockets]

    def close(self) -> None:
        """Close the sockets."""
        for each in self.sockets:
            each.close()


def open_loopback_port(
    requested: int | None, inherited: Sequence[socket.socket], log: Logger
) -> LoopbackPort:
    """Return the port of the local API.

    Args:
        requested: The requested port, 0 for any, None for the default one.
        inherited: Listening sockets from systemd; they take precedence.
        log: Receives a warning if the default port is taken.

    Raises:
        ConfigError: The requested port is taken or contradicts the inherited sockets.
    """
    if inherited:
        return _use_inherited(requested, inherited, log)
    if requested is not None:
        sockets = bind_port(
            "--api-port", requested=requested, default=API_PORT, addresses=LOOPBACK
        )
        return LoopbackPort(tuple(sockets), port_of(sockets))
    for port in range(API_PORT, API_PORT + NEXT_PORT_TRIES):
        found = _bind_all("--api-port", LOOPBACK, port)
        if found and port != API_PORT:
            _log_taken_port(log, API_PORT, using=port)
        if found:
            return LoopbackPort(tuple(found), port)
        if not is_held_by_own_user(port):
            return _without_port(port, log)
    raise _no_free_port("--api-port", API_PORT)


def take_inherited_sockets(
    environ: MutableMapping[str, str],
) -> tuple[socket.socket, ...]:
    """Return the listening sockets that systemd passes to this process.

    The variables are removed, because tasks must not find them. Source:
    sd_listen_fds(3).

    Raises:
        ConfigError: One of them is not a listening TCP socket on loopback.
    """
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return ()
    descriptors = range(FIRST_INHERITED_FD, FIRST_INHERITED_FD + int(count))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # noqa: FBT003  no keyword there
    return tuple(map(_loopback_listener, descriptors))


def describe_holder(port: int) -> str:
    """Return the process and user that listen on a port; less if they are hidden."""
    users = sorted({each.uid for each in listeners_on(port)})
    user = " and ".join(f"user {user_name(uid)}" for uid in users)
    process = process_on_port(port)
    if process and user:
        return f"{process} of {user}"
    return process or user or "another process"


def is_held_by_own_user(port: int) -> bool:
    """Return True if the user of this process alone listens on the port.

    A socket that is bound and does not listen has no entry, so its user is unknown.
    """
    uids = {
        each.uid
        for each in listeners_on(port)
        if any(each.accepts(address) for address in LOOPBACK)
    }
    return uids == {os.geteuid()}


def bind_port(
    flag: str, *, requested: int | None, default: int, addresses: Sequence[str]
) -> list[socket.socket]:
    """Return one bound TCP socket per address, all with one port.

    Args:
        flag: The command-line flag of this port, for errors.
        requested: The requested port, 0 for any; None: the default or the next free
            one.
        default: The first port to try if none is requested.
        addresses: IP addresses; IPv6 addresses that this machine lacks are skipped.

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
        raise ConfigError(
            f"port {requested} is taken by {describe_holder(requested)}",
            hint=f"octaskly agent {flag} 0 takes any free port",
            field=flag,
        )
    raise _no_free_port(flag, default)


def move_port(
    bound: Sequence[socket.socket], port: int, addresses: Sequence[str]
) -> list[socket.socket]:
    """Return sockets of a port at these addresses; those of `bound` are used again.

    An address that cannot be bound is left out: it may have gone since.
    """
    known = {each.getsockname(): each for each in bound}
    moved = []
    for address in addresses:
        with contextlib.suppress(OSError):
            target = _socket_address(address, port)[4]
            moved.append(known.get(target) or _bind_one(address, port))
    return moved


def bind_ports(
    options: AgentOptions, lan: Sequence[str], log: Logger
) -> list[list[socket.socket]]:
    """Return the sockets of the peer port and of the LAN API.

    Raises:
        ConfigError: As `bind_port`.
    """
    wanted = (
        ("--peer-port", options.peer_port, PEER_PORT),
        ("--lan-port", options.lan_port, LAN_PORT),
    )
    bound: list[list[socket.socket]] = []
    for flag, requested, default in wanted:
        sockets = bind_port(flag, requested=requested, default=default, addresses=lan)
        if requested is None and port_of(sockets) != default:
            _log_taken_port(log, default, using=port_of(sockets))
        bound.append(sockets)
    return bound


def port_of(sockets: Sequence[socket.socket]) -> int:
    """Return the port that these sockets share."""
    port: int = sockets[0].getsockname()[1]
    return port


def _log_taken_port(log: Logger, port: int, *, using: int) -> None:
    log.warning("port taken", port=port, holder=describe_holder(port), using=using)


def _no_free_port(flag: str, default: int) -> ConfigError:
    return ConfigError(
        f"no free port from {default} to {default + NEXT_PORT_TRIES - 1}", field=flag
    )


def _use_inherited(
    requested: int | None, inherited: Sequence[socket.socket], log: Logger
) -> LoopbackPort:
    ports = {port_of([each]) for each in inherited}
    if len(ports) > 1 or requested not in (None, 0, *ports):
        held = " and ".join(map(str, sorted(ports)))
        asked = "one is needed" if requested is None else f"--api-port is {requested}"
        raise ConfigError(
            f"systemd holds port {held} for this agent, but {asked}",
            hint="systemctl edit octaskly.socket    sets the port, not --api-port",
            field="--api-port",
        )
    port = ports.pop()
    held_addresses = {each.getsockname()[0] for each in inherited}
    # `localhost` is every loopback address: another user must hold none of them.
    missing = [each for each in LOOPBACK if each not in held_addresses]
    added = _bind_all("--api-port", missing, port)
    if added is None:
        return _without_port(port, log)
    return LoopbackPort((*inherited, *added), port)


def _without_port(port: int, log: Logger) -> LoopbackPort:
    holder = describe_holder(port)
    log.warning(
        "no API port on this machine",
        reason=f"{holder} holds port {port}",
        hint="end that process, then restart the agent; commands work without",
    )
    return LoopbackPort(taken_port=port, holder=holder)


def _loopback_listener(descriptor: int) -> socket.socket:
    """Return an inherited socket after a check of its kind and address."""
    what = "no socket"
    with contextlib.suppress(OSError):
        found = socket.socket(fileno=descriptor)
        what = f"{found.family.name} {found.getsockname()}"
        is_tcp = found.family in (socket.AF_INET, socket.AF_INET6)
        if (
            is_tcp
            and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            and ipaddress.ip_address(found.getsockname()[0]).is_loopback
        ):
            return found
        found.close()
    raise ConfigError(
        f"systemd passes {what} to this agent, but the API in plain HTTP is for "
        "loopback only",
        hint="ListenStream=127.0.0.1:3000    in octaskly.socket",
    )


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
    family, kind, _, _, target = _socket_address(address, port)
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


def _socket_address(address: str, port: int) -> Any:
    """Return the first entry of `getaddrinfo` for an IP address."""
    return socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
