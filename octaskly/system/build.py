"""Identity of a build: two of the same version differ in it."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[1]
SOURCES: Final = (".py", ".js", ".css", ".html")
DIGITS: Final = 8


@functools.cache
def build_id() -> str:
    """Return the first hexadecimal digits of a hash of this program's source files.

    It is empty if this user may not read one of them. An agent calls it as it starts,
    because an upgrade replaces the files under it. The first call takes about 20 ms.
    """
    try:
        return hash_sources(PACKAGE)
    except OSError:
        return ""


def hash_sources(folder: Path) -> str:
    """Return the first digits of a hash of all source files below a folder."""
    digest = hashlib.sha256()
    for path in _sources(str(folder)):
        data = Path(path).read_bytes()
        name = os.path.relpath(path, folder)
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()[:DIGITS]


def _sources(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                if entry.name != "__pycache__":  # Often its owner's alone.
                    yield from _sources(entry.path)
            elif entry.name.endswith(SOURCES):
                yield entry.path
