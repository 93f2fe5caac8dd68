"""No command shows text of others as anything but text, whatever a node answers.

The list of commands is that of the program, and each answer has hostile text wherever
its type has a text. The output of tasks is exempt: it is passed on byte for byte.
"""

from __future__ import annotations

import ast
import contextlib
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import octaskly
from tests.cli.hostile_api import serving_hostile_text
from tests.cli.typed import typed
from tests.docs.commands_page import commands, flags, named

WAIT_S = 60
UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
    "|exe\r"  # Commands may draw a line again, and others may not.
    "|^forged",
    re.MULTILINE,
)

#: The arguments of each command that shows what a node says.
ARGUMENTS: dict[str, list[list[str]]] = {
    "approve": [["--words", "otter-lemon-anvil", "pi4"]],
    "array": [["1-3", "--", "true"]],
    "audit": [[], ["--since", "1d"]],
    "burst": [["--max", "1", "--until", "2s", "--", "true"]],
    "cancel": [["1", "last"]],
    "config": [[]],
    "doctor": [["--interface", "lo"]],
    "drain": [["pi4"], ["--wait", "pi4"]],
    "events": [[]],
    "explain": [["1"], ["last"]],
    "fetch": [["1"], ["--json", "last"]],
    "forget": [["--all-ended", "--yes"]],
    "invite": [[]],
    "join": [["--at", "127.0.0.1:1", "12-12345678"]],
    "leave": [["--yes"]],
    "logs": [["1"], ["--follow", "1"]],
    "ls": [[], ["--newest"]],
    "map": [["echo {}", ":::", "a"], ["--dry-run", "echo {}", ":::", "a"]],
    "nodes": [[]],
    "open": [["--print"], ["--print", "--lan"]],
    "pause": [["pi4"]],
    "reprioritize": [["1", "5"]],
    "requests": [[]],
    "resume": [["pi4"]],
    "retry": [["1"], ["--failed"], ["--failed", "--yes"]],
    "revoke": [["--yes", "pi4"]],
    "rotate": [["--status"], ["--yes"]],
    "run": [["--", "true"]],
    "show": [["1"], ["last"]],
    "stats": [[]],
    "submit": [["--", "true"]],
    "token create": [["--role", "client"]],
    "token list": [[]],
    "token revoke": [["ci"]],
    "top": [["--once"]],
    "wait": [["1"], ["--any", "1", "2"]],
}

#: Commands that show nothing of a node.
WITHOUT_A_NODE = {
    "agent": "its log is cleaned by `octaskly.system.log`",
    "ca": "a certificate of this machine",
    "completion": "a script of our own; its answers are tested below",
    "config check": "a file of this user",
    "config socket": "a path of this machine",
    "db reset": "the database of this machine",
    "demo": "agents of its own",
    "secret new": "random characters",
    "secret webhook-key": "a key of this machine",
    "service install": "the unit of this machine",
    "service logs": "journalctl, which escapes what it prints",
    "service status": "the unit of this machine",
    "service uninstall": "the unit of this machine",
}


def test_every_command_is_tried_or_shows_nothing_of_others() -> None:
    """A new command has to be listed."""
    names = {words for words, _ in commands()}

    assert names == ARGUMENTS.keys() | WITHOUT_A_NODE.keys()
    assert not ARGUMENTS.keys() & WITHOUT_A_NODE.keys()


