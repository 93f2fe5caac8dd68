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

SIGNALS: Final = (signal.SIGCHLD,)
SIGSET_BYTES: Final = 128  #: of a `sigset_t`, in glibc and musl
INFO_BYTES: Final = 128  #: of a `signalfd_siginfo`, and of a `siginfo_t`
LOOK: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT  #: for `waitid`, to collect nothing


class Exits:
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
        self._waitid = libc.waitid
        self._waitid.argtypes = [
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_int,
        ]
        self._info = ctypes.create_string_buffer(INFO_BYTES)
        self._info_at = ctypes.addressof(self._info)

    def take(self) -> None:
        """Take what `fd` was readable for; only then are children collected."""
        with suppress(BlockingIOError):
            os.read(self.fd, INFO_BYTES)

    def has_children(self) -> bool:
        """Whether there is any child, ended or not.

        `os.wait4` says by an exception that there is none, which takes longer than
        the call itself, and is the case after most tasks.
        """
        return bool(self._waitid(os.P_ALL, 0, self._info_at, LOOK) == 0)

    def wait(self, most_s: float) -> None:
        """Wait for that, and for nothing else, but not for longer."""
        signal.sigtimedwait(SIGNALS, most_s)
