"""Hints on stderr that explain why a task waits, at its start or later."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from octaskly.cli.context import CliContext
from octaskly.cli.output.render import is_quiet, note
from octaskly.client.flows import rest_calls
from octaskly.errors import OctasklyError
from octaskly.rest.tasks import Explanation

if TYPE_CHECKING:
    from octaskly.client import Session

HINT_AFTER_S: Final = 1.5  #: a task that starts earlier needs no hint
CHECK_PERIOD_S: Final = 5.0  #: a task may wait again, when its node is lost
TASKS_CHECKED_MAX: Final = 8  #: tasks checked to find one that waits


@contextlib.contextmanager
def explain_if_waiting(
    context: CliContext,
    refs: Sequence[str],
    *,
    after_s: float = HINT_AFTER_S,
    period_s: float = CHECK_PERIOD_S,
) -> Iterator[None]:
    """Print on stderr why one of the tasks waits, each reason once, if the block waits.

    Args:
        context: Selects the node that is asked.
        refs: The tasks.
        after_s: Seconds until the first check.
        period_s: Seconds from one check to the next.
    """
    if is_quiet() or not refs:
        yield
        return
    hints = _WaitHints(context, refs[:TASKS_CHECKED_MAX], after_s, period_s)
    # The block may wait for a response for hours, so the checks need a thread.
    threading.Thread(target=hints.run, daemon=True).start()
    try:
        yield
    finally:
        hints.is_over.set()


class _WaitHints:
    """Checks from time to time if tasks wait, and says why."""

    def __init__(
        self, context: CliContext, refs: Sequence[str], after_s: float, period_s: float
    ) -> None:
        self._context, self._refs = context, refs
        self._after_s, self._period_s = after_s, period_s
        self._said: set[str] = set()  #: reasons since something last ran
        self.is_over = threading.Event()

    def run(self) -> None:
        pause_s = self._after_s
        while not self.is_over.wait(pause_s):
            pause_s = self._period_s
            # The block gets the same error and reports it.
            with (
                contextlib.suppress(OctasklyError),
                self._context.connect(is_silent=True) as client,
            ):
                self._check(client)
                while not self.is_over.wait(pause_s):
                    self._check(client)

    def _check(self, client: Session) -> None:
        for ref in self._refs:
            found = client.send_and_decode(rest_calls.explain(ref), Explanation)
            if found.status == "queued" and not self.is_over.is_set():
                self._say(found)
                return
        self._said.clear()

    def _say(self, found: Explanation) -> None:
        reason = re.sub(r"\d+", "", found.summary)  # Counts and times change always.
        if reason not in self._said:
            self._said.add(reason)
            note(f"queued: {found.summary}; details: octaskly explain {found.id}")
