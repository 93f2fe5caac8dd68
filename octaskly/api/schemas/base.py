"""Shared parts of request bodies: base struct, schema metadata and field errors."""

from __future__ import annotations

import re
from typing import Final

import msgspec

SHA256: Final = re.compile(r"[0-9a-f]{64}")


def openapi_schema(**schema: object) -> msgspec.Meta:
    """Return metadata for the OpenAPI document; it validates nothing.

    The parsers of this package validate these fields, with better hints.
    """
    return msgspec.Meta(extra_json_schema=dict(schema))


class RequestBody(msgspec.Struct, forbid_unknown_fields=True):
    """Base of request bodies; unknown fields are refused."""


class InvalidField(ValueError):
    """A field of a request is invalid.

    Args:
        field: Path of the field below the task.
        message: The reason.
        expected: What is valid, unless that is said for all values of the field.
    """

    def __init__(self, field: str, message: str, *, expected: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.expected = expected
