"""A node that leaves its mesh for good forgets all that it has of it.

That it shall lies in the state folder before anybody is told so. Whoever dies half-way
goes on with it at the next start, so nothing is left of it either way.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from octaskly.config.places import Paths
from octaskly.errors import ConfigError
from octaskly.store.database import Lock
from octaskly.trust.identity import KEY_FILE
from octaskly.trust.keyring import COPY
from octaskly.trust.private import read_private, replace_private
from octaskly.trust.sharing import SecretUse

MARK: Final = "leaving"
OF_MESH: Final = "mesh.id"  #: which mesh a state folder is of, until the end
FILES: Final = ("log.db-wal", "log.db-shm", "log.db", COPY, KEY_FILE)


def check(paths: Paths) -> None:
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


def begin(paths: Paths) -> None:
    """Let this node forget its mesh, whatever happens from now on.

    Raises:
        ConfigError: as `check`, or the state folder cannot be written.
    """
    check(paths)
    try:
        replace_private(paths.state / MARK, b"")
    except OSError as error:
        raise _unable(paths, error) from error


def is_begun(paths: Paths) -> bool:
    """Whether this node shall forget its mesh, and has not done so yet."""
    return os.path.lexists(paths.state / MARK)


def finish(paths: Paths, use: SecretUse) -> bool:
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
    lock = Lock(paths.database)
    try:
        for name in FILES:
            (paths.state / name).unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        is_shared = use.is_shared() or _has_sibling(paths.state)
        if not is_shared:
            paths.secret.unlink(missing_ok=True)
        (paths.state / OF_MESH).unlink(missing_ok=True)
        (paths.state / MARK).unlink(missing_ok=True)
    except OSError as error:
        raise _unable(paths, error) from error
    finally:
        use.end()
        lock.release()
    return is_shared and os.path.lexists(paths.secret)


def _has_sibling(state: Path) -> bool:
    """Whether a folder beside this one is of the same mesh."""
    marks: dict[Path, bytes] = {}
    for path in state.parent.glob(f"*/{OF_MESH}"):
        # What this user cannot read, or others can, is no agent's of this user.
        with suppress(OSError, ConfigError):
            marks[path.parent] = read_private(path)
    own = marks.pop(state, None)
    return own in marks.values()


def _unable(paths: Paths, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot forget the mesh: {error.filename}: {error.strerror}",
        hint=f"delete it by hand, and what else is left in {paths.state}",
    )
