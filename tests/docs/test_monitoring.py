"""Monitoring files in `contrib` are valid for the tools of operators."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

CONTRIB = Path(__file__).parent.parent.parent / "contrib"


@pytest.mark.parametrize("what", ["check", "test"])
def test_promtool_accepts_the_alerts_and_their_tests(what: str) -> None:
    """Each alert fires when it should, once, and is silent otherwise."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool of Debian's prometheus")
    file = {"check": "alerts.yml", "test": "alerts.test.yml"}[what]

    done = subprocess.run(
        [promtool, what, "rules", file],
        cwd=CONTRIB / "prometheus",
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    """Grafana would move overlapping panels, each time differently."""
    board = json.loads((CONTRIB / "grafana/octaskly.json").read_text())
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]

    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) > 20
