"""The table of all settings, of agents and of commands.

Each field of `AgentOptions` defines one setting: its flag of `octaskly agent`, its
variable, its key in files, the checks of its value, and its row in `octaskly config`
and in docs/reference/configuration.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from octaskly.config import defaults
from octaskly.config.units import BYTES, SECONDS
from octaskly.config.value_types import (
    Amount,
    Boolean,
    Choices,
    HostAndPort,
    ListOf,
    NodeName,
    PathValue,
    ValueType,
)
from octaskly.core.model.nodes import GPUS_MAX, LABELS_MAX

_TIME = Amount("T", SECONDS, minimum=1, maximum=defaults.DEADLINE_S_MAX)
_PERIOD = Amount("T", SECONDS, minimum=1, maximum=defaults.PERIOD_S_MAX)
_COUNT = Amount(minimum=1, maximum=defaults.COUNT_MAX)
_PORT = Amount("PORT", maximum=defaults.PORT_MAX)
_FOLDER = PathValue("DIR", "the path of a folder", r".+")
_FILE = PathValue("FILE", "the path of a file", r".+")
NODE_NAME = NodeName()
_LABEL_PART = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"
_LABEL = ValueType("KEY=VALUE", "KEY=VALUE", f"{_LABEL_PART}={_LABEL_PART}")
_GPU = ValueType("GPU", "a number or an id", r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}")
_ORIGIN = ValueType(
    "ORIGIN",
    "SCHEME://HOST or SCHEME://HOST:PORT, in lower case, as browsers send it",
    r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?",
)
_HOST = ValueType(
    "NAME",
    "the name or address of a host, without a port",
    r"[A-Za-z0-9._-]{1,255}|(?=.*:.*:)[0-9A-Fa-f:.]{2,45}",
)


def setting(
    flag: str,
    value_type: ValueType,
    summary: str,
    *,
    default: object = None,
    unset: str = "",
    details: str = "",
) -> Any:
    """Return the dataclass field of one setting.

    Args:
        flag: Flag of `octaskly agent`. The key in files and the variable follow it.
        value_type: Syntax and bounds of values.
        summary: Effect of the setting, in one sentence without a full stop.
        default: Default value.
        unset: The default in words, if it depends on the machine.
        details: More text for the reference page, in Markdown.
    """
    shown = {
        "flag": flag,
        "value_type": value_type,
        "summary": summary,
        "unset": unset,
        "details": details,
    }
    return field(default=default, metadata=shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """The fields of `AgentOptions` that are limits."""

    connections_max: int = setting(
        "--connections-max",
        Amount(minimum=4, maximum=defaults.COUNT_MAX),
        "number of open API connections of clients with a token",
        default=defaults.CONNECTIONS_MAX,
        details="nodes of the mesh have three eighths as many in addition, the local "
        "socket and connections without a token a quarter each; fewer if the process "
        "may open fewer files",
    )
    connections_per_subject: int = setting(
        "--connections-per-subject",
        _COUNT,
        "number of API connections of one subject, or of one user of the local socket",
        default=128,
        details="requests that other nodes forward for the subject count, too",
    )
    connections_per_address: int = setting(
        "--connections-per-address",
        _COUNT,
        "number of API connections without a token, from one LAN address",
        default=defaults.CONNECTIONS_PER_ADDRESS,
        details="on this machine, from one user; nodes of the mesh are exempt",
    )
    streams_max: int = setting(
        "--streams-max",
        _COUNT,
        "number of event streams among the API connections",
        default=defaults.STREAMS_MAX,
    )
    streams_per_subject: int = setting(
        "--streams-per-subject",
        _COUNT,
        "number of event streams of one subject",
        default=defaults.STREAMS_PER_SUBJECT,
    )
    header_s: int = setting(
        "--header-timeout",
        _TIME,
        "time for a request header, from the connection or the last response",
        default=defaults.HEADER_S,
        details="this is also the idle timeout of a connection",
    )
    header_bytes: int = setting(
        "--header-max",
        Amount(
            "SIZE",
            BYTES,
            minimum=defaults.HEADER_BYTES_MIN,
            maximum=defaults.HEADER_BYTES_MAX,
        ),
        "size of the first line of a request, and of each header field",
        default=defaults.HEADER_BYTES,
        details="with at most 128 fields, on all routes; more is answered with 400 or "
        "431, and more than eight times as much in all closes the connection",
    )
    body_s: int = setting(
        "--body-timeout",
        _TIME,
        "time for the body of a request",
        default=defaults.BODY_S,
    )
    bodies_bytes: int = setting(
        "--bodies-max",
        Amount("SIZE", BYTES, minimum=defaults.BODIES_BYTES_MIN),
        "memory for request bodies, beyond 64 KiB of each",
        default=96 << 20,
    )
    responses_bytes: int = setting(
        "--responses-max",
        Amount("SIZE", BYTES, minimum=16 << 20),
        "memory for responses in progress, beyond 64 KiB of each",
        default=64 << 20,
        details="one client gets a quarter; a list takes 2 KiB for each row that it "
        "may have",
    )
    expensive_per_client: int = setting(
        "--expensive-per-client",
        _COUNT,
        "number of expensive requests in progress of one client",
        default=4,
        details="a client is a token, or a user of the local socket "
        "([details](rest-api.md#quotas)); each node counts separately",
    )
    stall_s: int = setting(
        "--stall-timeout",
        _TIME,
        "time until a client that reads nothing of a response is disconnected",
        default=defaults.STALL_S,
    )
    handshakes_max: int = setting(
        "--handshakes-max",
        _COUNT,
        "number of unauthenticated connections at the peer port",
        default=defaults.HANDSHAKES_MAX,
        details="this machine has 96 places of its own, and addresses of nodes as many "
        "as all others; a new connection replaces the oldest one of the address that "
        "has the most; once half are taken, or 16 addresses have some, an address that "
        "is no node's is admitted once in two seconds, more rarely while it finishes "
        "none",
    )
    handshakes_per_address: int = setting(
        "--handshakes-per-address",
        _COUNT,
        "number of unauthenticated connections from one address at the peer port",
        default=defaults.HANDSHAKES_PER_ADDRESS,
    )
    lan_handshakes_max: int = setting(
        "--lan-handshakes-max",
        _COUNT,
        "number of TLS handshakes in progress at the LAN port",
        default=128,
        details="as at the peer port, nodes and this machine have places of their own; "
        "a new one replaces the oldest; once half are taken, or 16 addresses have "
        "some, an address that is no node's is admitted once in two seconds, more "
        "rarely while it finishes none",
    )
    lan_handshakes_per_address: int = setting(
        "--lan-handshakes-per-address",
        _COUNT,
        "number of TLS handshakes from one address at the LAN port",
        default=64,
    )
    handshake_s: int = setting(
        "--handshake-timeout",
        _TIME,
        "time for a certificate, at the peer port and the LAN port",
        default=defaults.HANDSHAKE_S,
        details="twice that at the peer port for agents of the same machine",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions(LimitOptions):
    """Values of all settings; None and () mean that a setting was not given.

    A given port must be free. If a default port is taken, the next free one is used,
    unless it is the API port and another user holds it. Port 0 means any free port.
    """

    name: str | None = setting(
        "--name",
        NODE_NAME,
        "name of this node in the mesh",
        unset="the machine's short name",
        details="a name that another node has becomes `NAME-` and four characters of "
        "the node id, permanently",
    )
    state_dir: Path | None = setting(
        "--state-dir",
        _FOLDER,
        "folder of the log, results and identity",
        unset="~/.local/state/octaskly/NAME",
        details="one agent per folder; systemd's `STATE_DIRECTORY` replaces the "
        "default",
    )
    secret_file: Path | None = setting(
        "--secret-file",
        _FILE,
        "the mesh secret; created if missing",
        unset="~/.config/octaskly/mesh.key",
    )
    api_port: int | None = setting(
        "--api-port",
        _PORT,
        "plain HTTP API, on this machine only",
        unset=str(defaults.API_PORT),
        details="0 means any free port; under systemd, `octaskly.socket` sets it. If "
        "another user holds the default port, the agent serves none on this machine",
    )
    peer_port: int | None = setting(
        "--peer-port",
        _PORT,
        "port for other nodes",
        unset=str(defaults.PEER_PORT),
        details="mutual TLS 1.3, msgpack frames",
    )
    lan_port: int | None = setting(
        "--lan-port",
        _PORT,
        "HTTPS API for the LAN, and for requests between nodes",
        unset=str(defaults.LAN_PORT),
    )
    interfaces: tuple[str, ...] = setting(
        "--interface",
        ListOf(ValueType("NAME", "the name of a network interface")),
        "use this network interface only",
        default=(),
        unset="all but loopback, container bridges and tunnels",
        details="for mDNS, the peer port and the LAN port; with `lo`, nothing leaves "
        "this machine",
    )
    join: tuple[tuple[str, int], ...] = setting(
        "--join",
        ListOf(HostAndPort()),
        "dial this node, if multicast does not reach it",
        default=(),
        unset="none",
    )
    slots: int | None = setting(
        "--slots",
        Amount(minimum=1, maximum=defaults.SLOTS_MAX),
        "number of tasks that run at the same time",
        unset="one per CPU that the agent may use",
    )
    labels: tuple[str, ...] = setting(
        "--label",
        ListOf(_LABEL, items_max=LABELS_MAX, has_unique_keys=True),
        "label that tasks can require",
        default=(),
        unset="none",
        details=f"with `requires.labels`; at most {LABELS_MAX}, each KEY once",
    )
    gpus: tuple[str, ...] = setting(
        "--gpu",
        ListOf(_GPU, items_max=GPUS_MAX, has_unique_keys=True),
        "GPU for tasks, as CUDA_VISIBLE_DEVICES names it",
        default=(),
        unset="those of NVIDIA's driver, by number",
        details=f"at most {GPUS_MAX}",
    )
    workdir: Path | None = setting(
        "--workdir",
        _FOLDER,
        "folder in which tasks run",
        unset="work in the state folder",
    )
    task_user: str | None = setting(
        "--task-user",
        ValueType("NAME", "the name of a user", r"[^\s:,/]{1,64}"),
        "run tasks as this user, who cannot access the agent's data",
        unset="the agent's own user",
        details="without it, an agent that runs as root warns that its tasks are root "
        "too",
    )
    cors_origins: tuple[str, ...] = setting(
        "--cors-origin",
        ListOf(_ORIGIN),
        "web pages of this origin may use the API",
        default=(),
        unset="localhost on any port",
    )
    allow_hosts: tuple[str, ...] = setting(
        "--allow-host",
        ListOf(_HOST),
        "also accept this host name in API requests",
        default=(),
        unset="this machine's names and addresses",
    )
    electable: bool = setting(
        "--electable",
        Boolean(),
        "whether this node may become dispatcher or standby",
        default=True,
        details="if no reachable node may, it becomes dispatcher nevertheless",
    )
    visitor_tasks: str = setting(
        "--visitor-tasks",
        Choices(*defaults.VISITOR_TASKS),
        "with all, visitors may run every task that does not forbid it",
        default=defaults.VISITOR_TASKS[0],
        details="the dispatcher decides, so set it on each node that may become "
        "dispatcher; a task with variables still needs `--visitors=with-env`",
    )
    durability: str = setting(
        "--durability",
        Choices(*defaults.DURABILITIES),
        "with strict, the dispatcher accepts nothing that only one disk holds",
        default=defaults.DURABILITIES[0],
        details="neither tasks nor results "
        "([details](../explanation/replication.md#strict-durability)); the "
        "dispatcher's setting counts, so use one value for all agents of a mesh",
    )
    retention_s: int = setting(
        "--retention",
        _PERIOD,
        "the dispatcher forgets tasks that ended so long ago",
        default=defaults.RETENTION_S,
        details="on all nodes ([details](../explanation/log.md#the-floor)); the "
        "dispatcher's setting counts",
    )
    retained_tasks: int = setting(
        "--retained-tasks",
        Amount(minimum=1),
        "the dispatcher forgets the oldest ended tasks above this number",
        default=2_000_000,
    )
    retained_bytes: int | None = setting(
        "--retained-bytes",
        Amount("SIZE", BYTES, minimum=defaults.RETAINED_BYTES_MIN),
        "the dispatcher forgets ended tasks to keep its log below this size",
        unset="8G, or a tenth of the disk where that is less",
        details="free pages of the file and its write-ahead log, up to 64 MiB, do not "
        "count",
    )
    queue_max: int = setting(
        "--queue-max",
        Amount(minimum=1),
        "the dispatcher queues so many tasks and rejects more with 429",
        default=defaults.QUEUE_MAX,
        details="each member of an array counts",
    )
    queued_bytes_per_subject: int = setting(
        "--queued-bytes-per-subject",
        Amount("SIZE", BYTES, minimum=1_000_000),
        "the dispatcher queues so many bytes of one subject and rejects more with 429",
        default=defaults.QUEUED_BYTES_PER_SUBJECT,
        details="commands, stdin, environment and items, beyond 1 KiB of each task",
    )
    webhooks_per_subject: int = setting(
        "--webhooks-per-subject",
        Amount(minimum=1),
        "the dispatcher accepts so many tasks of one subject whose webhook is still to "
        "be sent, and rejects more with 429",
        default=defaults.WEBHOOKS_PER_SUBJECT,
        details="an array has one webhook",
    )
    rate_admin: int = setting(
        "--rate-admin",
        Amount(),
        "requests per minute of one admin: a token, or a user of the local socket",
        default=600_000,
        details="0 means no limit; the dispatcher's setting counts "
        "([details](rest-api.md#rate-limits))",
    )
    rate_client: int = setting(
        "--rate-client",
        Amount(),
        "requests per minute of one token of the role client",
        default=120_000,
        details="0 is no limit; the dispatcher's setting counts",
    )
    rate_viewer: int = setting(
        "--rate-viewer",
        Amount(),
        "requests per minute of one token of the role viewer",
        default=12_000,
        details="0 is no limit; the dispatcher's setting counts",
    )
    rate_stranger: int = setting(
        "--rate-stranger",
        Amount(),
        "requests per minute of one LAN address without a token",
        default=defaults.RATE_STRANGER,
        details="0 means no limit; each node counts separately",
    )
    output_cap_bytes: int = setting(
        "--output-cap",
        Amount(
            "SIZE", BYTES, minimum=defaults.OUTPUT_CAP_BYTES_MIN, maximum=512_000_000
        ),
        "output of one attempt that its worker keeps on disk",
        default=64_000_000,
        details="the first MiB of each stream, and the end "
        "([details](../explanation/running.md#output))",
    )
    output_quota_bytes: int | None = setting(
        "--output-quota",
        Amount("SIZE", BYTES, minimum=defaults.OUTPUT_CAP_BYTES_MIN),
        "output of all tasks together; the oldest is deleted first",
        unset="10G, or a tenth of the disk where that is less",
        details="output older than `retention` is deleted too; at least `output_cap`",
    )
    files_quota_bytes: int | None = setting(
        "--files-quota",
        Amount("SIZE", BYTES, minimum=1_000_000),
        "files that clients upload here for tasks, or that tasks here use",
        unset="10G, or a tenth of the disk where that is less",
        details="a file that is unused for a day is deleted in any case",
    )
    drain_s: int = setting(
        "--drain",
        Amount("T", SECONDS, maximum=86_400),
        "time that running tasks have to end after SIGTERM",
        default=defaults.DRAIN_S,
        details="then they are killed and run elsewhere; the agent extends systemd's "
        "stop timeout accordingly",
    )
    rotate_within_s: int = setting(
        "--rotate-within",
        _PERIOD,
        "the dispatcher waits so long for nodes to learn a new mesh secret",
        default=86_400,
        details="the dispatcher's setting counts",
    )
    keep_old_secret_s: int = setting(
        "--keep-old-secret",
        _PERIOD,
        "the dispatcher accepts the old secret so long after a rotation",
        default=7 * 86_400,
        details="the dispatcher's setting counts",
    )
    kill_grace_s: int = setting(
        "--kill-grace",
        Amount("T", SECONDS, maximum=3600),
        "time from SIGTERM to SIGKILL for tasks that are killed",
        default=10,
        details="because they timed out, were cancelled by force, or still ran when "
        "the agent stopped; a task may set another `grace`",
    )
    log_format: str = setting(
        "--log-format",
        Choices("auto", "console", "json", "journal"),
        "format of log events; auto is journal under systemd, else console",
        default="auto",
        details="on a terminal, auto prints a banner instead of the log of the start, "
        "unless --log-level is changed",
    )
    log_level: str = setting(
        "--log-level",
        Choices("debug", "info", "warning", "error"),
        "lowest level that is logged",
        default="info",
    )

    @property
    def rates(self) -> dict[str, int]:
        """Requests per minute by role of the client; a `stranger` has no token."""
        roles = ("admin", "client", "viewer", "stranger")
        return {role: getattr(self, f"rate_{role}") for role in roles}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of the table."""

    field: str  #: name of the field of `AgentOptions`
    flag: str
    value_type: ValueType
    summary: str
    unset: str
    details: str
    default: Any
    has_variable: bool = True  #: `OCTASKLY_NODE` has another meaning: a task's node

    @property
    def key(self) -> str:
        """Name of the setting in files and in `octaskly config`."""
        if isinstance(self.value_type, ListOf):
            return self.field
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """Name of its variable; empty if it has none."""
        return f"OCTASKLY_{self.key.upper()}" if self.has_variable else ""

    @property
    def default_text(self) -> str:
        """The default in words."""
        return self.unset or self.value_type.format(self.default)


