"""The OpenAPI document: complete, valid, and open to every token."""

from __future__ import annotations

import openapi_spec_validator
import pytest

from octaskly.api.security.rate_limit import RATE_LIMIT_HEADERS
from tests.support.api_node import VIEWER, api_node, assert_problem
from tests.support.conformance import DOCUMENT, conforms

PATH = "/api/v1/openapi.json"


PAGE = {("GET", "/"), ("GET", "/static/{file}")}  #: for people, not for programs


async def test_the_document_has_exactly_the_routes_of_the_router() -> None:
    """It is compared with the real router."""
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


def test_the_document_is_valid() -> None:
    """Tools refuse an invalid one."""
    openapi_spec_validator.validate(DOCUMENT)


def test_every_route_documents_the_rate_limit() -> None:
    """Also the header with the time of the next free request."""
    for operations in DOCUMENT["paths"].values():
        for operation in operations.values():
            assert "429" in operation["responses"]
            for response in operation["responses"].values():
                assert "$ref" in response or set(RATE_LIMIT_HEADERS) <= set(
                    response["headers"]
                )
    refusal = DOCUMENT["components"]["responses"]["429"]

    assert {*RATE_LIMIT_HEADERS, "Retry-After"} <= set(refusal["headers"])


async def test_the_document_needs_a_token_but_no_dispatcher() -> None:
    """It reveals nothing of the mesh, but only token holders learn the version."""
    async with api_node() as node:
        node.gateway.elect(None)

        served = await node.ask("GET", PATH, headers=VIEWER)
        assert served.json == DOCUMENT

        assert_problem(await node.ask("GET", PATH), 401)


def test_each_field_of_a_task_has_its_limits() -> None:
    """In the words of the errors."""
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
def test_an_undocumented_answer_is_noticed(status: int, body: bytes) -> None:
    """The check in all tests of the API would prove nothing otherwise."""
    good = b'{"id": "task-1", "status": "cancelled", "message": "x"}'
    asked = ("DELETE", "/api/v1/tasks/task-1?force=true")
    conforms(*asked, 200, "application/json", good)

    with pytest.raises((AssertionError, ValueError)):
        conforms(*asked, status, "application/json", body)
