"""Documents and code agree: features are documented, documented facts are true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from octaskly.api import ApiServer
from octaskly.cli.output import render
from octaskly.config.settings import CLIENT_SETTINGS, SETTINGS
from octaskly.core.protocol.messages import Message
from tests.docs import reference, routes_page
from tests.support.api_node import FixedClock, no_peer, verify
from tests.support.fake_gateway import FakeGateway

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
API = ROOT / "octaskly" / "api"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
FENCE = re.compile(r"^```.*?^```\n", re.DOTALL | re.MULTILINE)
OTHER_WORDS = re.compile(
    r"\b(?:master|coordinator|slave|jobs?|daemons?)\b", re.IGNORECASE
)
ERROR_TEXT = re.compile(r"[A-Z][a-z]+( [A-Za-z]+)*")
VARIABLE = re.compile(r"OCTASKLY_[A-Z_]*[A-Z]")


def page(name: str) -> str:
    return (DOCS / name).read_text()


async def test_every_route_of_the_application_is_documented() -> None:
    """A route that is not in the reference does not exist for users."""
    server = ApiServer(
        FakeGateway(),
        verify_token=verify,
        clock=FixedClock(),
        node_name="ash",
        identify_peer=no_peer,
    )
    routes = {
        f"{route.method} {re.sub(r':[^/]*}', '}', route.resource.canonical)}"
        for route in server.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    headings = re.findall(
        r"^### ((?:GET|POST|DELETE) /.*)$",
        page("reference/rest-api.md"),
        flags=re.MULTILINE,
    )

    assert len(routes) >= 10
    assert sorted(headings) == sorted(routes)


def test_section_of_a_route_names_all_its_inputs() -> None:
    """Parameters, headers, fields and the required role, as the route declares."""
    text = page("reference/rest-api.md")
    missing = []
    for method, path, operation in routes_page.operations():
        section = text.partition(f"\n### {method} {path}\n")[2]
        section = re.sub(r"\A(### .*\n)+", "", section)  # Of routes that share it.
        section = re.split(r"^##+ ", section, flags=re.MULTILINE)[0]
        wanted = {p["name"] for p in operation["parameters"] if p["in"] != "path"}
        wanted |= routes_page.body_fields(operation)
        wanted -= {"X-Request-ID"}  # It is documented once, for all.
        named = set(re.findall(r"`([\w-]+)`", section))
        rights = re.findall(r"^Rights: (.*)\.$", section, flags=re.MULTILINE)
        if "x-internal" not in operation:
            missing += [f"{method} {path}: {name}" for name in wanted - named]
            said = operation["description"].rpartition("Rights: ")[2].rstrip(".")
            if not is_of(said, " ".join(rights)):
                missing.append(f"{method} {path}: {said}, not {rights}")

    assert missing == []


def is_of(said: str, rights: str) -> bool:
    """Return True if the page states the rights of the OpenAPI document."""
    roles = ("admin", "client", "viewer", "every role", "socket")
    return {r for r in roles if r in said} == {r for r in roles if r in rights}


def error_texts() -> set[str]:
    """Return each text that the API puts into `error`, read from its source."""
    texts = {
        constant.value
        for statement in ast.parse((API / "problems.py").read_text()).body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        for constant in ast.walk(statement)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    }
    for path in API.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "Problem":
                texts |= {
                    argument.value
                    for argument in call.args[1:2]
                    if isinstance(argument, ast.Constant)
                    and isinstance(argument.value, str)
                }
    return {text for text in texts if ERROR_TEXT.fullmatch(text)}


def test_every_error_text_is_documented() -> None:
    """Programs compare these texts, so none may be undocumented or invented."""
    table = page("reference/rest-api.md").partition("## Errors")[2]
    documented = set(re.findall(r"^\| \d{3} \| `([^`]+)` \|", table, re.MULTILINE))

    assert len(documented) >= 20
    assert documented == error_texts()


def test_every_variable_of_the_environment_is_documented() -> None:
    """The page on configuration explains every variable that the code reads or sets."""
    named = {
        name
        for path in (ROOT / "octaskly").rglob("*.py")
        for name in VARIABLE.findall(path.read_text())
        # A constant's own prefix: EXIT_OCTASKLY_FAILED is no variable.
        if f"_{name}" not in path.read_text()
    }
    settings = (*SETTINGS, *CLIENT_SETTINGS)
    named |= {setting.variable for setting in settings if setting.variable}

    assert "OCTASKLY_TOKEN" in named
    assert named == set(VARIABLE.findall(page("reference/configuration.md")))


@pytest.mark.parametrize("name", sorted({page for page, _, _ in reference.parts()}))
def test_generated_parts_match_the_code(name: str) -> None:
    """`make docs` generates it; it is never edited by hand."""
    text = page(f"reference/{name}")

    assert reference.made_anew(name, text) == text, "make docs"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_uses_the_words_of_the_glossary(path: Path) -> None:
    """Words that the glossary avoids appear on no page.

    Foreign things keep their own names: in code, and on the page that compares.
    """
    if path.name in ("glossary.md", "what-octaskly-is-not.md"):
        return
    text = re.sub(r"`[^`]*`", "", FENCE.sub("", path.read_text()))

    assert OTHER_WORDS.findall(text) == []


def test_every_exit_code_is_documented() -> None:
    """Scripts rely on them."""
    codes = {
        str(value)
        for name, value in vars(render).items()
        if name.startswith("EXIT_") and isinstance(value, int)
    }
    documented = set(re.findall(r"\b\d+\b", page("reference/exit-codes.md")))

    assert len(codes) >= 8
    assert codes <= documented


def test_every_message_between_nodes_is_documented() -> None:
    """The wire protocol page names each message, and no other."""
    table = page("reference/wire-protocol.md").partition("## Messages")[2]
    table = table.partition("<!-- Made from")[0]
    rows = re.findall(r"^\| ((?:\w+, )*\w+) \|", table, flags=re.MULTILINE)
    documented = {name for row in rows for name in row.split(", ")}
    messages = {kind.__name__ for kind in Message.__args__}

    assert messages == documented - {"Message"}


def test_architecture_names_every_folder_once() -> None:
    """A newcomer cannot find a package that ARCHITECTURE.md does not name."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.partition("## Packages")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/]+)/`", table)
    package = ROOT / "octaskly"
    folders = [
        str(path.relative_to(package))
        for path in package.rglob("*")
        if path.is_dir() and "__pycache__" not in path.parts
    ]

    assert len(named) > 40
    assert sorted(named) == sorted(folders)


