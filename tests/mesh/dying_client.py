"""The shipped command line, which is killed when it has sent so many bytes of files.

Usage: python -m tests.mesh.dying_client BYTES WORD...
"""

import os
import signal
import sys

from octaskly.cli import main
from octaskly.cli.sent_files import SentFiles

count_sent = SentFiles._count_sent


def die_after(sent_bytes_max: int) -> None:
    """Have this process killed once that many bytes are sent."""

    def count(files: SentFiles, number: int, size_bytes: int) -> None:
        count_sent(files, number, size_bytes)
        if files._bytes_sent >= sent_bytes_max:
            os.kill(os.getpid(), signal.SIGKILL)

    vars(sys.modules[SentFiles.__module__])["SentFiles"]._count_sent = count


if __name__ == "__main__":
    die_after(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
