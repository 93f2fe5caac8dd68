"""The route that forgets ended tasks."""

from __future__ import annotations

import pytest

from tests.support.api_node import ADMIN, ApiNode, assert_problem


@pytest.mark.parametrize(("age_s", "status", "count"), [(0, 200, 0), (60, 202, None)])
async def test_the_answer_has_the_count_or_says_that_it_goes_on(
    node: ApiNode, age_s: int, status: int, count: int | None
) -> None:
    """A request does not wait for minutes."""
    body = {"older_than_s": age_s}

    answer = await node.ask("POST", "/api/v1/forget", headers=ADMIN, body=body)

    assert (answer.status, answer.json) == (status, {"forgotten": count})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"older_than_s": -1},
        {"older_than_s": "7d"},
        {"older_than_s": 1e10},
        {"x": 1},
    ],
    ids=str,
)
async def test_an_ambiguous_request_to_forget_is_refused(
    node: ApiNode, body: dict[str, object]
) -> None:
    """Nothing is forgotten by mistake."""
    answer = await node.ask("POST", "/api/v1/forget", headers=ADMIN, body=body)

    assert_problem(answer, 400)
