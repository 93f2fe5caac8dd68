"""Keeps what belongs to different meshes apart in one state folder.

The log, its outputs and the secret of a mesh that a node has left lie in a folder of
their own, `left-<mesh id>`; nothing of them gets into another mesh.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from octaskly.config.places import Paths
from octaskly.errors import ConfigError
from octaskly.store.database import Lock
from octaskly.trust import MeshSecret
from octaskly.trust.keyring import COPY
from octaskly.trust.private import read_private, replace_private

_MESH: Final = re.compile(r"[0-9a-f]{16}")
_WAL: Final = ("-wal", "-shm", "")  #: SQLite pairs its files by name


def set_apart(paths: Paths, mesh_id: str) -> Path | None:
    """Make sure that the state is that of this mesh; return where another's went.

    Raises:
        StoreUnusable: an agent uses this state folder.
        ConfigError: something cannot be moved.
    """
    mark = paths.state / "mesh.id"
    lock = Lock(paths.database)
    try:
        left = None
        known = _known(mark)
        if known is not None and known != mesh_id:
            left = _free(paths.state / f"left-{known}", "log.db")
            _move(paths, left)
        if known != mesh_id:
            replace_private(mark, f"{mesh_id}\n".encode())
    except OSError as error:
        raise ConfigError(
            f"what belongs to another mesh cannot be moved aside: {error}",
            hint=f"look at {paths.state}",
        ) from error
    finally:
        lock.release()
    return left


def take_over(paths: Paths, secret: MeshSecret, old: MeshSecret | None) -> Path | None:
    """Put a secret in the place of the one that this node has.

    Returns the folder in which the old one lies now, if there was one.

    Raises:
        ConfigError: it cannot be written.
    """
    folder = None
    try:
        if old is not None:
            folder = _free(paths.state / f"left-{old.mesh_id}", "mesh.key")
            folder.mkdir(mode=0o700, exist_ok=True)
            replace_private(folder / "mesh.key", old.lines().encode())
        paths.secret.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A link stays one: what it leads to is replaced.
        replace_private(paths.secret.resolve(), secret.lines().encode())
    except OSError as error:
        raise ConfigError(
            f"cannot write the mesh secret {paths.secret}: {error.strerror}",
            hint="who put that file there has to put the one of the new mesh there",
        ) from error
    return folder


def _known(mark: Path) -> str | None:
    try:
        text = read_private(mark).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    return text if _MESH.fullmatch(text) else None


def _free(folder: Path, name: str) -> Path:
    """Return the folder, or one beside it, that does not hold a file of this name."""
    number, free = 1, folder
    while (free / name).exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _move(paths: Paths, left: Path) -> None:
    left.mkdir(mode=0o700, exist_ok=True)
    database = paths.database
    moved = [database.with_name(database.name + part) for part in _WAL]
    moved += [paths.outputs, paths.transcripts, paths.scratch, paths.files]
    moved.append(paths.state / COPY)
    for path in moved:
        if path.exists():
            path.rename(left / path.name)
