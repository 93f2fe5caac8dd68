"""`octaskly agent`: a node in the foreground, with flags derived from the settings."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Final

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from octaskly.cli.context import CliContext
from octaskly.cli.options import Duration, SectionedCommand
from octaskly.cli.output.terminal import prompt_hidden
from octaskly.config.agent import AgentConfig, load_agent_config
from octaskly.config.settings import LIMIT_FLAGS, SETTINGS, Setting
from octaskly.config.units import SECONDS
from octaskly.config.value_types import Boolean, Choices, ListOf, PathValue, ValueType
from octaskly.errors import ConfigError

INVITE_VARIABLE: Final = "OCTASKLY_INVITE"
_CLOCK: Final = re.compile(r"[0-9]{1,2}:[0-9]{2}")


class _RawText(click.ParamType[Any]):
    """Text that is parsed later, together with all other sources of settings."""

    def __init__(self, kind: ValueType) -> None:
        self.name = kind.metavar
        self._words = kind.choices if isinstance(kind, Choices) else ()

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Complete the values of an enumerated setting."""
        return [CompletionItem(w) for w in self._words if w.startswith(incomplete)]


def _flag(setting: Setting) -> click.Option:
    kind = setting.value_type
    says = f"{setting.summary[:1].upper()}{setting.summary[1:]}"
    if isinstance(kind, Boolean):
        pair = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        return click.Option([pair, setting.field], default=None, help=f"{says}.")
    says = f"{says} (default: {setting.default_text})."
    # Errors are reported when the file is read, whatever source its path has.
    place = click.Path(readable=False, path_type=Path)
    return click.Option(
        [setting.flag, setting.field],
        type=place if isinstance(kind, PathValue) else _RawText(kind),
        metavar=kind.metavar,
        multiple=isinstance(kind, ListOf),
        help=f"{says} Repeatable." if isinstance(kind, ListOf) else says,
    )


VISITOR_OPTIONS = [
    click.Option(
        ["--visitor", "is_visitor"],
        is_flag=True,
        help="Run tasks for a mesh without joining it. The invite is in the variable"
        f" {INVITE_VARIABLE}, or is read from stdin. Nothing stays on this machine.",
    ),
    click.Option(
        ["--invite-file"],
        type=click.Path(path_type=Path, allow_dash=True),
        metavar="FILE",
        help="With --visitor: read the invite from the first line of FILE.",
    ),
    click.Option(
        ["--until"],
        metavar="TIME",
        help="With --visitor: leave at this time, such as 16:40, or after 2h.",
    ),
    click.Option(
        ["--idle", "idle_s"],
        type=Duration(),
        metavar="T",
        help="With --visitor: leave after so long without a task.",
    ),
]


class _AgentCommand(SectionedCommand):
    """The command whose options are the settings."""

    sections: ClassVar[Mapping[str, Sequence[str]]] = {
        "Most used options": (
            *("--name", "--slots", "--label", "--join", "--task-user", "--help"),
        ),
        "Tasks on this node": (
            *("--workdir", "--gpu", "--drain", "--kill-grace"),
            *("--output-cap", "--output-quota", "--files-quota"),
        ),
        "Files of the agent, and its log events": (
            *("--state-dir", "--secret-file", "--log-format", "--log-level"),
        ),
        "Network": (
            *("--interface", "--api-port", "--peer-port", "--lan-port"),
            *("--cors-origin", "--allow-host"),
        ),
        "Mesh": (
            *("--new-mesh", "--electable", "--durability"),
            *("--rotate-within", "--keep-old-secret"),
        ),
        "Visitors": (
            *("--visitor", "--invite-file", "--until", "--idle", "--visitor-tasks"),
        ),
        "Queue and ended tasks, on the dispatcher": (
            *("--retention", "--retained-tasks", "--retained-bytes", "--queue-max"),
            *("--queued-bytes-per-subject", "--webhooks-per-subject"),
        ),
        "Rates of requests": (
            *("--rate-admin", "--rate-client", "--rate-viewer", "--rate-stranger"),
        ),
        "Limits of the API and of connections": LIMIT_FLAGS,
    }


