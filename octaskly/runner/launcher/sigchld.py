"""Reaping children on SIGCHLD, which stays blocked and is read from a signalfd.

Python's signal handler would interrupt and restart each wait, and write to a wake-up
descriptor that must be polled and read. A blocked signal needs one call to wait for it.
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
    """Waits for SIGCHLD and reaps children.

    Create it in a process with one thread, before its first child. Children must not
    inherit the signal mask.

    Raises:
        OSError: no descriptor could be created.
    """

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        libc = ctypes.CDLL(None, use_errno=True)
        mask = bytes(ctypes.c_ulong(1 << (signal.SIGCHLD - 1)))
        flags = os.O_NONBLOCK | os.O_CLOEXEC  # as SFD_NONBLOCK and SFD_CLOEXEC
        self.fd: int = libc.signalfd(-1, mask.ljust(SIGSET_BYTES, b"\0"), flags)
        """Readable when SIGCHLD is pending."""
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "cannot create a signalfd")
        self._wait4 = libc.wait4
        number, address = ctypes.c_int, ctypes.c_void_p
        self._wait4.argtypes = [number, address, number, address]
        self._status = ctypes.c_int()
        self._usage = ctypes.create_string_buffer(USAGE_BYTES)
        self._view = memoryview(self._usage).cast("B")[: limits.USAGE_BYTES]
        self._pointers = ctypes.addressof(self._status), ctypes.addressof(self._usage)

    def read_signal(self) -> None:
        """Clear the pending signal; call this before reaping."""
        with suppress(BlockingIOError):
            os.read(self.fd, INFO_BYTES)

    def reap_child(self) -> int:
        """Reap an ended child; sets `status` and `usage_bytes`.

        `os.wait4` is slower: it builds sixteen numbers, and it raises an exception if
        there is no child, which is the case after most tasks.

        Returns:
            The pid; 0 if children exist but none has ended; -1 if there is no child.
        """
        status_at, usage_at = self._pointers
        return self._wait4(-1, status_at, os.WNOHANG, usage_at)  # type: ignore[no-any-return]

    @property
    def status(self) -> int:
        """Wait status of the last reaped child, as from `os.wait4`."""
        return self._status.value

    @property
    def usage_bytes(self) -> bytes:
        """Resource usage of the last reaped child, for `limits.UsageReader`."""
        return bytes(self._view)

    def wait_for_signal(self, most_s: float) -> None:
        """Wait up to `most_s` seconds for SIGCHLD, ignoring descriptors."""
        signal.sigtimedwait(SIGNALS, most_s)
