"""The table of all settings of an agent.

Each field of `AgentOptions` is one row. It defines the flag of `octaskly agent`, the
variable, the key in files, the row in `octaskly config` and in
docs/reference/configuration.md, and the checks of the value.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from octaskly.config.defaults import (
    API_PORT,
    DRAIN_S,
    DRAIN_S_MAX,
    DURABILITIES,
    FILES_QUOTA_BYTES_MIN,
    KEEP_OLD_SECRET_S,
    KILL_GRACE_S,
    KILL_GRACE_S_MAX,
    LAN_PORT,
    OUTPUT_CAP_BYTES,
    OUTPUT_CAP_BYTES_MAX,
    OUTPUT_CAP_BYTES_MIN,
    PEER_PORT,
    PORT_MAX,
    QUEUE_MAX,
    RATE_ADMIN,
    RATE_CLIENT,
    RATE_STRANGER,
    RATE_VIEWER,
    RETAINED_BYTES_MIN,
    RETAINED_TASKS,
    RETENTION_S,
    ROTATE_WITHIN_S,
    SLOTS_MAX,
)
from octaskly.config.limits import LimitOptions, setting
from octaskly.config.units import BYTES, SECONDS
from octaskly.config.value_types import (
    Amount,
    Boolean,
    Choices,
    HostAndPort,
    ListOf,
    PathValue,
    ValueType,
)
from octaskly.core.model.nodes import GPUS_MAX, LABELS_MAX

_PORT = Amount("PORT", maximum=PORT_MAX)
_FOLDER = PathValue("DIR", "the path of a folder", r".+")
_FILE = PathValue("FILE", "the path of a file", r".+")
NODE_NAME = ValueType(
    "NAME",
    "letters, digits, dots and dashes only, at most 63",
    r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}",
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions(LimitOptions):
    """The values of all settings; None and () mean that no source sets one.

    A port that is set must be free. A default port that is taken moves to the next
    free one. Port 0 means any free port.
    """

    name: str | None = setting(
        "--name",
        NODE_NAME,
        "name of this node in the mesh",
        unset="the machine's short name",
<<<<<<< HEAD
        details="a name that is taken in the mesh becomes `NAME-` and four characters of "
        "the node id, for good",
=======
        more="a name that another node has becomes `NAME-` and four characters of the "
        "node id, permanently",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
    )
    state_dir: Path | None = setting(
        "--state-dir",
        _FOLDER,
        "folder of the log, results and identity",
        unset="~/.local/state/octaskly/NAME",
<<<<<<< HEAD
        details="one agent per folder; where systemd gives one, its own",
=======
        more="one agent per folder; systemd's `STATE_DIRECTORY` replaces the default",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
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
        unset=str(API_PORT),
<<<<<<< HEAD
        details="0 takes any free port",
=======
        more="0 means any free port",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
    )
    peer_port: int | None = setting(
        "--peer-port",
        _PORT,
        "port for other nodes",
        unset=str(PEER_PORT),
        details="mutual TLS 1.3, msgpack frames",
    )
    lan_port: int | None = setting(
        "--lan-port",
        _PORT,
        "HTTPS API for the LAN, and for requests between nodes",
        unset=str(LAN_PORT),
    )
    interfaces: tuple[str, ...] = setting(
        "--interface",
<<<<<<< HEAD
        ListOf(ValueType("NAME", "the name of a network interface")),
        "use only this network interface",
        default=(),
        unset="all but loopback, container bridges and tunnels",
        details="for mDNS, the peer port and the LAN port; `lo` keeps everything on this "
=======
        Many(Kind("NAME", "the name of a network interface")),
        "use this network interface only",
        default=(),
        unset="all but loopback, container bridges and tunnels",
        more="for mDNS, the peer port and the LAN port; with `lo`, nothing leaves this "
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
        "machine",
    )
    join: tuple[tuple[str, int], ...] = setting(
        "--join",
<<<<<<< HEAD
        ListOf(HostAndPort()),
        "dial this node, where multicast does not reach",
=======
        Many(Peer()),
        "dial this node, if multicast does not reach it",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
        default=(),
        unset="none",
    )
    slots: int | None = setting(
        "--slots",
<<<<<<< HEAD
        Amount(minimum=1, maximum=SLOTS_MAX),
        "tasks that run at a time",
=======
        Amount(least=1, most=SLOTS_MAX),
        "number of tasks that run at the same time",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
        unset="one per CPU that the agent may use",
    )
    labels: tuple[str, ...] = setting(
        "--label",
<<<<<<< HEAD
        ListOf(_LABEL, items_max=LABELS_MAX, has_unique_keys=True),
        "tasks can ask for nodes that have it",
        default=(),
        unset="none",
        details=f"with `requires.labels`; {LABELS_MAX} at most, each KEY once",
    )
    gpus: tuple[str, ...] = setting(
        "--gpu",
        ListOf(_GPU, items_max=GPUS_MAX, has_unique_keys=True),
        "a GPU for tasks, as CUDA_VISIBLE_DEVICES names it",
        default=(),
        unset="those of NVIDIA's driver, by number",
        details=f"{GPUS_MAX} at most",
=======
        Many(_LABEL, most=LABELS_MAX, is_each_once=True),
        "label that tasks can require",
        default=(),
        unset="none",
        more=f"with `requires.labels`; at most {LABELS_MAX}, each KEY once",
    )
    gpus: tuple[str, ...] = setting(
        "--gpu",
        Many(_GPU, most=GPUS_MAX, is_each_once=True),
        "GPU for tasks, as CUDA_VISIBLE_DEVICES names it",
        default=(),
        unset="those of NVIDIA's driver, by number",
        more=f"at most {GPUS_MAX}",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
    )
    workdir: Path | None = setting(
        "--workdir",
        _FOLDER,
        "folder in which tasks run",
        unset="work in the state folder",
    )
    task_user: str | None = setting(
        "--task-user",
<<<<<<< HEAD
        ValueType("NAME", "the name of a user", r"[^\s:,/]{1,64}"),
        "run tasks as this user, who can see nothing of the agent",
        unset="the agent's own user",
        details="an agent of root warns without it, since its tasks are root, too",
    )
    cors_origins: tuple[str, ...] = setting(
        "--cors-origin",
        ListOf(_ORIGIN),
        "web pages from here may use the API",
=======
        Kind("NAME", "the name of a user", r"[^\s:,/]{1,64}"),
        "run tasks as this user, who cannot access the agent's data",
        unset="the agent's own user",
        more="without it, an agent that runs as root warns that its tasks are root too",
    )
    cors_origins: tuple[str, ...] = setting(
        "--cors-origin",
        Many(_ORIGIN),
        "web pages of this origin may use the API",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
        default=(),
        unset="localhost on any port",
    )
    allow_hosts: tuple[str, ...] = setting(
        "--allow-host",
<<<<<<< HEAD
        ListOf(_HOST),
        "the API may be called by this host name, too",
=======
        Many(_HOST),
        "also accept this host name in API requests",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
        default=(),
        unset="this machine's names and addresses",
    )
    electable: bool = setting(
        "--electable",
        Boolean(),
        "whether this node may become dispatcher or standby",
        default=True,
<<<<<<< HEAD
        details="where no node in reach may, it becomes dispatcher all the same, as the "
        "last resort",
    )
    durability: str = setting(
        "--durability",
        Choices(*DURABILITIES),
        "with strict, as dispatcher, accept nothing that only one disk holds",
        default=DURABILITIES[0],
        details="no task, and no result either "
        "([what that means](../explanation/replication.md#strict-durability)); the "
        "dispatcher's setting counts, so give all agents of a mesh the same",
    )
    retention_s: int = setting(
        "--retention",
        Amount("T", SECONDS, minimum=1),
        "as dispatcher, forget what ended so long ago",
        default=RETENTION_S,
        details="on all nodes ([how](../explanation/log.md#the-floor)); the dispatcher's "
        "setting counts",
    )
    retained_tasks: int = setting(
        "--retained-tasks",
        Amount(minimum=1),
        "as dispatcher, forget the oldest of more ended tasks",
=======
        more="if no reachable node may, it becomes dispatcher nevertheless",
    )
    durability: str = setting(
        "--durability",
        OneOf(*DURABILITIES),
        "with strict, the dispatcher accepts nothing that only one disk holds",
        default=DURABILITIES[0],
        more="neither tasks nor results "
        "([details](../explanation/replication.md#strict-durability)); the "
        "dispatcher's setting counts, so use one value for all agents of a mesh",
    )
    retention_s: int = setting(
        "--retention",
        Amount("T", SECONDS, least=1),
        "the dispatcher forgets tasks that ended so long ago",
        default=RETENTION_S,
        more="on all nodes ([details](../explanation/log.md#the-floor)); the "
        "dispatcher's setting counts",
    )
    retained_tasks: int = setting(
        "--retained-tasks",
        Amount(least=1),
        "the dispatcher forgets the oldest ended tasks above this number",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
        default=RETAINED_TASKS,
    )
    retained_bytes: int | None = setting(
        "--retained-bytes",
<<<<<<< HEAD
        Amount("SIZE", BYTES, minimum=RETAINED_BYTES_MIN),
        "the same so that the log takes no more than this",
        unset="8G, or a tenth of the disk where that is less",
        details="free pages of the file do not count, nor its write-ahead log of up to "
        "64 MiB",
    )
    queue_max: int = setting(
        "--queue-max",
        Amount(minimum=1),
        "as dispatcher, let so many tasks wait, and refuse more with 429",
        default=QUEUE_MAX,
        details="members of arrays count",
=======
        Amount("SIZE", BYTES, least=RETAINED_BYTES_MIN),
        "the dispatcher forgets ended tasks to keep its log below this size",
        unset="8G, or a tenth of the disk where that is less",
        more="free pages of the file and its write-ahead log, up to 64 MiB, do not "
        "count",
    )
    queue_max: int = setting(
        "--queue-max",
        Amount(least=1),
        "the dispatcher queues so many tasks and rejects more with 429",
        default=QUEUE_MAX,
        more="each member of an array counts",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
    )
    rate_admin: int = setting(
        "--rate-admin",
        Amount(),
        "requests per minute of one admin: a token, or a user of the local socket",
        default=RATE_ADMIN,
<<<<<<< HEAD
        details="0 is no limit; the dispatcher's setting counts "
        "([how](rest-api.md#rate-limits))",
=======
        more="0 means no limit; the dispatcher's setting counts "
        "([details](rest-api.md#rate-limits))",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
    )
    rate_client: int = setting(
        "--rate-client",
        Amount(),
        "requests per minute of one token of the role client",
        default=RATE_CLIENT,
        details="0 is no limit; the dispatcher's setting counts",
    )
    rate_viewer: int = setting(
        "--rate-viewer",
        Amount(),
        "requests per minute of one token of the role viewer",
        default=RATE_VIEWER,
        details="0 is no limit; the dispatcher's setting counts",
    )
    rate_stranger: int = setting(
        "--rate-stranger",
        Amount(),
        "requests per minute of one LAN address without a token",
        default=RATE_STRANGER,
<<<<<<< HEAD
        details="0 is no limit; each node counts for itself",
    )
    output_cap_bytes: int = setting(
        "--output-cap",
        Amount(
            "SIZE", BYTES, minimum=OUTPUT_CAP_BYTES_MIN, maximum=OUTPUT_CAP_BYTES_MAX
        ),
        "of what a task writes, keep so much on the disk of its worker",
        default=OUTPUT_CAP_BYTES,
        details="of one attempt: the first MiB of each stream and the end "
        "([how](../explanation/running.md#output))",
    )
    output_quota_bytes: int | None = setting(
        "--output-quota",
        Amount("SIZE", BYTES, minimum=OUTPUT_CAP_BYTES_MIN),
        "of all tasks together; the oldest goes first",
        unset="10G, or a tenth of the disk where that is less",
        details="and what is older than `retention`; at least `output_cap`",
    )
    files_quota_bytes: int | None = setting(
        "--files-quota",
        Amount("SIZE", BYTES, minimum=FILES_QUOTA_BYTES_MIN),
        "of files that clients leave here for tasks, or tasks here need",
        unset="10G, or a tenth of the disk where that is less",
        details="what nobody wanted for a day goes in any case",
    )
    drain_s: int = setting(
        "--drain",
        Amount("T", SECONDS, maximum=DRAIN_S_MAX),
        "how long running tasks may take to end after SIGTERM",
        default=DRAIN_S,
        details="what is left is ended and run elsewhere; systemd is told of it",
    )
    rotate_within_s: int = setting(
        "--rotate-within",
        Amount("T", SECONDS, minimum=1),
        "as dispatcher, wait so long for nodes to learn a new mesh secret",
=======
        more="0 means no limit; each node counts separately",
    )
    output_cap_bytes: int = setting(
        "--output-cap",
        Amount("SIZE", BYTES, least=OUTPUT_CAP_BYTES_MIN, most=OUTPUT_CAP_BYTES_MAX),
        "output of one attempt that its worker keeps on disk",
        default=OUTPUT_CAP_BYTES,
        more="the first MiB of each stream, and the end "
        "([details](../explanation/running.md#output))",
    )
    output_quota_bytes: int | None = setting(
        "--output-quota",
        Amount("SIZE", BYTES, least=OUTPUT_CAP_BYTES_MIN),
        "output of all tasks together; the oldest is deleted first",
        unset="10G, or a tenth of the disk where that is less",
        more="output older than `retention` is deleted too; at least `output_cap`",
    )
    files_quota_bytes: int | None = setting(
        "--files-quota",
        Amount("SIZE", BYTES, least=FILES_QUOTA_BYTES_MIN),
        "files that clients upload here for tasks, or that tasks here use",
        unset="10G, or a tenth of the disk where that is less",
        more="a file that is unused for a day is deleted in any case",
    )
    drain_s: int = setting(
        "--drain",
        Amount("T", SECONDS, most=DRAIN_S_MAX),
        "time that running tasks have to end after SIGTERM",
        default=DRAIN_S,
        more="then they are killed and run elsewhere; the agent extends systemd's stop "
        "timeout accordingly",
    )
    rotate_within_s: int = setting(
        "--rotate-within",
        Amount("T", SECONDS, least=1),
        "the dispatcher waits so long for nodes to learn a new mesh secret",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
        default=ROTATE_WITHIN_S,
        details="the dispatcher's setting counts",
    )
    keep_old_secret_s: int = setting(
        "--keep-old-secret",
<<<<<<< HEAD
        Amount("T", SECONDS, minimum=1),
        "as dispatcher, accept the secret before a rotation so long after it",
=======
        Amount("T", SECONDS, least=1),
        "the dispatcher accepts the old secret so long after a rotation",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
        default=KEEP_OLD_SECRET_S,
        details="the dispatcher's setting counts",
    )
    kill_grace_s: int = setting(
        "--kill-grace",
<<<<<<< HEAD
        Amount("T", SECONDS, maximum=KILL_GRACE_S_MAX),
        "from SIGTERM to SIGKILL for tasks that are ended",
        default=KILL_GRACE_S,
        details="those that are late, cancelled by force, or left when the agent stops; a "
        "task may ask for another `grace`",
    )
    log_format: str = setting(
        "--log-format",
        Choices("auto", "console", "json", "journal"),
        "how events are written; auto is journal under systemd, else console",
=======
        Amount("T", SECONDS, most=KILL_GRACE_S_MAX),
        "time from SIGTERM to SIGKILL for tasks that are killed",
        default=KILL_GRACE_S,
        more="because they timed out, were cancelled by force, or still ran when the "
        "agent stopped; a task may set another `grace`",
    )
    log_format: str = setting(
        "--log-format",
        OneOf("auto", "console", "json", "journal"),
        "format of log events; auto is journal under systemd, else console",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
        default="auto",
    )
    log_level: str = setting(
        "--log-level",
<<<<<<< HEAD
        Choices("debug", "info", "warning", "error"),
        "the least level of what is logged",
=======
        OneOf("debug", "info", "warning", "error"),
        "lowest level that is logged",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
        default="info",
    )

    @property
    def rates(self) -> dict[str, int]:
        """Requests per minute by role; a `stranger` sends no token."""
        roles = ("admin", "client", "viewer", "stranger")
        return {role: getattr(self, f"rate_{role}") for role in roles}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table."""

    field: str  #: of `AgentOptions`
    flag: str
    value_type: ValueType
    summary: str
    unset: str
    details: str
    default: Any
    has_variable: bool = True  #: `OCTASKLY_NODE` tells tasks where they run

    @property
    def key(self) -> str:
<<<<<<< HEAD
        """Its name: the key in files, and what `octaskly config` calls it."""
        if isinstance(self.value_type, ListOf):
=======
        """The key in files, which is also the name in `octaskly config`."""
        if isinstance(self.kind, Many):
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
            return self.field
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable; empty if there is none."""
        return f"OCTASKLY_{self.key.upper()}" if self.has_variable else ""

    @property
    def default_text(self) -> str:
<<<<<<< HEAD
        """What holds where nobody says anything."""
        return self.unset or self.value_type.format(self.default)
=======
        """The default, as text."""
        return self.unset or self.kind.show(self.default)
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)


_ROWS = fields(AgentOptions)
_LIMITS_COUNT = len(fields(LimitOptions))  # They come first there, and last for people.
SETTINGS = tuple(
    Setting(field=row.name, default=row.default, **row.metadata)
    for row in (*_ROWS[_LIMITS_COUNT:], *_ROWS[:_LIMITS_COUNT])
)
