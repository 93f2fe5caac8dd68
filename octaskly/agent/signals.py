"""SIGTERM and SIGINT: the first one asks an agent to stop, a second one at once."""

from __future__ import annotations

import asyncio
import signal


class Signals:
    """How often this process was told to stop; made while the loop runs."""

    def __init__(self) -> None:
        self.count = 0
        self.news = asyncio.Event()  #: a signal came, or what others say with it
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came)

    def _came(self) -> None:
        self.count += 1
        self.news.set()
