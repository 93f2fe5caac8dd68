"""Asks other nodes how they are, as anybody could: port, certificate, health, clock."""

from __future__ import annotations

import asyncio
import email
import email.utils
import json
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from octaskly.cli.symptoms import Neighbour
from octaskly.client import NodeInfo
from octaskly.trust import MeshSecret, MeshTrust, NodeKey

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
