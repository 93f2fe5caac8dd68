"""The number of addresses that an agent dials at the same time."""

from __future__ import annotations

import asyncio

import pytest

from octaskly.mesh.links.handshake_limits import DIALS_AT_ONCE_MAX, DialLimiter
from octaskly.system.pending_handshakes import MemberAddresses


@pytest.fixture
def members() -> MemberAddresses:
    """Return the addresses of one member."""
    addresses = MemberAddresses()
    addresses.record("10.77.1.9")
    return addresses


async def test_silent_hosts_delay_no_dial_to_a_member(members: MemberAddresses) -> None:
    """A stranger may announce any number of them, and each takes a while."""
    limiter = DialLimiter(members)
    is_dialled, is_over = asyncio.Event(), asyncio.Event()
    begun: list[str] = []

    async def dial(host: str) -> None:
        async with limiter.limit_dial(host):
            begun.append(host)
            if host == "10.77.1.9":
                is_dialled.set()
            await is_over.wait()

    silent = [f"10.77.2.{n}" for n in range(2 * DIALS_AT_ONCE_MAX)]
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        for host in (*silent, "10.77.1.9"):
            tasks.create_task(dial(host))
        await is_dialled.wait()
        assert begun == [*silent[:DIALS_AT_ONCE_MAX], "10.77.1.9"]
        is_over.set()

    assert sorted(begun) == sorted([*silent, "10.77.1.9"])
