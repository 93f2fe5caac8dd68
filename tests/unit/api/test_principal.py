"""The caller that a forwarding node reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from octaskly.api.http.authentication import (
    format_principal_header,
    parse_principal_header,
)
from octaskly.api.problems import Problem
from octaskly.core.model.ids import NodeId
from octaskly.ports.tokens import Principal

HOP = NodeId("front")
SOME = [
    Principal(subject="local:ana@ash", role="admin"),
    Principal(subject="ci nightly", role="client", token="a" * 32, generation=3),
    Principal(subject="é%20", role="viewer", generation=2),
]


@pytest.mark.parametrize("principal", SOME, ids=lambda one: one.role)
def test_the_dispatcher_learns_the_caller_and_the_secret_generation(
    principal: Principal,
) -> None:
    """It judges a token exactly as the first node would."""
    assert parse_principal_header(format_principal_header(principal), HOP) == replace(
        principal, node=HOP
    )


@pytest.mark.parametrize("subject", ["", "x" * 513])
def test_a_caller_name_that_the_log_refuses_is_not_sent(subject: str) -> None:
    """A fact with such a name would break replication to the standbys."""
    who = Principal(subject=subject, role="admin")

    with pytest.raises(Problem):
        parse_principal_header(format_principal_header(who), HOP)


@pytest.mark.parametrize("word", ["0", "-1", "1.0", "x", "1" * 400])
def test_an_unknown_generation_is_ignored(word: str) -> None:
    """A member of another version, or a dishonest one, may send any value."""
    assert parse_principal_header(f"admin ana  {word}", HOP).generation is None
