"""Usage and options of each command, for docs/reference/cli.md."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import click

from octaskly.cli.command_names import COMMANDS
from octaskly.config.settings import SETTINGS

SHARED = "run"
"""The command whose options other commands share; only its section lists them."""

SETTING_FIELDS = frozenset(setting.field for setting in SETTINGS)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its words."""
    for name, place in sorted(COMMANDS.items()):
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield name, command
            for sub, part in sorted(command.commands.items()):
                yield f"{name} {sub}", part
        else:
            yield name, command


def named(value: object) -> str | None:
    """Return the id of a test case over `commands`."""
    return value if isinstance(value, str) else ""


def flags(command: click.Command) -> set[str]:
    """Return the long flags of a command."""
    return {
        text
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for text in (*parameter.opts, *parameter.secondary_opts)
        if text.startswith("--")
    }


def part(words: str, command: click.Command) -> str:
    """Return a command's usage and options, but no settings of an agent."""
    context = click.Context(command, info_name=f"octaskly {words}")
    usage = " ".join([context.info_name or "", *command.collect_usage_pieces(context)])
    options = list(_options(command))
    if words == "agent":
        options = [each for each in options if each.name not in SETTING_FIELDS]
    table = _table(words, options)
    return f"`{usage}`\n\n{table}".rstrip("\n") + "\n"


def _options(command: click.Command) -> Iterator[click.Option]:
    return (p for p in command.params if isinstance(p, click.Option))


def _table(words: str, options: list[click.Option]) -> str:
    rows = [_row(option) for option in options if not option.hidden]
    if words != SHARED:
        shared = [_row(option) for option in _options(dict(commands())[SHARED])]
        own = [row for row in rows if row not in shared]
        if len(rows) - len(own) > len(shared) // 2:
            left_out = [row for row in shared if row not in rows]
            but = "".join(f" but {row.split(' | ')[0].strip('| ')}" for row in left_out)
            rows = [
                *own,
                f"| those of [octaskly {SHARED}](#octaskly-{SHARED}){but} | |",
            ]
    if not rows:
        return ""
    return "\n".join(["| Option | Meaning |", "| --- | --- |", *rows]) + "\n"


def _row(option: click.Option) -> str:
    flags = sorted((*option.opts, *option.secondary_opts), key=len)
    names = [f"`{flag}`" for flag in flags]
    if not (option.is_flag or option.count):
        metavar = option.make_metavar(click.Context(click.Command("octaskly")))
        names[-1] = f"`{flags[-1]} {metavar}`"
    cells = (cell.replace("|", "\\|") for cell in (", ".join(names), _meaning(option)))
    return f"| {' | '.join(cells)} |"


def _meaning(option: click.Option) -> str:
    says = [option.help or ""]
    match option.type:
        case click.IntRange(min=int(least), max=int(most)) if f"{most}" not in says[0]:
            says.append(f"{least} to {most}.")
    if option.required:
        says.append("Required.")
    if option.show_default:
        says.append(f"Default: {option.default}.")
    return " ".join(filter(None, says))
