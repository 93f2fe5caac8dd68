"""Which agents of a machine use a secret file, so that the last one may delete it.

Each holds a shared lock on an empty file beside it for as long as it lives: the secret
itself is replaced when it changes, and with it what a lock on it would hold.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path


class SecretUse:
    """That this process uses a secret file; ends with the process at the latest."""

    def __init__(self, path: Path) -> None:
        # A link stays one, and agents may come to the same file by different ones.
        self.path = path.resolve().with_name(f"{path.resolve().name}.users")
        self._fd: int | None = None

    def begin(self) -> None:
        """Be one of those who use it, unless its folder is for others to write."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = self._fd or os.open(self.path, flags, 0o600)
            if os.fstat(self._fd).st_uid != os.geteuid():
                self.end()  # Who made it could keep this process waiting for ever.
                return
            fcntl.flock(self._fd, fcntl.LOCK_SH)

    def is_shared(self) -> bool:
        """Whether another process uses it; until `end`, no other one begins then."""
        self.begin()
        if self._fd is None:
            return False
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def end(self) -> None:
        """Use it no more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
