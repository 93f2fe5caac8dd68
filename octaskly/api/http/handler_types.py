"""Routes, requests and the services that handlers use."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final, Protocol, TypeVar

import aiohttp
from aiohttp import web

from octaskly.api.http.file_sender import Transfers
from octaskly.api.http.open_long_polls import LongPolls
from octaskly.api.problems import Problem
from octaskly.api.schemas.query import Query
from octaskly.api.security.file_keepers import FileKeepers
from octaskly.api.security.one_time_codes import OneTimeCodes
from octaskly.api.security.quotas import Admission
from octaskly.api.security.rate_limit import RateLimiter
from octaskly.api.security.request_turns import RequestWork
from octaskly.api.security.route_cost import Cost
from octaskly.config.defaults import (
    BODY_S,
    HEADER_S,
    STALL_S,
    STREAMS_MAX,
    STREAMS_PER_SUBJECT,
)
from octaskly.config.settings import LimitOptions
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import NodeId
from octaskly.ports.audit import COMMAND_BYTES_MAX
from octaskly.ports.files import TreeKeeper
from octaskly.ports.gateway import Gateway
from octaskly.ports.join_service import JoinService
from octaskly.ports.key_rotation import KeyRotationControl
from octaskly.ports.store import Clock
from octaskly.ports.tokens import Principal
from octaskly.rest.mesh import Checkup
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.blobs.lenders import Lenders
from octaskly.runner.files.storage_report import StorageReporter
from octaskly.runner.files.visitor_files import VisitorFiles
from octaskly.runner.pool.forgotten_outputs import ForgottenOutputs
from octaskly.system.clock import loop_time
from octaskly.trust.certificates import PeerIdentity

BODY_BYTES_MAX = 1 << 20
JSON = "application/json"
BYTES = "application/octet-stream"
TAR = "application/x-tar"

AUDITED_TASKS_MAX = 8
"""Number of tasks of one request that the audit log names."""

_RETRY_AFTER_S = 5

LOCAL_STREAMS_RESERVED = 32
"""Additional event streams that only users of the local socket may open."""

_T = TypeVar("_T")


class Access(Enum):
    """The permission that a route requires; the default is ADMIN."""

    PUBLIC = auto()  #: everybody
    READ = auto()  #: every principal
    READ_OR_LOCAL = auto()  #: every principal; no token is needed on this machine
    SUBMIT = auto()  #: principals that may create and cancel tasks
    ADMIN = auto()  #: admins
    LOCAL = auto()  #: users of the local socket; a token is not enough
    LOCAL_PAGE = auto()  #: users of the local socket, and their dashboard sessions
    NODE = auto()  #: nodes of the mesh, by certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTimeouts:
    """Timeouts for clients and for other nodes."""

    #: from connect or the last response to a complete header
    header_s: float = HEADER_S
    body_s: float = BODY_S
    dispatcher_wait_s: float = 5.0  #: how long a request waits for a dispatcher
    connect_s: float = 1.0  #: to another node
    refusal_delay_s: float = 1.0  #: before a 429, which says to wait at least as long
    stall_s: float = STALL_S  #: between two parts of a stream
    keepalive_s: float = 3.0  #: until an idle stream sends a keepalive
    shutdown_s: float = 3.0  #: for requests in flight when the API closes
    #: for connections of nodes with a certificate of an older mesh secret
    old_certificate_grace_s: float = 15.0

    @classmethod
    def from_options(cls, options: LimitOptions) -> HttpTimeouts:
        """Return the timeouts of an agent's options."""
        return cls(
            header_s=options.header_s, body_s=options.body_s, stall_s=options.stall_s
        )


class NotSent(ConnectionError):
    """The other node did not get the request, or refused to act on it."""


class NodeClient(Protocol):
    """The HTTP client for other nodes."""

    async def forward_to_dispatcher(
        self, request: Request, handle_locally: Handler
    ) -> web.StreamResponse:
        """Handle a request locally or at the dispatcher."""

    async def forward_to_node(
        self, request: Request, lan_urls: Sequence[str], path: str
    ) -> web.StreamResponse:
        """Forward a request to a path of another node, and relay the response."""

    async def try_each(
        self, lan_urls: Sequence[str], send: Callable[[str], Awaitable[_T]]
    ) -> _T:
        """Return what `send` returns for the first address that works.

        Args:
            lan_urls: URLs of the other node, best first.
            send: Sends to one URL; if it raises NotSent, the next URL is tried.

        Raises:
            NotSent: no URL works, or there is none.
        """

    def session(self) -> aiohttp.ClientSession:
        """Return the session to other nodes.

        Raises:
            NotSent: this node has no certificate.
        """

    def forwarding_headers(
        self, request: Request, *, is_relayed: bool = False
    ) -> dict[str, str]:
        """Return the headers that forward a request to another node.

        Args:
            request: The client's request.
            is_relayed: The other node is asked to relay it to the dispatcher.
        """


