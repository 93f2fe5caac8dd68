"""Audit records of requests, and their limits under many requests."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from octaskly.api.http.audit_trail import (
    GROUPS_MAX,
    MANY,
    QUEUE_MAX,
    REFUSED_QUEUE_MAX,
    SOURCES_MAX,
    TARGETS_BYTES_MAX,
    UNMERGED_MAX,
    WINDOW_MS,
    Auditor,
)
from octaskly.api.http.handler_types import (
    HttpTimeouts,
    NodeClient,
    RequestInfo,
    Services,
    join_commands,
)
from octaskly.api.http.open_long_polls import LongPolls
from octaskly.api.security.rate_limit import RateLimiter
from octaskly.core.model.ids import Moment, NodeId
from octaskly.errors import NotDispatcher
from octaskly.ports.audit import COMMAND_BYTES_MAX, AuditEntry
from octaskly.ports.tokens import Principal
from tests.support.fake_gateway import NOW_MS, FakeGateway

BO = Principal(subject="bo", role="client")


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.wall_ms = NOW_MS

    def now(self) -> Moment:
        return Moment(0.0, self.wall_ms)

    def draw(self) -> float:
        return 0.5


class Desk:
    """An auditor of a dispatcher."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.gateway = FakeGateway()
        parts = Services(
            self.gateway,
            self.clock,
            cast("NodeClient", None),
            LongPolls(self.gateway.dispatcher),
            HttpTimeouts(),
            RateLimiter({}, self.clock),
        )
        self.auditor = Auditor(parts, "n-1")

    def ask(
        self,
        status: int = 201,
        *,
        method: str = "POST",
        who: Principal | None = BO,
        source: str = "127.0.0.1",
        times: int = 1,
        tasks: tuple[str, ...] = (),
        target: str | None = None,
        command: str | None = None,
        is_administrative: bool = False,
        is_elsewhere: bool = False,
        is_outcome_unknown: bool = False,
    ) -> None:
        for _ in range(times):
            seen = RequestInfo("r", 0.0)
            seen.principal, seen.source = who, source
            seen.action, seen.is_audited = f"{method} /api/v1/tasks", True
            seen.tasks, seen.task_count = tasks, len(tasks)
            seen.target, seen.command = target, command
            seen.is_administrative = is_administrative
            seen.is_decided_elsewhere = is_elsewhere
            seen.is_outcome_unknown = is_outcome_unknown
            self.auditor.record_request(seen, method, status)

    async def written(self) -> list[AuditEntry]:
        """Return the written records once nothing waits."""
        await self.auditor.flush()
        return self.gateway.audit.deeds


@pytest.fixture
async def desk() -> Desk:
    return Desk()


async def test_a_change_is_recorded_with_caller_action_object_and_answer(
    desk: Desk,
) -> None:
    """One line contains everything that a reader needs."""
    desk.ask(tasks=("task-1", "task-2"))

    assert await desk.written() == [
        AuditEntry(
            id="node-a-n-1-1",
            at_ms=NOW_MS,
            subject="bo",
            role="client",
            action="POST /api/v1/tasks",
            target=None,
            source="127.0.0.1",
            received_by=NodeId("node-a"),
            decided_by=NodeId("node-a"),
            status=201,
            tasks=("task-1", "task-2"),
            task_count=2,
        )
    ]


@pytest.mark.parametrize(
    ("method", "status"), [("GET", 200), ("POST", 400), ("DELETE", 404), ("POST", 503)]
)
async def test_requests_without_changes_are_not_recorded(
    desk: Desk, method: str, status: int
) -> None:
    """Reads are not recorded, and a client error is no refusal of rights."""
    desk.ask(status, method=method)

    assert await desk.written() == []


@pytest.mark.parametrize("status", [500, 503])
async def test_a_request_that_may_have_made_its_change_is_recorded(
    desk: Desk, status: int
) -> None:
    """The answer says that the outcome is unknown."""
    desk.ask(status, command="make", is_outcome_unknown=True)

    (entry,) = await desk.written()
    assert (entry.status, entry.command) == (status, "make")


