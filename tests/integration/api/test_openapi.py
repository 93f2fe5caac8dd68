"""The OpenAPI document: whole, valid, and for everybody with a token."""

from __future__ import annotations

import openapi_spec_validator
import pytest

from octaskly.api.security.rate_limit import RATE_LIMIT_HEADERS
from tests.support.api_node import VIEWER, api_node, assert_problem
from tests.support.conformance import DOCUMENT, conforms

PATH = "/api/v1/openapi.json"


PAGE = {("GET", "/"), ("GET", "/static/{file}")}  #: for people, not for programs


async def test_it_has_every_route_and_nothing_else() -> None:
    """It is held against what the router really has."""
    described = {
        (method.upper(), path)
        for path, operations in DOCUMENT["paths"].items()
        for method in operations
    }
    async with api_node() as node:
        served = {
            (route.method, route.resource.canonical)
            for route in node.server.router.routes()
            if route.resource is not None and route.method != "HEAD"
        }

    assert described == served - PAGE


def test_it_is_valid() -> None:
    """Tools refuse what is no OpenAPI."""
    openapi_spec_validator.validate(DOCUMENT)


def test_it_says_of_every_route_that_one_may_ask_too_often() -> None:
    """And how an answer tells when there is room again."""
    for operations in DOCUMENT["paths"].values():
        for operation in operations.values():
            assert "429" in operation["responses"]
            for response in operation["responses"].values():
                assert "$ref" in response or set(RATE_LIMIT_HEADERS) <= set(
                    response["headers"]
                )
    refusal = DOCUMENT["components"]["responses"]["429"]

    assert {*RATE_LIMIT_HEADERS, "Retry-After"} <= set(refusal["headers"])


async def test_it_is_for_everybody_with_a_token_and_needs_no_dispatcher() -> None:
    """It tells of no mesh, but without a token nobody learns which version runs."""
    async with api_node() as node:
        node.gateway.elect(None)

        served = await node.ask("GET", PATH, headers=VIEWER)
        assert served.json == DOCUMENT

        assert_problem(await node.ask("GET", PATH), 401)


def test_it_says_of_each_field_of_a_task_what_it_may_be() -> None:
    """The words are those of the hints."""
    fields = DOCUMENT["components"]["schemas"]["TaskIn"]["properties"]

    assert {
        name for name, field in fields.items() if "description" not in field
    } == set()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"id": "task-1", "status": "cancelled"}'),
        (200, b'{"id": "task-1", "status": "queued", "message": "x"}'),
        (200, b'{"id": "task-1", "status": "cancelled", "message": "x", "more": 1}'),
        (204, b""),
    ],
)
def test_an_answer_that_is_not_described_is_noticed(status: int, body: bytes) -> None:
    """Else the check that all tests of the API make would prove nothing."""
    good = b'{"id": "task-1", "status": "cancelled", "message": "x"}'
    asked = ("DELETE", "/api/v1/tasks/task-1?force=true")
    conforms(*asked, 200, "application/json", good)

    with pytest.raises((AssertionError, ValueError)):
        conforms(*asked, status, "application/json", body)
