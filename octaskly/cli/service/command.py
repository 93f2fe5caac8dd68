"""`octaskly service`: the agent as a systemd service."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION, YES_OPTION, require_yes
from octaskly.cli.output.render import (
    EXIT_FAILED,
    format_capacity,
    note,
    print_fields,
    print_json,
)
from octaskly.cli.output.terminal import print_text
from octaskly.cli.service import unit_files
from octaskly.cli.service.install import apply_plan, make_plan, service_config
from octaskly.cli.service.systemd import SOCKET_UNIT, UNIT, Scope, Systemd
from octaskly.client import Session
from octaskly.client.flows.rest_calls import NODES, Call
from octaskly.config.agent import AgentConfig
from octaskly.config.paths import Paths
from octaskly.errors import ConfigError, MeshError, OctasklyError
from octaskly.rest.mesh import NodeInfo, NodePage

SCOPE_OPTION = click.option(
    "--user/--system",
    "is_user",
    default=None,
    help="Your own service, or the machine's (default: your own).",
)
ACTION_TEXTS = {"started": "written and started", "restarted": "written and restarted"}
TASK_USER = "octaskly-task"  #: user of tasks in the system unit
SYSTEM_DATA = ("/var/cache/octaskly",)


@click.group()
def service() -> None:
    """Keep an agent running under systemd, also after a reboot."""


@service.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: octaskly service install --slots 4 --label disk=ssd",
)
@SCOPE_OPTION
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option(
    "--force", is_flag=True, help="Replace a unit that this installation did not write."
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def install(
    context: CliContext,
    is_user: bool | None,  # noqa: FBT001
    dry_run: bool,  # noqa: FBT001
    force: bool,  # noqa: FBT001
    flags: tuple[str, ...],
) -> None:
    """Write the unit, start it, and wait until its agent is ready.

    FLAGS are those of `octaskly agent`; without any, those of the earlier installation
    are kept. Run it again after an upgrade: it shows the changes and restarts the
    agent.
    """
    scope = _scope(is_user)
    systemd = Systemd(scope, context.environ)
    plan = make_plan(scope, context.environ, flags, force=force)
    if dry_run:
        for difference in plan.changes.values():
            print_text(difference)
        note("nothing was changed, because of --dry-run")
        if os.geteuid() == 0 and scope is Scope.USER:
            note("hint: octaskly service install --system    for the whole machine")
        return
    systemd.require_available()
    for draft, difference in plan.changes.items():
        if draft.path.exists():
            note(difference)
    if plan.kept_flags:
        note(f"· as before: {shlex.join(plan.flags)}")
    unit = plan.files[0].path
    is_new = not os.path.lexists(plan.config.paths.secret)
    done = apply_plan(plan, systemd)
    what = f"{scope.value} service {UNIT}"
    note(f"✓ {what} {ACTION_TEXTS.get(done, done)} ({unit})")
    if scope is Scope.USER:
        _linger(systemd)
    _print_agent(plan.config, systemd, is_new=is_new)


@service.command(epilog="Example: octaskly service uninstall --user")
@SCOPE_OPTION
@click.option("--purge", is_flag=True, help="Also remove its data; asks first.")
@YES_OPTION
@click.pass_obj
def uninstall(
    context: CliContext,
    is_user: bool | None,  # noqa: FBT001
    purge: bool,  # noqa: FBT001
    yes: bool,  # noqa: FBT001
) -> None:
    """Stop the agent and remove its unit.

    Its data is kept, unless --purge is given.
    """
    scope = _installed_scope(is_user, context)
    systemd = Systemd(scope, context.environ)
    path = unit_files.unit_path(scope, context.environ)
    before = unit_files.read_installed_unit(path)
    if before is None and (packaged := _path_of_unit(systemd, context)).exists():
        raise ConfigError(
            f"{packaged} belongs to a package", hint="sudo apt remove octaskly"
        )
    if before is None:
        raise ConfigError(
            f"there is no {scope.value} service of Octaskly: {path} does not exist",
            hint="octaskly service install    creates one",
        )
    systemd.require_available()
    flags = before.flags or ()
    config = _config_to_remove(scope, context, flags, is_purge=purge)
    data = _data_of(config, scope) if config else {}
    # A path from a setting may contain other data, so it is never removed.
    gone = [place for place, is_named in data.items() if purge and not is_named]
    if gone:
        require_yes(
            f"{', '.join(map(str, gone))} will be deleted. Tasks and results "
            "that are only there are lost, and without another copy of the "
            "secret no machine can join this mesh again",
            is_given=yes,
            arguments="--purge",
        )
    _remove_units(systemd, scope, context, path)
    note(f"✓ {scope.value} service {UNIT} stopped and removed ({path})")
    if config and scope is Scope.USER and config.paths.secret in gone:
        _keep_shared_secret(config.paths, gone)
    _remove(gone)
    for place in data:
        note(f"{'✓ removed' if place in gone else '  data is kept:'} {place}")
    if data and not purge:
        note("  hint: octaskly service install    uses it again")


@service.command(epilog="Example: octaskly service status --json")
@SCOPE_OPTION
@JSON_OPTION
@click.pass_obj
def status(context: CliContext, is_user: bool | None, as_json: bool) -> int:  # noqa: FBT001
    """Show whether the service is installed and running.

    The exit code is 1 if it is not.
    """
    scope = _installed_scope(is_user, context)
    systemd = Systemd(scope, context.environ)
    path = _path_of_unit(systemd, context)
    found = unit_files.read_installed_unit(path)
    shown = systemd.show_unit() if found else {}
    is_own = path == unit_files.unit_path(scope, context.environ)
    is_active = shown.get("ActiveState") == "active"
    fields: dict[str, Any] = {
        "scope": scope.value,
        "unit": str(path) if found else None,
        "changed_by_hand": is_own and not found.is_ours if found else None,
        "program": str(found.program) if found else None,
        "flags": list(found.flags or ()) if found else None,
        "enabled": shown.get("UnitFileState") == "enabled",
        "state": shown.get("ActiveState", "not installed"),
        "result": shown.get("Result") if not is_active else None,
        "pid": int(shown.get("MainPID") or 0) or None,
        "since": shown.get("ActiveEnterTimestamp") or None,
        "says": shown.get("StatusText") or None,
    }
    if as_json:
        print_json(msgspec.json.encode(fields))
    else:
        flags = shlex.join(fields["flags"] or ()) or None
        print_fields(
            [
                (key.replace("_", " "), _as_word(value))
                for key, value in (fields | {"flags": flags}).items()
            ]
        )
        if not found:
            note("hint: octaskly service install    creates it")
        elif not is_active:
            note(f"hint: {systemd.logs_command()}    says why")
    return 0 if is_active else EXIT_FAILED


def _as_word(value: object) -> object:
    """Return a value of a field as a user reads it."""
    return ("no", "yes")[value] if isinstance(value, bool) else value


@service.command(epilog="Example: octaskly service logs --follow")
@SCOPE_OPTION
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.option(
    *("-n", "--lines"),
    default=50,
    show_default=True,
    metavar="N",
    help="Number of lines.",
)
@click.pass_obj
def logs(context: CliContext, is_user: bool | None, follow: bool, lines: int) -> int:  # noqa: FBT001
    """Show the agent's log, from the journal."""
    systemd = Systemd(_installed_scope(is_user, context), context.environ)
    words = systemd.journal_command(f"--lines={lines}", "--output=short-iso")
    if shutil.which(words[0]) is None:
        raise ConfigError(
            "journalctl is not installed", hint="octaskly agent    logs to its terminal"
        )
    words += ["--follow"] if follow else ["--no-pager"]
    try:
        return subprocess.run(words, check=False).returncode  # noqa: S603  ours
    except KeyboardInterrupt:
        return 0  # Ctrl-C only ends the display, as with `octaskly logs -f`.


