"""The table of all settings of an agent.

One row is one field of `AgentOptions`. Its flag of `octaskly agent`, its variable, its
key in files, its row in `octaskly config` and in docs/reference/configuration.md are
made of it, and so is every check that a value needs for itself.
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
    "letters, digits, dots and dashes only, 63 at most",
    r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}",
)
_LABEL_PART = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"
_LABEL = ValueType("KEY=VALUE", "KEY=VALUE", f"{_LABEL_PART}={_LABEL_PART}")
_GPU = ValueType("GPU", "a number or an id", r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}")
_ORIGIN = ValueType(
    "ORIGIN",
    "SCHEME://HOST or SCHEME://HOST:PORT, in small letters, as browsers say it",
    r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?",
)
_HOST = ValueType(
    "NAME",
    "the name or address of a host, without a port",
    r"[A-Za-z0-9._-]{1,255}|(?=.*:.*:)[0-9A-Fa-f:.]{2,45}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions(LimitOptions):
    """What settings say; None and () mean that nobody asked.

    A port that was asked for must be free; a default one that is taken moves to the
    next free one. Port 0 asks for any free port.
    """

    name: str | None = setting(
        "--name",
        NODE_NAME,
        "name of this node in the mesh",
        unset="the machine's short name",
        details="a name that is taken in the mesh becomes `NAME-` and four characters of "
        "the node id, for good",
    )
    state_dir: Path | None = setting(
        "--state-dir",
        _FOLDER,
        "where log, results and identity lie",
        unset="~/.local/state/octaskly/NAME",
        details="one agent per folder; where systemd gives one, its own",
    )
    secret_file: Path | None = setting(
        "--secret-file",
        _FILE,
        "the mesh secret; made if missing",
        unset="~/.config/octaskly/mesh.key",
    )
    api_port: int | None = setting(
        "--api-port",
        _PORT,
        "plain HTTP API, on this machine only",
        unset=str(API_PORT),
        details="0 takes any free port",
    )
    peer_port: int | None = setting(
        "--peer-port",
        _PORT,
        "other nodes",
        unset=str(PEER_PORT),
        details="mutual TLS 1.3, msgpack frames",
    )
    lan_port: int | None = setting(
        "--lan-port",
        _PORT,
        "HTTPS API for the LAN, and what nodes forward to each other",
        unset=str(LAN_PORT),
    )
    interfaces: tuple[str, ...] = setting(
        "--interface",
        ListOf(ValueType("NAME", "the name of a network interface")),
        "use only this network interface",
        default=(),
        unset="all but loopback, container bridges and tunnels",
        details="for mDNS, the peer port and the LAN port; `lo` keeps everything on this "
        "machine",
    )
    join: tuple[tuple[str, int], ...] = setting(
        "--join",
        ListOf(HostAndPort()),
        "dial this node, where multicast does not reach",
        default=(),
        unset="none",
    )
    slots: int | None = setting(
        "--slots",
        Amount(minimum=1, maximum=SLOTS_MAX),
        "tasks that run at a time",
        unset="one per CPU that the agent may use",
    )
    labels: tuple[str, ...] = setting(
        "--label",
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
    )
    workdir: Path | None = setting(
        "--workdir",
        _FOLDER,
        "where tasks run",
        unset="work in the state folder",
    )
    task_user: str | None = setting(
        "--task-user",
        ValueType("NAME", "the name of a user", r"[^\s:,/]{1,64}"),
        "run tasks as this user, who can see nothing of the agent",
        unset="the agent's own user",
        details="an agent of root warns without it, since its tasks are root, too",
    )
    cors_origins: tuple[str, ...] = setting(
        "--cors-origin",
        ListOf(_ORIGIN),
        "web pages from here may use the API",
        default=(),
        unset="localhost on any port",
    )
    allow_hosts: tuple[str, ...] = setting(
        "--allow-host",
        ListOf(_HOST),
        "the API may be called by this host name, too",
        default=(),
        unset="this machine's names and addresses",
    )
    electable: bool = setting(
        "--electable",
        Boolean(),
        "whether this node may become dispatcher or standby",
        default=True,
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
        default=RETAINED_TASKS,
    )
    retained_bytes: int | None = setting(
        "--retained-bytes",
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
    )
    rate_admin: int = setting(
        "--rate-admin",
        Amount(),
        "requests a minute of one admin: a token, or a user of the local socket",
        default=RATE_ADMIN,
        details="0 is no limit; the dispatcher's setting counts "
        "([how](rest-api.md#rate-limits))",
    )
    rate_client: int = setting(
        "--rate-client",
        Amount(),
        "requests a minute of one token of the role client",
        default=RATE_CLIENT,
        details="0 is no limit; the dispatcher's setting counts",
    )
    rate_viewer: int = setting(
        "--rate-viewer",
        Amount(),
        "requests a minute of one token of the role viewer",
        default=RATE_VIEWER,
        details="0 is no limit; the dispatcher's setting counts",
    )
    rate_stranger: int = setting(
        "--rate-stranger",
        Amount(),
        "requests a minute of one address of the LAN without a token",
        default=RATE_STRANGER,
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
        default=ROTATE_WITHIN_S,
        details="the dispatcher's setting counts",
    )
    keep_old_secret_s: int = setting(
        "--keep-old-secret",
        Amount("T", SECONDS, minimum=1),
        "as dispatcher, accept the secret before a rotation so long after it",
        default=KEEP_OLD_SECRET_S,
        details="the dispatcher's setting counts",
    )
    kill_grace_s: int = setting(
        "--kill-grace",
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
        default="auto",
    )
    log_level: str = setting(
        "--log-level",
        Choices("debug", "info", "warning", "error"),
        "the least level of what is logged",
        default="info",
    )

    @property
    def rates(self) -> dict[str, int]:
        """Requests a minute, by role of who asks; `stranger` shows no token."""
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
        """Its name: the key in files, and what `octaskly config` calls it."""
        if isinstance(self.value_type, ListOf):
            return self.field
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """Its name in the environment; empty if it may not stand there."""
        return f"OCTASKLY_{self.key.upper()}" if self.has_variable else ""

    @property
    def default_text(self) -> str:
        """What holds where nobody says anything."""
        return self.unset or self.value_type.format(self.default)


_ROWS = fields(AgentOptions)
_LIMITS_COUNT = len(fields(LimitOptions))  # They come first there, and last for people.
SETTINGS = tuple(
    Setting(field=row.name, default=row.default, **row.metadata)
    for row in (*_ROWS[_LIMITS_COUNT:], *_ROWS[:_LIMITS_COUNT])
)
