"""How Sphinx makes the site of these pages: `make docs`.

The pages are plain Markdown, and read as well where there is no site. The list of each
folder, its `README.md`, is also its table of contents, so no page names its neighbours
twice.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

ITEM = re.compile(r"^(?:- |\| )?\[.*", re.MULTILINE)
POINT_TO_POINT = re.compile(r"\]\(([^)#:\s]+\.md)\)")

project = "Octaskly"
author = copyright = "The Octaskly maintainers"  # noqa: A001 (Sphinx calls it so)
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/**", "systemd/README.md"]
exclude_patterns = [".*", "build", "dist", "node_modules"]
nitpicky = True
myst_heading_anchors = 4
html_theme = "furo"
html_title = "Octaskly"
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Put our own steps between those of Sphinx."""
    app.connect("source-read", _with_contents)
    app.connect("build-finished", _with_index)


def _with_contents(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Let the links of a list be the branches of the tree that the site shows."""
    if Path(docname).name == "README":
        links = POINT_TO_POINT.findall("\n".join(ITEM.findall(source[0])))
        source[0] += _tree(Path(docname).parent, links)


def _tree(folder: Path, links: list[str]) -> str:
    pages = (Path(os.path.normpath(folder / link)) for link in dict.fromkeys(links))
    branches = "\n".join(f"/{page.with_suffix('')}" for page in pages)
    return f"\n\n```{{toctree}}\n:hidden:\n\n{branches}\n```\n"


def _with_index(app: Sphinx, error: Exception | None) -> None:
    """Let the site begin where a browser looks first."""
    if error is None:
        site = Path(app.outdir)
        shutil.copyfile(site / f"{root_doc}.html", site / "index.html")
