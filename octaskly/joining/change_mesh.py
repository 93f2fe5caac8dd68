"""State folder of a node: changing the mesh, and deleting the state on leaving.

A marker file records the decision to leave before the mesh is informed. If the node
crashes before it has deleted everything, the next start continues the deletion.
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
    """Move the state of another mesh aside, if there is any; return its new folder.

    Raises:
        StoreUnusable: An agent uses this state folder.
        ConfigError: A file or folder cannot be moved.
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
            f"the state of another mesh cannot be moved aside: {error}",
            hint=f"make {paths.state} a folder that this user may write",
        ) from error
    finally:
        lock.release()
    return left


def replace_mesh_secret(
    paths: Paths, secret: MeshSecret, old: MeshSecret | None
) -> Path | None:
    """Replace the mesh secret; return the folder of the old one, if there was one.

    Raises:
        ConfigError: It cannot be written.
    """
    folder = None
    try:
        if old is not None:
            folder = _unused_folder(paths.state / f"left-{old.mesh_id}", "mesh.key")
            folder.mkdir(mode=0o700, exist_ok=True)
            replace_private(folder / "mesh.key", old.to_text().encode())
        paths.secret.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A symbolic link is kept; its target is replaced.
        replace_private(paths.secret.resolve(), secret.to_text().encode())
    except OSError as error:
        raise ConfigError(
            f"cannot write the mesh secret {paths.secret}: {error.strerror}",
            hint="the owner of that file must replace it with the secret of the new "
            "mesh",
        ) from error
    return folder


def _read_mesh_id(mark: Path) -> str | None:
    try:
        text = read_private(mark).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    return text if _MESH_ID.fullmatch(text) else None


def _unused_folder(folder: Path, name: str) -> Path:
    """Return `folder`, with a number added if it already has a file of this name."""
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
MESH_ID_FILE: Final = "mesh.id"  #: id of the mesh that a state folder belongs to
MESH_FILES: Final = ("log.db-wal", "log.db-shm", "log.db", COPY_FILE, KEY_FILE)


def require_deletable_secret(paths: Paths) -> None:
    """Check that this user can delete the secret, before anything is deleted.

    Raises:
        ConfigError: The folder of the secret is not writable.
    """
    secret = paths.secret
    if os.path.lexists(secret) and not os.access(secret.parent, os.W_OK):
        raise ConfigError(
            f"this node cannot delete the mesh secret {secret}: "
            f"its folder is not writable for user {os.geteuid()}",
            hint="let its owner delete it first, then run octaskly leave again",
        )


def mark_leaving(paths: Paths) -> None:
    """Record the decision to leave, so that a restart continues with it.

    Raises:
        ConfigError: As `require_deletable_secret`, or the state folder is not writable.
    """
    require_deletable_secret(paths)
    try:
        replace_private(paths.state / LEAVING_MARKER_FILE, b"")
    except OSError as error:
        raise _delete_error(paths, error) from error


def is_leaving(paths: Paths) -> bool:
    """Return True if this node has decided to leave but has not deleted all state."""
    return os.path.lexists(paths.state / LEAVING_MARKER_FILE)


def delete_mesh_state(paths: Paths, use: SecretUse) -> bool:
    """Delete a node's state of its mesh; return True if the secret file is kept.

    The secret file is kept if another agent on this machine uses it.

    Args:
        paths: The paths of the node.
        use: Its use of the secret file, which this call ends.

    Raises:
        StoreUnusable: An agent uses the state folder; nothing is deleted.
        ConfigError: A file cannot be deleted.
    """
    folders = (paths.outputs, paths.transcripts, paths.scratch, paths.files)
    # The lock protects the log of an agent that a service has already restarted.
    lock = DatabaseLock(paths.database)
    try:
        for name in MESH_FILES:
            (paths.state / name).unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        is_shared = is_secret_shared(paths, use)
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


def is_secret_shared(paths: Paths, use: SecretUse) -> bool:
    """Return True if another agent on this machine uses the secret file of a node.

    A state folder of the same mesh beside its own also counts, because its agent may
    only be stopped.
    """
    return use.is_shared() or _has_sibling_of_mesh(paths.state)


def _has_sibling_of_mesh(state: Path) -> bool:
    """Return True if a state folder beside this one belongs to the same mesh."""
    marks: dict[Path, bytes] = {}
    for path in state.parent.glob(f"*/{MESH_ID_FILE}"):
        # A file that is not private to this user belongs to no agent of this user.
        with suppress(OSError, ConfigError):
            marks[path.parent] = read_private(path)
    own = marks.pop(state, None)
    return own in marks.values()


def _delete_error(paths: Paths, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot delete the state of the mesh: {error.filename}: {error.strerror}",
        hint=f"delete it by hand, and everything else in {paths.state}",
    )
