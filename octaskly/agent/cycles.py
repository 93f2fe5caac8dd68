"""When Python looks for cycles: in turns of their own, never in the midst of others.

Hardly any cycles are made, and looking for them takes a millisecond for some thousand
objects, with Python's lock held. Left to itself Python looks when many were made: in
the one step that takes a large request, or on the thread of a read. So it is asked to
look, now and again, and does so by itself only where that is too seldom.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG_MAX: Final = 20_000  #: objects made since the last look, less those that ended
UNASKED: Final = 10 * YOUNG_MAX  #: then Python looks by itself


class Cycles:
    """Looks for cycles when it is called."""

    def __init__(self) -> None:
        self._is_due = False  #: objects grew old that nobody looked at since

    def begin(self) -> None:
        """Look once more, and from now on only at what is made from here on.

        What lives as long as the process need not be looked at again; what a node was
        before it moved to another mesh need not be kept.
        """
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        gc.set_threshold(UNASKED)

    def look(self) -> None:
        """Look at what is young where there is much of it, else at all, if need be."""
        is_much = gc.get_count()[0] >= YOUNG_MAX
        if is_much or self._is_due:
            gc.collect(1 if is_much else 2)
        self._is_due = is_much
