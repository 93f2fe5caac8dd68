"""The words of the command that `run`, `submit`, `map` and `array` take.

As with ssh, sudo and docker, options end at the first word of that command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Final

import click

from octaskly.cli.options import SectionedCommand, UsageProblem
from octaskly.cli.output.render import note
from octaskly.cli.task_options import TASK_SECTIONS
from octaskly.core.model import placeholders

ITEMS_SEPARATOR: Final = ":::"
SHOWN_CHARS_MAX: Final = 100  #: of a command in a message
END_OF_OPTIONS: Final = "--"

_MAY_QUOTE_A_QUOTE: Final = re.compile(r"<<|#|\$['({]|`")
"""Shell syntax in which a single quotation mark may be right."""


class CommandTaker(SectionedCommand):
    """A command whose last argument is a command, whose options it leaves alone.

    An argument before that command may have options on both sides. A value that may be
    omitted follows an equals sign: `--flag WORD` leaves WORD to the command.
    """

    allow_interspersed_args = False
    sections = TASK_SECTIONS

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options that come before the first word of the command."""
        options, words = self._split_options(ctx, args)
        leading_count = sum(isinstance(p, click.Argument) for p in self.params) - 1
        leading, words = words[:leading_count], words[leading_count:]
        if leading and options[-1:] != [END_OF_OPTIONS]:
            more, words = self._split_options(ctx, words)
            options += more
        is_marked = options[-1:] == [END_OF_OPTIONS]
        if is_marked:
            options.pop()
        command = words[: _index(words, ITEMS_SEPARATOR)]
        if command and not ctx.resilient_parsing:
            self._check_first_word(ctx, options, leading, words)
            if not is_marked:
                self._warn_of_options(ctx, leading, command)
        return super().parse_args(ctx, [*options, END_OF_OPTIONS, *leading, *words])

    def _split_options(
        self, ctx: click.Context, args: Sequence[str]
    ) -> tuple[list[str], list[str]]:
        """Return the options at the beginning, and the words that follow them."""
        options: list[click.Parameter] = []
        flags: set[str] = set()  #: options whose value may be omitted
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and _is_value_optional(param):
                flags.update(param.opts)
                options.append(click.Option(param.opts, is_flag=True))
            elif isinstance(param, click.Option):
                options.append(param)
        names = [word.partition("=")[0] for word in args]
        bare = [n if n in flags else a for n, a in zip(names, args, strict=True)]
        parser = click.Command(None, params=options, add_help_option=False)
        _, words, _ = parser.make_parser(ctx).parse_args(bare)
        count = len(args) - len(words)
        return list(args[:count]), list(args[count:])

    def _check_first_word(
        self,
        ctx: click.Context,
        options: Sequence[str],
        leading: Sequence[str],
        words: Sequence[str],
    ) -> None:
        """Refuse a command that begins with an option.

        Raises:
            UsageProblem: an option stands after `--`.
        """
        first = words[0]
        if len(first) > 1 and first.startswith("-"):
            raise UsageProblem(
                f"the command begins with {_shown([first])}, which is not a program",
                cause="options of Octaskly come before `--`, and the command after it",
                hint=self._in_order(ctx, options, leading, words),
            )

    def _warn_of_options(
        self, ctx: click.Context, leading: Sequence[str], command: Sequence[str]
    ) -> None:
        """Mention an option of Octaskly that a command without `--` gets."""
        own = {flag for p in self.params for flag in p.opts if flag.startswith("--")}
        first, *others = command
        taken = next((word for word in others if word.partition("=")[0] in own), None)
        if taken is not None:
            again = _shown([*leading, END_OF_OPTIONS, first])
            note(
                f"warning: {_shown([first])} gets {_shown([taken])}, because options of"
                " Octaskly come before the command\n"
                f"{ctx.command_path} {again} ...    confirms that this is intended"
            )

    def _in_order(
        self,
        ctx: click.Context,
        options: Sequence[str],
        leading: Sequence[str],
        words: Sequence[str],
    ) -> str:
        """Return the command line that is probably meant."""
        usual = f"{ctx.command_path} [OPTIONS] {' '.join((*leading, '--'))} CMD..."
        try:
            more, command = self._split_options(ctx, words)
        except click.UsageError:
            return usual
        if not command or more[-1:] == [END_OF_OPTIONS]:
            return usual
        line = [*options, *more, *leading, END_OF_OPTIONS, *command]
        return f"{ctx.command_path} {_shown(line)}"


