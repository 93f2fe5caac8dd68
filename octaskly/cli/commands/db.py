"""`octaskly db`: recovery from an unusable log."""

from __future__ import annotations

import datetime as dt

import click

from octaskly.cli.context import CliContext
from octaskly.cli.options import YES_OPTION, require_yes
from octaskly.cli.output.render import note
from octaskly.errors import ConfigError


@click.group(epilog="Example: octaskly db reset")
def db() -> None:
    """Maintain the log of the agent on this machine."""


@db.command(epilog="Example: octaskly --node ash db reset")
@YES_OPTION
@click.pass_obj
def reset(context: CliContext, yes: bool) -> None:  # noqa: FBT001
    """Move the log aside, so that the agent starts with an empty one.

    Nothing is deleted: the files stay beside the new log. The other nodes of the mesh
    bring the new log up to date; if there are none, its tasks are no longer listed.
    """
    # Imported here, because other commands need neither settings nor SQLite.
    from octaskly.config.agent import load_agent_config  # noqa: PLC0415
    from octaskly.store.tables.database import move_aside  # noqa: PLC0415

    path = load_agent_config(context.agent_flags(), context.environ).paths.database
    if not path.exists():
        raise ConfigError(
            f"there is no log at {path}",
            hint="octaskly --state-dir DIR db reset    names another agent's folder",
        )
    require_yes(
        f"{path} is moved aside; tasks that no other node has are no longer listed",
        is_given=yes,
    )
    suffix = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    for moved in move_aside(path, suffix):
        note(f"moved aside: {moved}")
    note("next: octaskly agent")
