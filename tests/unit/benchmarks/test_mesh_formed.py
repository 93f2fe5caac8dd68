"""When the hosts of a lab count as one mesh."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.mesh import forming

HOSTS: Any = [type("Host", (), {"name": name})() for name in ("ash", "bay")]


def is_formed(monkeypatch: pytest.MonkeyPatch, **states: str) -> bool:
    """Return whether ash and bay are, which both list nodes in these states."""
    listed = [
        {
            "name": name,
            "state": state,
            "role": "worker" if name != "ash" else "dispatcher",
        }
        for name, state in states.items()
    ]
    monkeypatch.setattr(forming, "nodes", lambda _: listed)
    return forming.is_formed(cast("list[Any]", HOSTS))


@pytest.mark.parametrize(
    ("states", "is_one"),
    [
        ({"ash": "ready", "bay": "ready"}, True),
        ({"ash": "ready", "bay": "draining"}, True),
        ({"ash": "ready", "bay": "lost"}, False),
        ({"ash": "ready"}, False),
        ({"ash": "ready", "bay": "ready", "elm": "lost"}, True),
        ({"ash": "ready", "bay": "ready", "elm": "draining"}, True),
        ({"ash": "ready", "bay": "ready", "elm": "ready"}, False),
    ],
)
def test_a_node_that_drains_is_of_the_mesh(
    monkeypatch: pytest.MonkeyPatch, states: dict[str, str], is_one: bool
) -> None:
    """And one that is no host any more need not be gone from the lists."""
    assert is_formed(monkeypatch, **states) == is_one
