"""What a route is, and what its handler gets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from octaskly.api.http.long_polls import Waits
from octaskly.api.http.peer_addresses import Ways
from octaskly.api.problems import Problem
from octaskly.api.schemas.query import Query
from octaskly.api.security.rate_limit import Meter
from octaskly.api.security.sessions import Codes
from octaskly.config.defaults import STREAMS_MAX
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import NodeId
from octaskly.ports import Admissions, Clock, Files, Gateway, Principal, Rotations

BODY_BYTES_MAX = 1 << 20
JSON = "application/json"
BYTES = "application/octet-stream"

NOTED_MAX = 8
"""Tasks of one request that the audit log names."""

_RETRY_AFTER_S = 5


class Access(Enum):
    """Who may use a route; the default of a route is the strictest."""

    OPEN = auto()  #: everybody
    READ = auto()  #: every principal
    MACHINE = auto()  #: the same, and who is on this machine without a token
    SUBMIT = auto()  #: principals that may create and cancel tasks
    ADMIN = auto()  #: admins
    LOCAL = auto()  #: users of this machine's socket; no token is enough
    OPENED = auto()  #: the same, also through a page that one of them opened here
    NODE = auto()  #: nodes of the mesh, by certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Bounds in time on what clients and peers may take."""

    header_s: float = 10.0  #: from connect, or the last answer, to a whole header
    body_s: float = 10.0
    hold_s: float = 5.0  #: how long a request waits for a dispatcher
    connect_s: float = 1.0  #: to another node
    stall_s: float = 30.0  #: between two parts of what is streamed
    quiet_s: float = 3.0  #: until a stream without events shows that it lives
    shutdown_s: float = 3.0  #: for requests in flight when the API closes
    grace_s: float = 15.0  #: to nodes whose connection is of an older secret


class Forward(Protocol):
    """The way to other nodes."""

    ways: Ways

    async def perform(self, call: Call, local: Perform) -> web.StreamResponse:
        """Answer here or at the dispatcher."""

    async def fetch(
        self, call: Call, lan_urls: Sequence[str], path: str
    ) -> web.StreamResponse:
        """Pass on what another node sends."""

    def session(self) -> aiohttp.ClientSession:
        """Return the session to other nodes.

        Raises:
            ConnectionError: this node has no certificate to show.
        """

    def headers(self, call: Call) -> dict[str, str]:
        """Return what another node must know of a request."""


async def no_metrics() -> bytes:
    """Return the report of a node that counts nothing."""
    return b""


class Streams:
    """Counts the answers of one node that are streams of events."""

    def __init__(self, most: int = STREAMS_MAX) -> None:
        self.open = 0
        self._most = most

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        """Count a stream for as long as the block lasts.

        Raises:
            Problem: 503, there are too many.
        """
        if self.open >= self._most:
            raise Problem(
                503,
                "Too many event streams",
                hint=f"this node serves {self._most} at once; ask another "
                "node, or later",
                headers={"Retry-After": str(_RETRY_AFTER_S)},
                closes=True,  # Idle, it would keep other requests out.
            )
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the API that handlers use."""

    gateway: Gateway
    clock: Clock
    forwarder: Forward
    waits: Waits
    deadlines: Deadlines
    meter: Meter
    admissions: Admissions | None = None
    describe: Callable[[], Mapping[str, Any]] = dict
    streams: Streams = field(default_factory=Streams)
    rotations: Rotations | None = None  #: None: the node is in no mesh
    files: Files | None = None  #: the same
    codes: Codes = field(default_factory=Codes)
    metrics: Callable[[], Awaitable[bytes]] = no_metrics


@dataclass(slots=True)
class Seen:
    """What the gate knows of a request before anything else: how to answer it."""

    id: str
    began_s: float  #: on the clock of the event loop
    origin: str | None = None  #: an allowed Origin, to be reflected
    subject: str | None = None
    body_bytes: int = 0  #: of its body, as long as that is held
    principal: Principal | None = None
    action: str = ""  #: method and path of the route
    target: str | None = None  #: what the path names
    source: str = ""  #: where it came from: an address, or a user of this machine
    asked: NodeId | None = None  #: the node that forwarded it
    tasks: Sequence[str] = ()  #: the first ones that came of it,
    task_count: int = 0  #: of so many
    is_noted: bool = False  #: what it changes is the business of the audit log
    is_decided_elsewhere: bool = False  #: another node answered
    signature: Mapping[str, str] = field(default_factory=dict)
    """Headers of a dispatcher's answer, also of one that refuses."""
    allowance: Mapping[str, str] | None = None
    """Headers of what the client may still ask for, once this request was counted."""


class Connection(Protocol):
    """What the gate knows of the connection under a request."""

    seen: Seen | None  #: the request in work
    peer: NodeId | None  #: the node at the other end, if it is one
    own_addresses: frozenset[str]  #: under which the other end reached this node
    is_surplus: bool  #: it is one too many
    is_socket: bool  #: the other end is a local process with known credentials
    is_lan: bool  #: it came through TLS from the network

    def local_principal(self, node_name: str) -> Principal:
        """Return the user at the other end of a UNIX socket."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request that has passed the gate."""

    request: web.BaseRequest
    seen: Seen
    stamp: Callable[[web.StreamResponse], None]  #: adds the headers of every answer
    parts: Parts
    named: Mapping[str, str]  #: variable parts of the path
    query: Query
    body: bytes
    principal: Principal | None  #: None only on open routes and between nodes
    hop: NodeId | None  #: the node that forwarded it

    @property
    def gateway(self) -> Gateway:
        """The agent."""
        return self.parts.gateway

    @property
    def who(self) -> Principal:
        """The principal of a route that is not open."""
        assert self.principal is not None
        return self.principal

    def note_tasks(self, records: Sequence[TaskRecord]) -> None:
        """Let the audit log tell which tasks came of this."""
        self.seen.tasks = [record.name for record in records[:NOTED_MAX]]
        self.seen.task_count = len(records)

    def elapsed_s(self) -> float:
        """Return how long ago the request came in."""
        return asyncio.get_running_loop().time() - self.seen.began_s


Perform = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    perform: Perform
    access: Access = Access.ADMIN
    is_local: bool = False  #: answered by this node, whoever is dispatcher
    is_for_unpaired: bool = False  #: also where this node is in no mesh
    body_bytes_max: int = BODY_BYTES_MAX
    reads_body: bool = False  #: it is no JSON, and read by `perform`, bit by bit
    query: tuple[str, ...] | None = ()  #: known parameters; None ignores all

    is_for_people: bool = False  #: it is no part of the API, so of no OpenAPI document
    # What follows is said in the OpenAPI document, and tests check that it is true.
    answers: Mapping[int, Any]  #: by status: type of the JSON; None in other media
    media: str = JSON  #: of the answers that are no errors
    takes: Any = None  #: type of the JSON body; None: there is none
    heeds: tuple[str, ...] = ()  #: headers of a request that matter beyond the usual
    tells: tuple[str, ...] = ()  #: headers of an answer beyond the usual
    refuses: tuple[int, ...] = ()  #: statuses beyond those that any route may give


def json_response(body: bytes, status: int = 200) -> web.Response:
    """Return a JSON answer."""
    return web.Response(body=body, status=status, content_type=JSON)
