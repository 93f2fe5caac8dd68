"""The settings of one agent as it uses them: all sources read, defaults filled in.

Every problem is named with the place where it was said; the process exits with 78.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from octaskly.config.account import DEFAULT_INHERITED, Account, InheritedSettings
from octaskly.config.paths import (
    Paths,
    runtime_dir_default,
    secret_default,
    state_dir_default,
)
from octaskly.config.settings import AgentOptions
from octaskly.config.sources import SettingValue, read_all_sources
from octaskly.core.model.settings import Limits, Timing
from octaskly.errors import ConfigError

_FIELDS = {field.name for field in fields(AgentOptions)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Options with every default filled in."""

    name: str
    paths: Paths
    slots: int
    labels: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[str, int], ...]  #: host and peer port of nodes to dial
    is_strict: bool  #: nothing counts that only one disk holds
    options: AgentOptions
    origins: Mapping[str, str]  #: by field of the options: where it was said
    timing: Timing
    limits: Limits
    account: Account | None = None  #: the user that tasks run as; None: the agent's
    was_renewed: bool = False  #: the state folder was a copy: its node has a new id
    inherited: InheritedSettings = DEFAULT_INHERITED


def load_agent_config(
    flags: Mapping[str, Any], environ: Mapping[str, str]
) -> AgentConfig:
    """Return the settings that flags, environment, files and defaults make.

    Args:
        flags: By field of `AgentOptions`, as text; None was not given.
        environ: The environment; it also says where files are.

    Raises:
        ConfigError: something is unusable; the message has one line per problem.
    """
    faults: list[str] = []
    said = read_all_sources(flags, environ, faults)
    options = build_options(said, faults)
    raise_faults(faults)
    return _fill_defaults(
        options, {field: each.origin for field, each in said.items()}, environ
    )


def build_options(
    values: Mapping[str, SettingValue], faults: list[str]
) -> AgentOptions:
    """Return the options; what does not fit together is noted."""
    options = AgentOptions(
        **{name: each.value for name, each in values.items() if name in _FIELDS}
    )
    quota_bytes, cap_bytes = options.output_quota_bytes, options.output_cap_bytes
    if quota_bytes is not None and quota_bytes < cap_bytes:
        origin = values["output_quota_bytes"].origin
        faults.append(f"{origin}: output_quota {quota_bytes}: at least output_cap")
    return options


def raise_faults(faults: list[str]) -> None:
    """Raise what is wrong with settings, if anything is.

    Raises:
        ConfigError: with one line per problem.
    """
    if not faults:
        return
    head = "" if len(faults) == 1 else f"{len(faults)} settings cannot be used\n"
    raise ConfigError(
        head + "\n".join(faults), hint="octaskly agent --help    says what is taken"
    )


def _fill_defaults(
    options: AgentOptions, origins: Mapping[str, str], environ: Mapping[str, str]
) -> AgentConfig:
    name = options.name or _host_name()
    labels = sorted(tuple(label.split("=", 1)) for label in options.labels)
    return AgentConfig(
        name=name,
        paths=_paths(options, name, origins.get("state_dir", ""), environ),
        slots=options.slots or len(os.sched_getaffinity(0)),
        labels=tuple((key, value) for key, value in labels),
        seeds=options.join,
        is_strict=options.durability == "strict",
        options=options,
        origins=origins,
        timing=Timing(
            retention_s=options.retention_s,
            kill_grace_s=options.kill_grace_s,
            rotation_spread_s=options.rotate_within_s,
            old_secret_s=options.keep_old_secret_s,
        ),
        limits=Limits(retained_tasks=options.retained_tasks),
    )


def _paths(
    options: AgentOptions, name: str, state_origin: str, environ: Mapping[str, str]
) -> Paths:
    state = (options.state_dir or state_dir_default(name, environ)).absolute()
    # Several agents of one user have folders by flag or variable, and maybe one name.
    is_apart = state_origin.startswith(("--", "OCTASKLY_"))
    runtime = state if is_apart else runtime_dir_default(environ) or state
    return Paths(
        state=state,
        workdir=(options.workdir or state / "work").absolute(),
        secret=(options.secret_file or secret_default(environ, state)).absolute(),
        runtime=runtime,
    )


def _host_name() -> str:
    """Return the machine's short name, cleaned to what a node name may hold."""
    raw = socket.gethostname().split(".")[0]
    return re.sub(r"[^A-Za-z0-9-]", "-", raw).strip("-")[:63] or "node"
