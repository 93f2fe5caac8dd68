"""Output of a visitor, read part by part over its link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from octaskly.agent.gateway import task_lookup
from octaskly.agent.gateway.pending_requests import PendingRequests
from octaskly.agent.gateway.task_lookup import stream_visitor_output
from octaskly.core.events import Event, OutputRequested
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.core.protocol.messages import OutputPiece
from octaskly.core.replies import NoVisitorOutput, Reply, VisitorOutput
from octaskly.errors import OutputNotFound
from octaskly.ports.output import OutputChunk
from tests.support.builders import attempt

VISITOR, TASK = NodeId("visitor-one"), TaskId("task-001-00000001")


async def read(
    answer: Callable[[int], Reply | None], *, follow: bool
) -> list[OutputChunk]:
    """Read stdout; `answer` gets an offset, and None means no answer."""

    def post(event: Event) -> None:
        assert isinstance(event, OutputRequested)
        start, reply = event.starts[0], None
        if start is not None:
            reply = answer(start)
        if reply is not None:
            asyncio.get_running_loop().call_soon(
                requests.set_reply, event.ticket, reply
            )

    requests = PendingRequests(post)
    where = VISITOR, (TASK, attempt())
    found = stream_visitor_output(requests, *where, (0, None), follow=follow)
    return [chunk async for chunk in found]


async def test_parts_follow_each_other_until_the_attempt_has_ended() -> None:
    """A part without bytes is no end while the attempt runs."""
    parts = {0: [b"one\n"], 4: [b"", b"", b"two\n"], 8: []}

    def answer(start: int) -> Reply:
        data = parts[start].pop(0) if parts[start] else b""
        pieces = (OutputPiece(0, start, data),) if data else ()
        return VisitorOutput(pieces, is_complete=start == 8)

    assert await read(answer, follow=True) == [
        OutputChunk(0, 0, b"one\n"),
        OutputChunk(0, 4, b"two\n"),
        OutputChunk(0, 8, b""),
    ]


async def test_output_that_never_ends_is_cut_off_unless_it_is_followed() -> None:
    """A visitor says how long the output of its tasks is; no file is longer."""
    data = bytes(1 << 20)

    found = await read(
        lambda start: VisitorOutput((OutputPiece(0, start, data),), is_complete=False),
        follow=False,
    )

    assert found[-1] == OutputChunk(0, task_lookup.OUTPUT_BYTES_MAX, b"")


@pytest.mark.parametrize("reply", [NoVisitorOutput(), None])
async def test_a_visitor_without_an_answer_has_no_output(
    monkeypatch: pytest.MonkeyPatch, reply: Reply | None
) -> None:
    """It has gone, or does not answer in time."""
    monkeypatch.setattr(task_lookup, "ANSWER_S", 0.01)

    with pytest.raises(OutputNotFound):
        await read(lambda _: reply, follow=True)
