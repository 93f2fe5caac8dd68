"""Probes of `octaskly doctor`: the local agent, mDNS and the ports of nodes.

They change nothing and need no root. They send only to the networks of the chosen
interfaces and to nodes that the user named. Each wait has a timeout.
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
from octaskly.cli.context import CliContext
from octaskly.cli.doctor.observations import ProbedNode, Symptoms, TakenPort
from octaskly.client import Session, Unreachable
from octaskly.client.flows.rest_calls import CHECKUP, NODES, Call, resource_path
from octaskly.config.agent import AgentConfig, load_agent_config
from octaskly.config.defaults import API_PORT, LAN_PORT, LOOPBACK, PEER_PORT
from octaskly.errors import (
    ConfigError,
    OctasklyError,
    PermissionDenied,
    StoreCorrupt,
)
from octaskly.mesh.discovery.interfaces import Interface, list_interfaces
from octaskly.mesh.discovery.mdns import MDNS_PORT, require_shareable_port
from octaskly.mesh.discovery.mdns_scan import FoundNode, scan_nodes
from octaskly.rest.mesh import Checkup, NodeInfo, NodePage, Reach
from octaskly.store.tables.database import check_header
from octaskly.system.build import build_id
from octaskly.system.listening_sockets import (
    WILDCARD_ADDRESSES,
    describe_holder,
    is_held_by_own_user,
)
from octaskly.system.machine_stats import process_on_port
from octaskly.trust import MeshSecret, MeshTls, NodeKey, SecretFile

CONNECT_S_MAX = 1.0  #: a LAN answers in milliseconds
RESPONSE_S_MAX = 3.0
BODY_BYTES_MAX = 8192
_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class ProbeTarget(NamedTuple):
    """A node and its addresses."""

    node: ProbedNode
    hosts: tuple[str, ...]  #: best first
    peer_port: int
    lan_port: int  #: 0: not known


def target_of_member(member: NodeInfo, seen: ProbeTarget | None) -> ProbeTarget:
    """Return a member of the agent's mesh, which may be invisible over mDNS."""
    places = [_split(address) for address in member.addresses]
    hosts = tuple(host for host, _ in places)
    port = places[0][1] if places else 0
    node = ProbedNode(
        name=member.name,
        mesh=seen.node.mesh if seen else None,
        address=member.addresses[0] if member.addresses else "nowhere",
        is_seen_by_mdns=seen is not None,
        is_member=True,
        version=member.version,
    )
    return ProbeTarget(node, hosts, port, member.lan_port)


def target_of_seed(host: str, port: int, mesh: str | None) -> ProbeTarget:
    """Return a node that the user named; nothing else is known about it."""
    node = ProbedNode(
        name=host,
        mesh=mesh,
        address=f"{host}:{port}",
        is_seen_by_mdns=False,
        is_member=False,
    )
    return ProbeTarget(node, (host,), port, 0)


def probe_nodes(
    targets: Iterable[ProbeTarget], secret: MeshSecret | None
) -> list[ProbedNode]:
    """Probe the nodes of our mesh concurrently and return their responses.

    Nodes of other meshes are not probed, because their state does not matter here.
    """
    context = _context(secret) if secret else None
    mesh = secret.mesh_id if secret else None
    return asyncio.run(_probe_all(list(targets), context, mesh))


async def _probe_all(
    targets: list[ProbeTarget], context: ssl.SSLContext | None, mesh: str | None
) -> list[ProbedNode]:
    async def ask(target: ProbeTarget) -> ProbedNode:
        node = target.node
        if not node.is_member and (node.mesh is None or node.mesh != mesh):
            return node
        return await _probe(target, context)

    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask(target)) for target in targets]
    return [each.result() for each in asking]


