"""What several contracts need."""

from __future__ import annotations

import pytest

from tests.support.dispatcher_role import DispatcherRole


@pytest.fixture
def dispatcher_role() -> DispatcherRole:
    """A node that is dispatcher."""
    return DispatcherRole()
