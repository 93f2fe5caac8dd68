"""The shipped agent, or visitor, with a wall clock that can be moved while it runs.

The file `wall_ms` beside the state folder holds the offset in milliseconds.
"""

import sys
from pathlib import Path

from octaskly.agent import lifecycle
from octaskly.agent.visiting import visitor
from octaskly.cli import main
from octaskly.core.model.ids import Moment
from octaskly.system.clock import SystemClock

OFFSET = "wall_ms"


def moved(offset: Path) -> type[SystemClock]:
    """Return a clock with the offset in a file, which is read each time."""

    class MovedClock(SystemClock):
        def now(self) -> Moment:
            now = super().now()
            wall_ms = now.wall_ms + int(offset.read_text() or 0)
            return now._replace(wall_ms=wall_ms)

    return MovedClock


def move(folder: Path, offset_ms: int) -> None:
    """Move the clock of the agent with this folder in one step."""
    fresh = folder / f"{OFFSET}.new"
    fresh.write_text(str(offset_ms))
    fresh.rename(folder / OFFSET)


def main_with_moved_clock() -> int | str:
    """Do what the command line says, with such a clock; return the exit code."""
    state = Path(sys.argv[sys.argv.index("--state-dir") + 1])
    if not (state.parent / OFFSET).exists():
        move(state.parent, 0)
    for module in (lifecycle, visitor):
        vars(module)["SystemClock"] = moved(state.parent / OFFSET)
    return main()


if __name__ == "__main__":
    sys.exit(main_with_moved_clock())