async def empty_metrics() -> bytes:
    """Return no metrics, for an API without an agent."""
    return b""


def no_checkup() -> Checkup:
    """Return an empty setup, for an API without an agent."""
    return Checkup(name="", node_id="", state_dir="", secret_file="", descriptors_max=0)


class OpenStreams:
    """Counts the open event streams of one node, in all and by subject."""

    def __init__(
        self,
        streams_max: int = STREAMS_MAX,
        per_subject_max: int = STREAMS_PER_SUBJECT,
    ) -> None:
        self.count = 0
        self._streams_max = streams_max
        self._per_subject_max = per_subject_max
        self._count_by_subject: Counter[str] = Counter()

    @contextlib.contextmanager
    def count_stream(self, principal: Principal | None) -> Iterator[None]:
        """Count a stream while the block runs.

        Args:
            principal: The client; None if it is a node.

        Raises:
            Problem: 429, the subject has too many; 503, all clients have.
        """
        self._check_limits(principal)
        subject = "" if principal is None else principal.subject
        self.count += 1
        self._count_by_subject[subject] += 1
        try:
            yield
        finally:
            self.count -= 1
            self._count_by_subject[subject] -= 1
            if not self._count_by_subject[subject]:
                del self._count_by_subject[subject]

    def _check_limits(self, principal: Principal | None) -> None:
        """Raise `Problem` if the client may not open one more stream."""
        subject = "" if principal is None else principal.subject
        if subject and self._count_by_subject[subject] >= self._per_subject_max:
            raise Problem(
                429,
                "Too many event streams",
                hint=f"{subject} may have {self._per_subject_max} open at a time; "
                "close one, or try again later",
                headers={"Retry-After": str(_RETRY_AFTER_S)},
                closes_connection=True,
            )
        is_local = principal is not None and principal.uid is not None
        if self.count >= self._streams_max + is_local * LOCAL_STREAMS_RESERVED:
            raise Problem(
                503,
                "Too many event streams",
                hint=f"this node serves {self._streams_max} at a time; use another "
                "node, or try again later",
                headers={"Retry-After": str(_RETRY_AFTER_S)},
                closes_connection=True,  # Free the connection for others.
            )


@dataclass(frozen=True, slots=True)
class MemberFiles:
    """The file store of a member, its trees, and the report on their room."""

    store: BlobStore
    lenders: Lenders
    trees: TreeKeeper
    storage: StorageReporter
    forgotten: ForgottenOutputs
    visitors: VisitorFiles


@dataclass(frozen=True, slots=True)
class Services:
    """The objects that handlers use."""

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
    files: MemberFiles | None = None  #: the same
    file_keepers: FileKeepers = field(default_factory=FileKeepers)
    one_time_codes: OneTimeCodes = field(default_factory=OneTimeCodes)
    render_metrics: Callable[[], Awaitable[bytes]] = empty_metrics
    transfers: Transfers = field(default_factory=Transfers)


@dataclass(slots=True)
class RequestInfo:
    """Data about a request, collected while it is processed."""

    id: str
    started_s: float  #: by `loop_time`
    origin: str | None = None  #: an allowed Origin, to be reflected
    subject: str | None = None
    body_bytes: int = 0  #: counted bytes of its body
    principal: Principal | None = None
    action: str = ""  #: method and path of the route
    target: str | None = None  #: first variable part of the path
    source: str = ""  #: an address, or a user of this machine
    forwarded_by: NodeId | None = None  #: the node that forwarded it
    tasks: Sequence[str] = ()  #: the first tasks that it created
    task_count: int = 0  #: number of tasks that it created
    command: str | None = None  #: the distinct commands, one per line, cut
    is_audited: bool = False  #: its changes are recorded in the audit log
    is_administrative: bool = False  #: only admins and local users may ask for it
    is_decided_elsewhere: bool = False  #: another node answered
    is_outcome_unknown: bool = False  #: it failed, and may have made its change
    closes_connection: bool = False  #: after the response
    dispatcher_headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of a dispatcher's response, also of an error response."""
    rate_units: int = 1  #: of the rate limit
    row_count: int | None = None  #: rows of the response, where the cost names rows
    rate_limit_headers: Mapping[str, str] | None = None
    """Rate limit headers, after this request was counted."""


