"""Power cuts: writes that a program never flushed are removed from its files.

`power.c` records each such write while the program runs. A real cut may keep some of
them, so a random number says how many; they are removed from the last one on.
"""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

HEAD = struct.Struct("=4q")


class Write(NamedTuple):
    """One write that was not flushed."""

    at: int
    size: int  #: of the file before
    old: bytes  #: the bytes before


def build(folder: Path) -> Path:
    """Compile the preloaded library; return it."""
    library = folder / "power.so"
    source = Path(__file__).with_name("power.c")
    options = ("-O2", "-shared", "-fPIC")
    subprocess.run(["gcc", *options, "-o", library, source, "-ldl"], check=True)
    return library


def noting(library: Path, files: Path, notes: Path) -> dict[str, str]:
    """Return the variables under which a program's writes are recorded.

    Args:
        library: From `build`.
        files: The folder of its databases.
        notes: Where to put the notes; it is made.
    """
    notes.mkdir(exist_ok=True)
    return {
        "LD_PRELOAD": str(library),
        "POWER_FILES": str(files),
        "POWER_NOTES": str(notes),
    }


def cut(files: Path, notes: Path, draw: random.Random) -> int:
    """Remove the unflushed writes of a dead process; return their number."""
    gone = 0
    for noted in sorted(notes.iterdir()):
        writes = _read(noted.read_bytes())
        kept = draw.randint(0, len(writes))
        with (files / noted.name).open("r+b") as file:
            for write in reversed(writes[kept:]):
                file.seek(write.at)
                file.write(write.old)
                file.truncate(write.size)
        gone += len(writes) - kept
        noted.unlink()
    return gone


def _read(noted: bytes) -> list[Write]:
    """Return whole notes; a write with an incomplete last note never started."""
    writes, place = [], 0
    while place + HEAD.size <= len(noted):
        at, _, size, old = HEAD.unpack_from(noted, place)
        end = place + HEAD.size + old
        if end > len(noted):
            break
        writes.append(Write(at, size, noted[place + HEAD.size : end]))
        place = end
    return writes
