"""Finds out what `octaskly doctor` tells: asks the agent, looks around, tries ports.

It changes nothing, needs no root, and sends nothing beyond the networks of the chosen
interfaces, but for nodes that somebody named. Each wait has a bound.
"""

from __future__ import annotations

import asyncio
import email
import email.utils
import errno
import json
import os
import resource
import shutil
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from octaskly import __version__
from octaskly.cli.context import Choice
from octaskly.cli.doctor.symptoms import Neighbour, Symptoms, TakenPort
from octaskly.client import Checkup, NodeInfo, NodePage, Reach, Session, Unreachable
from octaskly.client.flows.calls import CHECKUP, NODES, Call, path_of
from octaskly.config.agent import AgentConfig, configure
from octaskly.config.defaults import API_PORT, LAN_PORT, LOOPBACK, PEER_PORT
from octaskly.errors import ConfigError, OctasklyError, PermissionDenied
from octaskly.mesh.discovery.interfaces import Interface, list_interfaces
from octaskly.mesh.discovery.mdns import MDNS_PORT, check_port
from octaskly.mesh.discovery.scan import Found, neighbours
from octaskly.system.load import port_holder
from octaskly.trust import Keyring, MeshSecret, MeshTrust, NodeKey

CONNECT_S_MAX = 1.0  #: a LAN answers in milliseconds
ANSWER_S_MAX = 3.0
BODY_BYTES_MAX = 8192
_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Target(NamedTuple):
    """A node and where to ask it."""

    node: Neighbour
    hosts: tuple[str, ...]  #: best first
    peer_port: int
    lan_port: int  #: 0: not known


def of_member(member: NodeInfo, seen: Target | None) -> Target:
    """Return a member of the agent's mesh, seen over mDNS or not."""
    places = [_split(address) for address in member.addresses or ()]
    hosts = tuple(host for host, _ in places)
    port = places[0][1] if places else 0
    node = Neighbour(
        name=member.name,
        mesh=seen.node.mesh if seen else None,
        place=member.addresses[0] if member.addresses else "nowhere",
        is_in_sight=seen is not None,
        is_member=True,
        version=member.version,
    )
    return Target(node, hosts, port, member.lan_port or 0)


def of_seed(host: str, port: int, mesh: str | None) -> Target:
    """Return a node that somebody named, of which nothing else is known."""
    node = Neighbour(
        name=host, mesh=mesh, place=f"{host}:{port}", is_in_sight=False, is_member=False
    )
    return Target(node, (host,), port, 0)


def asked(targets: Iterable[Target], secret: MeshSecret | None) -> list[Neighbour]:
    """Ask the nodes of our mesh, all at once, and return what each said.

    Nodes of other meshes are not asked: what they say is not our trouble.
    """
    context = _context(secret) if secret else None
    mesh = secret.mesh_id if secret else None
    return asyncio.run(_ask_all(list(targets), context, mesh))


async def _ask_all(
    targets: list[Target], context: ssl.SSLContext | None, mesh: str | None
) -> list[Neighbour]:
    async def ask(target: Target) -> Neighbour:
        node = target.node
        if not node.is_member and (node.mesh is None or node.mesh != mesh):
            return node
        return await _ask(target, context)

    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask(target)) for target in targets]
    return [each.result() for each in asking]


async def _ask(target: Target, context: ssl.SSLContext | None) -> Neighbour:
    """Try the peer port, then ask `/health` where the node serves it."""
    node, answer, host = target.node, "silent", ""
    for host in target.hosts:
        answer = await _dialled(host, target.peer_port)
        if answer == "reached":
            break
    if answer != "reached" or context is None:
        return replace(node, answer=answer)
    port = target.lan_port or target.peer_port
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            return await _health(replace(node, answer="reached"), host, port, context)
    except ssl.SSLCertVerificationError:
        return replace(node, answer="untrusted")
    except ConnectionRefusedError:
        return replace(node, answer="refused")
    except TimeoutError:
        return replace(node, answer="silent")
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError):
        # The peer port ends the connection of whoever has no certificate.
        return replace(node, answer="reached")


async def _health(
    node: Neighbour, host: str, port: int, context: ssl.SSLContext
) -> Neighbour:
    reader, writer = await asyncio.open_connection(
        host, port, ssl=context, server_hostname=""
    )
    try:
        writer.write(_REQUEST)
        began_s = time.time()
        head = await reader.readuntil(b"\r\n\r\n")
        now_s = (began_s + time.time()) / 2
        fields = email.message_from_bytes(head.partition(b"\r\n")[2])
        length = int(fields.get("Content-Length", 0))
        body = await reader.readexactly(min(length, BODY_BYTES_MAX))
    finally:
        writer.close()
    date = fields["Date"]
    if date is None:
        return node
    # A date has whole seconds: on average, half of one is lost.
    ahead_s = email.utils.parsedate_to_datetime(date).timestamp() + 0.5 - now_s
    version = json.loads(body).get("version")
    return replace(node, ahead_s=ahead_s, version=str(version)[:40])


async def _dialled(host: str, port: int) -> str:
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return "refused"
    except socket.gaierror:
        return "unknown"
    except OSError:  # Also when the time is over.
        return "silent"
    writer.close()
    return "reached"


def _context(secret: MeshSecret) -> ssl.SSLContext:
    """Return what tells nodes of our mesh from others; it shows no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # Nodes are known by their key, not by a name.
    trust = MeshTrust(secret, NodeKey.generate())
    context.load_verify_locations(cadata=trust.ca_pem())
    return context


def _split(address: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT` or `[V6]:PORT`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


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
        neighbours=_heard_by(agent, asked(known, secret)),
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
) -> list[Target]:
    """Return all nodes that are known from anywhere, each once."""
    known: dict[str, Target] = {}
    mesh = secret.mesh_id if secret else None
    for one in found:
        first = one.addresses[0]
        hosts = tuple(address.host for address in one.addresses)
        name = one.node if one.mesh in (None, mesh) else f"mesh {one.mesh}"
        known[one.node] = Target(
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
            known[member.id] = of_member(member, seen)
        elif seen is not None and seen.node.mesh in (None, mesh):
            named = replace(seen.node, name=member.name)
            known[member.id] = seen._replace(node=named)
    known.pop(skip, None)
    hosts_known = {host for target in known.values() for host in target.hosts}
    for host, port in dict.fromkeys(seeds):
        if host not in hosts_known:
            known[f"{host}:{port}"] = of_seed(host, port, mesh)
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
