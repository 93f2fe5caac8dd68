"""What a route is, and what its handler gets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol, TypeVar

import aiohttp
from aiohttp import web

from octaskly.api.http.long_polls import LongPolls
from octaskly.api.problems import Problem
from octaskly.api.schemas.query import Query
from octaskly.api.security.rate_limit import RateLimiter
from octaskly.api.security.sessions import OneTimeCodes
from octaskly.config.defaults import STREAMS_MAX
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import NodeId
from octaskly.ports import (
    Clock,
    FileStore,
    Gateway,
    JoinService,
    KeyRotationControl,
    Principal,
)
from octaskly.rest.mesh import Checkup

BODY_BYTES_MAX = 1 << 20
JSON = "application/json"
BYTES = "application/octet-stream"

AUDITED_TASKS_MAX = 8
"""Tasks of one request that the audit log names."""

_RETRY_AFTER_S = 5

_T = TypeVar("_T")


class Access(Enum):
    """Who may use a route; the default of a route is the strictest."""

    PUBLIC = auto()  #: everybody
    READ = auto()  #: every principal
    READ_OR_LOCAL = auto()  #: the same, and who is on this machine without a token
    SUBMIT = auto()  #: principals that may create and cancel tasks
    ADMIN = auto()  #: admins
    LOCAL = auto()  #: users of this machine's socket; no token is enough
    LOCAL_PAGE = auto()  #: the same, also through a page that one of them opened here
    NODE = auto()  #: nodes of the mesh, by certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTimeouts:
    """Bounds in time on what clients and peers may take."""

    header_s: float = 10.0  #: from connect, or the last answer, to a whole header
    body_s: float = 10.0
    dispatcher_wait_s: float = 5.0  #: how long a request waits for a dispatcher
    connect_s: float = 1.0  #: to another node
    stall_s: float = 30.0  #: between two parts of what is streamed
    keepalive_s: float = 3.0  #: until a stream without events shows that it lives
    shutdown_s: float = 3.0  #: for requests in flight when the API closes
    old_certificate_grace_s: float = (
        15.0  #: to nodes whose connection is of an older secret
    )


class NotSent(ConnectionError):
    """The other node did not get the request, or refused to act on it."""


class NodeClient(Protocol):
    """The way to other nodes."""

    async def forward_to_dispatcher(
        self, request: Request, handle_locally: Handler
    ) -> web.StreamResponse:
        """Answer here or at the dispatcher."""

    async def forward_to_node(
        self, request: Request, lan_urls: Sequence[str], path: str
    ) -> web.StreamResponse:
        """Pass on what another node sends."""

    async def try_each(
        self, lan_urls: Sequence[str], send: Callable[[str], Awaitable[_T]]
    ) -> _T:
        """Return what `send` returns for the first address that works.

        Args:
            lan_urls: Where the other node serves, best first.
            send: Sends to one address; its NotSent leads to the next address.

        Raises:
            NotSent: no address works, or there is none.
        """

    def session(self) -> aiohttp.ClientSession:
        """Return the session to other nodes.

        Raises:
            NotSent: this node has no certificate to show.
        """

    def forwarding_headers(self, request: Request) -> dict[str, str]:
        """Return what another node must know of a request."""


async def empty_metrics() -> bytes:
    """Return the report of a node that counts nothing."""
    return b""


def no_checkup() -> Checkup:
    """Return the setup of a node that tells nothing of itself."""
    return Checkup(name="", node_id="", state_dir="", secret_file="", descriptors_max=0)


class OpenStreams:
    """Counts the answers of one node that are streams of events."""

    def __init__(self, streams_max: int = STREAMS_MAX) -> None:
        self.count = 0
        self._streams_max = streams_max

    @contextlib.contextmanager
    def count_stream(self) -> Iterator[None]:
        """Count a stream for as long as the block lasts.

        Raises:
            Problem: 503, there are too many.
        """
        if self.count >= self._streams_max:
            raise Problem(
                503,
                "Too many event streams",
                hint=f"this node serves {self._streams_max} at once; ask another "
                "node, or later",
                headers={"Retry-After": str(_RETRY_AFTER_S)},
                closes_connection=True,  # Idle, it would keep other requests out.
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of the API that handlers use."""

    gateway: Gateway
    clock: Clock
    node_client: NodeClient
    long_polls: LongPolls
    timeouts: HttpTimeouts
    rate_limiter: RateLimiter
    admissions: JoinService | None = None
    describe_agent: Callable[[], Checkup] = no_checkup
    streams: OpenStreams = field(default_factory=OpenStreams)
    rotations: KeyRotationControl | None = None  #: None: the node is in no mesh
    files: FileStore | None = None  #: the same
    one_time_codes: OneTimeCodes = field(default_factory=OneTimeCodes)
    render_metrics: Callable[[], Awaitable[bytes]] = empty_metrics


