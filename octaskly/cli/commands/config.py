"""`octaskly config`: the effective settings and the origin of each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION
from octaskly.cli.output.render import note, print_json, print_table
from octaskly.cli.output.terminal import print_line
from octaskly.client import Session
from octaskly.client.flows.rest_calls import CHECKUP, Call
from octaskly.config.agent import (
    AgentConfig,
    build_options,
    load_agent_config,
    raise_faults,
)
from octaskly.config.paths import settings_files
from octaskly.config.settings import CLIENT_SETTINGS, SETTINGS, Setting
from octaskly.config.sources import SettingValue, read_all_sources, read_settings_file
from octaskly.config.value_types import ListOf
from octaskly.errors import ConfigError, OctasklyError
from octaskly.rest.mesh import Checkup

DEFAULT = "default"  #: origin of a setting that no source has


@click.group(invoke_without_command=True, epilog="Example: octaskly config --json")
@JSON_OPTION
@click.pass_context
def config(ctx: click.Context, as_json: bool) -> None:  # noqa: FBT001
    """Show the effective settings and where each one comes from.

    The first table is for an agent started here, the second for the commands.

    In order of precedence: flags of octaskly agent, variables such as OCTASKLY_SLOTS,
    ~/.config/octaskly/config.toml, /etc/octaskly/config.toml. A change takes effect
    when the agent restarts.
    """
    if ctx.invoked_subcommand is not None:
        return
    choice: CliContext = ctx.obj
    found = load_agent_config(choice.agent_flags(), choice.environ)
    clients = _client_values(choice)
    files = settings_files(choice.environ)
    agent = _running_agent(choice)
    if as_json:
        shown = _plain(found, clients, files) | {"agent": _listeners(agent)}
        print_json(msgspec.json.encode(shown))
        return
    rows = [
        (setting.key, _origin(setting, found), _text(setting, found))
        for setting in SETTINGS
    ]
    for setting in CLIENT_SETTINGS:
        value, origin = clients[setting.key]
        rows.append((setting.key, origin, str(value or setting.default_text)))
    print_table(("SETTING", "FROM", "VALUE"), rows, state_column=0)
    for variable in choice.environ:
        if variable.startswith("OCTASKLY_") and (meant := _did_you_mean(variable)):
            note(f"{variable} is not a setting; did you mean {meant}?")
    for path in files:
        note(f"{path}: {'read' if path.exists() else 'not there'}")
    if agent is not None:
        note(f"{agent.name} serves {_describe_listeners(agent)}")


@config.command(epilog="Example: octaskly config socket")
@click.pass_obj
def socket(context: CliContext) -> None:
    """Print the path of the running agent's socket, for programs on this machine.

    It needs no token, because the kernel tells the agent which user is asking. Unlike a
    port, it cannot be taken over by another user.

    curl --unix-socket "$(octaskly config socket)" http://localhost/api/v1/nodes
    """
    print_line(str(context.socket_path()))


@config.command(epilog="Example: octaskly config check draft.toml")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.pass_obj
def check(context: CliContext, file: Path | None) -> None:
    """Check one config file, or all that an agent would read; exit 78 on errors."""
    if file is None:
        load_agent_config(context.agent_flags(), context.environ)
        _client_values(context)
        note("all settings are valid")
        return
    if not file.exists():
        raise ConfigError(f"there is no file {file}", hint="octaskly config")
    faults: list[str] = []
    said = read_settings_file(file, faults)
    build_options(said, faults)
    raise_faults(faults)
    note(f"{file}: {len(said)} settings, all valid")


def _running_agent(context: CliContext) -> Checkup | None:
    """Return the agent of this machine that commands use, None if none answers."""
    endpoint = context.local_endpoint()
    with Session(endpoint, retry_timeout_s=0.0) as client:
        try:
            return client.send_and_decode(Call("GET", CHECKUP), Checkup)
        except OctasklyError:
            return None


def _listeners(agent: Checkup | None) -> dict[str, Any] | None:
    if agent is None:
        return None
    return {
        "name": agent.name,
        "socket": agent.socket,
        "api_url": agent.api_url,
        "api_port_taken": agent.api_port_taken,
    }


def _describe_listeners(agent: Checkup) -> str:
    if (taken := agent.api_port_taken) is None:
        return f"{agent.api_url} and {agent.socket}"
    return (
        f"{agent.socket} only: {taken.holder} holds port {taken.port}, and "
        "programs would still send their requests there, so the agent "
        "opens no other port"
    )


def _client_values(context: CliContext) -> dict[str, tuple[Any, str]]:
    """Return the effective settings of commands with their origins, by key."""
    flags = {"url": context.url, "node": context.node, "ca_file": context.ca_file}
    faults: list[str] = []
    said = read_all_sources(flags, context.environ, faults, CLIENT_SETTINGS)
    raise_faults(faults)
    nobody = SettingValue(None, DEFAULT)
    found = ((each.key, said.get(each.field, nobody)) for each in CLIENT_SETTINGS)
    return {key: (each.value, each.origin) for key, each in found}


def _did_you_mean(variable: str) -> str | None:
    """Return the variable that a misspelt one resembles, None for any other."""
    every = (*SETTINGS, *CLIENT_SETTINGS)
    known = [setting.variable for setting in every if setting.variable]
    close = difflib.get_close_matches(variable, known, 1, cutoff=0.9)
    return close[0] if close and close[0] != variable else None


def _plain(
    found: AgentConfig,
    clients: Mapping[str, tuple[Any, str]],
    files: tuple[Path, ...],
) -> dict[str, Any]:
    values = {
        setting: (_value(setting, found), _origin(setting, found))
        for setting in SETTINGS
    } | {setting: clients[setting.key] for setting in CLIENT_SETTINGS}
    return {
        "files": [{"path": str(path), "exists": path.exists()} for path in files],
        "settings": {
            setting.key: {
                "value": str(value) if isinstance(value, Path) else value,
                "origin": origin,
                "flag": setting.flag,
                "variable": setting.variable or None,
            }
            for setting, (value, origin) in values.items()
        },
    }


def _origin(setting: Setting, found: AgentConfig) -> str:
    return found.origins.get(setting.field, DEFAULT)


def _text(setting: Setting, found: AgentConfig) -> str:
    value = _value(setting, found)
    if value is None or value == []:
        return setting.default_text
    return (
        ",".join(value) if isinstance(value, list) else setting.value_type.format(value)
    )


def _value(setting: Setting, found: AgentConfig) -> Any:
    """Return the effective value, None if the agent determines it at its start."""
    filled = {
        "name": found.name,
        "state_dir": str(found.paths.state),
        "secret_file": str(found.paths.secret),
        "workdir": str(found.paths.workdir),
        "slots": found.slots,
    }
    value: Any = filled.get(setting.field, getattr(found.options, setting.field))
    if isinstance(setting.value_type, ListOf):
        return setting.value_type.format(value).split(",") if value else []
    return value
