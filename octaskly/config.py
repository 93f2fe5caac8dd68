"""Settings of one agent, and where its files lie.

Owns names, folders and ports, checked as far as that goes without opening anything.
Every problem is a `ConfigError` that names the setting; the process exits with 78.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from octaskly.core.model import GPUS_MAX, LABELS_MAX, Limits, Timing
from octaskly.errors import ConfigError

EXIT_CONFIG = 78  #: sysexits(3) EX_CONFIG: systemd does not restart in a loop

API_PORT = 3000
PEER_PORT = 7878
LAN_PORT = 3443
GROUP = "octaskly"  #: its members may use the local socket, so command the mesh
LOOPBACK = ("127.0.0.1", "::1")
PORT_MAX = 65535
RETENTION_S = 7 * 86_400
RETAINED_TASKS = 2_000_000
RETAINED_BYTES_MIN = 16 << 20
QUEUE_MAX = 5_000_000
DRAIN_S = 30
KILL_GRACE_S = 10
KILL_GRACE_S_MAX = 3600
DRAIN_S_MAX = 86_400
SLOTS_MAX = 4096
OUTPUT_CAP_BYTES = 64 << 20
OUTPUT_CAP_BYTES_MIN = 4 << 20
OUTPUT_CAP_BYTES_MAX = 1 << 29
DURABILITIES = ("normal", "strict")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_GPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What the flags of `octaskly agent` say; None means that nobody asked.

    A port that was asked for must be free; a default one that is taken moves to the
    next free one. Port 0 asks for any free port.
    """

    name: str | None = None
    state_dir: Path | None = None
    secret_file: Path | None = None
    api_port: int | None = None
    peer_port: int | None = None
    lan_port: int | None = None
    interfaces: tuple[str, ...] = ()
    join: tuple[str, ...] = ()
    slots: int | None = None
    labels: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()  #: empty: those that are found
    workdir: Path | None = None
    cors_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    electable: bool = True
    durability: str | None = None  #: one of `DURABILITIES`
    retention_s: int = RETENTION_S  #: how long ended tasks are kept
    queue_max: int = QUEUE_MAX  #: tasks that may wait, as dispatcher
    retained_tasks: int = RETAINED_TASKS  #: of more, the oldest are forgotten
    retained_bytes: int | None = None  #: the same of a larger log
    output_cap_bytes: int = OUTPUT_CAP_BYTES  #: of one attempt, on the worker's disk
    output_quota_bytes: int | None = None  #: of all attempts together
    drain_s: int = DRAIN_S  #: how long running tasks may take after SIGTERM
    kill_grace_s: int = KILL_GRACE_S  #: between SIGTERM and SIGKILL of a task
    log_format: str = "auto"  #: `auto`, `console`, `json` or `journal`
    log_level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """The files of one agent."""

    state: Path  #: mode 0700; everything below belongs to this agent alone
    workdir: Path  #: where tasks run
    secret: Path  #: mesh secret, shared by all agents of one user on one machine
    runtime: Path  #: folder of the socket

    @property
    def database(self) -> Path:
        """The log."""
        return self.state / "log.db"

    @property
    def outputs(self) -> Path:
        """Captured outputs of attempts that ran here."""
        return self.state / "outputs"

    @property
    def scratch(self) -> Path:
        """Fresh folders of attempts that run here and asked for one."""
        return self.state / "scratch"

    @property
    def transcripts(self) -> Path:
        """Long output of attempts that ran here."""
        return self.state / "transcripts"

    def socket_of(self, name: str) -> Path:
        """Return the local socket of the agent of this name."""
        is_own = self.runtime == self.state
        return self.runtime / ("octaskly.sock" if is_own else f"{name}.sock")

    @property
    def description(self) -> Path:
        """What programs on this machine need to find the running agent."""
        return self.state / "agent.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Options with every default filled in."""

    name: str
    paths: Paths
    slots: int
    labels: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[str, int], ...]  #: host and peer port of each `--join`
    is_strict: bool  #: nothing counts that only one disk holds
    options: AgentOptions
    timing: Timing
    limits: Limits
    task_umask: int = (
        0o022  #: of the files that tasks make; the agent's own are private
    )


def resolve(options: AgentOptions, environ: Mapping[str, str]) -> AgentConfig:
    """Fill in defaults from the environment and check everything at once.

    Raises:
        ConfigError: something is unusable; the message has one line per problem.
    """
    problems: list[str] = []
    name = options.name or _host_name()
    if not _NAME.fullmatch(name):
        problems.append(f"--name {name!r}: letters, digits, dots and dashes only")
    slots = options.slots if options.slots is not None else _cpus()
    if not 1 <= slots <= SLOTS_MAX:
        problems.append(f"--slots {slots}: from 1 to 4096")
    cap_bytes, quota_bytes = options.output_cap_bytes, options.output_quota_bytes
    if not OUTPUT_CAP_BYTES_MIN <= cap_bytes <= OUTPUT_CAP_BYTES_MAX:
        problems.append(f"--output-cap {cap_bytes}: from 4M to 512M")
    if quota_bytes is not None and quota_bytes < cap_bytes:
        problems.append(f"--output-quota {quota_bytes}: at least --output-cap")
    if (size := options.retained_bytes) is not None and size < RETAINED_BYTES_MIN:
        problems.append(f"--retained-bytes {size}: at least 16M")
    labels = _labels(options.labels, problems)
    _check_gpus(options.gpus, problems)
    seeds = tuple(seed for text in options.join if (seed := parse_seed(text, problems)))
    for flag, port in (
        ("--api-port", options.api_port),
        ("--peer-port", options.peer_port),
        ("--lan-port", options.lan_port),
    ):
        if port is not None and not 0 <= port <= PORT_MAX:
            problems.append(f"{flag} {port}: from 0 to 65535")
    durability = _durability(options, environ, problems)
    if problems:
        raise ConfigError(
            "; ".join(problems), hint="octaskly agent --help shows every flag"
        )
    return AgentConfig(
        name=name,
        paths=_paths(options, name, environ),
        slots=slots,
        labels=labels,
        seeds=seeds,
        is_strict=durability == "strict",
        options=options,
        timing=Timing(
            retention_s=options.retention_s, kill_grace_s=options.kill_grace_s
        ),
        limits=Limits(retained_tasks=options.retained_tasks),
    )