class Connection(Protocol):
    """The connection of a request."""

    request_info: RequestInfo | None  #: the current request
    visitor: PeerIdentity | None  #: the visitor at the other end
    own_addresses: frozenset[str]  #: addresses at which the client reached this node
    owner: str  #: the node, local user or address that its limits count it for
    refusal: Problem | None  #: the error response of a connection above a limit
    is_socket: bool  #: the other end is a local process with known credentials
    is_lan: bool  #: from the LAN, over TLS

    @property
    def peer(self) -> NodeId | None:
        """The member at the other end; None for other clients."""

    def local_principal(self, node_name: str) -> Principal:
        """Return the user at the other end of the UNIX socket."""

    def authenticate_as(self, subject: str) -> None:
        """Count the connection as one of a subject that showed a valid token.

        Raises:
            Problem: 429 or 503, there are too many.
        """

    def count_forwarded(self, subject: str) -> contextlib.AbstractContextManager[None]:
        """Count the current request, which a node forwarded for a subject.

        Raises:
            Problem: 429, there are too many.
        """

    def mark_request_complete(self) -> None:
        """Record that header and body of a request arrived."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that passed the checks of the pipeline."""

    http_request: web.BaseRequest
    info: RequestInfo
    #: adds the common headers to a response
    add_headers: Callable[[web.StreamResponse], None]
    services: Services
    path_params: Mapping[str, str]  #: variable parts of the path
    query: Query
    body: bytes
    principal: Principal | None  #: None only on public routes and between nodes
    forwarded_by: NodeId | None  #: the node that forwarded it
    quota: Admission
    work: RequestWork
    visitor: NodeId | None = None  #: who asks for what belongs to its tasks

    @property
    def gateway(self) -> Gateway:
        """The agent."""
        return self.services.gateway

    @property
    def files(self) -> MemberFiles:
        """The file store of this node, its trees, and the report on their space."""
        assert self.services.files is not None  # Every member of a mesh has it.
        return self.services.files

    @property
    def authenticated_principal(self) -> Principal:
        """The principal of a route that is not public."""
        assert self.principal is not None
        return self.principal

    def audit_commands(self, commands: Iterable[str]) -> None:
        """Record what this request asks for, for the audit log."""
        self.info.command = join_commands(commands)

    def audit_tasks(self, records: Sequence[TaskRecord]) -> None:
        """Record the tasks that this request created, for the audit log."""
        self.info.tasks = [record.name for record in records[:AUDITED_TASKS_MAX]]
        self.info.task_count = len(records)

    def elapsed_s(self) -> float:
        """Return the seconds since the request arrived."""
        return loop_time() - self.info.started_s


def join_commands(commands: Iterable[str]) -> str:
    """Return the distinct commands, one per line, cut at `COMMAND_BYTES_MAX`."""
    distinct: dict[str, None] = {}
    chars = 0
    for command in commands:
        if command not in distinct:
            distinct[command] = None
            chars += len(command) + 1
            if chars > COMMAND_BYTES_MAX:
                break
    whole = "\n".join(distinct).encode("utf-8", "replace")
    return whole[:COMMAND_BYTES_MAX].decode("utf-8", "ignore")


Handler = Callable[[Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    cost: Cost
    access: Access = Access.ADMIN
    is_local: bool = False  #: always answered by the node that receives it
    allows_visitors: bool = False  #: the handler checks that it is about its tasks
    is_for_unpaired: bool = False  #: also available while this node is in no mesh
    body_bytes_max: int = BODY_BYTES_MAX
    is_body_streamed: bool = False  #: not JSON; the handler reads it in parts
    query: tuple[str, ...] | None = ()  #: known parameters; None ignores all

    is_page: bool = False  #: a dashboard file, which the OpenAPI document omits
    # The OpenAPI document contains the following fields, and tests verify them.
    responses: Mapping[int, Any]  #: JSON type by status; None for another media type
    media_type: str = JSON  #: of the responses that are not errors
    body_type: Any = None  #: type of the JSON body; None: no body
    request_headers: tuple[str, ...] = ()  #: in addition to the common ones
    response_headers: tuple[str, ...] = ()  #: in addition to the common ones
    error_statuses: tuple[int, ...] = ()  #: in addition to those of every route


DEFAULT_HEADERS: Final = {
    "Server": "octaskly",
    # A browser uses the declared content type, runs no foreign script, sends no
    # referrer to other sites, and lets no page frame the response.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Vary": "Origin",
}
"""Headers of each response, unless a handler sets others."""

UNCACHED_HEADERS: Final = {
    **DEFAULT_HEADERS,
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
    "Expires": "0",
}
"""The same for those that no program may keep."""

_JSON_HEADERS: Final = web.Response(
    headers={**UNCACHED_HEADERS, "Content-Type": JSON}
).headers


def json_response(body: bytes, status: int = 200) -> web.Response:
    """Return a JSON response with the usual headers, which are copied at once."""
    return web.Response(body=body, status=status, headers=_JSON_HEADERS)
