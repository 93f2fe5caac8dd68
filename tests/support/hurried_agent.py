"""The shipped agent with short waits for files, and a wall clock that can be moved.

The clock is that of `tests.mesh.moved_clock`.
"""

from __future__ import annotations

import sys

from octaskly.agent.files import tree_keeper
from octaskly.runner.blobs import lenders
from tests.mesh.moved_clock import main_with_moved_clock

LENDER_WAIT_S = 1.0
KEEP_PERIOD_S = 0.2

if __name__ == "__main__":
    vars(lenders)["LENDER_WAIT_S"] = LENDER_WAIT_S
    vars(tree_keeper)["PERIOD_S"] = KEEP_PERIOD_S
    sys.exit(main_with_moved_clock())
