"""The bound on dials under way: in all, and to one address.

Adverts are anybody's, and whoever is dialled may accept and say nothing until the dial
is given up. So one address never holds all turns, but for this machine's own, where a
hundred agents may start at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

DIALS_AT_ONCE_MAX: Final = 16
DIALS_TO_HOST_MAX: Final = 2


class Dials:
    """Turns to dial, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(DIALS_AT_ONCE_MAX)
        self._hosts = WeakValueDictionary[str, asyncio.Semaphore]()

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn to dial a host, and have it for the length of the block."""
        is_here = host == "::1" or host.startswith("127.")
        most = DIALS_AT_ONCE_MAX if is_here else DIALS_TO_HOST_MAX
        turns = self._hosts.get(host) or asyncio.Semaphore(most)
        self._hosts[host] = turns
        async with turns, self._all:
            yield
