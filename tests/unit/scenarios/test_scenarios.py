"""Each text beside this file is a scenario with its expected result."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.scenarios.story import Story

LINE = "----"
STORIES = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_a_scenario_gives_its_recorded_notes(path: Path) -> None:
    """People read these notes in the log, so their order matters."""
    before, _, after = path.read_text().partition(f"{LINE}\n")
    commands = [
        line.strip()
        for line in before.splitlines()
        if line.strip() and not line.startswith("#")
    ]

    notes = Story(commands).lines()

    if os.environ.get("BLESS"):
        path.write_text(before + LINE + "\n" + "\n".join(notes) + "\n")
    assert notes == after.splitlines()
