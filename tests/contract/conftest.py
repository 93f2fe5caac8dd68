"""Fixtures of several contracts."""

from __future__ import annotations

import pytest

from tests.support.dispatcher_role import DispatcherRole


@pytest.fixture
def dispatcher_role() -> DispatcherRole:
    """A dispatcher's role."""
    return DispatcherRole()
