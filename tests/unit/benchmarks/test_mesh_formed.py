"""The rule by which the hosts of a lab form one mesh."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.mesh import forming

HOSTS: Any = [type("Host", (), {"name": name})() for name in ("ash", "bay")]


def is_formed(monkeypatch: pytest.MonkeyPatch, **states: str) -> bool:
    """Return True if ash and bay, which both list nodes in these states, form one."""
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
def test_a_draining_node_counts_as_a_member(
    monkeypatch: pytest.MonkeyPatch, states: dict[str, str], is_one: bool
) -> None:
    """The lists may still contain a former host."""
    assert is_formed(monkeypatch, **states) == is_one