@pytest.mark.parametrize("status", [401, 403])
async def test_every_refusal_for_missing_rights_is_recorded(
    desk: Desk, status: int
) -> None:
    """Reads included."""
    desk.ask(status, method="GET", who=None)

    (deed,) = await desk.written()
    assert (deed.status, deed.subject, deed.count) == (status, None, 1)


async def test_the_node_that_decides_a_request_records_it(desk: Desk) -> None:
    """One request gives one line, though two nodes have seen it."""
    desk.ask(is_elsewhere=True)
    desk.ask(403, is_elsewhere=True)

    assert await desk.written() == []


async def test_a_flood_of_refusals_gives_two_lines_a_minute(desk: Desk) -> None:
    """Threat 11: a client that tries tokens cannot fill the log."""
    desk.ask(401, who=None, times=1000)
    desk.clock.wall_ms += WINDOW_MS
    desk.ask(401, who=None)

    first, rest, next_minute = await desk.written()
    assert (first.count, rest.count, next_minute.count) == (1, 999, 1)
    assert rest.last_ms == NOW_MS


async def test_frequent_changes_are_soon_summarised(desk: Desk) -> None:
    """A thousand submissions a second give eleven lines a minute."""
    desk.ask(times=1000, tasks=("t",))

    deeds = await desk.written()
    assert [deed.count for deed in deeds] == [1] * UNMERGED_MAX + [1000 - UNMERGED_MAX]
    assert deeds[-1].task_count == 1000 - UNMERGED_MAX
    assert len(deeds[-1].tasks) <= 8


async def test_refusals_from_many_addresses_are_counted_together(desk: Desk) -> None:
    """With IPv6 a new address costs nothing."""
    for number in range(3 * GROUPS_MAX):
        desk.ask(401, who=None, source=f"fe80::{number:x}")

    deeds = await desk.written()
    assert len(deeds) == SOURCES_MAX + 2
    assert sum(deed.count for deed in deeds) == 3 * GROUPS_MAX


async def test_records_without_a_dispatcher_wait_within_bounds(desk: Desk) -> None:
    """The oldest go first, and a record that was sent twice is written once."""
    for number in range(QUEUE_MAX + 5):
        desk.clock.wall_ms += WINDOW_MS
        desk.ask(source=str(number))
    desk.gateway.elect(None)
    assert await desk.written() == []

    desk.gateway.elect(desk.gateway.view_of(NodeId("node-a")))
    deeds = await desk.written()

    assert len(deeds) == QUEUE_MAX
    assert deeds[0].source == "5"


async def test_records_are_sent_without_a_request(desk: Desk) -> None:
    """They reach readers that follow the log within a moment."""
    desk.ask()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(desk.auditor.run())
        while not desk.gateway.audit.deeds:  # noqa: ASYNC110  # No event reports it.
            await asyncio.sleep(0.01)
        running.cancel()

    assert len(desk.gateway.audit.deeds) == 1


