"""Finds out what `octaskly doctor` tells: asks the agent, looks around, tries ports.

It changes nothing, needs no root, and sends nothing beyond the networks of the chosen
interfaces, but for nodes that somebody named. Each wait has a bound.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from octaskly import __version__
from octaskly.cli import asking_nodes
from octaskly.cli.choice import Choice
from octaskly.cli.symptoms import Neighbour, Symptoms, TakenPort
from octaskly.client import (
    Checkup,
    NodeInfo,
    NodePage,
    Reach,
    Session,
    Unreachable,
)
from octaskly.client.calls import CHECKUP, NODES, Call, path_of
from octaskly.config.agent import AgentConfig, configure
from octaskly.config.defaults import API_PORT, LAN_PORT, LOOPBACK, PEER_PORT
from octaskly.errors import ConfigError, OctasklyError, PermissionDenied
from octaskly.mesh.interfaces import Interface, list_interfaces
from octaskly.mesh.looking import Found, neighbours
from octaskly.mesh.mdns import MDNS_PORT, check_port
from octaskly.stats import port_holder
from octaskly.trust import Keyring, MeshSecret, NodeKey

LOOK_S = 3.0  #: where nobody is in sight; else half of it after the first is
NODES_MAX = 16  #: that are asked; more would take longer than people wait
EVERYWHERE = "0.0.0.0"  # noqa: S104  where the agent listens for peers
PORTS = (
    ("--api-port", "api", API_PORT, LOOPBACK[0]),
    ("--peer-port", "peer", PEER_PORT, EVERYWHERE),
    ("--lan-port", "lan", LAN_PORT, EVERYWHERE),
)


@dataclass(frozen=True, slots=True)
class _Agent:
    """What the agent of this machine says, if one runs."""

    checkup: Checkup | None = None
    socket: Path | None = None
    members: tuple[NodeInfo, ...] = ()  #: of its mesh, itself too
    error: OctasklyError | None = None  #: one runs, but not for us


def examine(
    choice: Choice,
    interfaces: Sequence[str],
    secret_file: Path | None,
    join: Sequence[str],
) -> Symptoms:
    """Return what is seen of this machine and its LAN; takes some seconds.

    Raises:
        ConfigError: an option is wrong, or several agents run and none was chosen.
    """
    flags = {"secret_file": secret_file, "interfaces": interfaces, "join": join}
    config = configure(choice.flags() | flags, choice.environ)
    agent = _ask_agent(choice)
    checkup = agent.checkup
    if checkup is not None:
        config = _config_of(checkup, config)
    names = config.options.interfaces
    found_interfaces = list_interfaces()
    secret, secret_error, may_read = _secret(config)
    found = _look(names, found_interfaces)
    node_id = checkup.node_id if checkup else _node_id(config.paths.state)
    mdns_error = _mdns_error()
    here = {each.host for one in found_interfaces for each in one.addresses}
    known = _neighbours(found, agent.members, config.seeds, secret, skip=node_id or "")
    return Symptoms(
        agent=checkup,
        agent_error=agent.error,
        version=checkup.version if checkup else __version__,
        mesh=secret.mesh_id if secret else checkup.mesh if checkup else None,
        secret_file=config.paths.secret,
        secret_error=secret_error,
        may_read_secret=may_read,
        node_id=node_id,
        copies=_copies(found, node_id, here),
        names=names,
        interfaces=found_interfaces,
        mdns_error=mdns_error,
        mdns_holder=port_holder(MDNS_PORT, kind="udp") if mdns_error else None,
        hears_itself=_hears_itself(checkup, found),
        neighbours=_heard_by(agent, asking_nodes.asked(known, secret)),
        taken=tuple(_taken(checkup)),
        state_dir=config.paths.state,
        free_bytes=_free_bytes(config.paths.state),
        descriptors_max=checkup.descriptors_max if checkup else _descriptors_max(),
    )


def _ask_agent(choice: Choice) -> _Agent:
    try:
        path = choice.socket()
    except Unreachable:
        return _Agent()
    except PermissionDenied as error:
        return _Agent(error=error)
    with Session.at_socket(path, patience_s=0.0) as client:
        try:
            checkup = client.asked(Call("GET", CHECKUP), Checkup)
        except OctasklyError as error:
            return _Agent(error=error)
        try:
            members = _members(client) if checkup.mesh else ()
        except OctasklyError:
            members = ()  # There is no dispatcher at this moment.
    return _Agent(checkup, path, members)


def _members(client: Session) -> tuple[NodeInfo, ...]:
    return tuple(client.asked(Call("GET", NODES), NodePage).nodes)


def _config_of(checkup: Checkup, asked: AgentConfig) -> AgentConfig:
    """Return the settings of a running agent as far as they matter here."""
    paths = replace(
        asked.paths,
        state=Path(checkup.state_dir),
        secret=Path(checkup.secret_file),
    )
    options = replace(asked.options, interfaces=tuple(checkup.interfaces))
    seeds = (*asked.seeds, *checkup.seeds)
    return replace(asked, paths=paths, options=options, seeds=seeds)


def _secret(
    config: AgentConfig,
) -> tuple[MeshSecret | None, OctasklyError | None, bool]:
    """Return the secret, what is wrong with its file, and whether we may look at it."""
    path = config.paths.secret
    try:
        if not os.path.lexists(path):
            path.parent.lstat()  # Raises where this user cannot tell.
            return None, None, True
        with path.open("rb"):
            pass
    except PermissionError:
        return None, None, False
    except OSError:
        return None, None, True
    try:
        return Keyring(path, config.paths.state).load(), None, True
    except ConfigError as error:
        return None, error, True


def _node_id(state: Path) -> str | None:
    try:
        if not (state / "node.key").exists():
            return None
        return str(NodeKey.load_or_create(state).node_id)
    except (OSError, ConfigError):
        return None


def _look(names: Sequence[str], interfaces: Iterable[Interface]) -> list[Found]:
    known = {each.name for each in interfaces}
    there = tuple(name for name in names if name in known)
    if names and not there:
        return []  # What was chosen is not there, which is another finding.
    return asyncio.run(neighbours(LOOK_S, there))


def _hears_itself(checkup: Checkup | None, found: Iterable[Found]) -> bool | None:
    """Whether our agent is in sight; None where it says nothing over mDNS."""
    if checkup is None or checkup.mesh is None:
        return None
    return any(one.node == checkup.node_id for one in found)


def _descriptors_max() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _mdns_error() -> OSError | None:
    try:
        check_port()
    except OSError as error:
        return error
    return None


def _copies(
    found: Iterable[Found], node_id: str | None, here: set[str]
) -> tuple[str, ...]:
    """Return where else somebody lives with this node's id."""
    places = (
        address.host
        for one in found
        if one.node == node_id
        for address in one.addresses
    )
    return tuple(host for host in places if host not in here)[:1]


