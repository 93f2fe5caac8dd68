"""The group of all commands, and the handling of their errors.

The module of a command is imported on the first use of the command.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from octaskly import __version__
from octaskly.cli import completion
from octaskly.cli.command_names import ALIASES, COMMANDS, GROUPS, HINTS, UNLISTED
from octaskly.cli.context import CliContext
from octaskly.cli.interrupts import ignore_unfinished_objects
from octaskly.cli.options import UsageProblem
from octaskly.cli.output.render import (
    EXIT_CANCELLED,
    name_task,
    print_error,
    report_error,
    report_os_error,
)
from octaskly.cli.output.terminal import flush, reopen_closed_streams
from octaskly.errors import OctasklyError

# Errors are reported when the file is read, whatever source its path has.
_PATH_TYPE = click.Path(readable=False, path_type=Path)
SENTENCE_CHARS = 200
END_CHARS = 100
NEAR_MIN = 0.7  #: similarity of a typing error, from 0 to 1
OPTION_CHARS = 30  #: of an option in a hint
CONTEXT_OPTIONS = frozenset({"--node", "--state-dir", "--url", "--ca-file"})


class LazyGroup(click.Group):
    """A group that imports the module of a command on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return all names that the help shows."""
        return sorted(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        """Import and return one command."""
        name = ALIASES.get(cmd_name, cmd_name)
        place = COMMANDS.get(name) or UNLISTED.get(name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the named command.

        Raises:
            UsageError: there is none; it names the command that may be meant.
        """
        name = args[0]
        if name == "status" and args[1:] and not args[1].startswith("-"):
            name = "show"  # `status ID`
        command = self.get_command(ctx, name)
        if command is not None:
            return ALIASES.get(name, name), command, args[1:]
        if name.startswith("-"):
            return super().resolve_command(ctx, args)
        raise _unknown_command(args)

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """List the commands in groups."""
        width = max(map(len, COMMANDS))
        for heading, group in GROUPS.items():
            rows = []
            for name in group:
                command = self.get_command(ctx, name)
                assert command is not None, name
                # A narrow terminal wraps it; to cut it would hide what it does.
                said = command.get_short_help_str(SENTENCE_CHARS)
                rows.append((name.ljust(width), said))
            with formatter.section(heading):
                formatter.write_dl(rows)


def _unknown_command(args: Sequence[str]) -> UsageProblem:
    """Return the error for a command that does not exist; it runs nothing."""
    import difflib  # noqa: PLC0415 - takes milliseconds, for mistakes only
    import shutil  # noqa: PLC0415 - as above

    name = args[0]
    names = (*COMMANDS, *ALIASES)
    near = difflib.get_close_matches(name, names, n=1, cutoff=NEAR_MIN)
    if name in HINTS:
        hints = _about(HINTS[name], args[1:])
        cause = f"`{name}` is a command of other programs; nothing was run"
    elif near:
        hints = [_cut_line(["octaskly", near[0], *args[1:]])]
        cause = f"did you mean `{near[0]}`? Nothing was run"
    elif shutil.which(name) is not None:
        line = _cut_line(["octaskly", "run", "--", *args])
        hints = [f"{line}    runs it in the mesh"]
        cause = f"`{name}` is a program of this machine; nothing was run"
    else:
        hints = ["octaskly help    lists the commands"]
        cause = "no similar command exists; nothing was run"
    return UsageProblem(
        f"there is no command {name[:END_CHARS]!r}", cause=cause, hint="\n".join(hints)
    )


