"""Bounded types of the values that peers send and that are stored.

Decoding refuses what lies outside. Encoding and constructors check nothing, so what a
node makes itself must fit: bounds are at or above those of the API.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Int = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""What the database can keep."""

Float = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""Comparing with bounds also refuses NaN and infinity."""

COUNT_MAX = 1 << 62
Count = Annotated[int, Meta(ge=0, lt=COUNT_MAX)]
"""A number that others count on from, also a hybrid timestamp."""

Amount = Annotated[int, Meta(ge=0, lt=1 << 31)]
"""A number that a user chose, also seconds."""

TIME_MS_MAX = 1 << 47  #: a wall clock in the year 6429, which can be shown
Millis = Annotated[int, Meta(ge=0, lt=TIME_MS_MAX)]

Port = Annotated[int, Meta(ge=0, le=65_535)]

Text = Annotated[str, Meta(max_length=1 << 20)]
"""A command, a path, the value of a variable, an explanation."""

Word = Annotated[str, Meta(max_length=256)]
"""A name or the name of a label."""

TITLE_CHARS_MAX = 128
Title = Annotated[str, Meta(max_length=TITLE_CHARS_MAX)]
"""A name or a version as people are shown it."""

WORD_CHARS_MAX = 63
NodeWord = Annotated[str, Meta(max_length=WORD_CHARS_MAX)]
"""A label's name or value, or the name of a GPU, of a node."""

SUBJECT_CHARS_MAX = 512
Subject = Annotated[str, Meta(max_length=SUBJECT_CHARS_MAX)]
"""Who asks: a token has 256 characters, a user of a machine no more than 400."""

HOST_CHARS_MAX = 128
Host = Annotated[str, Meta(max_length=HOST_CHARS_MAX)]
Blob = Annotated[bytes, Meta(max_length=8 << 20)]

Canceller = Annotated[str, Meta(max_length=1024)]
"""A subject, and before it how the task was cancelled."""

Time = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""A hybrid timestamp or what stands beside one; some are later than all real ones."""
