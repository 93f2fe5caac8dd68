"""`octaskly service install`: what would change, why not, and doing it as a whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click

from octaskly.cli.agent import agent
from octaskly.cli.service import unit_files
from octaskly.cli.service.ownership import console_script, parts_of_program, weaknesses
from octaskly.cli.service.systemd import UNIT, Scope, Systemd
from octaskly.config.agent import AgentConfig, configure
from octaskly.errors import ConfigError

SHOWN_MAX = 3  #: weak places that are named; one is enough to refuse
ROOT_ONLY_HINT = """\
sudo pipx install --global octaskly    puts it where only root can write
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
"""What systemd tells the agent of the system unit."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an installation is to do."""

    scope: Scope
    drafts: tuple[unit_files.Draft, ...]
    flags: tuple[str, ...]
    config: AgentConfig  #: what the agent will have
    kept_flags: bool  #: they are those of the installation before

    @property
    def changes(self) -> dict[unit_files.Draft, str]:
        """The files that would change, with how."""
        shown = {draft: unit_files.difference(draft) for draft in self.drafts}
        return {draft: text for draft, text in shown.items() if text}


class PlainTextError(Exception):
    """A difference or a list, as the cause of an error."""


def make_plan(
    scope: Scope, environ: Mapping[str, str], words: Sequence[str], *, force: bool
) -> Plan:
    """Return what is to be done.

    Args:
        scope: Whose service it is.
        environ: Of this process.
        words: Flags of the agent; none keeps those of the installation before.
        force: Whether a unit that is not ours, or another's, is replaced.

    Raises:
        ConfigError: the program must not be a service, a flag is wrong, or the unit
            that is there must not be replaced.
    """
    program = console_script()
    if program is None:
        raise ConfigError(
            "this Octaskly has no program that a service could start",
            hint="pipx install octaskly    installs one",
        )
    if scope is Scope.SYSTEM:
        refuse_weak(program)
    before = unit_files.found(unit_files.unit_path(scope, environ))
    flags = agent_flags(words)
    kept = not flags and before is not None and bool(before.flags)
    if kept and before is not None and before.flags:
        flags = before.flags
    plan = Plan(
        scope,
        tuple(unit_files.drafts(scope, environ, program, flags)),
        flags,
        config_of(scope, environ, flags),
        kept_flags=kept,
    )
    if before is not None and not force:
        _refuse_replacing(before, plan, program)
    return plan


def refuse_weak(program: Path) -> None:
    """Make sure that only root decides what a service of the machine runs.

    Raises:
        ConfigError: others may change a part of it, or it is in a home.
    """
    found = weaknesses(parts_of_program(program))
    weak = list(dict.fromkeys(map(str, islice(found, SHOWN_MAX))))
    if not weak:
        return
    error = ConfigError(
        f"a service of the machine may not start {program}: "
        "others than root can change it, or it is in a home",
        hint=ROOT_ONLY_HINT,
    )
    raise error from PlainTextError("; ".join(weak))


def agent_flags(words: Sequence[str]) -> tuple[str, ...]:
    """Return flags of `octaskly agent` as its unit has them: whole names and paths.

    Raises:
        click.UsageError: the agent knows no such flag.
    """
    flags: list[str] = []
    for name, value in _given(words).items():
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


def config_of(
    scope: Scope, environ: Mapping[str, str], flags: Sequence[str]
) -> AgentConfig:
    """Return the settings that the agent of the service will have.

    Raises:
        ConfigError: a value cannot be used.
    """
    if scope is Scope.SYSTEM:
        return configure(_given(flags), SYSTEM_ENVIRON)
    # What this shell sets, systemd does not tell the agent.
    own = {k: v for k, v in environ.items() if not k.startswith("OCTASKLY_")}
    return configure(_given(flags), own)


def carry_out(plan: Plan, systemd: Systemd) -> str:
    """Write, enable and start; return what was done to the agent.

    It is back once the agent is ready. Interrupted, it leaves things as they were.

    Raises:
        SystemdFailed: systemd refuses, or the agent does not come up.
        ConfigError: a file cannot be written.
    """
    changes = plan.changes
    was_active = systemd.show().get("ActiveState") in ("active", "activating")
    with _undone_when_interrupted(plan, systemd, was_active=was_active):
        for draft in changes:
            unit_files.write(draft)
        if plan.scope is Scope.SYSTEM and changes:
            systemd.system_tool("systemd-sysusers", "octaskly.conf")
            systemd.system_tool("systemd-tmpfiles", "--create", "octaskly.conf")
        systemd.do("daemon-reload")
        systemd.do("enable", UNIT)
        systemd.systemctl("reset-failed", UNIT)
        if was_active and not changes:
            return "runs already"
        systemd.start("restart" if was_active else "start")
    return "restarted" if was_active else "started"


@contextlib.contextmanager
def _undone_when_interrupted(
    plan: Plan, systemd: Systemd, *, was_active: bool
) -> Iterator[None]:
    """Put the files back as they were when the user interrupts."""
    before = {draft.path: _content(draft.path) for draft in plan.drafts}
    try:
        yield
    except KeyboardInterrupt:
        if not was_active:
            systemd.systemctl("stop", UNIT)
        if before[plan.drafts[0].path] is None:
            systemd.systemctl("disable", UNIT)
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


def _given(words: Sequence[str]) -> dict[str, Any]:
    """Return what flags of the agent say, by the name of the parameter."""
    context = agent.make_context("octaskly service install", list(words))
    return {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }


def _refuse_replacing(before: unit_files.Found, plan: Plan, program: Path) -> None:
    unit = plan.drafts[0]
    if not before.is_ours and unit_files.difference(unit):
        by = "was changed by hand" if before.flags is not None else "is not of ours"
        error = ConfigError(
            f"{unit.path} {by}",
            hint="octaskly service install --force    replaces it\n"
            f"systemctl --{plan.scope.value} edit octaskly    keeps changes in a "
            "file of their own",
        )
        raise error from PlainTextError(unit_files.difference(unit))
    other = before.program
    if other is not None and other != program and os.access(other, os.X_OK):
        raise ConfigError(
            f"{unit.path} starts another installation: {other}",
            hint="octaskly service install --force    starts this one instead\n"
            f"{other} service uninstall --{plan.scope.value}",
        )