def _is_value_optional(option: click.Option) -> bool:
    return not option.is_flag and isinstance(option.flag_value, str)


def command_text(words: Sequence[str]) -> str:
    """Return the shell text of the words of a command.

    One word is used as shell text; several words are quoted and joined.

    Raises:
        UsageProblem: the words are quoted by mistake.
    """
    check_quoting(words)
    return words[0] if len(words) == 1 else shlex.join(words)


def check_quoting(words: Sequence[str]) -> None:
    """Refuse quotation marks that no shell can read as they are meant.

    Raises:
        UsageProblem: a quotation has no end, or a command is quoted as a program.
    """
    path = click.get_current_context().command_path
    if len(words) == 1 and (mark := _find_open_quote(words[0])):
        raise UsageProblem(
            f"the quotation mark {mark} is never closed in: {_cut(words[0])}",
            cause="a single argument is shell code, in which quotation marks have a "
            "meaning",
            hint=f'{path} -- echo "it\'s"    several arguments are quoted for you',
        )
    first, *others = words
    if others and len(first.split()) > 1 and "/" not in first:
        hints = [
            f"{path} -- {_shown([*first.split(), *others])}    without those quotes",
            f"{path} -- {_shown([' '.join(words)])}    or all of it as shell code",
        ]
        if click.get_current_context().info_name == "map" and not any(
            "{" in other for other in others
        ):
            items = f"{_shown([first])} ::: {_shown(others)}"
            hints.insert(0, f"{path} {items}    with items")
        raise UsageProblem(
            f"there is no program called {_shown([first])}",
            cause="each argument is one word; the first is the program",
            hint="\n".join(hints),
        )


def check_placeholder_quoting(text: str, items: Iterable[str]) -> None:
    """Refuse quotation marks around a placeholder whose values are quoted, too.

    Raises:
        UsageProblem: the value of an item would be changed.
    """
    mark, quoted = "", []
    if not _MAY_QUOTE_A_QUOTE.search(text):
        for number, piece in enumerate(placeholders.split_placeholders(text)):
            if number % 2 and mark:
                quoted.append(piece)
            elif not number % 2:
                mark = _find_open_quote(piece, mark)
    for position, item in enumerate(items if quoted else ()):
        for placeholder in quoted:
            value = placeholders.placeholder_value(placeholder, item, position)
            if shlex.quote(value) != value:
                raise UsageProblem(
                    f"{placeholder} is in quotation marks, and the item {item!r}"
                    " would be quoted twice",
                    cause="each value is already quoted as one word for the shell",
                    hint="leave out the quotation marks around it",
                )


def _find_open_quote(text: str, quote: str = "") -> str:
    """Return the quotation mark that nothing closes; after `quote`, if one is open."""
    if _MAY_QUOTE_A_QUOTE.search(text):
        return ""
    is_escaped = False
    for char in text:
        if is_escaped:
            is_escaped = False
        elif char == "\\" and quote != "'":
            is_escaped = True
        elif char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
    return quote


def _index(words: Sequence[str], word: str) -> int:
    return list(words).index(word) if word in words else len(words)


def _shown(words: Sequence[str]) -> str:
    """Return words as they are typed, cut if they are long."""
    return _cut(shlex.join(words))


def _cut(text: str) -> str:
    line = text.replace("\n", " ")
    return line if len(line) <= SHOWN_CHARS_MAX else f"{line[:SHOWN_CHARS_MAX]}…"
