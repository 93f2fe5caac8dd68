"""Command lines that start a module of this package in its own process."""

from __future__ import annotations

import sys
from pathlib import Path

import octaskly
from octaskly.runner import launch_protocol


def python_argv(file: str) -> list[str]:
    """Return a command line, without arguments, that runs a module by its file."""
    return [sys.executable, "-I", "-S", file]


def import_folders() -> list[str]:
    """Return the folders that this program needs on its `sys.path`."""
    package = Path(octaskly.__file__).resolve().parent.parent
    return [str(package), launch_protocol.msgpack_folder()]