def _scope(is_user: bool | None) -> Scope:  # noqa: FBT001
    return Scope.SYSTEM if is_user is False else Scope.USER


def _installed_scope(is_user: bool | None, context: CliContext) -> Scope:  # noqa: FBT001
    """Return the requested scope, else the one that has a service."""
    for scope in Scope if is_user is None else ():
        if _path_of_unit(Systemd(scope, context.environ), context).exists():
            return scope
    return _scope(is_user)


def _path_of_unit(systemd: Systemd, context: CliContext) -> Path:
    """Return the path of the unit, which may be that of a package."""
    own = unit_files.unit_path(systemd.scope, context.environ)
    if own.exists():
        return own
    return Path(systemd.show_unit().get("FragmentPath") or own)


def _linger(systemd: Systemd) -> None:
    if systemd.enable_linger():
        note("✓ linger is on: the service survives logout and starts at boot")
        return
    note("! the service stops when you log out")
    note(f"  hint: sudo loginctl enable-linger {getpass.getuser()}")


def _print_agent(config: AgentConfig, systemd: Systemd, *, is_new: bool) -> None:
    """Print the agent's name and addresses, and the next command."""
    try:
        agent = json.loads(config.paths.description.read_bytes())
    except (OSError, ValueError):
        note(f"! the agent has stopped in the meantime: {systemd.logs_command()}")
        return
    if agent.get("mesh") is None:
        note("! a mesh is visible, but this machine does not have its secret")
        note("  hint: octaskly join    with a code that `octaskly invite` shows there")
        return
    own = _print_mesh(agent, is_new=is_new)
    api = f"API {agent['api_url']} (this machine only)"
    if taken := agent.get("api_port_taken"):
        api = f"no API port here, because {taken['holder']} holds {taken['port']}"
    note(
        f"✓ listening for peers on port {agent['peer_port']} (TLS, members only); {api}"
    )
    user = getpass.getuser() if systemd.scope is Scope.USER else TASK_USER
    limits = format_capacity(own or NodeInfo(name=config.name, slots=config.slots))
    note(f"  tasks run as: {user}      limits: {limits} (change: octaskly config)")
    note("next:  octaskly run -- hostname        octaskly open        octaskly invite")


