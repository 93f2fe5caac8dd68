"""The group of all commands, and the handling of their errors.

The module of a command is imported on the first use of the command.
"""

from __future__ import annotations

import errno
import importlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from octaskly import __version__
from octaskly.cli import completion
from octaskly.cli.context import CliContext
from octaskly.cli.interrupts import ignore_unfinished_objects
from octaskly.cli.options import UsageProblem
from octaskly.cli.output.render import (
    EXIT_CANCELLED,
    EXIT_FAILED,
    print_error,
    report_error,
)
from octaskly.cli.output.terminal import discard_output, flush, reopen_closed_streams
from octaskly.errors import OctasklyError

COMMANDS = {
    "agent": "octaskly.cli.agent:agent",
    "approve": "octaskly.cli.commands.approve:approve",
    "audit": "octaskly.cli.commands.audit:audit",
    "array": "octaskly.cli.commands.arrays:array",
    "ca": "octaskly.cli.commands.secret:ca",
    "cancel": "octaskly.cli.commands.tasks:cancel",
    "completion": "octaskly.cli.completion:completion",
    "config": "octaskly.cli.commands.config:config",
    "db": "octaskly.cli.commands.db:db",
    "demo": "octaskly.cli.demo.command:demo",
    "doctor": "octaskly.cli.doctor.command:doctor",
    "drain": "octaskly.cli.commands.drain:drain",
    "events": "octaskly.cli.commands.wait:events",
    "explain": "octaskly.cli.commands.tasks:explain",
    "fetch": "octaskly.cli.commands.fetch:fetch",
    "forget": "octaskly.cli.commands.tasks:forget",
    "invite": "octaskly.cli.commands.join:invite",
    "join": "octaskly.cli.commands.join:join",
    "leave": "octaskly.cli.commands.leave:leave",
    "logs": "octaskly.cli.commands.tasks:logs",
    "ls": "octaskly.cli.commands.tasks:ls",
    "map": "octaskly.cli.commands.arrays:map_",
    "nodes": "octaskly.cli.commands.nodes:nodes",
    "open": "octaskly.cli.commands.open:open_",
    "pause": "octaskly.cli.commands.drain:pause",
    "requests": "octaskly.cli.commands.approve:requests",
    "resume": "octaskly.cli.commands.drain:resume",
    "retry": "octaskly.cli.commands.retry:retry",
    "revoke": "octaskly.cli.commands.rotate:revoke",
    "rotate": "octaskly.cli.commands.rotate:rotate",
    "run": "octaskly.cli.commands.run:run",
    "secret": "octaskly.cli.commands.secret:secret",
    "service": "octaskly.cli.service.command:service",
    "show": "octaskly.cli.commands.tasks:show",
    "stats": "octaskly.cli.commands.nodes:stats",
    "submit": "octaskly.cli.commands.submit:submit",
    "token": "octaskly.cli.commands.tokens:token",
    "top": "octaskly.cli.commands.top:top",
    "unpause": "octaskly.cli.commands.drain:unpause",
    "wait": "octaskly.cli.commands.wait:wait",
}

#: Errors of a write to stdout or stderr, if the error names no file.
WRITE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE, errno.EBADF}
)
# Errors are reported when the file is read, whatever source its path has.
_PATH_TYPE = click.Path(readable=False, path_type=Path)
SENTENCE_CHARS = 200
END_CHARS = 100
OPTION_CHARS = 40  #: of an option in a hint
CONTEXT_OPTIONS = frozenset({"--node", "--state-dir", "--url", "--ca-file"})


class LazyGroup(click.Group):
    """A group that imports the module of a command on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return all names."""
        return sorted(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the named command; the error for an unknown one names the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib  # noqa: PLC0415 - takes milliseconds, for typos only

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(
                f"there is no command {args[0]!r}; did you mean {near[0]!r}?", error.ctx
            ) from None


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
        print_error(
            _normalize_message(error.format_message()),
            cause=error.cause if isinstance(error, UsageProblem) else None,
            hints=_usage_hints(error),
        )
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        ignore_unfinished_objects()
        return EXIT_CANCELLED
    except OctasklyError as error:
        return report_error(error)
    except OSError as error:
        # The environment failed, not this program.
        print_os_error(error)
        discard_output()
        return EXIT_FAILED
    return result if isinstance(result, int) else 0


def print_os_error(error: OSError) -> None:
    """Print the cause of an `OSError`: a file, the output, or something else."""
    why = error.strerror or str(error)
    if error.filename is not None:
        path = os.fsdecode(error.filename)
        hint = f"ls -ld {shlex.quote(path)}    is it there, and yours?"
        print_error(f"cannot use {path}: {why}", hints=[hint])
    elif error.errno in WRITE_ERRORS:
        hint = "df .    is there room where the output goes?"
        print_error(f"cannot write: {why}", hints=[hint])
    else:
        hint = "octaskly doctor    checks this machine"
        print_error(f"the operating system refuses: {why}", hints=[hint])


def _normalize_message(message: str) -> str:
    """Return click's message in our style: lower-case first letter, no full stop.

    The message may repeat an input of any length between the flag and the valid values.
    The middle of a long message is therefore cut.
    """
    line = " ".join(message.split()).removesuffix(".")
    if len(line) > SENTENCE_CHARS + END_CHARS:
        line = f"{line[:SENTENCE_CHARS]}…{line[-END_CHARS:]}"
    return line[:1].lower() + line[1:]


def _usage_hints(error: click.ClickException) -> list[str]:
    if not isinstance(error, click.UsageError):
        return []
    if isinstance(error, UsageProblem):
        return error.hint.splitlines()
    if error.ctx is None:
        return ["octaskly COMMAND --help"]
    if isinstance(error, click.NoSuchOption) and error.option_name in CONTEXT_OPTIONS:
        first = f"octaskly {error.option_name} VALUE {error.ctx.info_name}"
        return [f"{first} ...    place it before the command"]
    hints = [f"{error.ctx.command_path} --help"]
    if isinstance(error, click.NoSuchOption) and _takes_command(error.ctx.command):
        option = error.option_name[:OPTION_CHARS]
        first = f"{error.ctx.command_path} -- CMD {option} ..."
        hints.insert(0, f"{first}    if it is an option of the command")
    return hints


def _takes_command(command: click.Command) -> bool:
    return command.params[-1].name == "words"
