"""Property tests with a time budget instead of a number of examples.

They take ten seconds of a core in `make test`, and three minutes each in `make soak`.
`FUZZ_S` overrides both.
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
FUZZ_S = float(os.environ.get("FUZZ_S") or (180 if IS_SOAK else 10))
EXAMPLES = 200  #: between two checks of the clock


def search(examples: int) -> settings:
    """Return settings of an important property; `make soak` searches longer."""
    return settings(max_examples=examples * (10 if IS_SOAK else 1), deadline=None)


def fuzz(
    *strategies: st.SearchStrategy[Any],
    share: float = 1.0,
) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Make a property test that gets a share of the usual time.

    Hypothesis minimises each failure, as with `given`.
    """
    batch = settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )

    def wrap(test: Callable[..., None]) -> Callable[[], None]:
        @pytest.mark.slow
        @pytest.mark.timeout(300 + 30 * FUZZ_S)
        def run() -> None:
            end_s = time.process_time() + share * FUZZ_S
            while time.process_time() < end_s:
                batch(given(*strategies)(test))()

        run.__name__ = run.__qualname__ = test.__name__
        run.__doc__ = test.__doc__
        run.__module__ = test.__module__
        return run

    return wrap
