"""The file in which a node keeps its secret, once the secret may change.

All agents of one user share one file, so that it is changed under a lock and replaced
in one step. Where it cannot be written, as a credential of systemd, the state folder
has a copy; of the two, the one that is further in a rotation counts.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from octaskly.errors import TrustError
from octaskly.trust.mesh_secret import MeshSecret, load_secret
from octaskly.trust.private_files import lock_folder, replace_private


class SecretUse:
    """That this process uses a secret file; ends with the process at the latest."""

    def __init__(self, path: Path) -> None:
        # A link stays one, and agents may come to the same file by different ones.
        self.path = path.resolve().with_name(f"{path.resolve().name}.users")
        self._fd: int | None = None

    def register(self) -> None:
        """Be one of those who use it, unless its folder is for others to write."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = self._fd or os.open(self.path, flags, 0o600)
            if os.fstat(self._fd).st_uid != os.geteuid():
                self.unregister()  # Who made it could keep this process waiting for ever.
                return
            fcntl.flock(self._fd, fcntl.LOCK_SH)

    def is_shared(self) -> bool:
        """Whether another process uses it; until `unregister`, no other one begins then."""
        self.register()
        if self._fd is None:
            return False
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def unregister(self) -> None:
        """Use it no more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


COPY_FILE: Final = "mesh.keyring"  #: in the state folder


class SecretFile:
    """The secret of one agent on disk.

    Args:
        path: The secret file, as it is configured.
        state: The state folder of this agent.
        environ: The environment, which tells credentials of systemd.
    """

    def __init__(
        self, path: Path, state: Path, environ: Mapping[str, str] = os.environ
    ) -> None:
        self.path = path
        self.copy_path = state / COPY_FILE
        self._environ = environ

    def load(self) -> MeshSecret:
        """Return the secret: what the file says, and the copy if there is one.

        A copy that is of another mesh is ignored: the file was changed by hand.

        Raises:
            ConfigError: the file is missing, or one of the two is unusable.
        """
        secret = load_secret(self.path, self._environ)
        if not os.path.lexists(self.copy_path):
            return secret
        kept = load_secret(self.copy_path, self._environ)
        return secret.merged_with(kept) if kept.mesh_id == secret.mesh_id else secret

    def update_secret(self, change: Callable[[MeshSecret], MeshSecret]) -> MeshSecret:
        """Write what `update_secret` makes of the secret, and return that.

        What is on disk counts: another agent may have changed it already. Nothing is
        written where nothing changes.

        Raises:
            ConfigError: as `load`.
            TrustError: `update_secret` refuses, or neither file can be written.
        """
        with lock_folder(self.copy_path.parent):
            # The file may be shared, so it is locked, too; always in this order.
            folder = self.path.resolve().parent
            if folder == self.copy_path.parent.resolve():
                return self._update_locked(change)
            with lock_folder(folder):
                return self._update_locked(change)

    def _update_locked(self, change: Callable[[MeshSecret], MeshSecret]) -> MeshSecret:
        before = self.load()
        after = change(before)
        if after != before:
            self._write_copy(after.to_text().encode())
        return after

    def _write_copy(self, data: bytes) -> None:
        credentials = self._environ.get("CREDENTIALS_DIRECTORY")
        is_given = bool(credentials) and self.path.parent == Path(credentials or "")
        try:
            if not is_given:
                # A link stays one: what it leads to is replaced.
                replace_private(self.path.resolve(), data)
                self.copy_path.unlink(missing_ok=True)
                return
        except OSError:
            pass  # The copy is for this.
        try:
            replace_private(self.copy_path, data)
        except OSError as error:
            raise TrustError(
                f"cannot write the mesh secret: {error.strerror}",
                hint=f"make {self.copy_path.parent} a folder that this user may write",
            ) from error
