"""What a node that forwards states of who asks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from octaskly.api.http.authentication import (
    format_principal_header,
    parse_principal_header,
)
from octaskly.api.problems import Problem
from octaskly.core.model.ids import NodeId
from octaskly.ports import Principal

HOP = NodeId("front")
SOME = [
    Principal(subject="local:ana@ash", role="admin"),
    Principal(subject="ci nightly", role="client", token="a" * 32, generation=3),
    Principal(subject="é%20", role="viewer", generation=2),
]


@pytest.mark.parametrize("principal", SOME, ids=lambda one: one.role)
def test_a_dispatcher_learns_who_asked_and_under_which_secret(
    principal: Principal,
) -> None:
    """So that it judges a token as the node would that was shown it."""
    assert parse_principal_header(format_principal_header(principal), HOP) == replace(
        principal, node=HOP
    )


@pytest.mark.parametrize("subject", ["", "x" * 513])
def test_nobody_is_stated_whose_name_no_log_would_take(subject: str) -> None:
    """What was accepted in such a name would part the dispatcher from its standbys."""
    who = Principal(subject=subject, role="admin")

    with pytest.raises(Problem):
        parse_principal_header(format_principal_header(who), HOP)


@pytest.mark.parametrize("word", ["0", "-1", "1.0", "x", "1" * 400])
def test_a_generation_that_is_none_is_not_believed(word: str) -> None:
    """A member of another version, or one that is not honest, may write anything."""
    assert parse_principal_header(f"admin ana  {word}", HOP).generation is None
