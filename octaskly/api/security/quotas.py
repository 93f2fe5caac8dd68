"""Quotas of clients: expensive requests in progress, and memory for responses.

A request is in progress until its response is written, so a client that reads slowly
uses up its own quota. `Route.cost` declares the quotas that its requests use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Self

from octaskly.api.problems import Problem
from octaskly.api.security.rate_limit import client_key
from octaskly.config.settings import LimitOptions
from octaskly.ports.tokens import Principal

SMALL_RESPONSE_BYTES: Final = 64 << 10
"""Bytes of each response that do not count, so small ones are always sent."""

CLIENT_SHARE: Final = 0.25  #: of the memory for responses, for one client
_HEADERS: Final = {"Retry-After": "1"}


@dataclass(slots=True)
class _Slots:
    """The slots of one client for expensive requests."""

    free: asyncio.Semaphore
    users: int = 0  #: expensive requests that were admitted, also while they wait


class Quotas:
    """The quotas of all clients of one node."""

    def __init__(self, limits: LimitOptions) -> None:
        self._expensive_max = limits.expensive_per_client
        self._bytes_max = limits.responses_bytes
        self._slots: dict[str, _Slots] = {}
        self._parts: dict[str, _Slots] = {}  #: for long parts of streams
        self._reserved_bytes: Counter[str] = Counter()  #: by client

    @property
    def is_idle(self) -> bool:
        """Return True if no request uses a quota."""
        return not (self._slots or self._parts or self._reserved_bytes)

    @contextlib.asynccontextmanager
    async def hold_part(self, key: str) -> AsyncIterator[None]:
        """Hold a long part of a client's streams in memory while the block runs.

        A client has as many at a time as expensive requests; it waits for another one.
        """
        parts = self._parts.get(key)
        if parts is None:
            parts = self._parts[key] = _Slots(asyncio.Semaphore(self._expensive_max))
        parts.users += 1
        try:
            async with parts.free:
                yield
        finally:
            parts.users -= 1
            if not parts.users:
                del self._parts[key]

    def count_bytes(self, key: str, whose: str, more: int) -> None:
        """Count bytes of a client's responses; raise `Problem` if there is no room."""
        own, total = self._reserved_bytes[key], self._reserved_bytes.total()
        own_max = int(self._bytes_max * CLIENT_SHARE)
        # The only response of a client may be larger than its share.
        if own and own + more > own_max:
            raise Problem(
                429,
                "Too many large responses",
                hint=f"responses to {whose} may take {own_max} bytes of this node's"
                " memory, a quarter of --responses-max; read them faster, or try again"
                " later",
                headers=_HEADERS,
                is_delayed=True,
            )
        if total + more > self._bytes_max:
            raise Problem(
                503,
                "Too many large responses",
                hint=f"responses may take {self._bytes_max} bytes of this node's"
                " memory in all (--responses-max); try again later",
                headers=_HEADERS,
                is_delayed=True,
            )
        self._reserved_bytes[key] += more

    def free_bytes(self, key: str, size_bytes: int) -> None:
        """Free bytes that `count_bytes` counted."""
        self._reserved_bytes[key] -= size_bytes
        if not self._reserved_bytes[key]:
            del self._reserved_bytes[key]

    def join_slots(self, key: str, whose: str) -> asyncio.Semaphore:
        """Return the slots of a client, until `leave_slots`.

        Raises:
            Problem: 429, no slot is free.
        """
        slots = self._slots.get(key)
        if slots is None:
            slots = self._slots[key] = _Slots(asyncio.Semaphore(self._expensive_max))
        if slots.free.locked():
            raise Problem(
                429,
                "Too many expensive requests",
                hint=f"{self._expensive_max} expensive requests of {whose} are in"
                " progress at this node, the maximum of --expensive-per-client; "
                "try again when one has ended",
                headers=_HEADERS,
                is_delayed=True,
            )
        slots.users += 1
        return slots.free

    def leave_slots(self, key: str) -> None:
        """Leave the slots of a client."""
        slots = self._slots[key]
        slots.users -= 1
        if not slots.users:
            del self._slots[key]


class Admission:
    """The slot and the memory that one request uses, while this is entered.

    Args:
        quotas: The quotas of all clients.
        principal: The client; None for a program on this machine without a token.
        expected_bytes: Size of the response.
        needs_slot: The request is expensive.

    Raises, when it is entered:
        Problem: 429, the quota of the client is used up; 503, no memory is left.
    """

    def __init__(
        self,
        quotas: Quotas,
        principal: Principal | None,
        *,
        expected_bytes: int,
        needs_slot: bool,
    ) -> None:
        self._quotas = quotas
        self._principal = principal
        self._key = "" if principal is None else client_key(principal)
        self._needs_slot = needs_slot
        self._free_slots: asyncio.Semaphore | None = None  #: while it may use one
        self._has_slot = False
        self._expected_bytes = expected_bytes
        self._reserved_bytes = 0

    async def __aenter__(self) -> Self:
        if not self._needs_slot:
            self.resize(self._expected_bytes)
            return self
        whose = _name_of(self._principal)
        self._free_slots = self._quotas.join_slots(self._key, whose)
        try:
            await self.take()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()
        if self._free_slots is not None:
            self._quotas.leave_slots(self._key)

    async def take(self) -> None:
        """Take a slot, and memory for the expected response; wait for a slot."""
        if self._free_slots is not None:
            await self._free_slots.acquire()
            self._has_slot = True
        self.resize(self._expected_bytes)

    def resize(self, size_bytes: int) -> None:
        """Take as much memory as a response of this size needs."""
        if size_bytes <= SMALL_RESPONSE_BYTES and not self._reserved_bytes:
            return  # As nearly all.
        more = max(0, size_bytes - SMALL_RESPONSE_BYTES) - self._reserved_bytes
        if more > 0:
            self._quotas.count_bytes(self._key, _name_of(self._principal), more)
        elif more < 0:
            self._quotas.free_bytes(self._key, -more)
        self._reserved_bytes += more

    def release(self) -> None:
        """Free the slot and the memory of the request."""
        if self._free_slots is not None and self._has_slot:
            self._free_slots.release()
            self._has_slot = False
        if self._reserved_bytes:
            self._quotas.free_bytes(self._key, self._reserved_bytes)
            self._reserved_bytes = 0

    def part(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold a long part of a stream in memory while the block runs."""
        return self._quotas.hold_part(self._key)

    def pause(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Free the quotas while the block waits for an event, then take them again."""
        return _Pause(self)


class _Pause:
    """The wait of a request for an event."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def __aenter__(self) -> None:
        self._admission.release()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After a timeout, the response is due, too. After a cancel, none is.
        if kind is None or issubclass(kind, TimeoutError):
            await self._admission.take()


def _name_of(principal: Principal | None) -> str:
    """Return the name of a client for people."""
    if principal is None:
        return "programs on this machine that send no token"
    return f"the {principal.role} {principal.subject!r}"
