"""The Python interpreters with which tasks of this node run calls.

A call needs the minor version of its caller, and cloudpickle. The agent's cloudpickle
serves all interpreters, as it is plain Python: see `executor.call_runner`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import octaskly

MINORS: Final = range(9, 30)  #: versions of Python 3 that are searched for


def find_interpreters(search_path: str | None) -> dict[str, str]:
    """Return the path of an interpreter by minor version, such as `3.13`.

    That of the agent comes first. There are none if the agent has no cloudpickle.

    Args:
        search_path: The PATH of tasks.
    """
    if _cloudpickle_folder() is None:
        return {}
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    for folder in filter(None, (search_path or "").split(os.pathsep)):
        for minor in MINORS:
            path = Path(folder) / f"python3.{minor}"
            if f"3.{minor}" not in found and _is_program(path):
                found[f"3.{minor}"] = str(path)
    return found


def call_variables(search_path: str | None) -> Mapping[str, str]:
    """Return the variables with which a task runs a call of `octaskly.Executor`."""
    named = find_interpreters(search_path)
    folder = _cloudpickle_folder()
    return {
        "OCTASKLY_PYTHON": sys.executable,
        **{f"OCTASKLY_PYTHON_{v.replace('.', '_')}": p for v, p in named.items()},
        "OCTASKLY_CALLEE": str(
            Path(octaskly.__file__).resolve().parent / "executor" / "call_runner.py"
        ),
        **({} if folder is None else {"OCTASKLY_CLOUDPICKLE": folder}),
    }


def _cloudpickle_folder() -> str | None:
    """Return the folder of the agent's cloudpickle, None without any."""
    spec = importlib.util.find_spec("cloudpickle")
    origin = None if spec is None else spec.origin
    return None if origin is None else str(Path(origin).parent)


def _is_program(path: Path) -> bool:
    """Return True if a file can be executed and is no script.

    A script may be a shim, as those of pyenv, which start nothing by default.
    """
    if not os.access(path, os.X_OK):
        return False
    try:
        with path.open("rb") as file:
            return file.read(2) != b"#!"
    except OSError:
        return False
