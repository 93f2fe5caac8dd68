"""How Sphinx makes the site of these pages: `make docs`.

The pages are plain Markdown, and read as well where there is no site. The list of each
folder, its `README.md`, is also its table of contents, so no page names its neighbours
twice; and the changelog shows what its fragments say, before a release gathers them.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
FRAGMENTS = ROOT / "docs" / "changelog.d"
ITEM = re.compile(r"^(?:- |\| )?\[.*", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:\s]+\.md)\)")
RELATIVE = re.compile(r"\]\((?![a-z]+:|#)")
KIND = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)

project = "Octaskly"
author = copyright = "The Octaskly maintainers"  # noqa: A001 (Sphinx calls it so)
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/**", "systemd/README.md"]
exclude_patterns = [".*", "build", "dist", "node_modules", "docs/changelog.d/*.*.md"]
nitpicky = True
myst_heading_anchors = 4
html_theme = "furo"
html_title = "Octaskly"
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Put our own steps between those of Sphinx."""
    app.connect("source-read", _with_contents)
    app.connect("source-read", _with_fragments)
    app.connect("env-get-outdated", lambda *_: ["CHANGELOG"])  # Fragments come and go.
    app.connect("build-finished", _with_index)


def _with_contents(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Let the links of a list be the branches of the tree that the site shows."""
    if Path(docname).name == "README":
        links = LINK.findall("\n".join(ITEM.findall(source[0])))
        source[0] += _tree(Path(docname).parent, links)


def _with_fragments(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Show the changes since the last release where one looks for changes."""
    if docname != "CHANGELOG":
        return
    for kind in KIND.findall((FRAGMENTS / "README.md").read_text()):
        fragments = sorted(FRAGMENTS.glob(f"*.{kind}.md"))
        items = ("- " + f.read_text().strip().replace("\n", "\n  ") for f in fragments)
        text = RELATIVE.sub("](docs/changelog.d/", "\n".join(items))
        source[0] += f"\n### {kind.capitalize()}\n\n{text}\n"
    source[0] += _tree(Path("docs/changelog.d"), ["README.md"])


def _tree(folder: Path, links: list[str]) -> str:
    pages = (Path(os.path.normpath(folder / link)) for link in dict.fromkeys(links))
    branches = "\n".join(f"/{page.with_suffix('')}" for page in pages)
    return f"\n\n```{{toctree}}\n:hidden:\n\n{branches}\n```\n"


def _with_index(app: Sphinx, error: Exception | None) -> None:
    """Let the site begin where a browser looks first."""
    if error is None:
        site = Path(app.outdir)
        shutil.copyfile(site / f"{root_doc}.html", site / "index.html")
