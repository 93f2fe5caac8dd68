"""How a launcher hears that children have ended: by SIGCHLD, which stays blocked.

A handler would interrupt the wait, which begins again, and have a descriptor written,
polled and read. A blocked signal is taken by the one call that waits for it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from typing import Final

from octaskly.runner.processes import limits

SIGNALS: Final = (signal.SIGCHLD,)
SIGSET_BYTES: Final = 128  #: of a `sigset_t`, in glibc and musl
INFO_BYTES: Final = 128  #: of a `signalfd_siginfo`
USAGE_BYTES: Final = 1024  #: more than any library has in its `struct rusage`


class ChildReaper:
    """Tells whether children may have ended since it was asked last.

    To be made by a process with one thread, before it has children; these must not
    inherit the mask.

    Raises:
        OSError: there is no descriptor to be had.
    """

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        libc = ctypes.CDLL(None, use_errno=True)
        mask = bytes(ctypes.c_ulong(1 << (signal.SIGCHLD - 1)))
        flags = os.O_NONBLOCK | os.O_CLOEXEC  # as SFD_NONBLOCK and SFD_CLOEXEC
        self.fd: int = libc.signalfd(-1, mask.ljust(SIGSET_BYTES, b"\0"), flags)
        """Readable when there is something to tell."""
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "no descriptor for signals")
        self._wait4 = libc.wait4
        number, address = ctypes.c_int, ctypes.c_void_p
        self._wait4.argtypes = [number, address, number, address]
        self._status = ctypes.c_int()
        self._usage = ctypes.create_string_buffer(USAGE_BYTES)
        self._view = memoryview(self._usage).cast("B")[: limits.USAGE_BYTES]
        self._pointers = ctypes.addressof(self._status), ctypes.addressof(self._usage)

    def read_signal(self) -> None:
        """Take what `fd` was readable for; only then are children collected."""
        with suppress(BlockingIOError):
            os.read(self.fd, INFO_BYTES)

    def reap_child(self) -> int:
        """Collect a child that has ended; see `status` and `usage` then.

        `os.wait4` makes sixteen numbers of what it was told, and says by an exception
        that there is no child, which is so after most tasks.

        Returns:
            Its pid, 0 if there are only others, -1 if there is no child.
        """
        status_at, usage_at = self._pointers
        return self._wait4(-1, status_at, os.WNOHANG, usage_at)  # type: ignore[no-any-return]

    @property
    def status(self) -> int:
        """How the last one that was collected ended, as `os.wait4` has it."""
        return self._status.value

    @property
    def usage_bytes(self) -> bytes:
        """What it used, for `usage.Gauge`."""
        return bytes(self._view)

    def wait_for_signal(self, most_s: float) -> None:
        """Wait for that, and for nothing else, but not for longer."""
        signal.sigtimedwait(SIGNALS, most_s)
