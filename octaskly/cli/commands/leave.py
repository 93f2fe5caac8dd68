"""`octaskly leave`: removal of this machine from its mesh, with all data of the mesh.

The agent does the work, so an interrupt of this command does no harm. Without a running
agent, this command does the same under the lock of the state folder.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
from pathlib import Path

import click

from octaskly.cli.commands.join import next_agent_config
from octaskly.cli.context import CliContext
from octaskly.cli.options import YES_OPTION, require_yes
from octaskly.cli.output.render import count_of, note
from octaskly.client import Session, Unreachable
from octaskly.client.flows import rest_calls
from octaskly.client.flows.rest_calls import CHECKUP, MEMBERSHIP, Call
from octaskly.config.paths import Paths
from octaskly.errors import ConfigError, MeshError
from octaskly.rest.access import Membership
from octaskly.rest.mesh import Checkup


@click.command(epilog="Example: octaskly leave")
@YES_OPTION
@click.option("--force", is_flag=True, help="Leave even if tasks may be lost.")
@click.pass_obj
def leave(
    context: CliContext,
    yes: bool,  # noqa: FBT001
    force: bool,  # noqa: FBT001
) -> None:
    """Take this machine out of its mesh, and delete its mesh data.

    The agent drains and stops; then its secret, log, outputs and identity are deleted.
    Files in its worker directory are kept, and so is a secret that other agents use.
    Data on other nodes is kept. If no agent runs, the same data is deleted.
    """
    if context.url:
        raise ConfigError(
            "`octaskly leave` is for the agent of this machine, so --url is "
            "not allowed",
            hint="octaskly leave",
        )
    try:
        with Session(context.local_endpoint()) as client:
            agent = client.send_and_decode(Call("GET", CHECKUP), Checkup)
            _check_folder(context, agent)
            own = client.send_and_decode(Call("GET", MEMBERSHIP), Membership)
            _confirm(agent.name, own.tasks, agent.state_dir, yes=yes)
            client.send(rest_calls.post_once(f"{MEMBERSHIP}/leave", {"force": force}))
    except Unreachable:
        _leave_without_agent(context, yes=yes)
        return
    _await_end(agent)
    _print_left(agent.name, Path(agent.secret_file))


def _check_folder(context: CliContext, agent: Checkup) -> None:
    """Refuse if the answering agent uses another state folder than the given one."""
    asked = context.state_dir
    if asked is not None and asked.resolve() != Path(agent.state_dir).resolve():
        raise ConfigError(
            f"the agent of {asked} is not running; its socket belongs to "
            f"{agent.name}, with the state folder {agent.state_dir}",
            hint=f"octaskly --state-dir {agent.state_dir} leave    for that agent",
        )


def _confirm(name: str, tasks: int | None, state_dir: str, *, yes: bool) -> None:
    log = "its log" if tasks is None else f"{count_of(tasks, 'task')} in its log"
    require_yes(
        f"{name} leaves the mesh, and deletes {log} and the outputs in {state_dir}",
        is_given=yes,
    )


def _await_end(agent: Checkup) -> None:
    """Wait until the agent has ended.

    Raises:
        MeshError: the agent ended before it had deleted everything.
    """
    from octaskly.joining.change_mesh import LEAVING_MARKER_FILE  # noqa: PLC0415

    note(
        f"waiting for the tasks of {agent.name}, for at most the time that "
        "--drain allows"
    )
    try:
        _await_exit(agent.pid)
    except KeyboardInterrupt:
        note(f"interrupted; {agent.name} is still leaving the mesh")
        raise
    if os.path.lexists(Path(agent.state_dir, LEAVING_MARKER_FILE)):
        raise MeshError(
            f"{agent.name} ended before it had deleted its mesh data",
            hint=f"octaskly --state-dir {agent.state_dir} leave    again",
        )


def _await_exit(pid: int) -> None:
    """Wait until a process has ended, even if it is not a child.

    The pid of an agent in a container, often 1, means another process here.
    """
    if pid <= 1:
        return
    with contextlib.suppress(OSError):  # The process has ended already.
        end = os.pidfd_open(pid)
        try:
            select.select([end], [], [])
        finally:
            os.close(end)


def _leave_without_agent(context: CliContext, *, yes: bool) -> None:
    """Delete the data of the mesh without a running agent.

    Raises:
        StoreUnusable: an agent runs and does not answer.
        ConfigError: there is nothing to delete, or it cannot be deleted.
    """
    from octaskly.joining import change_mesh  # noqa: PLC0415
    from octaskly.trust.secret_file import SecretUse  # noqa: PLC0415

    config, _ = next_agent_config(context, None)
    paths = config.paths
    if not _has_mesh_data(paths):
        raise ConfigError(
            f"no agent runs here, and {paths.state} has no data of a mesh",
            hint="octaskly --state-dir DIR leave    for another state folder",
        )
    _confirm(config.name, None, str(paths.state), yes=yes)
    drop_root_to_owner(paths.state)
    change_mesh.require_deletable_secret(paths)
    change_mesh.delete_mesh_state(paths, SecretUse(paths.secret))
    _print_left(config.name, paths.secret)
    note(
        "  no agent was running, so the mesh was not notified and still "
        f"lists this node; octaskly revoke {config.name} on a member frees its name"
    )


def _has_mesh_data(paths: Paths) -> bool:
    from octaskly.trust.node_key import KEY_FILE  # noqa: PLC0415

    # A secret alone does not count, because agents with other names may use it.
    return paths.database.exists() or (paths.state / KEY_FILE).exists()


def drop_root_to_owner(folder: Path) -> None:
    """Switch root permanently to the user that owns this folder.

    The folder may contain links to any path.
    """
    with contextlib.suppress(FileNotFoundError):
        owner = folder.lstat().st_uid
        if os.geteuid() != 0 or owner == 0:
            return
        group = pwd.getpwuid(owner).pw_gid
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(owner, owner, owner)


def _print_left(name: str, secret: Path) -> None:
    note(f"✓ {name} has left the mesh; its mesh data is deleted")
    if os.path.lexists(secret):
        note(f"  another agent of this machine uses the secret {secret}, so it is kept")
