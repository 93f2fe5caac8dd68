"""OpenAPI document, generated from the routes and their types.

The types that validate request bodies describe them; the types of `octaskly.rest`
describe responses. Summaries are the first lines of the handlers' docstrings.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from types import UnionType
from typing import Any, Final, get_args

import msgspec
from aiohttp import web

from octaskly import __version__
from octaskly.api.http.handler_types import (
    BYTES,
    JSON,
    Access,
    Request,
    Route,
    json_response,
)
from octaskly.api.schemas.query import PARAMETERS, PATH_PARTS
from octaskly.api.schemas.request_bodies import FIELD_HINTS
from octaskly.api.security import route_cost
from octaskly.api.security.rate_limit import RATE_LIMIT_HEADERS
from octaskly.rest.base import ErrorBody

Json = dict[str, Any]

_TEMPLATE = "#/components/schemas/{name}"
_ABOUT: Final = (
    "docs/reference/rest-api.md explains the fields. HEAD works wherever GET does. "
    "Operations with x-internal are only for nodes of the mesh."
)
_RIGHTS: Final[Mapping[Access, str]] = {
    Access.PUBLIC: "Rights: none are needed.",
    Access.READ: "Rights: every role.",
    Access.READ_OR_LOCAL: "Rights: every role; none are needed on the machine itself.",
    Access.SUBMIT: "Rights: the roles admin and client.",
    Access.ADMIN: "Rights: the role admin.",
    Access.LOCAL: "Rights: users of the node's local socket; a token is not enough.",
    Access.LOCAL_PAGE: "Rights: users of the node's local socket, also through "
    "loopback in a page that one of them opened; other tokens are not enough.",
    Access.NODE: "Rights: nodes of the mesh.",
}
_SECURITY: Final[Mapping[Access, list[Json]]] = {
    Access.PUBLIC: [],
    Access.READ: [{"token": []}],
    Access.READ_OR_LOCAL: [{"token": []}, {}],
    Access.SUBMIT: [{"token": []}],
    Access.ADMIN: [{"token": []}],
    Access.LOCAL: [{"token": []}],
    Access.LOCAL_PAGE: [{"token": []}],
    Access.NODE: [{"node": []}],
}
_SCHEMES: Final[Json] = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "`octaskly token create --role client` prints one",
    },
    "node": {"type": "mutualTLS", "description": "the certificate of a node"},
}
_COMMON_ERRORS: Final = (400, 403, 408, 413, 415, 417, 429, 500, 503)
"""Error statuses that any route may return."""

_REQUEST_HEADERS: Final[Mapping[str, Json]] = {
    "Content-Range": {
        "description": "the piece of the file in the body, as bytes FIRST-LAST/SIZE",
        "schema": {"type": "string"},
    },
    "Idempotency-Key": {
        "description": "a repeated key of the same subject submits no second task",
        "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,255}$"},
    },
    "If-Range": {
        "description": "`ETag` or `Last-Modified` of the file that a range continues;"
        " if the file has changed, all of it is sent",
        "schema": {"type": "string"},
    },
    "Last-Event-ID": {
        "description": "id of the last event received: send the events after it",
        "schema": {"type": "string"},
    },
    "Range": {
        "description": "which bytes to send, as bytes=FIRST-LAST",
        "schema": {"type": "string"},
    },
    "X-Request-ID": {
        "description": "id of this request in the log; an invalid one is replaced",
        "schema": {"type": "string"},
    },
}
_RESPONSE_HEADERS: Final[Mapping[str, tuple[str, str]]] = {
    "Octaskly-Dispatcher": ("string", "name of the dispatcher that answered"),
    "Octaskly-Epoch": ("string", "epoch of the dispatcher, as TERM/NODE-ID"),
    "Octaskly-Output-Bytes": (
        "integer",
        "total bytes written, once the task has ended",
    ),
    "Octaskly-Replicas": ("integer", "number of disks to which the task was flushed"),
    "RateLimit-Limit": ("integer", "requests of this client within any minute"),
    "RateLimit-Remaining": ("integer", "remaining requests in this minute"),
    "RateLimit-Reset": ("integer", "seconds until the oldest request no longer counts"),
    "Retry-After": ("integer", "seconds to wait before a retry"),
    "WWW-Authenticate": ("string", "required authentication scheme"),
    "X-Request-ID": ("string", "id of this request in the log"),
    "X-Response-Time-ms": ("number", "milliseconds until the response started"),
}
_PHRASES: Final = {
    413: "Content Too Large",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
"""Phrases that Python 3.13 changed."""
_COMMON_HEADERS: Final = ("X-Request-ID", "X-Response-Time-ms", *RATE_LIMIT_HEADERS)
_DISPATCHER_HEADERS: Final = ("Octaskly-Dispatcher", "Octaskly-Epoch")
_ERROR_HEADERS: Final[Mapping[int, tuple[str, ...]]] = {
    401: ("WWW-Authenticate",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}


def with_openapi_route(*routes: Route) -> tuple[Route, ...]:
    """Return the routes, and one more that returns their OpenAPI document."""

    @functools.cache
    def encoded() -> bytes:
        return msgspec.json.encode(document(every))

    async def show(_call: Request) -> web.StreamResponse:
        """Return this document."""
        return json_response(encoded())

    own = Route(
        method="GET",
        path="/api/v1/openapi.json",
        handler=show,
        cost=route_cost.CHEAP,
        access=Access.READ,
        is_local=True,
        responses={200: Json},
    )
    every = (*routes, own)
    return every


def document(routes: Iterable[Route]) -> Json:
    """Return the OpenAPI document of these routes."""
    types = _SchemaCollector()
    paths: dict[str, Json] = {}
    for route in routes:
        if route.is_page:
            continue
        path = web.UrlDispatcher().add_resource(route.path).canonical
        paths.setdefault(path, {})[route.method.lower()] = _operation(
            route, path, types
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Octaskly",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": types.components,
            "responses": {
                str(status): _error_response(status, types)
                for status in sorted(types.error_statuses)
            },
            "headers": {
                name: {"description": text, "schema": {"type": kind}}
                for name, (kind, text) in _RESPONSE_HEADERS.items()
            },
            "securitySchemes": _SCHEMES,
        },
    }


class _SchemaCollector:
    """Collects the schemas and error responses that operations refer to."""

    def __init__(self) -> None:
        self.components: Json = {}
        self.error_statuses: set[int] = set()
        self.problem = self.answer(ErrorBody)

    def schema(self, kind: Any, hints: Mapping[str, str] | None = None) -> Json:
        """Return the schema of a type.

        Args:
            kind: The type.
            hints: Descriptions of fields, by name.
        """
        found, components = _schemas(kind)
        for schema in components.values():
            fields = schema.get("properties", {})
            for field in fields.keys() & (hints or {}).keys():
                fields[field].setdefault("description", (hints or {})[field])
        self._add(components)
        return found

    def answer(self, kind: Any) -> Json:
        """Return the schema of a response type.

        Each field with a default in its schema becomes required, because a node sends
        it. Clients use the default for older nodes. A node may omit only a field whose
        default is UNSET, and a schema does not contain that default.

        A response may be one of several objects, which no decoder could tell apart.
        """
        if isinstance(kind, UnionType):
            return {"anyOf": [self.answer(each) for each in get_args(kind)]}
        found, components = _schemas(kind)
        for schema in components.values():
            for name, field in schema.get("properties", {}).items():
                if "default" in field:
                    del field["default"]
                    schema["required"].append(name)
        self._add(components)
        return found

    def _add(self, components: Json) -> None:
        for name, schema in components.items():
            if "properties" in schema:
                schema["additionalProperties"] = False
            known = self.components.setdefault(name, schema)
            assert known == schema, f"two types are called {name}"


def _schemas(kind: Any) -> tuple[Json, Json]:
    """Return the schema of a type, and of the types that it refers to."""
    (found,), components = msgspec.json.schema_components(
        [kind], ref_template=_TEMPLATE
    )
    return found, components


def _operation(route: Route, path: str, types: _SchemaCollector) -> Json:
    summary, _, more = (inspect.getdoc(route.handler) or "").partition("\n")
    operation: Json = {
        "operationId": f"{route.method.lower()}_{'_'.join(_words(path))}",
        "tags": [_words(path)[0]],
        "summary": summary.rstrip("."),
        "description": f"{more.strip()}\n\n{_RIGHTS[route.access]}".strip(),
        "security": _SECURITY[route.access],
        "parameters": list(_parameters(route, path, types)),
        "responses": _responses(route, path, types),
    }
    if route.body_type is not None:
        schema = types.schema(route.body_type, FIELD_HINTS)
        content = {JSON: {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.is_body_streamed:  # No body is one of no bytes: an empty file.
        operation["requestBody"] = {"required": False, "content": {BYTES: {}}}
    if route.access is Access.NODE:
        operation["x-internal"] = True
    return operation


def _words(path: str) -> list[str]:
    """Return `tasks`, `id`, `retry` for `/api/v1/tasks/{id}/retry`."""
    words: list[str] = re.findall(r"\w+", path.removeprefix("/api/v1"))
    return words


def _parameters(route: Route, path: str, types: _SchemaCollector) -> Iterable[Json]:
    for name in re.findall(r"{(\w+)}", path):
        kind, text = PATH_PARTS[name]
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": text,
            "schema": types.schema(kind),
        }
    for name in route.query or ():
        kind, text = PARAMETERS[name]
        yield {
            "name": name,
            "in": "query",
            "description": text,
            "schema": types.schema(kind),
        }
    for name in (*route.request_headers, "X-Request-ID"):
        yield {"name": name, "in": "header", **_REQUEST_HEADERS[name]}


def _responses(route: Route, path: str, types: _SchemaCollector) -> Json:
    refusals = {*_COMMON_ERRORS, *route.error_statuses}
    if route.access is not Access.PUBLIC:
        refusals.add(401)
    if "{" in path:
        refusals.add(404)
    refusals -= route.responses.keys()
    types.error_statuses |= refusals
    headers = (
        *_COMMON_HEADERS,
        *route.response_headers,
        *(() if route.is_local else _DISPATCHER_HEADERS),
    )
    answers = {
        str(status): {
            "description": phrase(status),
            "headers": _headers(headers),
            **_content(route, status, kind, types),
        }
        for status, kind in route.responses.items()
    }
    return answers | {
        str(status): {"$ref": f"#/components/responses/{status}"}
        for status in sorted(refusals)
    }


def phrase(status: int) -> str:
    """Return the phrase of a status in RFC 9110, independent of the Python version."""
    return _PHRASES.get(status) or HTTPStatus(status).phrase


def _content(route: Route, status: int, kind: Any, types: _SchemaCollector) -> Json:
    if status == HTTPStatus.NO_CONTENT:
        return {}
    return {"content": {route.media_type: _body(status, kind, types)}}


def _body(status: int, kind: Any, types: _SchemaCollector) -> Json:
    if kind is None:
        return {}
    schema = types.answer(kind)
    if status in _COMMON_ERRORS:
        schema = {"anyOf": [schema, types.problem]}
    return {"schema": schema}


def _error_response(status: int, types: _SchemaCollector) -> Json:
    headers = (*_COMMON_HEADERS, *_DISPATCHER_HEADERS, *_ERROR_HEADERS.get(status, ()))
    return {
        "description": phrase(status),
        "headers": _headers(headers),
        "content": {JSON: {"schema": types.problem}},
    }


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
