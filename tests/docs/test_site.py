"""The pages build into a site without dead links."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "build" / "site"


def test_site_builds_without_a_warning() -> None:
    """As `make docs` builds it: a broken link, anchor or list is a warning.

    The parsed pages are cached between runs, because parsing takes most of the time.
    """
    built = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"),
            *("-c", "docs", "-d", "build/doctrees", ".", "build/site"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert built.returncode == 0, built.stderr
    decision = "docs/decisions/0001-pure-core"
    for page in ("index", "CHANGELOG", decision, "docs/reference/cli"):
        assert (SITE / f"{page}.html").exists()
