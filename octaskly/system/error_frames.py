"""Release of what the traceback of a handled error keeps alive."""

from __future__ import annotations

import traceback


def clear_error_frames(error: BaseException) -> None:
    """Drop the local variables in the tracebacks of an error and its contexts.

    An error whose frames refer to it is a reference cycle. asyncio makes one for each
    failed TLS handshake, so its buffers would stay until the next full collection.
    Frames that still run keep their variables.
    """
    seen = set[int]()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        traceback.clear_frames(current.__traceback__)
        current = current.__context__