def on_terminal(environ: dict[str, str], *arguments: str) -> str:
    """Return what a command shows on a terminal, on stdout and on stderr."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        typed("--node", "here", *arguments),
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the last process has closed it.
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    process.wait(WAIT_S)
    return shown.decode().replace("\r\n", "\n")


ANSWERS = {"task": {}, "array": {"is_array": True}, "refusal": {"is_refusing": True}}


@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize(
    ("words", "command"),
    [case for case in commands() if case[0] in ARGUMENTS],
    ids=named,
)
def test_no_command_passes_hostile_text_to_the_terminal(
    words: str,
    command: click.Command,
    answers: str,
    environ: dict[str, str],
    tmp_path: Path,
) -> None:
    """Escape sequences, bells, C1, bidi overrides, and lines that look like others."""
    formats = [[], ["--json"]] if "--json" in flags(command) else [[]]
    socket = tmp_path / "run" / "octaskly" / "here.sock"
    with serving_hostile_text(socket, **ANSWERS[answers]):
        for arguments in ARGUMENTS[words]:
            for form in formats:
                shown = on_terminal(environ, *words.split(), *form, *arguments)

                assert "Traceback" not in shown, shown
                found = UNSEEN.search(shown)
                assert found is None, (found, form, arguments, shown)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_no_hostile_text(
    shell: str, environ: dict[str, str], tmp_path: Path
) -> None:
    """A shell shows the names, and next to them commands of others."""
    asked = {
        "_OCTASKLY_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "octaskly show ",
        "COMP_CWORD": "2" if shell != "fish" else "",
    }
    with serving_hostile_text(tmp_path / "run" / "octaskly" / "here.sock"):
        done = subprocess.run(
            typed(), env=environ | asked, capture_output=True, check=False, timeout=60
        )

    shown = done.stdout.decode() + done.stderr.decode()
    assert "last" in shown
    assert not UNSEEN.search(shown)


# --- The one writer ------------------------------------------------------------------

CLI = Path(octaskly.__file__).parent / "cli"
WRITER = CLI / "output" / "terminal.py"
CLICK_OUTPUT = frozenset(
    {
        "clear",
        "confirm",
        "echo",
        "echo_via_pager",
        "edit",
        "get_binary_stream",
        "get_text_stream",
        "launch",
        "pause",
        "progressbar",
        "prompt",
        "secho",
        "style",
    }
)
FORBIDDEN = {
    "click": CLICK_OUTPUT,
    "sys": frozenset({"stdout", "stderr", "__stdout__", "__stderr__"}),
    "os": frozenset({"write", "writev", "dup2", "fdopen", "sendfile"}),
}
FORBIDDEN_NAMES = frozenset({"print", "Console", "Live", "Progress", "Status"})


def prints_of(source: str) -> Iterator[str]:
    """Yield the places of a module that write to the terminal by themselves."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (
                name in FORBIDDEN.get(module, ())
            ):
                yield f"line {node.lineno}: {module}.{name}"
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_NAMES:
                yield f"line {node.lineno}: {name}()"
            case ast.ImportFrom(module=module, names=names):
                taken = {alias.name for alias in names}
                for name in taken & FORBIDDEN.get(module or "", frozenset()):
                    yield f"line {node.lineno}: from {module} import {name}"
                if module == "rich" and "print" in taken:
                    yield f"line {node.lineno}: from rich import print"
            case ast.Import(names=names):
                for alias in names:
                    if alias.name in FORBIDDEN and alias.asname:
                        yield f"line {node.lineno}: {alias.name} as {alias.asname}"
            case _:
                pass


def test_only_the_writer_writes_to_the_terminal() -> None:
    """Whatever else prints could forget to clean what others chose."""
    found = {
        str(path.relative_to(CLI)): list(prints_of(path.read_text()))
        for path in CLI.rglob("*.py")
        if path != WRITER
    }

    assert {path: places for path, places in found.items() if places} == {}
    assert list(prints_of(WRITER.read_text()))


@pytest.mark.parametrize(
    "line",
    [
        "print(x)",
        "click.echo(x)",
        "click.confirm(x)",
        "sys.stdout.write(x)",
        "out = sys.stderr",
        "os.write(1, x)",
        "from click import echo",
        "from sys import stdout as out",
        "import click as c",
        "Console().print(x)",
        "from rich import print",
    ],
)
def test_rule_finds_each_way_to_print(line: str) -> None:
    """Else it would hold whatever the modules do."""
    assert list(prints_of(line))
