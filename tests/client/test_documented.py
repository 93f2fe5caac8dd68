"""Every public name has types and documentation."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import assert_type

import octaskly
from tests.docs import python_page


def test_every_public_name_is_documented() -> None:
    """The reference is generated from the code, so an undocumented name fails here."""
    text = python_page.page()
    documented = set(re.findall(r"`(\w+)`", text))

    assert set(octaskly.__all__) - documented == {"__version__"}
    methods = {name for name in vars(octaskly.Client) if name[0] != "_"}
    assert methods <= set(re.findall(r"^#### `(\w+)`", text, re.MULTILINE))


def test_package_declares_its_types() -> None:
    """Without the marker, users' type checkers see no types."""
    assert (Path(octaskly.__file__).parent / "py.typed").exists()


def types_checked(mesh: octaskly.Client, awaited: octaskly.AsyncClient) -> None:
    """Code for `make check`; an unneeded ignore comment is an error."""
    assert_type(mesh.submit("true", timeout=5, after=["a"]), octaskly.Task)
    assert_type(mesh.submit("true", outputs_of=[mesh.task("a")]), octaskly.Task)
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
