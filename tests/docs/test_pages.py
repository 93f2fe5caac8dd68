"""All Markdown pages of the repository: their titles and links, and the glossary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    # A changelog fragment is a sentence, not a page.
    and (path.parent.name != "changelog.d" or path.name == "README.md")
)

GLOSSARY = [
    "node",
    "peer",
    "agent",
    "dispatcher",
    "relay",
    "standby",
    "in sync",
    "replica",
    "visitor",
    "worker",
    "slot",
    "lane",
    "flow",
    "grant",
    "task",
    "blob",
    "tree",
    "manifest",
    "pack",
    "holder",
    "lender",
    "array",
    "range",
    "attempt",
    "admission",
    "backoff",
    "invite",
    "pairing",
    "lease",
    "term",
    "epoch",
    "suspicion timeout",
    "stream",
    "retired stream",
    "anti-entropy",
    "catch-up",
    "compaction floor",
    "heartbeat",
    "event / effect",
]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_page_has_one_title(path: Path) -> None:
    """One H1 a page, and it comes first."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if line.strip()]

    assert [line for line in lines if line.startswith("# ")] == lines[:1]


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_links_of_a_page_have_targets(path: Path) -> None:
    """A link to a file of this repository names one that exists."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]

    assert [link for link in local if not (path.parent / link).exists()] == []


def test_glossary_defines_the_words_of_this_project() -> None:
    """The page is the source of the vocabulary; its first column is this list."""
    page = (ROOT / "docs/reference/glossary.md").read_text()
    rows = re.findall(r"^\| ([^|]+?) \|", page, flags=re.MULTILINE)

    assert [row for row in rows if row not in ("Word", "---")] == GLOSSARY
