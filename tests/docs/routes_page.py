"""All routes and the schemas of their bodies, for docs/reference/rest-api.md.

Both come from the OpenAPI document, which is generated from the routes themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.support.conformance import DOCUMENT

Json = dict[str, Any]

_FORM = "#/components/schemas/"
_INSIDE = ("AuditEntry", "TaskStatus")
"""Schemas that only nodes send each other."""

_KINDS = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
}


def operations() -> Iterator[tuple[str, str, Json]]:
    """Yield method, path and description of each route, in the order of paths."""
    for path, methods in sorted(DOCUMENT["paths"].items()):
        for method, operation in methods.items():
            yield method.upper(), path, operation


def body_fields(operation: Json) -> set[str]:
    """Return the names of the fields that a route accepts."""
    forms = DOCUMENT["components"]["schemas"]
    named = re.findall(rf"'{_FORM}(\w+)'", str(operation.get("requestBody")))
    return {field for name in named for field in forms[name]["properties"]}


def table() -> str:
    """Return a row for each route that is for clients."""
    rows = [
        f"| [`{method} {path}`](#{_anchor(f'{method} {path}')}) "
        f"| {operation['summary']} | {_taken(operation)} | {_answered(operation)} |\n"
        for method, path, operation in operations()
        if "x-internal" not in operation
    ]
    heads = "| Route | What it does | Takes | Answers |\n| --- | --- | --- | --- |\n"
    return heads + "".join(rows)


def forms() -> str:
    """Return a row for each body schema, by name."""
    rows = [
        f"| {name} | {_fields(form)} |\n"
        for name, form in sorted(DOCUMENT["components"]["schemas"].items())
        if name not in _INSIDE
    ]
    return "| Form | Fields |\n| --- | --- |\n" + "".join(rows)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _taken(operation: Json) -> str:
    return _body(operation["requestBody"]) if "requestBody" in operation else ""


def _answered(operation: Json) -> str:
    return ", ".join(
        f"{status} {_body(response)}".strip()
        for status, response in operation["responses"].items()
        if status < "3"
    )


def _body(described: Json) -> str:
    """Return the schema of a body, or the media type if it is not JSON."""
    if "content" not in described:
        return ""
    ((media, content),) = described["content"].items()
    if media != "application/json":
        return f"`{media}`"
    return _said(content["schema"]) if "schema" in content else ""


def _fields(form: Json) -> str:
    if "properties" not in form:
        return _said(form)
    required = form.get("required", ())
    return ", ".join(
        f"`{name}` {_said(field)}{'' if name in required else _default(field)}"
        for name, field in form["properties"].items()
    )


def _default(field: Json) -> str:
    if field.get("default") in (None, "", [], {}):
        return " (optional)"
    return f" (`{field['default']}`)".replace("True", "true").replace("False", "false")


def _said(field: Json) -> str:
    match field:
        case {"$ref": ref}:
            return str(ref).removeprefix(_FORM)
        case {"anyOf": fields}:
            return " or ".join(map(_said, fields))
        case {"enum": words}:
            return " or ".join(f"`{word}`" for word in words)
        case {"type": "array"}:
            return f"array of {_said(field.get('items', {}))}"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"object of {_said(values) if values else 'anything'}"
        case {"type": "object"}:
            return "object"
        case {"type": str(kind)}:
            return f"{_KINDS[kind]}{_bounds(field)}"
        case _:
            return "anything"


def _bounds(field: Json) -> str:
    match field:
        case {"minimum": least, "maximum": most}:
            return f" {least}..{most}"
        case {"format": "date-time"}:
            return ", a time"
        case _:
            return ""