@dataclass(slots=True)
class RequestInfo:
    """What the gate knows of a request before anything else: how to answer it."""

    id: str
    started_s: float  #: on the clock of the event loop
    origin: str | None = None  #: an allowed Origin, to be reflected
    subject: str | None = None
    body_bytes: int = 0  #: of its body, as long as that is held
    principal: Principal | None = None
    action: str = ""  #: method and path of the route
    target: str | None = None  #: what the path names
    source: str = ""  #: where it came from: an address, or a user of this machine
    forwarded_by: NodeId | None = None  #: the node that forwarded it
    tasks: Sequence[str] = ()  #: the first ones that came of it,
    task_count: int = 0  #: of so many
    is_audited: bool = False  #: what it changes is the business of the audit log
    is_decided_elsewhere: bool = False  #: another node answered
    dispatcher_headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of a dispatcher's answer, also of one that refuses."""
    rate_limit_headers: Mapping[str, str] | None = None
    """Headers of what the client may still ask for, once this request was counted."""


class Connection(Protocol):
    """What the gate knows of the connection under a request."""

    request_info: RequestInfo | None  #: the request in work
    peer: NodeId | None  #: the node at the other end, if it is one
    own_addresses: frozenset[str]  #: under which the other end reached this node
    is_excess: bool  #: it is one too many
    is_socket: bool  #: the other end is a local process with known credentials
    is_lan: bool  #: it came through TLS from the network

    def local_principal(self, node_name: str) -> Principal:
        """Return the user at the other end of a UNIX socket."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request that has passed the gate."""

    http_request: web.BaseRequest
    info: RequestInfo
    add_headers: Callable[
        [web.StreamResponse], None
    ]  #: adds the headers of every answer
    services: Services
    path_params: Mapping[str, str]  #: variable parts of the path
    query: Query
    body: bytes
    principal: Principal | None  #: None only on open routes and between nodes
    forwarded_by: NodeId | None  #: the node that forwarded it

    @property
    def gateway(self) -> Gateway:
        """The agent."""
        return self.services.gateway

    @property
    def authenticated_principal(self) -> Principal:
        """The principal of a route that is not open."""
        assert self.principal is not None
        return self.principal

    def audit_tasks(self, records: Sequence[TaskRecord]) -> None:
        """Let the audit log tell which tasks came of this."""
        self.info.tasks = [record.name for record in records[:AUDITED_TASKS_MAX]]
        self.info.task_count = len(records)

    def elapsed_s(self) -> float:
        """Return how long ago the request came in."""
        return asyncio.get_running_loop().time() - self.info.started_s


Handler = Callable[[Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    access: Access = Access.ADMIN
    is_local: bool = False  #: answered by this node, whoever is dispatcher
    is_for_unpaired: bool = False  #: also where this node is in no mesh
    body_bytes_max: int = BODY_BYTES_MAX
    is_body_streamed: bool = False  #: it is no JSON, and read by `perform`, bit by bit
    query: tuple[str, ...] | None = ()  #: known parameters; None ignores all

    is_page: bool = False  #: it is no part of the API, so of no OpenAPI document
    # What follows is said in the OpenAPI document, and tests check that it is true.
    responses: Mapping[int, Any]  #: by status: type of the JSON; None in other media
    media_type: str = JSON  #: of the answers that are no errors
    body_type: Any = None  #: type of the JSON body; None: there is none
    request_headers: tuple[
        str, ...
    ] = ()  #: headers of a request that matter beyond the usual
    response_headers: tuple[str, ...] = ()  #: headers of an answer beyond the usual
    error_statuses: tuple[
        int, ...
    ] = ()  #: statuses beyond those that any route may give


def json_response(body: bytes, status: int = 200) -> web.Response:
    """Return a JSON answer."""
    return web.Response(body=body, status=status, content_type=JSON)
