"""Repeated requests meet what a real store holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from octaskly.agent.clock import SystemClock
from octaskly.agent.finding import Finder
from octaskly.agent.submissions import Submission, Submissions
from octaskly.agent.tickets import Tickets
from octaskly.core.acceptance import PRIORITY_BAND, logged_id
from octaskly.core.effects import Accepted
from octaskly.core.events import Draft, Event, TasksSubmitted
from octaskly.core.facts import PRIORITY_SHIFT
from octaskly.core.model import TaskId
from octaskly.errors import TaskExists
from octaskly.store import Store
from tests.contract import log_kit as kit

NAME = TaskId("nightly")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Two halves of a split have given one name to different tasks of ana's."""
    is_durable = asyncio.Event()
    store = Store(
        tmp_path / "log.db",
        kit.PicklePacker(),
        lambda _: is_durable.set(),
        kit.HandClock(),
    )
    await asyncio.to_thread(store.open)
    facts = [
        kit.submitted(
            number,
            id=logged_id(Draft(command=command, id=NAME), "ana"),
            command=command,
            timeout_s=3600,
            submitter="ana",
            ord=(PRIORITY_BAND << PRIORITY_SHIFT) | number,
        )
        for number, command in enumerate(("first", "second"), 1)
    ]
    store.append(1, kit.entries(facts), kit.EPOCHS)
    await is_durable.wait()
    yield store
    await store.close()


def submissions(store: Store) -> Submissions:
    """Return the way into a core that accepts nothing new."""

    def post(event: Event) -> None:
        assert isinstance(event, TasksSubmitted)
        assert not event.drafts
        tickets.answered(event.ticket, Accepted((), 2))

    tickets = Tickets(post)
    finder = Finder(store, lambda: True)
    return Submissions(
        mesh_id="mesh",
        store=store,
        clock=SystemClock(),
        tickets=tickets,
        find=finder.task,
        queue_max=9,
    )


def asked(command: str, key: str | None) -> Submission:
    """Return a request for a task of the chosen name."""
    drafts = (Draft(command=command, id=NAME),)
    return Submission(drafts=drafts, submitter="ana", key=key, is_strict=False)


@pytest.mark.parametrize(
    ("command", "name"), [("first", "nightly"), ("second", "nightly~2")]
)
async def test_who_repeats_a_request_finds_its_own_task(
    store: Store, command: str, name: str
) -> None:
    """Whichever half of the split had accepted it."""
    records, replicas = await submissions(store).take(asked(command, "key"))

    assert [record.name for record in records] == [name]
    assert [record.spec.command for record in records if record.spec] == [command]
    assert replicas == 2


@pytest.mark.parametrize(("command", "key"), [("third", "key"), ("second", None)])
async def test_a_name_that_is_taken_is_not_given_again(
    store: Store, command: str, key: str | None
) -> None:
    """Only a split can bring a second task of one name, never a request."""
    with pytest.raises(TaskExists):
        await submissions(store).take(asked(command, key))
