"""Construction of request flows with the clock and randomness of this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.retry import RETRY_TIMEOUT_S
from octaskly.errors import OctasklyError


def make_request_flow(
    node_label: str,
    *,
    retry_timeout_s: float = RETRY_TIMEOUT_S,
    waits_for_logs: bool = True,
    on_failure: Callable[[OctasklyError], None] | None = None,
    is_program: bool = True,
) -> RequestFlow:
    """Return a `RequestFlow` with these arguments."""
    return RequestFlow(
        node_label,
        clock=time.monotonic,
        random=_random,
        new_key=_new_key,
        retry_timeout_s=retry_timeout_s,
        waits_for_logs=waits_for_logs,
        on_failure=on_failure,
        is_program=is_program,
    )


def _random() -> float:
    return os.urandom(1)[0] / 256  # Importing `random` is slow.


def _new_key() -> str:
    return os.urandom(16).hex()
