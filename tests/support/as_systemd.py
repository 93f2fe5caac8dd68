"""Starts a program as systemd does for a socket unit: it finds listening sockets.

Usage: as_systemd.py FD,FD... PROGRAM ARGUMENT... The sockets belong to the caller, so
they outlive the program. Source: sd_listen_fds(3).
"""

from __future__ import annotations

import fcntl
import os
import sys

FIRST = 3
ASIDE = 100  #: above all places


def main() -> None:
    """Put the sockets in their places, and become the program."""
    given, *command = sys.argv[1:]
    # Out of the way first, since they may lie in each other's places.
    kept = [fcntl.fcntl(int(n), fcntl.F_DUPFD, ASIDE) for n in given.split(",")]
    for place, number in enumerate(kept, FIRST):
        os.dup2(number, place)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(kept))}
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
