"""Bounded field types of messages and stored values.

Decoding rejects a value outside its bounds. Encoding and constructors check nothing, so
a node must only make values that fit. The bounds are at or above those of the API.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Int = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""The range of an integer in the database."""

Float = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""The bounds also reject NaN and infinity."""

COUNT_MAX = 1 << 62
Count = Annotated[int, Meta(ge=0, lt=COUNT_MAX)]
"""A counter or a hybrid timestamp; the bound leaves room for later increments."""

Amount = Annotated[int, Meta(ge=0, lt=1 << 31)]
"""A number or a duration in seconds that a user chose."""

TIME_MS_MAX = 1 << 47  #: in the year 6429, which date functions can still format
Millis = Annotated[int, Meta(ge=0, lt=TIME_MS_MAX)]

Port = Annotated[int, Meta(ge=0, le=65_535)]

Text = Annotated[str, Meta(max_length=1 << 20)]
"""A command, a path, a variable's value or an explanation."""

Word = Annotated[str, Meta(max_length=256)]
"""A name, or the name of a label."""

TITLE_CHARS_MAX = 128
Title = Annotated[str, Meta(max_length=TITLE_CHARS_MAX)]
"""A name or a version, shown to people."""

WORD_CHARS_MAX = 63
NodeWord = Annotated[str, Meta(max_length=WORD_CHARS_MAX)]
"""The name or value of a node's label, or the name of its GPU."""

SUBJECT_CHARS_MAX = 512
Subject = Annotated[str, Meta(max_length=SUBJECT_CHARS_MAX)]
"""The requester: a token's subject has up to 256 characters, a local user up to 400."""

HOST_CHARS_MAX = 128
Host = Annotated[str, Meta(max_length=HOST_CHARS_MAX)]
Blob = Annotated[bytes, Meta(max_length=8 << 20)]

Canceller = Annotated[str, Meta(max_length=1024)]
"""A subject, with an optional prefix that says how the task was cancelled."""

Time = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""A hybrid timestamp, or a number that is compared with one.

The bound lies above every real timestamp, so a value can stand for "later than all".
"""