_ROWS = fields(AgentOptions)
_LIMITS_COUNT = len(fields(LimitOptions))  # First in `_ROWS`, but shown last.
SETTINGS = tuple(
    Setting(field=row.name, default=row.default, **row.metadata)
    for row in (*_ROWS[_LIMITS_COUNT:], *_ROWS[:_LIMITS_COUNT])
)
LIMIT_FLAGS: Final = tuple(
    setting.flag for setting in SETTINGS[len(SETTINGS) - _LIMITS_COUNT :]
)

CLIENT_SETTINGS: Final = (
    Setting(
        field="url",
        flag="--url",
        value_type=ValueType("URL", "an http:// or https:// URL", r"https?://[^\s,]+"),
        summary="the node that commands ask",
        unset="the agent of this machine",
        details="",
        default=None,
    ),
    Setting(
        field="node",
        flag="--node",
        value_type=NODE_NAME,
        summary="the agent of this machine that commands ask, where several run",
        unset="the only one that runs",
        details="",
        default=None,
        has_variable=False,
    ),
    Setting(
        field="ca_file",
        flag="--ca-file",
        value_type=PathValue("FILE", "the path of a file", r".+"),
        summary="CA certificate of the mesh, for https:// URLs",
        unset="the CA certificates of the system",
        details="",
        default=None,
    ),
)
"""Their flags come before the name of the command."""
