"""`octaskly agent`: a node in the foreground, with flags derived from the settings."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from octaskly.cli.context import CliContext
from octaskly.config.agent import load_agent_config
from octaskly.config.settings import SETTINGS, Setting
from octaskly.config.value_types import Boolean, Choices, ListOf, PathValue, ValueType


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


@click.command(
    params=[
        *(_flag(setting) for setting in SETTINGS),
        click.Option(
            ["--new-mesh", "creates_mesh"],
            is_flag=True,
            help="Create a mesh even if another one is visible. No effect if this"
            " machine is in a mesh.",
        ),
    ],
    epilog="Example: octaskly agent --slots 4 --label room=office",
)
@click.pass_context
def agent(ctx: click.Context, /, *, creates_mesh: bool, **flags: Any) -> int:
    """Run a node of the mesh in the foreground, until Ctrl-C.

    Without options, it discovers the other nodes of this LAN. Every flag can also be
    set in the environment or in a config file; `octaskly config` shows the result.
    """
    choice: CliContext = ctx.obj
    if flags["state_dir"] is None:
        flags["state_dir"] = _state_dir_of_group(ctx)
    config = load_agent_config(flags, choice.environ)
    # Imported here, because the agent imports libraries that commands do not need.
    main = importlib.import_module("octaskly.agent.main")
    code: int = main.run(config, creates_mesh=creates_mesh)
    return code


def _state_dir_of_group(ctx: click.Context) -> Path | None:
    """Return DIR of `octaskly --state-dir DIR agent`, like `agent --state-dir DIR`."""
    above = ctx.parent
    if above is None:
        return None
    is_typed = above.get_parameter_source("state_dir") is ParameterSource.COMMANDLINE
    return above.params["state_dir"] if is_typed else None
