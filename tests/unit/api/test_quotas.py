"""What one client may have in progress, and what others have left."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import pytest

from octaskly.api.problems import Problem
from octaskly.api.security.quotas import SMALL_RESPONSE_BYTES, Admission, Quotas
from octaskly.api.security.route_cost import CHEAP, EXPENSIVE, LIST, Cost
from octaskly.config.settings import LimitOptions
from octaskly.ports.tokens import Principal

EVE = Principal(subject="eve", role="viewer", token="e" * 32)
EVE_AGAIN = Principal(subject="eve", role="viewer", token="f" * 32)
ROOT = Principal(subject="local:root@n1", role="admin", uid=0)
LONG = {"limit": "1000"}
LIST_BYTES = 1000 * 2048 - SMALL_RESPONSE_BYTES  #: that count of a long list
MAX = 4


@pytest.fixture
def quotas() -> Quotas:
    return Quotas(LimitOptions(expensive_per_client=MAX, responses_bytes=64 << 20))


def admit(
    quotas: Quotas, cost: Cost, principal: Principal | None, query: dict[str, str]
) -> Admission:
    """Return the admission of a request, as the pipeline makes it."""
    return Admission(
        quotas,
        principal,
        expected_bytes=cost.response_bytes(query),
        needs_slot=cost.is_expensive(query),
    )


async def taken(
    stack: AsyncExitStack,
    quotas: Quotas,
    principal: Principal | None = EVE,
    cost: Cost = LIST,
    query: dict[str, str] = LONG,
) -> Admission:
    return await stack.enter_async_context(admit(quotas, cost, principal, query))


async def refusal(
    quotas: Quotas, principal: Principal | None = EVE, cost: Cost = LIST
) -> Problem:
    with pytest.raises(Problem) as caught:
        async with admit(quotas, cost, principal, LONG):
            raise AssertionError("it was admitted")
    return caught.value


async def test_a_fifth_expensive_request_of_a_client_is_refused(quotas: Quotas) -> None:
    """The refusal says what is full and whose it is, and others are admitted."""
    async with AsyncExitStack() as stack:
        for _ in range(MAX):
            await taken(stack, quotas)

        problem = await refusal(quotas)
        await taken(stack, quotas, cost=CHEAP)
        await taken(stack, quotas, query={"limit": "100"})
        await taken(stack, quotas, EVE_AGAIN)
        await taken(stack, quotas, ROOT)
        await taken(stack, quotas, None)

    assert (problem.status, problem.error) == (429, "Too many expensive requests")
    assert problem.headers == {"Retry-After": "1"}
    assert problem.hint is not None
    assert problem.hint.startswith("4 expensive requests of the viewer 'eve' are in")
    assert "--expensive-per-client" in problem.hint


async def test_a_request_that_ended_leaves_its_place(quotas: Quotas) -> None:
    """However it ended."""
    for _ in range(MAX):
        with suppress(ZeroDivisionError):
            async with admit(quotas, EXPENSIVE, EVE, {}):
                raise ZeroDivisionError

    async with AsyncExitStack() as stack:
        for _ in range(MAX):
            await taken(stack, quotas)
    assert quotas.is_idle


async def test_a_request_that_only_waits_takes_nothing(quotas: Quotas) -> None:
    """After its wait it takes its place again, before new requests do."""
    events = [asyncio.Event(), asyncio.Event()]

    async def wait_and_answer() -> str:
        async with admit(quotas, LIST, EVE, LONG) as admission:
            async with admission.pause():
                await events[0].wait()
            return "answered"

    waiting = [asyncio.create_task(wait_and_answer()) for _ in range(2 * MAX)]
    await asyncio.sleep(0)
    async with AsyncExitStack() as stack:
        for _ in range(MAX):
            await taken(stack, quotas)
        events[0].set()
        await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        assert (await refusal(quotas)).status == 429

    assert await asyncio.gather(*waiting) == ["answered"] * (2 * MAX)
    assert quotas.is_idle


async def test_a_wait_that_times_out_goes_on_with_its_place(quotas: Quotas) -> None:
    """The response is due then, as after the event."""
    async with AsyncExitStack() as stack:
        admissions = [await taken(stack, quotas) for _ in range(MAX)]
        with pytest.raises(TimeoutError):
            async with admissions[0].pause():
                raise TimeoutError

        assert (await refusal(quotas)).status == 429


async def test_a_client_that_leaves_during_a_wait_takes_nothing(quotas: Quotas) -> None:
    """Its request is cancelled."""

    async def wait_for_ever() -> None:
        async with admit(quotas, LIST, EVE, LONG) as admission, admission.pause():
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait_for_ever())
    await asyncio.sleep(0)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting

    assert quotas.is_idle


async def test_a_client_gets_a_quarter_of_the_memory_for_responses(
    quotas: Quotas,
) -> None:
    """One response may be larger, if there is no other."""
    async with AsyncExitStack() as stack:
        largest = await taken(stack, quotas, cost=CHEAP)
        largest.resize(20 << 20)

        problem = await refusal(quotas)
        small = await taken(stack, quotas, cost=CHEAP)
        small.resize(SMALL_RESPONSE_BYTES)
        (await taken(stack, quotas, EVE_AGAIN, CHEAP)).resize(16 << 20)

    assert (problem.status, problem.error) == (429, "Too many large responses")
    assert problem.hint is not None
    assert problem.hint.startswith("responses to the viewer 'eve' may take 16777216")
    assert quotas.is_idle


async def test_responses_of_all_clients_share_the_memory_of_a_node(
    quotas: Quotas,
) -> None:
    """Small ones are sent in any case."""
    async with AsyncExitStack() as stack:
        for n in range(4):
            client = Principal(subject=f"c{n}", role="client", token=str(n))
            (await taken(stack, quotas, client, CHEAP)).resize(16 << 20)

        problem = await refusal(quotas)
        (await taken(stack, quotas, cost=CHEAP)).resize(SMALL_RESPONSE_BYTES)

    assert (problem.status, problem.error) == (503, "Too many large responses")
    assert problem.headers == {"Retry-After": "1"}


async def test_a_list_reserves_memory_for_all_its_rows() -> None:
    """Before any is read."""
    quotas = Quotas(LimitOptions(responses_bytes=4 * 2 * LIST_BYTES))
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await taken(stack, quotas)

        assert (await refusal(quotas)).error == "Too many large responses"
