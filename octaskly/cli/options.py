"""Options and questions that several commands have, and errors of their use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import click

from octaskly.cli.output.render import note
from octaskly.cli.output.terminal import confirm
from octaskly.config.units import SECONDS

_C = TypeVar("_C", bound=Callable[..., Any])

JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print the API's answer as JSON."
)
YES_OPTION = click.option(
    "--yes", is_flag=True, help="Do not ask; required without a terminal."
)


def exclusive_flags(name: str, **texts: str) -> Callable[[_C], _C]:
    """Return a decorator that adds flags that set one parameter, each to its own name.

    Each flag appends its value, as otherwise the last one would win silently.

    Args:
        name: The parameter.
        texts: Help texts by the names of the flags.
    """

    def only_value(
        _: click.Context, __: click.Parameter, values: Sequence[str]
    ) -> str | None:
        if len(set(values)) > 1:
            first, *others = (f"--{flag}" for flag in texts)
            raise click.UsageError(f"{first} excludes {', '.join(others)}")
        return values[0] if values else None

    def add_flags(command: _C) -> _C:
        for flag in reversed(texts):
            command = click.option(
                f"--{flag}",
                name,
                flag_value=flag,
                multiple=True,
                callback=only_value,
                help=texts[flag],
            )(command)
        return command

    return add_flags


class SectionedCommand(click.Command):
    """A command with many options, which its help lists in sections.

    The options that no section names are its own, and come first.
    """

    sections: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Flags by heading, the most used ones first."""

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """List the options by section."""
        rows = {}
        for option in self.get_params(ctx):
            row = option.get_help_record(ctx)
            if isinstance(option, click.Option) and row is not None:
                rows[option.opts[-1]] = row
        listed = {flag for flags in self.sections.values() for flag in flags}
        own = [flag for flag in rows if flag not in listed]
        for heading, flags in {"Options": own, **self.sections}.items():
            shown = [rows[flag] for flag in flags if flag in rows]
            if shown:
                with formatter.section(heading):
                    formatter.write_dl(shown)


class UsageProblem(click.UsageError):
    """A mistake in a command line, with its cause and the command that works."""

    def __init__(self, message: str, *, cause: str, hint: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.hint = hint


def require_yes(consequence: str, *, is_given: bool, arguments: str = "") -> None:
    """Ask before something that cannot be undone.

    Args:
        consequence: What the running command is about to do, as one or two sentences
            without the final full stop.
        is_given: The option `--yes` was given, so nothing is asked.
        arguments: What the hint repeats of the command line.

    Raises:
        UsageProblem: there is no terminal to ask at, so nothing may be done.
        Abort: the user refused.
    """
    if is_given:
        return
    if not sys.stdin.isatty():
        command = f"{click.get_current_context().command_path} {arguments}".rstrip()
        raise UsageProblem(
            f"`{command}` asks for confirmation, but there is no terminal",
            cause=consequence,
            hint=f"{command} --yes    does it without a question",
        )
    if not confirm(f"{consequence}. Continue?"):
        note("nothing was changed")
        raise click.Abort


class Duration(click.ParamType[int]):
    """Seconds, given as `90`, `90s`, `15m`, `24h` or `7d`."""

    name = "duration"

    def __init__(self, *, least_s: int = 1, most_s: int | None = None) -> None:
        self._least_s = least_s
        self._most_s = most_s

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return whole seconds."""
        if isinstance(value, int):
            return value
        seconds = SECONDS.parse(str(value))
        if seconds is None or seconds < self._least_s:
            self.fail(f"{value!r} is not {SECONDS.example}", param, ctx)
        if self._most_s is not None and seconds > self._most_s:
            most = SECONDS.format(self._most_s)
            self.fail(f"{value!r} is too long; at most {most}", param, ctx)
        return seconds
