"""Requests for records while the disk refuses writes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from octaskly.agent.gateway import pending_requests
from octaskly.agent.gateway.mesh_records import Records
from octaskly.agent.health import HealthChecks
from octaskly.core.events import Event
from octaskly.core.log.mesh_records import TOKEN, RecordDraft
from octaskly.errors import StoreFull

DRAFT = RecordDraft(TOKEN, "0" * 32, b"{}", 1_900_000_000_000)


class Desk:
    """Records whose core never answers, because nothing becomes durable."""

    def __init__(self) -> None:
        self.posted: list[Event] = []
        self.failure: str | None = None
        self.records = Records(
            pending_requests.PendingRequests(self.posted.append),
            cast("Any", None),
            HealthChecks(
                write_failure=lambda: self.failure, has_disk_room=lambda: False
            ),
        )


async def test_nothing_is_recorded_while_the_disk_refuses_writes() -> None:
    """A client that repeats the request finds no half of it."""
    desk = Desk()
    desk.failure = "the disk is full"

    with pytest.raises(StoreFull, match="cannot write its log"):
        await asyncio.wait_for(desk.records.write_records(DRAFT), 60)
    assert desk.posted == []


async def test_requests_before_the_disk_error_stop_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their records are on the way to the disk, and the answer says that."""
    monkeypatch.setattr(pending_requests, "REPLY_CHECK_S", 0.01)
    desk = Desk()
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(_refusal(desk.records))
        while not desk.posted:  # noqa: ASYNC110  one turn of the loop is enough
            await asyncio.sleep(0)
        desk.failure = "the disk is full"

    assert "the record will be written later" in asked.result()


async def _refusal(records: Records) -> str:
    with pytest.raises(StoreFull) as refused:
        await asyncio.wait_for(records.write_records(DRAFT), 60)
    return str(refused.value)
