"""`octaskly help` and `octaskly version`, for those who do not try the options."""

from __future__ import annotations

from collections.abc import Sequence

import click

from octaskly import __version__
from octaskly.cli.output.terminal import print_text


@click.command(name="help", epilog="Example: octaskly help run")
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_(ctx: click.Context, words: Sequence[str]) -> None:
    """Show the help of a command, as `octaskly COMMAND --help` does."""
    shown = ctx.find_root()
    for word in words:
        group = shown.command
        if not isinstance(group, click.Group):
            break
        name, command, _ = group.resolve_command(shown, [word])
        assert command is not None
        shown = click.Context(command, info_name=name, parent=shown)
    print_text(shown.get_help())


@click.command(epilog="Example: octaskly version")
def version() -> None:
    """Show the version, as `octaskly --version` does."""
    print_text(f"octaskly {__version__}")