def parse_seed(
    text: str,
    problems: list[str],
    *,
    flag: str = "--join",
    port_default: int = PEER_PORT,
) -> tuple[str, int] | None:
    """Return host and port of `HOST[:PORT]`, `[V6]:PORT`; note a problem instead."""
    match = re.fullmatch(
        r"\[(?P<v6>[0-9a-fA-F:.%\w]+)\](?::(?P<p6>\d+))?|(?P<host>[^:\s]+)(?::(?P<p>\d+))?",
        text,
    )
    port = int((match["p6"] or match["p"] or port_default) if match else 0)
    if match is None or not 1 <= port <= PORT_MAX:
        problems.append(f"{flag} {text!r}: HOST, HOST:PORT or [IPV6]:PORT")
        return None
    return match["v6"] or match["host"], port


def state_dir_default(name: str, environ: Mapping[str, str]) -> Path:
    """Return where an agent of this name keeps its state."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    return xdg(environ, "XDG_STATE_HOME", ".local/state") / "octaskly" / name


def runtime_dir_default(environ: Mapping[str, str]) -> Path | None:
    """Return the folder for sockets, or None where the state folder must do."""
    if given := environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    if given := environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "octaskly"
    return None


def secret_default(environ: Mapping[str, str], state: Path) -> Path:
    """Return the file of the mesh secret that is used unless a flag says otherwise."""
    if given := environ.get("OCTASKLY_SECRET_FILE"):
        return Path(given)
    if credentials := environ.get("CREDENTIALS_DIRECTORY"):
        given_key = Path(credentials) / "mesh.key"
        # Without a credential a unit makes its own secret, in its state folder.
        return given_key if given_key.exists() else state / "mesh.key"
    return xdg(environ, "XDG_CONFIG_HOME", ".config") / "octaskly" / "mesh.key"


def xdg(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    """Return a base folder after the XDG specification; relative ones are ignored."""
    given = environ.get(variable, "")
    if given.startswith("/"):
        return Path(given)
    return Path(environ.get("HOME") or Path.home()) / fallback


def _paths(options: AgentOptions, name: str, environ: Mapping[str, str]) -> Paths:
    state = (options.state_dir or state_dir_default(name, environ)).absolute()
    runtime = state if options.state_dir else runtime_dir_default(environ) or state
    return Paths(
        state=state,
        workdir=(options.workdir or state / "work").absolute(),
        secret=(options.secret_file or secret_default(environ, state)).absolute(),
        runtime=runtime,
    )


def _labels(texts: tuple[str, ...], problems: list[str]) -> tuple[tuple[str, str], ...]:
    labels = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not (equals and _LABEL.fullmatch(key) and _LABEL.fullmatch(value)):
            problems.append(f"--label {text!r}: KEY=VALUE")
            continue
        labels.append((key, value))
    if len(dict(labels)) < len(labels):
        problems.append("--label: each KEY once")
    if len(labels) > LABELS_MAX:
        problems.append(f"--label: at most {LABELS_MAX}")
    return tuple(sorted(labels))


def _check_gpus(gpus: tuple[str, ...], problems: list[str]) -> None:
    problems += [
        f"--gpu {gpu!r}: a number or an id" for gpu in gpus if not _GPU.fullmatch(gpu)
    ]
    if len(set(gpus)) < len(gpus) or len(gpus) > GPUS_MAX:
        problems.append(f"--gpu: each once, at most {GPUS_MAX}")


def _durability(
    options: AgentOptions, environ: Mapping[str, str], problems: list[str]
) -> str:
    """Return one of `DURABILITIES`; note a problem with what the environment says."""
    given = options.durability or environ.get("OCTASKLY_DURABILITY") or "normal"
    if given not in DURABILITIES:
        known = " or ".join(DURABILITIES)
        problems.append(f"OCTASKLY_DURABILITY {given!r}: {known}")
    return given


def _host_name() -> str:
    """Return the machine's short name, cleaned to what a node name may hold."""
    raw = socket.gethostname().split(".")[0]
    return re.sub(r"[^A-Za-z0-9-]", "-", raw).strip("-")[:63] or "node"


def _cpus() -> int:
    return len(os.sched_getaffinity(0))
