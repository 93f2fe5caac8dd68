"""The interpreters that a node offers for calls."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from octaskly.runner.interpreters import call_variables, find_interpreters

OWN = "{}.{}".format(*sys.version_info)


def program(folder: Path, name: str, content: bytes = b"\x7fELF") -> str:
    """Return the path of a file that looks like a program."""
    path = folder / name
    path.write_bytes(content)
    path.chmod(0o755)
    return str(path)


def test_interpreters_on_the_path_are_found(tmp_path: Path) -> None:
    """The agent's own is the one of its version; a script may be a shim of nothing."""
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    program(first, "python3.29", b"#!/bin/sh\n")
    program(first, "python3.28")
    (first / "python3.28").chmod(0o644)
    program(first, f"python{OWN}")
    other = program(second, "python3.29")

    found = find_interpreters(f"{tmp_path / 'none'}:{first}::{second}")

    assert found == {OWN: sys.executable, "3.29": other}
    assert find_interpreters(None) == {OWN: sys.executable}


def test_tasks_get_the_path_of_each_version(tmp_path: Path) -> None:
    """With the script of calls, and the package that it needs."""
    other = program(tmp_path, "python3.29")

    found = call_variables(str(tmp_path))

    assert found["OCTASKLY_PYTHON_3_29"] == other
    assert found["OCTASKLY_PYTHON"] == sys.executable
    assert Path(found["OCTASKLY_CALLEE"]).name == "call_runner.py"
    assert Path(found["OCTASKLY_CLOUDPICKLE"]).name == "cloudpickle"


def test_without_cloudpickle_no_interpreter_runs_calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even if there are some."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    program(tmp_path, "python3.29")

    assert find_interpreters(str(tmp_path)) == {}
    assert set(call_variables(str(tmp_path))) == {"OCTASKLY_PYTHON", "OCTASKLY_CALLEE"}
