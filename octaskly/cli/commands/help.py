"""`octaskly help` and `octaskly version`, for those who do not try the options."""

from __future__ import annotations

from collections.abc import Sequence

import click

from octaskly import __version__
from octaskly.cli.output.terminal import print_text


@click.command(name="help", epilog="Example: octaskly help run")
@click.argument("names", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_(ctx: click.Context, names: Sequence[str]) -> None:
    """Show the help of a command, as `octaskly COMMAND --help` does."""
    shown = ctx.find_root()
    for name in names:
        group = shown.command
        if not isinstance(group, click.Group):
            break
        full_name, command, _ = group.resolve_command(shown, [name])
        assert command is not None
        shown = click.Context(command, info_name=full_name, parent=shown)
    print_text(shown.get_help())


@click.command(epilog="Example: octaskly version")
def version() -> None:
    """Show the version, as `octaskly --version` does."""
    print_text(f"octaskly {__version__}")
