"""The lists of commands in the help."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from octaskly.cli.root import octaskly


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
