"""Properties that search for as long as they are given, not for so many examples.

15 seconds of a core in `make test`, three minutes each in `make soak`; `FUZZ_S` says
otherwise.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
FUZZ_S = float(os.environ.get("FUZZ_S") or (180 if IS_SOAK else 15))
EXAMPLES = 500  #: between two looks at the clock


def fuzz(
    *strategies: st.SearchStrategy[Any],
) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Make a test of a property; each failure is made small as by `given`."""
    search = settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )

    def wrap(test: Callable[..., None]) -> Callable[[], None]:
        @pytest.mark.slow
        @pytest.mark.timeout(300 + 30 * FUZZ_S)
        def run() -> None:
            end_s = time.process_time() + FUZZ_S
            while time.process_time() < end_s:
                search(given(*strategies)(test))()

        run.__name__ = run.__qualname__ = test.__name__
        run.__doc__ = test.__doc__
        run.__module__ = test.__module__
        return run

    return wrap
