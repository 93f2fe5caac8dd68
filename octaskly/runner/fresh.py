"""Making the fresh folder of an attempt."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Container, Iterable
from pathlib import Path, PurePosixPath

from octaskly.runner.removal import remove_tree
from octaskly.runner.workdir import components


def make_scratch(base: Path, workdir: Path, inputs: Iterable[str], cwd: str) -> Path:
    """Make a folder below `base` with links to inputs, and with the folder `cwd`.

    Raises:
        OSError: something cannot be made; then nothing is left.
    """
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="", dir=base))
    try:
        given = set(inputs)
        own = posixpath.normpath(cwd)
        if components(own) and own not in given and not _is_below(own, given):
            (folder / own).mkdir(parents=True)
        for path in given:
            if _is_below(path, given):
                continue  # It is there by way of a folder.
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(workdir / path)
    except OSError:
        remove_tree(folder, lambda: True)
        raise
    return folder


def _is_below(path: str, others: Container[str]) -> bool:
    """Whether a path lies in one of the others, which is a folder then."""
    return any(str(parent) in others for parent in PurePosixPath(path).parents)