async def _probe(target: ProbeTarget, context: ssl.SSLContext | None) -> ProbedNode:
    """Try the peer port, then ask `/health` where the node serves it."""
    node, answer, host = target.node, "silent", ""
    for host in target.hosts:
        answer = await _try_connect(host, target.peer_port)
        if answer == "reached":
            break
    if answer != "reached" or context is None:
        return replace(node, probe_result=answer)
    port = target.lan_port or target.peer_port
    try:
        async with asyncio.timeout(RESPONSE_S_MAX):
            return await _get_health(
                replace(node, probe_result="reached"), host, port, context
            )
    except ssl.SSLCertVerificationError:
        return replace(node, probe_result="untrusted")
    except ConnectionRefusedError:
        return replace(node, probe_result="refused")
    except TimeoutError:
        return replace(node, probe_result="silent")
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError):
        # The peer port closes connections without a certificate.
        return replace(node, probe_result="reached")


async def _get_health(
    node: ProbedNode, host: str, port: int, context: ssl.SSLContext
) -> ProbedNode:
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
    # HTTP dates have whole seconds; add the half that is lost on average.
    ahead_s = email.utils.parsedate_to_datetime(date).timestamp() + 0.5 - now_s
    health = json.loads(body)
    return replace(
        node,
        clock_ahead_s=ahead_s,
        version=str(health.get("version"))[:40],
        build=str(health.get("build", ""))[:40] or None,
    )


async def _try_connect(host: str, port: int) -> str:
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return "refused"
    except socket.gaierror:
        return "unknown"
    except OSError:  # Includes the timeout.
        return "silent"
    writer.close()
    return "reached"


def _context(secret: MeshSecret) -> ssl.SSLContext:
    """Return a TLS context that trusts only our mesh and sends no certificate."""
    trust = MeshTls(secret, NodeKey.generate())
    context = trust.lan_probe_context()
    # A node whose LAN port is unknown is asked at its peer port.
    context.load_verify_locations(cadata=trust.node_ca_pem())
    return context


