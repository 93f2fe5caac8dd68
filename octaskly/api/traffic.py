"""How many requests were answered and how fast, by route; for the metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from aiohttp import web

from octaskly.api.routing import Seen
from octaskly.api.sse import CONTENT_TYPE
from octaskly.ports.tally import Tally

BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Traffic:
    """Since the API was made.

    An action is `METHOD /template`, and empty where there is no route: nothing that a
    client makes up can be one.
    """

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()
        """By action and first digit of the status."""
        self.took_s: dict[str, Tally] = {}  #: by action

    def note(self, seen: Seen, response: web.StreamResponse) -> None:
        """Count a request that was answered."""
        action = seen.action
        self.answered[action, response.status // 100] += 1
        # Of most answers the class says that they are no stream of events.
        is_whole = type(response) is web.Response
        if not is_whole and response.content_type == CONTENT_TYPE:
            return  # It lasts as long as somebody listens.
        tally = self.took_s.get(action)
        if tally is None:
            tally = self.took_s[action] = Tally(BOUNDS_S)
        tally.add(asyncio.get_running_loop().time() - seen.began_s)