def test_every_module_that_the_architecture_names_exists() -> None:
    """A dead path remains when a module moves."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py)`", text))

    assert len(named) > 15
    assert [path for path in named if not (ROOT / "octaskly" / path).is_file()] == []


@pytest.mark.parametrize(
    ("name", "words_max"),
    [("ARCHITECTURE.md", 1800), ("docs/explanation/performance.md", 1500)],
)
def test_central_pages_are_short(name: str, words_max: int) -> None:
    """They hold stable facts; measurements go to decision records."""
    assert len((ROOT / name).read_text().split()) <= words_max


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_anchors_of_a_page_exist(path: Path) -> None:
    """A link to a heading names one that its page has."""
    text = FENCE.sub("", path.read_text())
    wrong = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        other = path.parent / target if target else path
        headings = re.findall(
            r"^#+ (.+)$", FENCE.sub("", other.read_text()), flags=re.MULTILINE
        )
        if anchor not in {slug(heading) for heading in headings}:
            wrong.append(f"{target}#{anchor}")

    assert wrong == []


def slug(heading: str) -> str:
    """Return the anchor of a heading on the rendered page."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize(
    "folder",
    ["tutorials", "how-to", "reference", "explanation", "decisions", "examples"],
)
def test_every_page_is_in_the_list_of_its_folder(folder: str) -> None:
    """Nobody reads a page that no list names."""
    listed = set(re.findall(r"\]\(([^)#/]+)\)", page(f"{folder}/README.md")))
    pages = {
        path.name
        for path in (DOCS / folder).iterdir()
        if path.is_file() and path.name != "README.md"
    }

    assert len(pages) > 1
    assert listed == pages


def test_performance_page_is_short() -> None:
    """One table and one chart; the history of a figure belongs to a decision record."""
    text = page("explanation/performance.md")

    assert len(text.split()) <= 1500
    assert len(re.findall(r"^\| --- \|", text, re.MULTILINE)) == 1
    assert len(re.findall(r"^!\[", text, re.MULTILINE)) == 1
