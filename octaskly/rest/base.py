"""What all types of the API's JSON share.

A node sends every field, null where nothing is known, except fields whose default is
UNSET. A client ignores fields that it does not know, and takes the default of a field
that an older node does not send. So words are not enumerations here: a newer node may
know more of them.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

SENT_AT = {"format": "date-time"}

At = Annotated[
    str, msgspec.Meta(description="UTC, in whole seconds", extra_json_schema=SENT_AT)
]
Instant = Annotated[
    str, msgspec.Meta(description="UTC, with milliseconds", extra_json_schema=SENT_AT)
]


def one_of(*words: str) -> msgspec.Meta:
    """Return what the OpenAPI document says of a text; decoding takes any text."""
    return msgspec.Meta(extra_json_schema={"enum": list(words)})


NodeState = Annotated[str, one_of("ready", "draining", "paused", "lost")]


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer that is an error."""

    error: str
    status: int
    timestamp: At
    hint: str | msgspec.UnsetType = msgspec.UNSET
    field: str | msgspec.UnsetType = msgspec.UNSET