def _print_mesh(agent: dict[str, Any], *, is_new: bool) -> NodeInfo | None:
    """Print the agent's mesh; return the agent's entry in the node list, if any."""
    name, mesh = agent["name"], agent["mesh"]
    with Session.at_socket(agent["socket"]) as client:
        try:
            page = client.send_and_decode(Call("GET", NODES), NodePage)
        except OctasklyError as error:
            why = error.message
            note(f"! {name} is in the mesh {mesh}, which does not answer yet: {why}")
            return None
    others = page.total - 1
    if others:
        plural = "" if others == 1 else "s"
        note(f"✓ {name} is in the mesh {mesh} with {others} other node{plural}")
    elif is_new:
        note(f"✓ new mesh {mesh} created; {name} is its dispatcher")
    else:
        note(f"✓ {name} is the only node of the mesh {mesh} so far")
    return next((node for node in page.nodes if node.id == agent["node_id"]), None)


def _remove_units(
    systemd: Systemd, scope: Scope, context: CliContext, path: Path
) -> None:
    """Stop the service, and delete the files of its units."""
    units = [UNIT]
    if unit_files.socket_path(scope, context.environ).exists():
        units.insert(0, SOCKET_UNIT)  # Else a request could start the service again.
    systemd.systemctl_or_raise("disable", "--now", *units, timeout_s=None)
    for draft in unit_files.make_unit_files(scope, context.environ, path, ()):
        draft.path.unlink(missing_ok=True)
    systemd.systemctl_or_raise("daemon-reload")


def _config_to_remove(
    scope: Scope, context: CliContext, flags: Sequence[str], *, is_purge: bool
) -> AgentConfig | None:
    """Return the settings of a service; None if they are invalid.

    Raises:
        ConfigError: they are invalid, and name what a purge would delete.
    """
    try:
        return service_config(scope, context.environ, flags)
    except ConfigError as error:
        if is_purge:
            raise
        note(f"  data is kept where its settings say, which are invalid: {error}")
        return None


def _data_of(config: AgentConfig, scope: Scope) -> dict[Path, bool]:
    """Return the existing data paths, with True for each that a setting chose."""
    data = {
        config.paths.state: "state_dir" in config.origins,
        config.paths.secret: "secret_file" in config.origins,
    }
    if scope is Scope.SYSTEM:
        data |= {Path(place): False for place in SYSTEM_DATA}
    return {place: named for place, named in data.items() if os.path.lexists(place)}


def _keep_shared_secret(paths: Paths, gone: list[Path]) -> None:
    """Take the secret out of what will be removed if another agent uses it."""
    # Imported here, because importing cryptography would slow other commands.
    from octaskly.joining.change_mesh import is_secret_shared  # noqa: PLC0415
    from octaskly.trust.secret_file import SecretUse  # noqa: PLC0415

    use = SecretUse(paths.secret)
    if is_secret_shared(paths, use):
        note(f"  another agent of this machine uses the secret {paths.secret}")
        gone.remove(paths.secret)
    else:
        gone.append(use.path)
    use.unregister()


def _remove(places: list[Path]) -> None:
    """Remove files and folders.

    Raises:
        MeshError: a folder has folders that this user may not change.
    """
    for place in places:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
    left = [str(place) for place in places if os.path.lexists(place)]
    if left:
        raise MeshError(
            f"a part of {', '.join(left)} could not be removed",
            hint=f"chmod -R u+rwX {shlex.join(left)} && rm -r {shlex.join(left)}",
        )