def _neighbours(
    found: Iterable[Found],
    members: Iterable[NodeInfo],
    seeds: Iterable[tuple[str, int]],
    secret: MeshSecret | None,
    *,
    skip: str,
) -> list[asking_nodes.Target]:
    """Return all nodes that are known from anywhere, each once."""
    known: dict[str, asking_nodes.Target] = {}
    mesh = secret.mesh_id if secret else None
    for one in found:
        first = one.addresses[0]
        hosts = tuple(address.host for address in one.addresses)
        name = one.node if one.mesh in (None, mesh) else f"mesh {one.mesh}"
        known[one.node] = asking_nodes.Target(
            Neighbour(
                name=str(name),
                mesh=one.mesh,
                place=f"{first.host}:{first.port}",
                is_in_sight=True,
                is_member=False,
            ),
            hosts,
            first.port,
            one.lan_port,
        )
    for member in members:
        seen = known.get(member.id)
        if member.state != "lost":
            known[member.id] = asking_nodes.of_member(member, seen)
        elif seen is not None and seen.node.mesh in (None, mesh):
            named = replace(seen.node, name=member.name)
            known[member.id] = seen._replace(node=named)
    known.pop(skip, None)
    hosts_known = {host for target in known.values() for host in target.hosts}
    for host, port in dict.fromkeys(seeds):
        if host not in hosts_known:
            known[f"{host}:{port}"] = asking_nodes.of_seed(host, port, mesh)
    return list(known.values())[:NODES_MAX]


def _heard_by(agent: _Agent, known: list[Neighbour]) -> tuple[Neighbour, ...]:
    """Ask the members whether they reach this node."""
    if agent.checkup is None or agent.socket is None:
        return tuple(known)
    path, me = agent.socket, agent.checkup.node_id

    def ask(one: Neighbour) -> Neighbour:
        reach: Reach | None = None
        if one.is_member:
            with Session.at_socket(path, patience_s=0.0) as client:
                try:
                    reach = client.asked(
                        Call("GET", path_of(NODES, one.name, "reach", me)), Reach
                    )
                except OctasklyError:
                    reach = None
        return replace(one, hears_us=reach)

    with ThreadPoolExecutor(NODES_MAX) as threads:
        return tuple(threads.map(ask, known))


def _taken(checkup: Checkup | None) -> Iterable[TakenPort]:
    """Yield default ports that others have, if the agent would have them."""
    moved = (
        {str(each["port"]): int(each["used"]) for each in checkup.moved_ports}
        if (checkup)
        else {}
    )
    for flag, name, port, host in PORTS:
        if (checkup is None or name in moved) and _is_taken(host, port):
            yield TakenPort(
                flag=flag, port=port, holder=port_holder(port), used=moved.get(name)
            )


def _is_taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen()
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _free_bytes(state: Path) -> int | None:
    """Return the room where the state folder is or will be, None if that is hidden."""
    for folder in (state, *state.parents):
        try:
            return shutil.disk_usage(folder).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