def _about(hints: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return hints about the task or node that the user has named, if it is one word.

    If it may be either, only a task: revoking a node is not undone.
    """
    if len(words) != 1 or words[0].startswith("-") or len(words[0]) > END_CHARS:
        return list(hints)
    if any(" ID " in hint for hint in hints):
        return [name_task(hint, words[0]) for hint in hints]
    return [hint.replace(" NODE ", f" {shlex.quote(words[0])} ") for hint in hints]


def _cut_line(words: Sequence[str]) -> str:
    line = " ".join(shlex.join(words).split())
    return line if len(line) <= SENTENCE_CHARS else f"{line[:SENTENCE_CHARS]}…"


@click.group(
    name="octaskly",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try: octaskly demo",
)
@click.version_option(__version__, message="octaskly %(version)s")
@click.option(
    "--node",
    metavar="NAME",
    shell_complete=completion.complete_agents,
    help="Use the agent of this name on this machine.",
)
@click.option(
    "--state-dir",
    type=_PATH_TYPE,
    help="Use the agent on this machine with this state folder.",
)
@click.option(
    "--url",
    help="Use a node on another machine, with the token in OCTASKLY_TOKEN.",
)
@click.option(
    "--ca-file",
    type=_PATH_TYPE,
    help="CA of the mesh, for https:// URLs (octaskly ca prints it).",
)
@click.option("--quiet", is_flag=True, help="Print only errors on stderr.")
@click.option(
    "--no-color", is_flag=True, help="Print no colours, as if NO_COLOR were set."
)
@click.pass_context
def octaskly(
    ctx: click.Context,
    node: str | None,
    state_dir: Path | None,
    url: str | None,
    ca_file: Path | None,
    quiet: bool,  # noqa: ARG001, FBT001 - read from the context, wherever it is needed
    no_color: bool,  # noqa: FBT001
) -> None:
    """Turn the machines of a LAN into one computer for shell commands."""
    if no_color:
        os.environ["NO_COLOR"] = "1"
    ctx.obj = CliContext(node=node, state_dir=state_dir, url=url, ca_file=ca_file)


def run(arguments: Sequence[str] | None) -> int:
    """Run a command; turn errors into text on stderr and an exit code."""
    reopen_closed_streams()
    try:
        result = octaskly.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="octaskly",
            standalone_mode=False,
        )
        flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        typed = sys.argv[1:] if arguments is None else arguments
        advice = _advice(error, typed)
        message = _normalize_message(_text_of(error))
        print_error(message, cause=advice.cause, hints=advice.hints)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        ignore_unfinished_objects()
        return EXIT_CANCELLED
    except OctasklyError as error:
        return report_error(error)
    except OSError as error:
        return report_os_error(error)
    return result if isinstance(result, int) else 0


def _normalize_message(message: str) -> str:
    """Return click's message in our style: lower-case first letter, no full stop.

    The message may repeat an input of any length between the flag and the valid values.
    The middle of a long message is therefore cut.
    """
    line = " ".join(message.split()).removesuffix(".")
    if len(line) > SENTENCE_CHARS + END_CHARS:
        line = f"{line[:SENTENCE_CHARS]}…{line[-END_CHARS:]}"
    return line[:1].lower() + line[1:]


class _Advice(NamedTuple):
    """The cause of an error and what helps."""

    cause: str | None
    hints: Sequence[str]


def _advice(error: click.ClickException, arguments: Sequence[str]) -> _Advice:
    """Return the cause of a mistake in a command line, and hints."""
    if not isinstance(error, click.UsageError):
        return _Advice(None, [])
    if isinstance(error, UsageProblem):
        return _Advice(error.cause, error.hint.splitlines())
    if error.ctx is None:
        return _Advice(None, ["octaskly COMMAND --help"])
    usual = f"{error.ctx.command_path} --help"
    if not isinstance(error, click.NoSuchOption):
        return _Advice(None, [usual])
    option = error.option_name[:OPTION_CHARS]
    if option in CONTEXT_OPTIONS:
        return _Advice(
            "it selects a node, so it comes before the command",
            [f"octaskly {option} VALUE {error.ctx.info_name} ..."],
        )
    if error.ctx.parent is None:
        owner = next((word for word in arguments if word in COMMANDS), None)
        if owner is not None and _has_option(owner, option):
            return _Advice(
                f"it is an option of `{owner}`, so it comes after that word",
                [f"octaskly {owner} {option} ..."],
            )
    elif _takes_command(error.ctx.command):
        usage = " ".join((error.ctx.command_path, *_words_before_command(error.ctx)))
        return _Advice(
            "options before the first word of the command are Octaskly's",
            [f"{usage} -- CMD {option} ...    for the command", usual],
        )
    return _Advice(None, [usual])


def _text_of(error: click.ClickException) -> str:
    """Return the text of an error; an option in the wrong place is not misspelt."""
    if isinstance(error, click.NoSuchOption) and error.option_name in CONTEXT_OPTIONS:
        return error.message
    return error.format_message()


def _has_option(name: str, option: str) -> bool:
    command = octaskly.get_command(click.Context(octaskly), name)
    return command is not None and any(option in p.opts for p in command.params)


def _takes_command(command: click.Command) -> bool:
    return any(each.name == "words" for each in _arguments(command))


def _words_before_command(ctx: click.Context) -> list[str]:
    """Return the arguments that precede the words of a command, as in its usage."""
    arguments = _arguments(ctx.command)
    return [each.make_metavar(ctx) for each in arguments if each.name != "words"]


def _arguments(command: click.Command) -> list[click.Argument]:
    return [each for each in command.params if isinstance(each, click.Argument)]
