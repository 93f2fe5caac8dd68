"""The pages become a site, and nothing in it leads nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "build" / "site"


def test_the_site_is_made_without_a_warning() -> None:
    """As `make docs` makes it: a broken link, anchor or list is a warning.

    What a page was read to is kept from run to run, since reading takes the time.
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
