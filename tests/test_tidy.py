"""The rules of the house that no linter keeps."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "octaskly"
MODULE_LINES = 400
FUNCTION_LINES = 50

MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(
    path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "cpython"
)
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    # A changelog fragment is a sentence, not a page.
    and (path.parent.name != "changelog.d" or path.name == "README.md")
)

#: What is not a name here, and what is said instead.
WORDS = {
    "master": "dispatcher",
    "leader": "dispatcher",
    "coordinator": "dispatcher",
    "slave": "standby",
    "job": "task",
    "jobs": "tasks",
    "daemon": "agent",
    "util": "the noun it is about",
    "utils": "the noun it is about",
    "helper": "the noun it is about",
    "helpers": "the noun it is about",
    "misc": "the noun it is about",
}

#: Names that other libraries gave.
FOREIGN = {"n_jobs", "effective_n_jobs", "default_n_jobs"}

GLOSSARY = [
    "node",
    "peer",
    "agent",
    "dispatcher",
    "standby",
    "level",
    "replica",
    "worker",
    "slot",
    "lane",
    "grant",
    "task",
    "array",
    "attempt",
    "invite",
    "pairing",
    "lease",
    "term",
    "epoch",
    "stream",
    "heartbeat",
    "event / effect",
]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_module_fits_into_a_head(path: Path) -> None:
    """A module has less than 400 lines; beyond that it is two."""
    lines = len(path.read_text().splitlines())

    assert lines < MODULE_LINES


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_function_fits_on_a_screen(path: Path) -> None:
    """A function has less than 50 lines, docstring and signature included."""
    long = [
        f"{node.name}: {lines} lines"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) >= FUNCTION_LINES
    ]

    assert long == []


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_names_are_words_of_the_glossary(path: Path) -> None:
    """One word for one thing: a name has none of the words that are not used."""
    assert "manager" not in path.stem, "name it after what it owns"
    names = {*path.relative_to(PACKAGE).with_suffix("").parts, *names_bound_in(path)}
    wrong = sorted(
        f"{name}: say {WORDS[word]}"
        for name in names
        for word in words_of(name)
        if word in WORDS and name not in FOREIGN
    )

    assert wrong == []


def names_bound_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr
            case _:
                pass


def words_of(name: str) -> list[str]:
    """Return `lease`, `table` for `lease_table`, `LeaseTable` and `_LEASE_TABLE`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [word.lower() for word in spaced.split("_") if word]


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_page_has_one_title(path: Path) -> None:
    """One H1 a page, and it comes first."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if line.strip()]

    assert [line for line in lines if line.startswith("# ")] == lines[:1]


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_links_of_a_page_lead_somewhere(path: Path) -> None:
    """A link to a file of this repository names one that exists."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]

    assert [link for link in local if not (path.parent / link).exists()] == []


def test_every_module_is_used() -> None:
    """A module that nobody imports is dead, or misses its place."""
    texts = {path: path.read_text() for path in MODULES}
    entrances = {PACKAGE / name for name in ("__init__.py", "__main__.py", "joblib.py")}
    unused = []
    for path in MODULES:
        if path in entrances:
            continue
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        dotted = dotted.removesuffix(".__init__")
        package, _, name = dotted.rpartition(".")
        use = re.compile(
            rf"\b{re.escape(dotted)}\b"
            rf"|from {re.escape(package)} import[^\n]*\b{name}\b"
            rf"|from {re.escape(package)} import \([^)]*\b{name}\b"
        )
        others = (text for other, text in texts.items() if other != path)
        # The word is sought first: expressions take a hundred times as long.
        if not any(name in text and use.search(text) for text in others):
            unused.append(shown(path))

    assert unused == []


def test_glossary_has_the_words_of_the_house() -> None:
    """The page is the source of the vocabulary; its first column is this list."""
    page = (ROOT / "docs/reference/glossary.md").read_text()
    rows = re.findall(r"^\| ([^|]+?) \|", page, flags=re.MULTILINE)

    assert [row for row in rows if row not in ("Word", "---")] == GLOSSARY


def test_imports_keep_their_directions() -> None:
    """The contracts in pyproject.toml hold."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", TESTS, ids=shown)
def test_every_test_says_what_it_expects(path: Path) -> None:
    """A test is a sentence, with a docstring that gives the reason."""
    silent = [
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]

    assert silent == []
