"""Man pages and shell completions, made of the commands themselves.

Hatchling runs this when it builds a wheel, which then has them under `share`; so an
installed environment has what `man` and the shells look for, and no copy of the help is
ever written by hand.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent.parent
COMPLETIONS = {
    "bash": "share/bash-completion/completions/octaskly",
    "zsh": "share/zsh/site-functions/_octaskly",
    "fish": "share/fish/vendor_completions.d/octaskly.fish",
}


class ShareHook(BuildHookInterface[Any]):
    """Adds the files to a wheel."""

    PLUGIN_NAME = "share"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write them into a folder of their own, and say where they go."""
        if self.target_name != "wheel" or version == "editable":
            return
        sys.path.insert(0, str(ROOT))
        self._folder = tempfile.TemporaryDirectory(prefix="octaskly-share-")
        for path, text in shared_files():
            file = Path(self._folder.name) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            build_data["shared_data"][str(file)] = path

    def finalize(self, *_: Any) -> None:
        """Remove the folder, once the wheel is there."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def shared_files() -> Iterator[tuple[str, str]]:
    """Yield the path below an environment, and the text, of each file."""
    import click  # noqa: PLC0415 - the hook may be loaded where nothing is built

    from octaskly.cli.completion import script  # noqa: PLC0415
    from octaskly.cli.root import octaskly  # noqa: PLC0415

    for shell, path in COMPLETIONS.items():
        yield path, f"{script(shell, octaskly)}\n"
    root = click.Context(octaskly, info_name="octaskly")
    pages = dict(_pages(root))
    for name, context in pages.items():
        yield f"share/man/man1/{name}.1", _page(name, context, sorted(pages))


def _pages(context: Any) -> Iterator[tuple[str, Any]]:
    """Yield a command and those below it, by the names of their pages."""
    import click  # noqa: PLC0415

    yield context.command_path.replace(" ", "-"), context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None
            yield from _pages(click.Context(command, info_name=name, parent=context))


def _page(name: str, context: Any, names: list[str]) -> str:
    """Return the text of one page, in the macros of man(7)."""
    from octaskly import __version__  # noqa: PLC0415

    command = context.command
    paragraphs = (command.help or "").replace("\b\n", "").strip().split("\n\n")
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        f'.TH "{name.upper()}" 1 "" "octaskly {__version__}" "User Commands"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(command.get_short_help_str(200))}",
        ".SH SYNOPSIS",
        f".B {_text(context.command_path)}",
        _text(usage),
        ".SH DESCRIPTION",
        "\n.PP\n".join(_text(paragraph) for paragraph in paragraphs),
        ".SH OPTIONS",
    ]
    records = (p.get_help_record(context) for p in command.get_params(context))
    for flags, meaning in filter(None, records):
        lines += [".TP", f".B {_text(flags)}", _text(meaning)]
    if command.epilog:
        example = command.epilog.removeprefix("Example: ").removeprefix("Try: ")
        lines += [".SH EXAMPLES", ".nf", _text(example), ".fi"]
    below = [n for n in names if n.startswith(f"{name}-")]
    above = [context.parent.command_path.replace(" ", "-")] if context.parent else []
    if below or above:
        lines += [".SH SEE ALSO", ", ".join(f"{_text(n)}(1)" for n in above + below)]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    """Return text of which roff takes nothing for an order of its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(
        f"\\&{line.strip()}" if line.strip()[:1] in (".", "'") else line.strip()
        for line in escaped.splitlines()
    )
