"""What all bodies and their fields have: a schema, and a way to be wrong."""

from __future__ import annotations

import re
from typing import Final

import msgspec

SHA256: Final = re.compile(r"[0-9a-f]{64}")


def openapi_schema(**schema: object) -> msgspec.Meta:
    """Return what the OpenAPI document adds of a type; it checks nothing.

    What a field may be is checked here and in `schema`, with better hints.
    """
    return msgspec.Meta(extra_json_schema=dict(schema))


class RequestBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request; unknown fields are refused."""


class InvalidField(ValueError):
    """A field cannot be used.

    Args:
        field: Its path below the task.
        what: What is wrong with it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
