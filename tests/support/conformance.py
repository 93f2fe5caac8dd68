"""Conformance of answers with the OpenAPI document."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import jsonschema_rs
import msgspec

from octaskly.api.routes.openapi import document
from octaskly.api.routes.table import ROUTES

STATIC = "/static/"  #: files of the dashboard
ADDED = "/api/v1/test-"  #: prefix of the paths that tests add to the API
#: The document as clients get it.
DOCUMENT: dict[str, Any] = json.loads(msgspec.json.encode(document(ROUTES)))

_TEMPLATES = {
    # Only the path of an output may contain slashes.
    path: re.compile(re.sub(r"{\w+}", "[^/]+", path.replace("{path}", ".+")))
    for path in DOCUMENT["paths"]
}


def conforms(method: str, target: str, status: int, media: str, body: bytes) -> None:
    """Fail unless the document has this answer to a request.

    Args:
        method: Of the request.
        target: Its path and query, maybe with a host.
        status: Of the answer.
        media: Its content type, without parameters; empty if there is none.
        body: Of the answer.
    """
    described = _description(method, target, status)
    if described is None and status < 400:
        is_page = path_of(target) == "/" or target.startswith(STATIC)
        is_known = method == "OPTIONS" or target.startswith(ADDED) or is_page
        assert is_known, f"{target} is not in the document"
        return
    if described is None:  # None of the API's requests; every refusal has one form.
        described = DOCUMENT["components"]["responses"]["400"]
    if "content" not in described:
        assert not body, f"{target} answers {status} with a body"
        return
    assert media in described["content"], f"{target} answers {status} as {media}"
    if media == "application/json" and method != "HEAD":
        schema = described["content"][media]["schema"]
        validates(json.loads(body), schema)


def validates(data: object, schema: dict[str, Any]) -> None:
    """Fail unless data matches a schema of the document."""
    _validator(json.dumps(schema)).validate(data)


def _description(method: str, target: str, status: int) -> dict[str, Any] | None:
    """Return the document's description of an answer; None for unknown requests."""
    path = path_of(target)
    for template, pattern in _TEMPLATES.items():
        operations = DOCUMENT["paths"][template]
        name = "get" if method == "HEAD" else method.lower()
        if pattern.fullmatch(path) and name in operations:
            responses = operations[name]["responses"]
            assert str(status) in responses, f"{method} {template} answers {status}"
            described: dict[str, Any] = responses[str(status)]
            if "$ref" in described:
                described = DOCUMENT["components"]["responses"][str(status)]
            return described
    return None


def path_of(target: str) -> str:
    return re.sub(r"^\w+://[^/]*", "", target).partition("?")[0]


@functools.cache
def _validator(schema: str) -> jsonschema_rs.Draft202012Validator:
    whole = {**json.loads(schema), "components": DOCUMENT["components"]}
    return jsonschema_rs.Draft202012Validator(whole)