@click.command(
    cls=_AgentCommand,
    params=[
        *(_flag(setting) for setting in SETTINGS),
        click.Option(
            ["--new-mesh", "creates_mesh"],
            is_flag=True,
            help="Create a mesh even if another one is visible. No effect if this"
            " machine is in a mesh.",
        ),
        *VISITOR_OPTIONS,
    ],
    epilog="Example: octaskly agent --slots 4 --label room=office",
)
@click.pass_context
def agent(
    ctx: click.Context,
    /,
    *,
    creates_mesh: bool,
    is_visitor: bool,
    invite_file: Path | None,
    until: str | None,
    idle_s: int | None,
    **flags: Any,
) -> int:
    """Run a node of the mesh in the foreground, until Ctrl-C.

    Without options, it discovers the other nodes of this LAN. Every flag can also be
    set in the environment or in a config file; `octaskly config` shows the result.
    """
    choice: CliContext = ctx.obj
    if flags["state_dir"] is None:
        flags["state_dir"] = _state_dir_of_group(ctx)
    config = load_agent_config(flags, choice.environ)
    if is_visitor:
        return _run_visitor(config, choice, invite_file, until, idle_s)
    if invite_file or until or idle_s:
        raise click.UsageError("--invite-file, --until and --idle need --visitor")
    # Imported here, because the agent imports libraries that commands do not need.
    main = importlib.import_module("octaskly.agent.main")
    code: int = main.run(config, creates_mesh=creates_mesh)
    return code


def _run_visitor(
    config: AgentConfig,
    choice: CliContext,
    invite_file: Path | None,
    until: str | None,
    idle_s: int | None,
) -> int:
    """Run a visitor with the invite of a file, of the environment, or of stdin."""
    until_ms = None if until is None else parse_until(until)
    # Tasks must not inherit it, nor the programs that are started from here.
    text = choice.environ.get(INVITE_VARIABLE)
    os.environ.pop(INVITE_VARIABLE, None)
    if invite_file is not None and str(invite_file) != "-":
        text = read_invite_file(invite_file)
    elif text is None or invite_file is not None:
        text = prompt_hidden("Invite") if sys.stdin.isatty() else sys.stdin.readline()
    return run_visitor(config, text, until_ms, idle_s)


def run_visitor(
    config: AgentConfig,
    invite: str,
    until_ms: int | None = None,
    idle_s: int | None = None,
) -> int:
    """Run a visitor until its visit is over, and return its exit code.

    Args:
        config: The settings.
        invite: The code, or the URL with code and addresses.
        until_ms: Wall clock at which it leaves; None: as late as it may.
        idle_s: It leaves after so long without a task; None: it does not.

    Raises:
        PairingFailed: No member accepts the invite.
    """
    visitor = importlib.import_module("octaskly.agent.visiting.visitor")
    invites = importlib.import_module("octaskly.joining.visitor_invite")
    code = invites.VisitorCode.parse(invite)
    options = visitor.VisitOptions(code=code, until_ms=until_ms, idle_s=idle_s)
    exit_code: int = visitor.run(config, options)
    return exit_code


def parse_until(text: str) -> int:
    """Return the wall clock in milliseconds of `16:40`, of ISO 8601 or of `2h`.

    Raises:
        click.UsageError: The text is none of these, or is over.
    """
    now = datetime.now().astimezone()
    seconds = SECONDS.parse(text)
    try:
        if seconds:
            at = now + timedelta(seconds=seconds)
        elif _CLOCK.fullmatch(text):
            hour, minute = map(int, text.split(":"))
            at = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
            at = at if at > now else at + timedelta(days=1)
        else:
            at = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise click.UsageError(
            f"--until {text!r} is not a time such as 16:40, 2026-12-24T16:40 or 2h"
        ) from None
    if at <= now:
        raise click.UsageError(f"--until {text}: that is over")
    return int(at.timestamp() * 1000)


def read_invite_file(path: Path) -> str:
    """Return the first line of a file.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return path.read_text("utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the invite in {path} cannot be read: {error}") from None


def _state_dir_of_group(ctx: click.Context) -> Path | None:
    """Return DIR of `octaskly --state-dir DIR agent`, like `agent --state-dir DIR`."""
    above = ctx.parent
    if above is None:
        return None
    is_typed = above.get_parameter_source("state_dir") is ParameterSource.COMMANDLINE
    return above.params["state_dir"] if is_typed else None
