"""The contract of every audit log."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from octaskly.agent.gateway.audit import RETENTION_MS, AgentAuditLog
from octaskly.core.log.facts import Recorded
from octaskly.core.log.mesh_records import (
    AUDIT,
    AUDIT_REFUSED,
    AUDIT_TASKS,
    AUDIT_UNAUTHENTICATED,
    KINDS,
    RecordDraft,
)
from octaskly.core.model.ids import NodeId
from octaskly.errors import NotDispatcher
from octaskly.ports.audit import COMMAND_BYTES_MAX, AuditEntry, AuditLog
from octaskly.ports.store import RecordQuery
from octaskly.system.clock import SystemClock
from tests.contract.test_token_desk import MemoryRecords
from tests.support.dispatcher_role import DispatcherRole
from tests.support.fake_audit import FakeAudit

NODE = NodeId("n" * 16)


class ListedRecords(MemoryRecords):
    """Returns pages as the store does."""

    asked = 0

    async def read_page(self, query: RecordQuery) -> tuple[Recorded, ...]:
        self.asked += 1
        found = [r for r in self.kept.values() if r.kind in query.kinds]
        if query.keys is not None:
            found = [r for r in found if r.key in query.keys]
        if query.after is not None:
            found = [r for r in found if (r.hlc, r.key) > query.after]
        if query.is_newest_first:
            found.reverse()
        return tuple(found[: query.limit])


def real(role: DispatcherRole) -> AgentAuditLog:
    return AgentAuditLog(ListedRecords(), SystemClock(), NODE, role.require)


def fake(role: DispatcherRole) -> FakeAudit:
    return FakeAudit(role.require)


LOGS: tuple[Callable[[DispatcherRole], AuditLog], ...] = (real, fake)


@pytest.fixture(params=LOGS, ids=["real", "fake"])
def log(request: pytest.FixtureRequest, dispatcher_role: DispatcherRole) -> AuditLog:
    made: AuditLog = request.param(dispatcher_role)
    return made


def deed(number: int, **more: object) -> AuditEntry:
    fields: dict[str, object] = {
        "id": f"n-{number}",
        "at_ms": SystemClock().now().wall_ms,
        "subject": "bo",
        "role": "client",
        "action": "POST /api/v1/tasks",
        "target": None,
        "source": "127.0.0.1",
        "received_by": NODE,
        "decided_by": NODE,
        "status": 201,
        **more,
    }
    return AuditEntry(**fields)  # type: ignore[arg-type]


async def test_pages_follow_each_other_without_a_gap(log: AuditLog) -> None:
    """From the first on, each after the cursor of the previous one."""
    await log.record_entries([deed(n) for n in range(5)])

    first = await log.read_page(since_ms=0, after=None, limit=2)
    second = await log.read_page(since_ms=None, after=first.cursor, limit=2)
    third = await log.read_page(since_ms=None, after=second.cursor, limit=2)
    last = await log.read_page(since_ms=None, after=third.cursor, limit=2)

    ids = [d.id for page in (first, second, third, last) for d in page.entries]
    assert ids == [f"n-{n}" for n in range(5)]
    assert last.cursor == third.cursor


async def test_the_newest_records_come_without_a_cursor(log: AuditLog) -> None:
    """They come in the order in which they happened."""
    await log.record_entries([deed(n) for n in range(5)])

    page = await log.read_page(since_ms=None, after=None, limit=2)

    assert [d.id for d in page.entries] == ["n-3", "n-4"]


async def test_a_record_that_is_sent_twice_is_kept_once(log: AuditLog) -> None:
    """A node without an answer sends it again."""
    await log.record_entries([deed(1)])
    await log.record_entries([deed(1), deed(2)])

    page = await log.read_page(since_ms=0, after=None, limit=9)

    assert [d.id for d in page.entries] == ["n-1", "n-2"]


async def test_an_invalid_cursor_is_refused(log: AuditLog) -> None:
    """It comes from a client."""
    with pytest.raises(ValueError, match=r".+"):
        await log.read_page(since_ms=None, after="?", limit=9)


async def test_only_the_dispatcher_writes_the_audit_log(
    log: AuditLog, dispatcher_role: DispatcherRole
) -> None:
    """Another node forwards."""
    dispatcher_role.is_over = True

    with pytest.raises(NotDispatcher):
        await log.read_page(since_ms=0, after=None, limit=9)


async def test_no_flood_displaces_entries_of_another_kind() -> None:
    """Refusals have tables of their own, and so have changes that only admins make."""
    records = ListedRecords()
    log = AgentAuditLog(records, SystemClock(), NODE, lambda: None)
    token = deed(2, action="POST /api/v1/tokens", is_administrative=True)
    refused = deed(3, status=403)
    stranger = deed(4, subject=None, role=None, status=401)
    await log.record_entries([deed(1), token, refused, stranger])

    page = await log.read_page(since_ms=0, after=None, limit=9)

    kinds = [AUDIT_TASKS, AUDIT, AUDIT_REFUSED, AUDIT_UNAUTHENTICATED]
    assert [kind for kind, _ in records.kept] == kinds
    assert [d.id for d in page.entries] == ["n-1", "n-2", "n-3", "n-4"]


async def test_a_record_is_unchanged_until_it_expires_after_ninety_days() -> None:
    """However long the texts are that others chose."""
    records = ListedRecords()
    log = AgentAuditLog(records, SystemClock(), NODE, lambda: None)
    tasks = tuple("t" * 63 + str(n) for n in range(8))
    command, targets = "\x01" * COMMAND_BYTES_MAX, ("t" * 160,) * 12
    lists = {"tasks": tasks, "task_count": 9, "targets": targets, "command": command}
    plain = deed(1, target="x", **lists)
    hostile = {"command": command * 2, "targets": targets * 99}
    texts = {"subject": "🦊" * 512, "source": "é" * 500, "target": "é" * 500}
    await log.record_entries([plain, deed(2, **texts, **{**lists, **hostile})])

    page = await log.read_page(since_ms=0, after=None, limit=9)

    assert page.entries[0] == plain
    for record in records.kept.values():
        assert len(record.body) <= KINDS[record.kind].body_bytes_max
        assert record.expires_ms - plain.at_ms >= RETENTION_MS


async def test_each_dispatcher_knows_when_a_node_was_met() -> None:
    """The first one recorded it; later records of the same node do not count."""
    records = ListedRecords()
    before, after = (
        AgentAuditLog(records, SystemClock(), NODE, lambda: None) for _ in range(2)
    )
    node, founder = NodeId("m" * 16), NodeId("f" * 16)
    await before.record_join(node, "pi")
    met = await before.join_times([node, founder])

    await after.record_join(node, "pi")

    assert await after.join_times([node, founder]) == met
    assert met.keys() == {node}


async def test_the_store_is_asked_once_about_a_node_without_a_record() -> None:
    """The founder has none; a node that is met gets one at once."""
    records = ListedRecords()
    audit = AgentAuditLog(records, SystemClock(), NODE, lambda: None)
    node, founder = NodeId("m" * 16), NodeId("f" * 16)

    for _ in range(3):
        assert await audit.join_times([node, founder]) == {}
    assert records.asked == 1
    await audit.record_join(node, "pi")

    assert (await audit.join_times([node, founder])).keys() == {node}
    assert (await audit.join_times([node, founder])).keys() == {node}
    assert records.asked == 2


@pytest.mark.parametrize("more", [{"at_ms": 1 << 60}, {"last_ms": -1}])
async def test_a_record_with_an_unprintable_time_hides_no_other(
    more: dict[str, object],
) -> None:
    """A hostile member may write anything; `nodes` and `audit` must still work."""
    records = ListedRecords()
    audit = AgentAuditLog(records, SystemClock(), NODE, DispatcherRole().require)
    await audit.record_join(NODE, "pi")
    odd = deed(1, **more)
    body, node = msgspec.msgpack.encode(odd), NodeId("o" * 16)
    for key in (odd.id, f"join-{node}"):
        await records.write_records(RecordDraft(AUDIT, key, body, 0))

    shown = (await audit.read_page(since_ms=None, after=None, limit=9)).entries

    assert [each.action for each in shown] == ["join"]
    assert set(await audit.join_times((NODE, node))) == {NODE}
