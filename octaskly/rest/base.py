"""Shared types of the API's JSON.

A node sends every field, with null for an unknown value; it omits only fields whose
default is UNSET. A client ignores unknown fields and uses the default of a field that
an older node does not send. Text fields are not enumerations here, because a newer node
may send values that an older client does not know.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

SINCE_S_MAX: Final = 90 * 86_400  #: how far back a query may ask

SENT_AT = {"format": "date-time"}

At = Annotated[
    str, msgspec.Meta(description="UTC, in whole seconds", extra_json_schema=SENT_AT)
]
Instant = Annotated[
    str, msgspec.Meta(description="UTC, with milliseconds", extra_json_schema=SENT_AT)
]


def one_of(*words: str) -> msgspec.Meta:
    """Return the OpenAPI values of a text field; decoding accepts any text."""
    return msgspec.Meta(extra_json_schema={"enum": list(words)})


NodeState = Annotated[str, one_of("ready", "draining", "paused", "lost")]


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every error response."""

    error: str
    status: int
    timestamp: At
    hint: str | msgspec.UnsetType = msgspec.UNSET
    field: str | msgspec.UnsetType = msgspec.UNSET
