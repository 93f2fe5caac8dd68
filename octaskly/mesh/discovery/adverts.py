"""mDNS adverts: the TXT record of the service, and a bounded table of nodes.

Adverts are hostile input. An advert is only a hint for dialling; nothing in it is
trusted. This module does no I/O; the sockets are in `mdns`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from octaskly.config.defaults import PORT_MAX
from octaskly.core.model.ids import NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.protocol.messages import PROTOCOL_VERSION

SERVICE = "_octaskly._tcp.local."
PAIRING_SERVICE = "_octaskly-pair._tcp.local."
"""Advertised by members with an open invite, and by machines that ask to join."""
TXT_BYTES_MAX = 400  #: our own TXT record has less than 200
DISCOVERED_NODES_MAX = 1024  #: nodes kept, of all meshes together
#: Nodes with the same address and port. The advert of a reinstalled node remains for
#: a while, so there can be more than one.
NODES_PER_ENDPOINT_MAX = 4
RETIRED_GENERATIONS_MAX = 4  #: retired secret generations in one advert
NODES_PER_HOST_MAX = 64  #: nodes with the same address, unless it is loopback

_Key = TypeVar("_Key")

_NODE = re.compile(r"[A-Za-z2-7]{16}")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TERM = re.compile(r"[0-9]{1,18}")
_PORT = re.compile(r"[0-9]{1,5}")
_PROOF = re.compile(r"[0-9a-f]{16}")
_SHOWN_CHARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRecord:
    """The contents of one advert; every text in it is safe to print."""

    node: NodeId
    mesh: str | None  #: None: the node is unpaired
    boot: str
    port: int
    hosts: tuple[str, ...]
    lan_port: int = 0  #: of its HTTPS API; 0: none advertised
    is_dispatcher: bool = False
    term: int = 0
    retired: tuple[str, ...] = ()  #: proofs that a secret generation is retired


class MalformedAdvert(ValueError):
    """A malformed record; the error message is safe to print."""


def build_txt(
    node: NodeInfo,
    *,
    mesh_id: str | None,
    is_dispatcher: bool,
    term: int,
    retired: Sequence[str] = (),
) -> dict[str, str | bytes | None]:
    """Return the TXT properties of a node.

    They hold no statistics: each change of a property costs multicast traffic.
    """
    txt: dict[str, str | bytes | None] = {
        "v": str(PROTOCOL_VERSION),
        "b": node.boot,
        "a": str(node.lan_port),
        "r": "u" if mesh_id is None else "d" if is_dispatcher else "n",
    }
    if mesh_id is not None:
        txt["m"] = mesh_id
    if mesh_id is not None and is_dispatcher:
        txt["t"] = str(term)
    if mesh_id is not None and retired:
        txt["o"] = ",".join(retired)
    return txt


def node_id_of_name(name: str, service: str = SERVICE) -> NodeId | None:
    """Return the node id in a service name, or None if the name is not one of ours."""
    label = name.removesuffix(f".{service}")
    return NodeId(label) if label != name and _NODE.fullmatch(label) else None


def printable(text: str) -> str:
    """Return untrusted text without control characters, cut to 64 characters."""
    cut = text[:_SHOWN_CHARS]
    return "".join(char if char.isprintable() else "?" for char in cut)


def parse_service_record(
    node: NodeId,
    *,
    txt: Mapping[bytes, bytes | None],
    txt_bytes: int,
    port: int | None,
    hosts: Sequence[str],
) -> ServiceRecord:
    """Parse and validate a record.

    Raises:
        MalformedAdvert: A property is missing or invalid; use nothing of the record.
    """
    if txt_bytes > TXT_BYTES_MAX:
        raise MalformedAdvert(f"TXT of {txt_bytes} bytes")
    if port is None or not 0 < port <= PORT_MAX:
        raise MalformedAdvert("port out of range")
    role = _text(txt, "r")
    if role not in ("n", "d", "u"):
        raise MalformedAdvert("unknown role")
    mesh = _text(txt, "m")
    if role != "u" and not _WORD.fullmatch(mesh):
        raise MalformedAdvert("no mesh id")
    boot = _text(txt, "b")
    if not _WORD.fullmatch(boot):
        raise MalformedAdvert("no boot id")
    term = _text(txt, "t")
    is_dispatcher = role == "d" and bool(_TERM.fullmatch(term))
    return ServiceRecord(
        node=node,
        mesh=None if role == "u" else mesh,
        boot=boot,
        port=port,
        hosts=tuple(hosts),
        lan_port=_port(_text(txt, "a")),
        is_dispatcher=is_dispatcher,
        term=int(term) if is_dispatcher else 0,
        retired=tuple(filter(_PROOF.fullmatch, _text(txt, "o").split(",")))[
            :RETIRED_GENERATIONS_MAX
        ],
    )


class DiscoveredNodes:
    """The nodes discovered, at most 1024 of all meshes together."""

    def __init__(self) -> None:
        self._records: dict[NodeId, ServiceRecord] = {}
        self._endpoint_counts: Counter[tuple[str, int]] = Counter()
        self._host_counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._records)

    def has_room(self, node: NodeId) -> bool:
        """Return True if `update_node` may be called for this node."""
        return node in self._records or len(self) < DISCOVERED_NODES_MAX

    def update_node(self, sighting: ServiceRecord) -> ServiceRecord:
        """Store the newest record of a node; the caller has checked `has_room`.

        Returns the record without the addresses that too many other nodes claim. A
        thousand forged adverts for one victim thus cause a few dials, not a thousand.
        """
        self.remove_node(sighting.node)
        hosts = [
            h for h in sighting.hosts if not self._is_address_full(h, sighting.port)
        ]
        sighting = replace(sighting, hosts=tuple(hosts))
        self._records[sighting.node] = sighting
        self._count(sighting, 1)
        return sighting

    def remove_node(self, node: NodeId) -> ServiceRecord | None:
        """Remove a node and return its record, if there is one."""
        sighting = self._records.pop(node, None)
        if sighting is not None:
            self._count(sighting, -1)
        return sighting

    def clear(self) -> None:
        """Remove all nodes; a new browser then reports those in the cache again."""
        self._records.clear()
        self._endpoint_counts.clear()
        self._host_counts.clear()

    def _is_address_full(self, host: str, port: int) -> bool:
        if self._endpoint_counts[host, port] >= NODES_PER_ENDPOINT_MAX:
            return True
        is_loopback = host == "::1" or host.startswith("127.")
        return not is_loopback and self._host_counts[host] >= NODES_PER_HOST_MAX

    def _count(self, sighting: ServiceRecord, change: int) -> None:
        for host in sighting.hosts:
            _change_count(self._endpoint_counts, (host, sighting.port), change)
            _change_count(self._host_counts, host, change)


def _change_count(counter: Counter[_Key], key: _Key, change: int) -> None:
    """Change a count, and drop zeros: strangers choose the keys."""
    counter[key] += change
    if not counter[key]:
        del counter[key]


def _port(text: str) -> int:
    """Return the port, or 0 if the text is not a port."""
    is_port = _PORT.fullmatch(text) is not None and int(text) <= PORT_MAX
    return int(text) if is_port else 0


def _text(txt: Mapping[bytes, bytes | None], key: str) -> str:
    """Return a property as text, empty if it is missing."""
    value = txt.get(key.encode()) or b""
    return value.decode("ascii", errors="replace")
