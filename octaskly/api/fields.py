"""What all fields of a task have: a schema, and a way to be wrong."""

from __future__ import annotations

import msgspec


def told(**schema: object) -> msgspec.Meta:
    """Return what the OpenAPI document adds of a type; it checks nothing.

    What a field may be is checked here and in `schema`, with better hints.
    """
    return msgspec.Meta(extra_json_schema=dict(schema))


class Wrong(ValueError):
    """A field cannot be used.

    Args:
        field: Its path below the task.
        what: What is wrong with it.
    """

    def __init__(self, field: str, what: str) -> None:
        super().__init__(what)
        self.field = field