def _split(address: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT` or `[V6]:PORT`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


BROWSE_S = 3.0  #: scan time without a result; half of it after the first node
NODES_MAX = 16  #: nodes probed; more would take too long for a user
PORTS = (
    ("--api-port", "api", API_PORT, LOOPBACK),
    ("--peer-port", "peer", PEER_PORT, WILDCARD_ADDRESSES[:1]),
    ("--lan-port", "lan", LAN_PORT, WILDCARD_ADDRESSES[:1]),
)


@dataclass(frozen=True, slots=True)
class _AgentState:
    """Data from the agent of this machine, if one runs."""

    checkup: Checkup | None = None
    socket: Path | None = None
    members: tuple[NodeInfo, ...] = ()  #: of its mesh, including itself
    error: OctasklyError | None = None  #: why the query of a running agent failed


def collect_symptoms(
    context: CliContext,
    interfaces: Sequence[str],
    secret_file: Path | None,
    join: Sequence[str],
) -> Symptoms:
    """Return the symptoms of this machine and its LAN; takes some seconds.

    Raises:
        ConfigError: an option is invalid, or several agents run and none was chosen.
    """
    flags = {"secret_file": secret_file, "interfaces": interfaces, "join": join}
    config = load_agent_config(context.agent_flags() | flags, context.environ)
    agent = _query_agent(context)
    checkup = agent.checkup
    if checkup is not None:
        config = _config_of_agent(checkup, config)
    names = config.options.interfaces
    found_interfaces = list_interfaces()
    secret, secret_error, may_read = _secret(config)
    found = _browse(names, found_interfaces)
    node_id = checkup.node_id if checkup else _node_id(config.paths.state)
    mdns_error = _mdns_error()
    known = _probe_targets(
        found, agent.members, config.seeds, secret, skip=node_id or ""
    )
    return Symptoms(
        agent=checkup,
        agent_error=agent.error,
        version=checkup.version if checkup else __version__,
        build=checkup.build if checkup else build_id(),
        program_build=build_id(),
        mesh=secret.mesh_id if secret else checkup.mesh if checkup else None,
        secret_file=config.paths.secret,
        secret_error=secret_error,
        may_read_secret=may_read,
        node_id=node_id,
        hosts_with_same_id=_hosts_with_same_id(found, node_id, found_interfaces),
        names=names,
        interfaces=found_interfaces,
        mdns_error=mdns_error,
        mdns_port_owner=process_on_port(MDNS_PORT, kind="udp") if mdns_error else None,
        sees_itself=_sees_itself(checkup, found),
        probed_nodes=_check_reachability(agent, probe_nodes(known, secret)),
        taken_ports=tuple(_taken_ports(checkup)),
        state_dir=config.paths.state,
        log_error=None if checkup else _log_error(config.paths.database),
        free_bytes=_free_bytes(config.paths.state),
        descriptors_max=checkup.descriptors_max if checkup else _descriptors_max(),
    )


def _query_agent(context: CliContext) -> _AgentState:
    try:
        path = context.socket_path()
    except Unreachable:
        return _AgentState()
    except PermissionDenied as error:
        return _AgentState(error=error)
    with Session.at_socket(path, retry_timeout_s=0.0) as client:
        try:
            checkup = client.send_and_decode(Call("GET", CHECKUP), Checkup)
        except OctasklyError as error:
            return _AgentState(error=error)
        try:
            members = _members(client) if checkup.mesh else ()
        except OctasklyError:
            members = ()  # There is no dispatcher at this moment.
    return _AgentState(checkup, path, members)


def _members(client: Session) -> tuple[NodeInfo, ...]:
    return tuple(client.send_and_decode(Call("GET", NODES), NodePage).nodes)


def _config_of_agent(checkup: Checkup, config: AgentConfig) -> AgentConfig:
    """Return `config` with the paths, interfaces and seeds of the running agent."""
    paths = replace(
        config.paths,
        state=Path(checkup.state_dir),
        secret=Path(checkup.secret_file),
    )
    options = replace(config.options, interfaces=tuple(checkup.interfaces))
    seeds = (*config.seeds, *checkup.seeds)
    return replace(config, paths=paths, options=options, seeds=seeds)


def _secret(
    config: AgentConfig,
) -> tuple[MeshSecret | None, OctasklyError | None, bool]:
    """Return the secret, the fault of its file, and True if the file is readable."""
    path = config.paths.secret
    try:
        if not os.path.lexists(path):
            path.parent.lstat()  # Raises if this user may not look.
            return None, None, True
        with path.open("rb"):
            pass
    except PermissionError:
        return None, None, False
    except OSError:
        return None, None, True
    try:
        return SecretFile(path, config.paths.state).load(), None, True
    except ConfigError as error:
        return None, error, True


def _node_id(state: Path) -> str | None:
    try:
        if not (state / "node.key").exists():
            return None
        return str(NodeKey.load_or_create(state).node_id)
    except (OSError, ConfigError):
        return None


def _browse(names: Sequence[str], interfaces: Iterable[Interface]) -> list[FoundNode]:
    known = {each.name for each in interfaces}
    there = tuple(name for name in names if name in known)
    if names and not there:
        return []  # Missing interfaces have a finding of their own.
    return asyncio.run(scan_nodes(BROWSE_S, there))


def _sees_itself(checkup: Checkup | None, found: Iterable[FoundNode]) -> bool | None:
    """Return True if our agent is visible over mDNS, None if it does not use mDNS."""
    if checkup is None or checkup.mesh is None:
        return None
    return any(one.node == checkup.node_id for one in found)


def _descriptors_max() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _mdns_error() -> OSError | None:
    try:
        require_shareable_port()
    except OSError as error:
        return error
    return None


def _hosts_with_same_id(
    found: Iterable[FoundNode], node_id: str | None, interfaces: Iterable[Interface]
) -> tuple[str, ...]:
    """Return the other hosts that use this node's id."""
    here = {each.host for one in interfaces for each in one.addresses}
    places = (
        address.host
        for one in found
        if one.node == node_id
        for address in one.addresses
    )
    return tuple(host for host in places if host not in here)[:1]


def _probe_targets(
    found: Iterable[FoundNode],
    members: Iterable[NodeInfo],
    seeds: Iterable[tuple[str, int]],
    secret: MeshSecret | None,
    *,
    skip: str,
) -> list[ProbeTarget]:
    """Return the nodes known from any source, without duplicates."""
    known: dict[str, ProbeTarget] = {}
    mesh = secret.mesh_id if secret else None
    for one in found:
        first = one.addresses[0]
        hosts = tuple(address.host for address in one.addresses)
        name = one.node if one.mesh in (None, mesh) else f"mesh {one.mesh}"
        known[one.node] = ProbeTarget(
            ProbedNode(
                name=str(name),
                mesh=one.mesh,
                address=f"{first.host}:{first.port}",
                is_seen_by_mdns=True,
                is_member=False,
            ),
            hosts,
            first.port,
            one.lan_port,
        )
    for member in members:
        if member.visitor:
            continue  # It dials the others, and has no address that they could dial.
        seen = known.get(member.id)
        if member.state != "lost":
            known[member.id] = target_of_member(member, seen)
        elif seen is not None and seen.node.mesh in (None, mesh):
            named = replace(seen.node, name=member.name)
            known[member.id] = seen._replace(node=named)
    known.pop(skip, None)
    hosts_known = {host for target in known.values() for host in target.hosts}
    for host, port in dict.fromkeys(seeds):
        if host not in hosts_known:
            known[f"{host}:{port}"] = target_of_seed(host, port, mesh)
    return list(known.values())[:NODES_MAX]


def _check_reachability(
    agent: _AgentState, known: list[ProbedNode]
) -> tuple[ProbedNode, ...]:
    """Ask the members to connect to this node."""
    if agent.checkup is None or agent.socket is None:
        return tuple(known)
    path, me = agent.socket, agent.checkup.node_id

    def ask(one: ProbedNode) -> ProbedNode:
        reach: Reach | None = None
        if one.is_member:
            with Session.at_socket(path, retry_timeout_s=0.0) as client:
                try:
                    reach = client.send_and_decode(
                        Call("GET", resource_path(NODES, one.name, "reach", me)), Reach
                    )
                except OctasklyError:
                    reach = None
        return replace(one, reachability=reach)

    with ThreadPoolExecutor(NODES_MAX) as threads:
        return tuple(threads.map(ask, known))


def _taken_ports(checkup: Checkup | None) -> Iterable[TakenPort]:
    """Yield the agent's default ports that other programs occupy."""
    stolen = checkup.api_port_taken if checkup else None
    if stolen is not None:
        yield TakenPort(
            flag="--api-port", port=stolen.port, owner=stolen.holder, is_stolen=True
        )
    moved = {each.port: each.used for each in checkup.moved_ports} if checkup else {}
    for flag, name, port, hosts in PORTS:
        is_moved = checkup is None or name in moved
        if is_moved and any(_is_taken(host, port) for host in hosts):
            yield TakenPort(
                flag=flag,
                port=port,
                owner=describe_holder(port),
                used=moved.get(name),
                is_stolen=checkup is None
                and hosts is LOOPBACK
                and not is_held_by_own_user(port),
            )


def _is_taken(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen()
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _log_error(path: Path) -> OctasklyError | None:
    """Return why an agent could not start with a log; None if it is unreadable here."""
    try:
        if path.stat().st_size:
            check_header(path)
    except StoreCorrupt as error:
        return error
    except OSError:
        pass
    return None


def _free_bytes(state: Path) -> int | None:
    """Return the free bytes for the state folder, None if it is unreadable."""
    for folder in (state, *state.parents):
        try:
            return shutil.disk_usage(folder).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
