"""What is public has types and is told of, and what the pages show works."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import assert_type

import pytest

import octaskly
from tests.agents import Agent
from tests.docs import python_page

ROOT = Path(octaskly.__file__).parent.parent
BLOCK = re.compile(r"(?ms)(<!-- not run:[^>]*-->\n\n)?^```python\n(.*?)^```$")


PAGES = {
    "README.md": ["99 9801\n"],
    "docs/how-to/use-from-python.md": [
        *("99 9801\n", "1\n2\n3\n", "b 0\n"),
        "failed: exit code 3 3\n",
    ],
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_works(
    page: str, agents: list[Agent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block runs behind those before it, as a reader would try it."""
    monkeypatch.setenv("OCTASKLY_STATE_DIR", str(agents[1].state))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed = io.StringIO()
    blocks = BLOCK.findall((ROOT / page).read_text())
    for code in [code for not_run, code in blocks if not not_run]:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)  # noqa: S102
    mesh = names["mesh"]
    assert isinstance(mesh, octaskly.Client)
    mesh.close()

    assert [text for text in PAGES[page] if text not in printed.getvalue()] == []


def test_every_public_name_is_told_of() -> None:
    """The reference is made of the code, so a name that says nothing fails here."""
    text = python_page.page()
    told = set(re.findall(r"`(\w+)`", text))

    assert set(octaskly.__all__) - told == {"__version__"}
    methods = {name for name in vars(octaskly.Client) if name[0] != "_"}
    assert methods <= set(re.findall(r"^#### `(\w+)`", text, re.MULTILINE))


def test_the_package_says_that_it_has_types() -> None:
    """Without the marker, type checkers of users see none of them."""
    assert (Path(octaskly.__file__).parent / "py.typed").exists()


def types_checked(mesh: octaskly.Client, awaited: octaskly.AsyncClient) -> None:
    """What `make check` holds us to; an ignored line that is no error is one."""
    assert_type(mesh.submit("true", timeout=5, after=["a"]), octaskly.Task)
    assert_type(mesh.run("true").stdout, str | None)
    assert_type(mesh.map("true", [1, "b", Path()]), Generator[octaskly.Task])
    assert_type(mesh.logs("a", stream="both"), Generator[octaskly.Log])
    assert_type(mesh.nodes(), list[octaskly.NodeInfo])
    assert_type(mesh.stats().tasks.queued, int)
    assert_type(awaited.events(), AsyncGenerator[octaskly.Event])
    mesh.submit("true", retries="3")  # type: ignore[arg-type]
    mesh.submit("true", tries=3)  # type: ignore[call-arg]
    mesh.submit("true", limits={"memory": 1})  # type: ignore[typeddict-unknown-key]
    mesh.logs("a", stream="out")  # type: ignore[arg-type]
    mesh.task("a").exit_code = 3  # type: ignore[misc]
