"""A node that leaves its mesh for good forgets all that it has of it.

That it shall lies in the state folder before anybody is told so. Whoever dies half-way
goes on with it at the next start, so nothing is left of it either way.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from octaskly.config.paths import Paths
from octaskly.errors import ConfigError
from octaskly.store.tables.database import DatabaseLock
from octaskly.trust import MeshSecret
from octaskly.trust.node_key import KEY_FILE
from octaskly.trust.private_files import read_private, replace_private
from octaskly.trust.secret_file import COPY_FILE, SecretUse

_MESH_ID: Final = re.compile(r"[0-9a-f]{16}")
_DATABASE_SUFFIXES: Final = ("-wal", "-shm", "")  #: SQLite pairs its files by name


def isolate_mesh_state(paths: Paths, mesh_id: str) -> Path | None:
    """Make sure that the state is that of this mesh; return where another's went.

    Raises:
        StoreUnusable: an agent uses this state folder.
        ConfigError: something cannot be moved.
    """
    mark = paths.state / "mesh.id"
    lock = DatabaseLock(paths.database)
    try:
        left = None
        known = _read_mesh_id(mark)
        if known is not None and known != mesh_id:
            left = _unused_folder(paths.state / f"left-{known}", "log.db")
            _move_state_aside(paths, left)
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


def replace_mesh_secret(
    paths: Paths, secret: MeshSecret, old: MeshSecret | None
) -> Path | None:
    """Put a secret in the place of the one that this node has.

    Returns the folder in which the old one lies now, if there was one.

    Raises:
        ConfigError: it cannot be written.
    """
    folder = None
    try:
        if old is not None:
            folder = _unused_folder(paths.state / f"left-{old.mesh_id}", "mesh.key")
            folder.mkdir(mode=0o700, exist_ok=True)
            replace_private(folder / "mesh.key", old.to_text().encode())
        paths.secret.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A link stays one: what it leads to is replaced.
        replace_private(paths.secret.resolve(), secret.to_text().encode())
    except OSError as error:
        raise ConfigError(
            f"cannot write the mesh secret {paths.secret}: {error.strerror}",
            hint="who put that file there has to put the one of the new mesh there",
        ) from error
    return folder


def _read_mesh_id(mark: Path) -> str | None:
    try:
        text = read_private(mark).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    return text if _MESH_ID.fullmatch(text) else None


def _unused_folder(folder: Path, name: str) -> Path:
    """Return the folder, or one beside it, that does not hold a file of this name."""
    number, free = 1, folder
    while (free / name).exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _move_state_aside(paths: Paths, left: Path) -> None:
    left.mkdir(mode=0o700, exist_ok=True)
    database = paths.database
    moved = [database.with_name(database.name + part) for part in _DATABASE_SUFFIXES]
    moved += [paths.outputs, paths.transcripts, paths.scratch, paths.files]
    moved.append(paths.state / COPY_FILE)
    for path in moved:
        if path.exists():
            path.rename(left / path.name)


LEAVING_MARKER_FILE: Final = "leaving"
MESH_ID_FILE: Final = "mesh.id"  #: which mesh a state folder is of, until the end
MESH_FILES: Final = ("log.db-wal", "log.db-shm", "log.db", COPY_FILE, KEY_FILE)


def require_deletable_secret(paths: Paths) -> None:
    """Make sure that this user can delete the secret, before anything else is.

    Raises:
        ConfigError: it cannot.
    """
    secret = paths.secret
    if os.path.lexists(secret) and not os.access(secret.parent, os.W_OK):
        raise ConfigError(
            f"this node cannot delete the mesh secret {secret}: "
            f"its folder is not writable for user {os.geteuid()}",
            hint="who put it there deletes it first; then once more: octaskly leave",
        )


def mark_leaving(paths: Paths) -> None:
    """Let this node forget its mesh, whatever happens from now on.

    Raises:
        ConfigError: as `require_deletable_secret`, or the state folder cannot be written.
    """
    require_deletable_secret(paths)
    try:
        replace_private(paths.state / LEAVING_MARKER_FILE, b"")
    except OSError as error:
        raise _delete_error(paths, error) from error


def is_leaving(paths: Paths) -> bool:
    """Whether this node shall forget its mesh, and has not done so yet."""
    return os.path.lexists(paths.state / LEAVING_MARKER_FILE)


def delete_mesh_state(paths: Paths, use: SecretUse) -> bool:
    """Delete what a node has of its mesh; return whether its secret file stays.

    It does where another agent of this machine runs with it, or has its state folder
    beside this one and is of the same mesh: that one may only be stopped.

    Args:
        paths: Of the node.
        use: Its use of the secret file, which ends with this.

    Raises:
        StoreUnusable: an agent uses the state folder; nothing is deleted.
        ConfigError: something cannot be deleted.
    """
    folders = (paths.outputs, paths.transcripts, paths.scratch, paths.files)
    # An agent that a service has started again at once is not to lose its log.
    lock = DatabaseLock(paths.database)
    try:
        for name in MESH_FILES:
            (paths.state / name).unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        is_shared = use.is_shared() or _has_sibling_of_mesh(paths.state)
        if not is_shared:
            paths.secret.unlink(missing_ok=True)
        (paths.state / MESH_ID_FILE).unlink(missing_ok=True)
        (paths.state / LEAVING_MARKER_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise _delete_error(paths, error) from error
    finally:
        use.unregister()
        lock.release()
    return is_shared and os.path.lexists(paths.secret)


def _has_sibling_of_mesh(state: Path) -> bool:
    """Whether a folder beside this one is of the same mesh."""
    marks: dict[Path, bytes] = {}
    for path in state.parent.glob(f"*/{MESH_ID_FILE}"):
        # What this user cannot read, or others can, is no agent's of this user.
        with suppress(OSError, ConfigError):
            marks[path.parent] = read_private(path)
    own = marks.pop(state, None)
    return own in marks.values()


def _delete_error(paths: Paths, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot forget the mesh: {error.filename}: {error.strerror}",
        hint=f"delete it by hand, and what else is left in {paths.state}",
    )
