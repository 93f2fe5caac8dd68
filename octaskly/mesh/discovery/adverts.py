"""What nodes say over mDNS, read as the hostile input that it is.

Owns the TXT record of the service and the bounded table of nodes in sight. Nothing
here is believed: a sighting is a hint for dialling. It does no I/O; the sockets are
in `mdns`.
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
"""Of members while an invite is open, and of machines that wait to be let in."""
TXT_BYTES_MAX = 400  #: ours has less than 200
DISCOVERED_NODES_MAX = 1024  #: nodes of any mesh in sight that are kept
NODES_PER_ENDPOINT_MAX = (
    4  #: nodes that name one address and port; a reinstalled one lingers
)
RETIRED_GENERATIONS_MAX = 4  #: generations that one advert calls over
NODES_PER_HOST_MAX = 64  #: nodes that name one address, where it is not loopback

_Key = TypeVar("_Key")

_NODE = re.compile(r"[A-Za-z2-7]{16}")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TERM = re.compile(r"[0-9]{1,18}")
_PORT = re.compile(r"[0-9]{1,5}")
_PROOF = re.compile(r"[0-9a-f]{16}")
_SHOWN_CHARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRecord:
    """What one record says; every text in it is harmless to print."""

    node: NodeId
    mesh: str | None  #: None: the node is unpaired
    boot: str
    port: int
    hosts: tuple[str, ...]
    lan_port: int = 0  #: of its HTTPS API; 0: it says none
    is_dispatcher: bool = False
    term: int = 0
    retired: tuple[str, ...] = ()  #: how generations that are over are told so


class MalformedAdvert(ValueError):
    """A record that no node of ours would send; the message may be shown."""


def build_txt(
    node: NodeInfo,
    *,
    mesh_id: str | None,
    is_dispatcher: bool,
    term: int,
    retired: Sequence[str] = (),
) -> dict[str, str | bytes | None]:
    """Return the TXT properties of a node; never stats, or each change is a storm."""
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
    """Return the node that a service name stands for, None if it is no name of ours."""
    label = name.removesuffix(f".{service}")
    return NodeId(label) if label != name and _NODE.fullmatch(label) else None


def printable(text: str) -> str:
    """Return a stranger's text so that no terminal obeys it, cut to 64 characters."""
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
    """Read a record.

    Raises:
        MalformedAdvert: it breaks the form; nothing of it is to be used.
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
    """The nodes in sight, at most 1024 of all meshes together."""

    def __init__(self) -> None:
        self._records: dict[NodeId, ServiceRecord] = {}
        self._endpoint_counts: Counter[tuple[str, int]] = Counter()
        self._host_counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._records)

    def has_room(self, node: NodeId) -> bool:
        """Whether a sighting of this node would be kept."""
        return node in self._records or len(self) < DISCOVERED_NODES_MAX

    def update_node(self, sighting: ServiceRecord) -> ServiceRecord:
        """Keep the newest sighting of a node; the caller asked `has_room`.

        Returns it without the addresses that many other nodes name too: a thousand
        forged adverts of one victim lead to a few dials, not to a thousand.
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
        """Forget a node and return what was known of it."""
        sighting = self._records.pop(node, None)
        if sighting is not None:
            self._count(sighting, -1)
        return sighting

    def clear(self) -> None:
        """Forget all, before a fresh browser replays what is still true."""
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
    """Change a count, and keep no zeros: strangers choose the keys."""
    counter[key] += change
    if not counter[key]:
        del counter[key]


def _port(text: str) -> int:
    """Return a port, 0 where the text is none."""
    is_port = _PORT.fullmatch(text) is not None and int(text) <= PORT_MAX
    return int(text) if is_port else 0


def _text(txt: Mapping[bytes, bytes | None], key: str) -> str:
    """Return a property as text, empty where it is missing or not ASCII."""
    value = txt.get(key.encode()) or b""
    return value.decode("ascii", errors="replace")
