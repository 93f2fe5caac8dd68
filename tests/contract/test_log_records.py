"""The contract of `ports.Log` for records that belong to no task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from octaskly.core.effects import PlanFloor, Save
from octaskly.core.log.facts import Recorded
from octaskly.core.log.mesh_records import AUDIT, AUDIT_UNAUTHENTICATED, TOKEN_REVOKED
from octaskly.core.model.ids import VectorItems
from octaskly.ports.store import RecordQuery
from tests.contract import log_kit as kit
from tests.contract.test_log_retention import AGES, MANY, Bench, benches, rows_of

__all__ = ["benches"]
TODAY_MS = kit.WALL_MS


def record(
    key: str, body: bytes = b"", *, kind: str = TOKEN_REVOKED, at: int = 5
) -> Recorded:
    """Return a record that never expires."""
    return Recorded(kind, key, body, 0, at)


async def listed(bench: Bench, kind: str = TOKEN_REVOKED) -> list[Recorded]:
    """Return all records of a kind."""
    return list(await bench.log.read_records(RecordQuery(kinds=(kind,))))


async def store_received(bench: Bench, *records: Recorded) -> None:
    """Store records that a dispatcher sent."""
    bench.number += 1
    bench.log.save_node_state(Save(number=bench.number, records=records))
    await bench.durable()


async def test_a_record_survives_a_restart(benches: list[Bench]) -> None:
    """Also one from a dispatcher, which is in no log here."""
    one, _ = benches
    await one.add(record("a"), kit.submitted(1))
    await store_received(one, record("b"))

    await one.reopen()

    assert one.saved.records == (record("a"), record("b"))
    assert await listed(one) == [record("a"), record("b")]
    assert await one.log.read_vector() == ((kit.STREAM, 2),)


async def test_the_first_record_of_a_key_counts(benches: list[Bench]) -> None:
    """Two halves of a split may have written one each."""
    one, two = benches
    early, late = (record("2", bytes([n]), at=n) for n in (1, 2))

    await one.add(early, late)
    await two.add(late, early)

    assert await listed(one) == await listed(two) == [early]


async def test_records_are_carried_over_the_floor(benches: list[Bench]) -> None:
    """Only the log has them, so followers learn them from it."""
    one, two = benches
    await one.add(record("a"), kit.submitted(1), kit.finished(1))

    assert await one.raise_floor()
    await one.shows()

    pulled = await kit.entries_of(one.log, {kit.STREAM: 3})
    assert record("a") in [entry.fact for entry in pulled.entries]
    assert await two.join(one.log) is not None
    assert await listed(two) == [record("a")]


async def test_a_page_has_records_of_all_requested_kinds(
    benches: list[Bench],
) -> None:
    """In the order of recording, from either end."""
    one, _ = benches
    kinds = (AUDIT, AUDIT_UNAUTHENTICATED)
    made = [record(str(n), kind=kinds[n % 2], at=n) for n in range(1, 6)]
    await one.add(*made, record("other", at=3))

    async def page(**more: Any) -> list[Recorded]:
        return list(
            await one.log.read_records(RecordQuery(kinds=kinds, limit=3, **more))
        )

    assert await page() == made[:3]
    assert await page(after=(3, "3")) == made[3:]
    assert await page(is_newest_first=True) == made[:1:-1]


async def test_expired_records_are_not_carried(benches: list[Bench]) -> None:
    """A revocation need not outlive its token."""
    one, _ = benches
    over = Recorded(TOKEN_REVOKED, "a", b"", TODAY_MS - 1, 5)
    await one.add(over, record("b"), kit.submitted(1), kit.finished(1))

    planned = await one.log.plan_compaction(PlanFloor(AGES, MANY, wall_ms=TODAY_MS))

    assert planned.floor is not None
    assert planned.records == (record("b"),)


async def test_received_records_are_written_before_the_floor_rises(
    benches: list[Bench],
) -> None:
    """A new dispatcher writes the records into its log that it had without one."""
    one, _ = benches
    await one.add(kit.submitted(1), kit.finished(1))
    await store_received(one, record("a"))

    planned = await one.log.plan_compaction(PlanFloor(AGES, MANY))
    await one.add(*planned.records)

    assert planned.floor is None
    assert planned.records == (record("a"),)
    assert (await one.log.plan_compaction(PlanFloor(AGES, MANY))).floor is not None


@pytest.mark.parametrize("count", [1, 5])
async def test_a_snapshot_sends_the_records_first(
    benches: list[Bench], count: int
) -> None:
    """A joining node applies them before it has all tasks; none is missing."""
    one, two = benches
    records = [record(str(n), kind=AUDIT, at=n) for n in range(1, count + 1)]
    await one.add(*records, kit.submitted(1), kit.finished(1), kit.submitted(2))
    await one.raise_floor()
    await one.shows(2)

    held: VectorItems = await two.log.read_vector()
    part = await rows_of(one.log, dict(held))
    assert await two.join(one.log) is not None

    assert part is not None
    assert part.records[0] == records[0]
    assert await listed(two, AUDIT) == records
    await two.shows(2)


async def test_records_are_found_by_their_keys(benches: list[Bench]) -> None:
    """All existing ones, and only those of the kind."""
    one, _ = benches
    wanted = record("b", b"it", kind=AUDIT)
    others = [record("a", kind=AUDIT), record("b", kind=AUDIT_UNAUTHENTICATED)]
    await one.add(*others, wanted)

    query = RecordQuery(kinds=(AUDIT,), keys=("b", "c"), limit=2)

    assert await one.log.read_records(query) == (wanted,)
    assert await one.log.read_records(replace(query, keys=())) == ()
