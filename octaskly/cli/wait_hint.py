"""Hint on stderr that explains why a task still waits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from octaskly.cli.context import CliContext
from octaskly.cli.output.render import is_quiet, note
from octaskly.client.flows import rest_calls
from octaskly.errors import OctasklyError
from octaskly.rest.tasks import Explanation

HINT_AFTER_S: Final = 1.5  #: a task that starts earlier needs no hint
TASKS_CHECKED_MAX: Final = 8  #: tasks checked to find one that waits


@contextlib.contextmanager
def explain_if_waiting(context: CliContext, refs: Sequence[str]) -> Iterator[None]:
    """Print once on stderr why one of the tasks waits, if the block is slow."""
    if is_quiet() or not refs:
        yield
        return
    is_over = threading.Event()
    # The block may wait for a response for hours, so the check needs a thread.
    threading.Thread(
        target=_explain_waiting_task, args=(context, refs, is_over), daemon=True
    ).start()
    try:
        yield
    finally:
        is_over.set()


def _explain_waiting_task(
    context: CliContext, refs: Sequence[str], is_over: threading.Event
) -> None:
    if is_over.wait(HINT_AFTER_S):
        return
    # The block gets the same error and reports it.
    with contextlib.suppress(OctasklyError), context.connect(is_silent=True) as client:
        for ref in refs[:TASKS_CHECKED_MAX]:
            found = client.send_and_decode(rest_calls.explain(ref), Explanation)
            if found.status == "queued" and not is_over.is_set():
                note(f"queued: {found.summary}; details: octaskly explain {found.id}")
                return
