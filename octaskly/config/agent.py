"""Effective settings of an agent, from all sources and defaults.

Errors name the source of the value. The process then exits with status 78.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from octaskly.config.paths import (
    Paths,
    runtime_dir_default,
    secret_default,
    state_dir_default,
)
from octaskly.config.settings import AgentOptions
from octaskly.config.sources import SettingValue, read_all_sources
from octaskly.config.task_account import DEFAULT_INHERITED, Account, InheritedSettings
from octaskly.config.units import BYTES
from octaskly.config.value_types import nearest_node_name
from octaskly.core.model.settings import Limits, Timing
from octaskly.errors import ConfigError

_FIELDS = {field.name for field in fields(AgentOptions)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Effective settings, with all defaults filled in."""

    name: str
    paths: Paths
    slots: int
    labels: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[str, int], ...]  #: host and peer port of nodes to dial
    is_strict: bool  #: strict durability: accept only with two copies
    options: AgentOptions
    origins: Mapping[str, str]  #: source of each value, by field of the options
    timing: Timing
    limits: Limits
    account: Account | None = None  #: user of tasks; None: the agent's user
    was_renewed: bool = False  #: the state folder was a copy, so the node got a new id
    inherited: InheritedSettings = DEFAULT_INHERITED


def load_agent_config(
    flags: Mapping[str, Any], environ: Mapping[str, str]
) -> AgentConfig:
    """Return the effective settings from flags, environment, files and defaults.

    Args:
        flags: Texts of flags, by field of `AgentOptions`; None means absent.
        environ: The environment, which also locates the files.

    Raises:
        ConfigError: something is unusable; the message has one line per problem.
    """
    faults: list[str] = []
    values = read_all_sources(flags, environ, faults)
    options = build_options(values, faults)
    raise_faults(faults)
    return _fill_defaults(
        options, {field: each.origin for field, each in values.items()}, environ
    )


def build_options(
    values: Mapping[str, SettingValue], faults: list[str]
) -> AgentOptions:
    """Return the options, and add errors for values that contradict each other."""
    options = AgentOptions(
        **{name: each.value for name, each in values.items() if name in _FIELDS}
    )
    quota_bytes, cap_bytes = options.output_quota_bytes, options.output_cap_bytes
    if quota_bytes is not None and quota_bytes < cap_bytes:
        origin = values["output_quota_bytes"].origin
        quota, cap = map(BYTES.format, (quota_bytes, cap_bytes))
        faults.append(f"{origin}: {quota}: at least output_cap, which is {cap}")
    return options


def raise_faults(faults: list[str]) -> None:
    """Raise the collected errors, if there are any.

    Raises:
        ConfigError: The message has one line per error.
    """
    if not faults:
        return
    head = "" if len(faults) == 1 else f"{len(faults)} settings cannot be used\n"
    raise ConfigError(
        head + "\n".join(faults),
        hint="octaskly agent --help    lists the allowed values",
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
    # Agents with a folder from a flag or variable may share a name: use that folder.
    is_apart = state_origin.startswith(("--", "OCTASKLY_"))
    runtime = state if is_apart else runtime_dir_default(environ) or state
    return Paths(
        state=state,
        workdir=(options.workdir or state / "work").absolute(),
        secret=(options.secret_file or secret_default(environ, state)).absolute(),
        runtime=runtime,
    )


def _host_name() -> str:
    """Return the machine's short name, with invalid characters replaced by dashes."""
    return nearest_node_name(socket.gethostname().split(".")[0]) or "node"