async def test_records_survive_the_loss_of_the_role(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the node could not write waits for the next dispatcher."""
    keep = desk.gateway.audit.record_entries

    async def refuse(_: object) -> None:
        raise NotDispatcher("not here")

    monkeypatch.setattr(desk.gateway.audit, "record_entries", refuse)
    desk.ask()
    assert await desk.written() == []
    monkeypatch.setattr(desk.gateway.audit, "record_entries", keep)

    assert len(await desk.written()) == 1


async def test_changes_are_recorded_during_a_flood_of_strangers(
    desk: Desk,
) -> None:
    """A local user has many source addresses, and could hide its change."""
    for number in range(2 * GROUPS_MAX):
        desk.ask(401, who=None, source=f"127.0.0.{number}")
    desk.ask(201, source="127.0.0.1")

    (change,) = [deed for deed in await desk.written() if deed.status == 201]

    assert (change.subject, change.source) == ("bo", "127.0.0.1")


async def test_strangers_push_out_only_strangers_without_a_dispatcher(
    desk: Desk,
) -> None:
    """A long flood of requests could otherwise hide a change."""
    desk.gateway.elect(None)
    desk.ask()
    for number in range(QUEUE_MAX):
        desk.clock.wall_ms += WINDOW_MS
        desk.ask(401, who=None, source=str(number))
    assert await desk.written() == []

    desk.gateway.elect(desk.gateway.view_of(NodeId("node-a")))
    change, *refusals = await desk.written()

    assert change.subject == "bo"
    assert len(refusals) == REFUSED_QUEUE_MAX
    assert refusals[-1].source == str(QUEUE_MAX - 1)


async def test_refusals_of_one_subject_are_two_entries_from_any_number_of_addresses(
    desk: Desk,
) -> None:
    """Each user of a machine has a network of loopback addresses."""
    eve = Principal(subject="eve", role="viewer")
    for number in range(2 * GROUPS_MAX):
        desk.ask(403, who=eve, source=f"127.0.{number >> 8}.{number & 255}")
    desk.ask(403, who=BO)

    first, of_bo, rest = await desk.written()

    assert (first.subject, of_bo.subject, rest.subject) == ("eve", "bo", "eve")
    assert (rest.source, rest.count) == (MANY, 2 * GROUPS_MAX - 1)


async def test_changes_are_merged_by_subject_and_not_by_source(desk: Desk) -> None:
    """Else a client would fill the log by asking from many addresses."""
    for number in range(100):
        desk.ask(source=f"127.0.0.{number}")

    deeds = await desk.written()

    assert [deed.subject for deed in deeds] == ["bo"] * (UNMERGED_MAX + 1)
    assert (deeds[-1].source, deeds[-1].count) == (MANY, 100 - UNMERGED_MAX)


async def test_changes_of_any_number_of_subjects_keep_their_subjects(
    desk: Desk,
) -> None:
    """However many there are in a minute."""
    names = {f"bo-{number}" for number in range(GROUPS_MAX + 20)}
    for name in names:
        desk.ask(who=Principal(subject=name, role="client"), times=UNMERGED_MAX + 2)

    deeds = await desk.written()

    assert {deed.subject for deed in deeds} == names
    assert sum(deed.count for deed in deeds) == len(names) * (UNMERGED_MAX + 2)


async def test_summary_of_changes_names_every_target(desk: Desk) -> None:
    """A thousand cancelled tasks fill few entries, and none of them is left out."""
    targets = [f"task-{number:03}-0a1b2c3d" for number in range(1000)]
    for target in targets:
        desk.ask(200, method="DELETE", target=target)
        desk.ask(200, method="DELETE", target=target)

    deeds = await desk.written()

    named = [t for deed in deeds for t in deed.targets or (deed.target or "",)]
    assert list(dict.fromkeys(named)) == targets
    assert sum(deed.count for deed in deeds) == 2 * len(targets)
    assert len(deeds) <= UNMERGED_MAX + 1000 * len(targets[0]) // TARGETS_BYTES_MAX + 2


async def test_administrative_changes_are_never_merged(desk: Desk) -> None:
    """An admin token among many others must be found by its name."""
    for number in range(50):
        desk.ask(target=f"token-{number}", is_administrative=True)

    deeds = await desk.written()

    assert [deed.target for deed in deeds] == [f"token-{n}" for n in range(50)]


async def test_summary_of_submissions_has_their_distinct_commands(desk: Desk) -> None:
    """Up to the limit of one entry."""
    desk.ask(times=UNMERGED_MAX, command="make")
    for command in ("true", "rm -r x", "true", "y" * COMMAND_BYTES_MAX, "more"):
        desk.ask(command=command)

    *_, rest = await desk.written()

    assert rest.command is not None
    assert rest.command.startswith("true\nrm -r x\nyyy")
    assert len(rest.command) == COMMAND_BYTES_MAX


def test_commands_of_one_request_are_cut_by_bytes() -> None:
    """A character is never cut in two."""
    commands = ["a", "b", "a", "é" * COMMAND_BYTES_MAX]

    joined = join_commands(commands)

    assert joined == "a\nb\n" + "é" * (COMMAND_BYTES_MAX // 2 - 2)
