"""Documents and commands agree: existing ones are documented, shown ones exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from octaskly.cli import completion
from octaskly.cli.root import octaskly
from tests.docs.commands_page import commands, flags, named

ROOT = Path(__file__).parent.parent.parent
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*.md")])
SHELL_BLOCK = re.compile(
    r"^```(?:sh|console|bash)?\n(.*?)^```", re.DOTALL | re.MULTILINE
)
CALL = re.compile(
    r"(?:\S*\$ )?(?:[A-Z_]+=\S+ |sudo )?(?:\.venv/bin/)?octaskly (?P<rest>.+)"
)
ENDS_A_COMMAND = frozenset({"|", "||", "&&", "&", ";", ">", ">>", "<", "#"})


def test_flags_of_all_commands_are_in_the_reference() -> None:
    """The options of each command are generated from the code; these stand in prose."""
    page = (REFERENCE / "cli.md").read_text()
    missing = {flag for flag in flags(octaskly) if f"`{flag}" not in page}

    assert missing == set()


def test_every_command_has_a_section_of_the_reference() -> None:
    """With its own heading, to which other pages can link."""
    page = (REFERENCE / "cli.md").read_text()
    headings = re.findall(r"^## octaskly ([a-z -]*[a-z])", page, flags=re.MULTILINE)

    assert sorted(headings) == sorted(dict(commands()))


def test_list_of_commands_truncates_no_summary() -> None:
    """Eighty columns hold the first sentence of each."""
    with click.Context(octaskly, terminal_width=80) as context:
        listed = octaskly.get_help(context).partition("Everyday:\n")[2]

    assert [line for line in listed.splitlines() if line.endswith("...")] == []


@pytest.mark.parametrize(("words", "command"), list(commands()), ids=named)
def test_help_of_every_command_ends_with_an_example(
    words: str, command: click.Command
) -> None:
    """Users look for it first, and copy it.

    A new command declares it as `epilog="Example: octaskly ..."`.
    """
    example = (command.epilog or "").removeprefix("Example: ")

    assert example.startswith("octaskly ")
    assert f" {words.split(maxsplit=1)[0]}" in example
    assert problem_of(example.removeprefix("octaskly ")) is None
    with click.Context(command, info_name=f"octaskly {words}") as context:
        assert f"Example: {example}\n" in f"{command.get_help(context)}\n"  # One line.


OFFERED = {
    "ID": completion.complete_tasks,
    "ID...": completion.complete_tasks,
    "[ID...]": completion.complete_tasks,
    "NODE": completion.complete_nodes,
}
"""Completions of a parameter, by its metavar in the help."""
OF_THE_USER = frozenset(
    [
        "[CODE]",
        "DIR",
        "EVENT",
        "FIRST-LAST[:STEP]",
        "GPU",
        "HOST[:PORT]",
        "KEY",
        "KEY=VALUE",
        "NAME",
        "NAME=N",
        "NAME=VALUE",
        "ORIGIN",
        "PATH",
        "TEXT",
        "TIME",
        "TYPES",
        "URL",
        "WHAT",
        "WORDS",
        "WHO",
    ]
)
"""Metavars of values that only the user knows; they are not completed."""


@pytest.mark.parametrize(("words", "command"), list(commands()), ids=named)
def test_shell_completes_the_parameters_of_a_command(
    words: str, command: click.Command
) -> None:
    """Ids, nodes and labels come from the mesh; free text is not completed.

    A new parameter takes a type of click or of `cli.render`, has a metavar in `OFFERED`
    with `shell_complete=completing....`, or one that is added to `OF_THE_USER`.
    """
    wrong = {
        parameter.name: parameter.metavar
        for parameter in command.params
        if parameter.type is click.STRING and not getattr(parameter, "is_flag", False)
        if parameter._custom_shell_complete is None
        if parameter.metavar not in OF_THE_USER
    }
    other = {
        parameter.name: parameter.metavar
        for parameter in command.params
        if (wanted := OFFERED.get(parameter.metavar or "")) is not None
        if parameter._custom_shell_complete not in (wanted, completion.complete_arrays)
    }

    assert (wrong, other) == ({}, {})


def shown_calls(page: Path) -> Iterator[str]:
    """Yield the calls of `octaskly` in the shell blocks of a page."""
    for block in SHELL_BLOCK.findall(page.read_text()):
        text = block.replace("\\\n", " ")
        for line in text.splitlines():
            match = CALL.match(line.strip())
            if match:
                yield match["rest"]
            yield from re.findall(r"\$\(octaskly ([^)]+)\)", line)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_on_a_page_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command that a reader pastes may cause a usage error."""
    for variable in re.findall(r"--env (\w+) ", page.read_text()):
        monkeypatch.setenv(variable, "as the reader has it")
    wrong = [
        f"octaskly {call}: {problem}"
        for call in shown_calls(page)
        if (problem := problem_of(call))
    ]

    assert wrong == []


def problem_of(call: str) -> str | None:
    """Return the usage error for the words of a call, if any."""
    words = own_words(call)
    try:
        # Like `main`, but nothing runs: only groups and parsers are used.
        context = octaskly.make_context("octaskly", words)
        command: click.Command = octaskly
        while isinstance(command, click.Group):
            rest = [*context._protected_args, *context.args]
            if not rest:
                return None  # A group that can run without a subcommand.
            _, found, rest = command.resolve_command(context, rest)
            assert found is not None
            command = found
            context = command.make_context(command.name, rest, parent=context)
    except click.exceptions.Exit:
        return None
    except click.ClickException as error:
        return error.format_message()
    return None


def own_words(call: str) -> list[str]:
    """Return the words up to the shell's own syntax: pipes, comments."""
    lexer = shlex.shlex(call, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if word in ENDS_A_COMMAND or set(word) <= set("|&;<>"):
            break
        words.append(word)
    return words
