"""Records that are asked for while the disk takes no writes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from octaskly.agent.gateway import pending_requests
from octaskly.agent.gateway.mesh_records import Records
from octaskly.agent.health import HealthChecks
from octaskly.core.events import Event, RecordDraft
from octaskly.core.log.mesh_records import TOKEN
from octaskly.errors import StoreFull

DRAFT = RecordDraft(TOKEN, "0" * 32, b"{}", 1_900_000_000_000)


class Desk:
    """Records whose core answers nothing, as it does while nothing is durable."""

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


async def test_nothing_is_recorded_where_the_disk_is_known_to_take_nothing() -> None:
    """Whoever repeats it finds no half of what was refused."""
    desk = Desk()
    desk.failure = "the disk is full"

    with pytest.raises(StoreFull, match="cannot write its log"):
        await asyncio.wait_for(desk.records.write_records(DRAFT), 60)
    assert desk.posted == []


async def test_who_asked_before_that_was_known_waits_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was asked for is on its way, so the answer says that."""
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
