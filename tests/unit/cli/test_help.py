"""The lists of commands in the help."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from octaskly.cli.options import SectionedCommand, UsageProblem
from octaskly.cli.root import octaskly


@pytest.mark.parametrize("name", ["agent", "run", "submit", "map", "array"])
def test_each_option_is_in_one_section_and_the_most_used_come_early(name: str) -> None:
    """A new option of `agent` or of tasks needs a place; others are the command's."""
    command = octaskly.get_command(click.Context(octaskly), name)
    assert isinstance(command, SectionedCommand)
    said = CliRunner().invoke(octaskly, [name, "--help"], terminal_width=80).output
    shown = re.findall(
        r"^  (?:-\w, )?(--[a-z-]+)", said[said.index("ptions:") :], re.MULTILINE
    )
    listed = [flag for flags in command.sections.values() for flag in flags]

    assert sorted(shown) == sorted(option.opts[-1] for option in options_of(command))
    own = shown[: shown.index(listed[0])]
    assert set(own) == OWN_FLAGS[name]
    assert [*own, *(flag for flag in listed if flag in shown)] == shown


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        (["kick", "pi 4"], ["octaskly revoke 'pi 4'"]),
        (["kick", "--now"], ["octaskly revoke NODE"]),
        (["inspect", "7"], ["octaskly show 7", "octaskly explain 7"]),
        (["rm", "7"], ["octaskly cancel --force 7", "octaskly revoke NODE"]),
    ],
)
def test_a_hint_for_a_foreign_command_names_its_object(
    words: list[str], hints: list[str]
) -> None:
    """What may be a task or a node is not offered to be revoked."""
    with pytest.raises(UsageProblem) as refused:
        octaskly.resolve_command(click.Context(octaskly), words)

    for hint in hints:
        assert f"{hint}    " in refused.value.hint


OWN_FLAGS = {
    "agent": set(),
    "run": set(),
    "submit": {"--file"},
    "array": {"--max-fails"},
    "map": {"--max-fails", "--keep-order", "--null", "--dry-run", "--retry-failed"},
}


def options_of(command: click.Command) -> list[click.Option]:
    """Return the options of a command with that for its help."""
    params = command.get_params(click.Context(command))
    return [each for each in params if isinstance(each, click.Option)]


@pytest.mark.parametrize(
    ("words", "columns"),
    [([], 50), (["secret"], 80), (["service"], 80), (["token"], 80)],
)
def test_what_a_command_does_is_not_cut(words: list[str], columns: int) -> None:
    """The list of all commands is wrapped; the others fit on 80 columns."""
    shown = (
        CliRunner().invoke(octaskly, [*words, "--help"], terminal_width=columns).output
    )

    cut = [line for line in shown.splitlines()[1:] if line.endswith("...")]
    assert "Options:" in shown
    assert cut == []
