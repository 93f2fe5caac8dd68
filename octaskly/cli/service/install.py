"""The plan of `octaskly service install`, its checks, and its atomic execution."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click

from octaskly.cli.agent import agent
from octaskly.cli.service import unit_files
from octaskly.cli.service.program_trust import (
    console_script,
    find_untrusted_paths,
    program_paths,
)
from octaskly.cli.service.systemd import SOCKET_UNIT, UNIT, Scope, Systemd
from octaskly.config.agent import AgentConfig, load_agent_config
from octaskly.config.defaults import API_PORT
from octaskly.errors import ConfigError
from octaskly.system.build import build_id

SHOWN_MAX = 3  #: untrusted paths named in an error; one is enough to refuse
ROOT_ONLY_HINT = """\
sudo pipx install --global octaskly    installs it where only root can write
sudo env UV_TOOL_DIR=/opt/octaskly UV_TOOL_BIN_DIR=/usr/local/bin uv tool install \
--python /usr/bin/python3 octaskly    the same with uv
make package && sudo apt install ./dist/octaskly_*.deb    from a clone, on Debian
octaskly service install    a service of your own may run it from here"""

SYSTEM_ENVIRON = {
    "STATE_DIRECTORY": "/var/lib/octaskly",
    "RUNTIME_DIRECTORY": "/run/octaskly",
    "CONFIGURATION_DIRECTORY": "/etc/octaskly",
    "CREDENTIALS_DIRECTORY": "/run/credentials/octaskly.service",
}
"""Variables that systemd sets for the agent of the system unit."""


@dataclass(frozen=True, slots=True)
class InstallPlan:
    """The plan of an installation."""

    scope: Scope
    files: tuple[unit_files.UnitFile, ...]
    flags: tuple[str, ...]
    config: AgentConfig  #: settings that the agent will have
    kept_flags: bool  #: the flags are those of the previous installation

    @property
    def changes(self) -> dict[unit_files.UnitFile, str]:
        """The files that would change, with their diffs."""
        shown = {draft: unit_files.diff(draft) for draft in self.files}
        return {draft: text for draft, text in shown.items() if text}


class PlainTextError(Exception):
    """A diff or a list of paths, as the cause of an error."""


def make_plan(
    scope: Scope, environ: Mapping[str, str], arguments: Sequence[str], *, force: bool
) -> InstallPlan:
    """Return the plan of an installation.

    Args:
        scope: Service of this user, or of the machine.
        environ: Environment of this process.
        arguments: Flags of the agent; none keeps those of the previous installation.
        force: Replace a unit that was changed or starts another program.

    Raises:
        ConfigError: the program is missing or not safe as a service, a flag is
            invalid, or the existing unit must not be replaced.
    """
    program = console_script()
    if program is None:
        raise ConfigError(
            "this Octaskly has no program that a service could start",
            hint="pipx install octaskly    installs one",
        )
    if scope is Scope.SYSTEM:
        require_root_owned(program)
    before = unit_files.read_installed_unit(unit_files.unit_path(scope, environ))
    flags = agent_flags(arguments)
    kept = not flags and before is not None and bool(before.flags)
    if kept and before is not None and before.flags:
        flags = before.flags
    config = service_config(scope, environ, flags)
    port = require_fixed_port(config)
    files = unit_files.make_unit_files(scope, environ, program, flags, port)
    plan = InstallPlan(scope, tuple(files), flags, config, kept_flags=kept)
    if before is not None and not force:
        _check_replaceable(before, plan, program)
    return plan


def require_fixed_port(config: AgentConfig) -> int:
    """Return the port of the API that the socket unit holds.

    Raises:
        ConfigError: any free port was asked for.
    """
    if config.options.api_port == 0:
        raise ConfigError(
            "a service has a fixed API port, which systemd holds while it restarts",
            hint="octaskly service install --api-port 3001    for example",
            field="--api-port",
        )
    return config.options.api_port or API_PORT


def require_root_owned(program: Path) -> None:
    """Check that only root can change the program of a system service.

    Raises:
        ConfigError: users other than root can change it, or it is in a home folder.
    """
    found = find_untrusted_paths(program_paths(program))
    weak = list(dict.fromkeys(map(str, islice(found, SHOWN_MAX))))
    if not weak:
        return
    error = ConfigError(
        f"a system service may not start {program}: "
        "users other than root can change it, or it is in a home folder",
        hint=ROOT_ONLY_HINT,
    )
    raise error from PlainTextError("; ".join(weak))


def agent_flags(words: Sequence[str]) -> tuple[str, ...]:
    """Return agent flags as the unit stores them: long names and absolute paths.

    Raises:
        click.UsageError: the agent does not have the flag.
    """
    flags: list[str] = []
    for name, value in _parse_agent_flags(words).items():
        option = next(each for each in agent.params if each.name == name)
        if isinstance(value, bool):
            flags.append(max((option.opts, option.secondary_opts)[not value], key=len))
            continue
        for one in value if isinstance(value, tuple) else (value,):
            text = str(one.absolute()) if isinstance(one, Path) else str(one)
            if not text.isprintable():
                raise ConfigError(f"{option.opts[0]} {text!r}: unprintable characters")
            flags += [option.opts[0], text]
    return tuple(flags)


def service_config(
    scope: Scope, environ: Mapping[str, str], flags: Sequence[str]
) -> AgentConfig:
    """Return the settings that the agent of the service will have.

    Raises:
        ConfigError: a value is unusable.
    """
    if scope is Scope.SYSTEM:
        return load_agent_config(_parse_agent_flags(flags), SYSTEM_ENVIRON)
    # systemd does not pass the variables of this shell to the agent.
    own = {k: v for k, v in environ.items() if not k.startswith("OCTASKLY_")}
    return load_agent_config(_parse_agent_flags(flags), own)


def apply_plan(plan: InstallPlan, systemd: Systemd) -> str:
    """Write, enable and start the unit; return what happened to the agent.

    It returns once the agent is ready. An interrupt restores the previous files.

    Raises:
        SystemdFailed: systemd refuses, or the agent does not start.
        ConfigError: a file cannot be written.
    """
    changes = plan.changes
    was_active = systemd.show_unit().get("ActiveState") in ("active", "activating")
    with _roll_back_on_interrupt(plan, systemd, was_active=was_active):
        for draft in changes:
            unit_files.write_unit_file(draft)
        if plan.scope is Scope.SYSTEM and changes:
            systemd.run_tool("systemd-sysusers", "octaskly.conf")
            systemd.run_tool("systemd-tmpfiles", "--create", "octaskly.conf")
        systemd.systemctl_or_raise("daemon-reload")
        systemd.systemctl_or_raise("enable", UNIT)
        systemd.systemctl("reset-failed", UNIT, SOCKET_UNIT)
        is_upgraded = was_active and _runs_other_build(plan.config)
        if was_active and not changes and not is_upgraded:
            return "runs already"
        if any(draft.path.name == SOCKET_UNIT for draft in changes):
            # A socket cannot be started while its service runs.
            systemd.stop_units()
            systemd.start_unit("start")
        else:
            systemd.start_unit("restart" if was_active else "start")
    if was_active and not changes:
        return "restarted with this program"
    return "restarted" if was_active else "started"


def _runs_other_build(config: AgentConfig) -> bool:
    """Return True if the running agent was started by another build of the program."""
    try:
        agent = json.loads(config.paths.description.read_bytes())
    except (OSError, ValueError):
        return False
    # A build is empty if its files cannot be read.
    return len({agent.get("build"), build_id()} - {None, ""}) > 1


@contextlib.contextmanager
def _roll_back_on_interrupt(
    plan: InstallPlan, systemd: Systemd, *, was_active: bool
) -> Iterator[None]:
    """Restore the previous files if the user interrupts the block."""
    before = {draft.path: _content(draft.path) for draft in plan.files}
    try:
        yield
    except KeyboardInterrupt:
        if not was_active:
            systemd.stop_units()
        if before[plan.files[0].path] is None:
            systemd.systemctl("disable", UNIT, SOCKET_UNIT)
        for path, content in before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        systemd.systemctl("daemon-reload")
        raise


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parse_agent_flags(words: Sequence[str]) -> dict[str, Any]:
    """Return the values of the agent's flags by parameter name."""
    context = agent.make_context("octaskly service install", list(words))
    return {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }


def _check_replaceable(
    before: unit_files.InstalledUnit, plan: InstallPlan, program: Path
) -> None:
    unit = plan.files[0]
    if not before.is_ours and unit_files.diff(unit):
        is_edited = before.flags is not None
        by = "was changed by hand" if is_edited else "was not written by Octaskly"
        error = ConfigError(
            f"{unit.path} {by}",
            hint="octaskly service install --force    replaces it\n"
            f"systemctl --{plan.scope.value} edit octaskly    keeps changes in a "
            "file of their own",
        )
        raise error from PlainTextError(unit_files.diff(unit))
    other = before.program
    if other is not None and other != program and os.access(other, os.X_OK):
        raise ConfigError(
            f"{unit.path} starts another installation: {other}",
            hint="octaskly service install --force    starts this one instead\n"
            f"{other} service uninstall --{plan.scope.value}",
        )
