"""The suspicion timeout under repeated failovers."""

from __future__ import annotations

import pytest

from octaskly.core.election.failure_detector import (
    EPOCH_CHURN_WINDOW_S,
    TIMEOUT_SCALE_MAX,
    TimeoutScaling,
)
from tests.support.builders import moment


@pytest.mark.parametrize(
    ("epochs", "factor"), [(0, 1), (1, 1), (3, 1), (4, 2), (5, 4), (6, 8), (40, 8)]
)
def test_the_timeout_doubles_with_each_epoch_beyond_the_third(
    epochs: int, factor: float
) -> None:
    """The first failovers stay fast; a storm of them slows down."""
    patience = TimeoutScaling()
    for _ in range(epochs):
        patience.on_epoch_start(moment(1.0))

    assert patience.timeout_scale(moment(2.0)) == factor <= TIMEOUT_SCALE_MAX


def test_the_timeout_is_reset_after_a_calm_period() -> None:
    """An earlier storm has no lasting effect."""
    patience = TimeoutScaling()
    for _ in range(9):
        patience.on_epoch_start(moment(1.0))

    assert patience.timeout_scale(moment(1.0 + EPOCH_CHURN_WINDOW_S)) == 1
