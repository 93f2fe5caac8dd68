"""Secret file of an agent: locked updates, a copy in the state folder, and its users.

All agents of one user share the file, so it is changed under a lock and replaced
atomically. If it is read-only, like a systemd credential, changes go to a copy in the
state folder. The agent merges both and uses the keyring that is later in a rotation.
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
    """Marks this process as a user of a secret file, until `unregister` or its exit."""

    def __init__(self, path: Path) -> None:
        # Agents may use different symbolic links to the same file.
        self.path = path.resolve().with_name(f"{path.resolve().name}.users")
        self._fd: int | None = None

    def register(self) -> None:
        """Take a shared lock, unless another user owns the file to lock."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = self._fd or os.open(self.path, flags, 0o600)
            if os.fstat(self._fd).st_uid != os.geteuid():
                # Its owner could hold the lock and block this process for ever.
                self.unregister()
                return
            fcntl.flock(self._fd, fcntl.LOCK_SH)

    def is_shared(self) -> bool:
        """Return True if another process uses the file.

        If not, no other process can register until `unregister`.
        """
        self.register()
        if self._fd is None:
            return False
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def unregister(self) -> None:
        """Release the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


COPY_FILE: Final = "mesh.keyring"  #: in the state folder


class SecretFile:
    """The secret of one agent on disk.

    Args:
        path: The configured secret file.
        state: The state folder of this agent.
        environ: The environment, for systemd's `CREDENTIALS_DIRECTORY`.
    """

    def __init__(
        self, path: Path, state: Path, environ: Mapping[str, str] = os.environ
    ) -> None:
        self.path = path
        self.copy_path = state / COPY_FILE
        self._environ = environ

    def load(self) -> MeshSecret:
        """Return the secret in the file, merged with the copy if there is one.

        A copy of another mesh is ignored: somebody has replaced the file.

        Raises:
            ConfigError: The file is missing, or the file or the copy is unusable.
        """
        secret = load_secret(self.path, self._environ)
        if not os.path.lexists(self.copy_path):
            return secret
        kept = load_secret(self.copy_path, self._environ)
        return secret.merged_with(kept) if kept.mesh_id == secret.mesh_id else secret

    def update_secret(self, change: Callable[[MeshSecret], MeshSecret]) -> MeshSecret:
        """Apply `change` to the secret, write the result if it differs, and return it.

        `change` gets the secret on disk, because another agent may have changed it.

        Raises:
            ConfigError: As `load`.
            TrustError: `change` raises it, or neither file can be written.
        """
        with lock_folder(self.copy_path.parent):
            # The folder of the shared file is locked second, always in this order.
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
                # A symbolic link is kept; its target is replaced.
                replace_private(self.path.resolve(), data)
                self.copy_path.unlink(missing_ok=True)
                return
        except OSError:
            pass  # The file is read-only: write the copy instead.
        try:
            replace_private(self.copy_path, data)
        except OSError as error:
            raise TrustError(
                f"cannot write the mesh secret: {error.strerror}",
                hint=f"make {self.copy_path.parent} a folder that this user may write",
            ) from error
