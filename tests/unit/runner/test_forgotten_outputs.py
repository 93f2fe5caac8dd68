"""What a node keeps of forgotten tasks is deleted, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import pytest

from octaskly.core.model.ids import AttemptId, NodeId, StreamId, TaskId
from octaskly.errors import CatchingUp, NotDispatcher
from octaskly.ports.files import KEPT_OUTPUTS_MAX, KeptOutput
from octaskly.ports.gateway import DispatcherView
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.blobs.holder_connection import (
    Holder,
    HolderBusy,
    HolderUnreachable,
)
from octaskly.runner.output.output_archive import OutputArchive
from octaskly.runner.pool import forgotten_outputs
from octaskly.runner.pool.forgotten_outputs import (
    ASK_PATH,
    WAKE_PATH,
    ForgottenOutputs,
)
from tests.support.builders import epoch, node_id

ME, OTHER = node_id("a"), node_id("b")
FLOOR_MS = 5000


def kept(name: str, ended_ms: int = FLOOR_MS) -> KeptOutput:
    return KeptOutput(TaskId(name), AttemptId(1, StreamId(7), 1, 1), ended_ms)


class Archive:
    """What this node keeps."""

    def __init__(self, *outputs: KeptOutput) -> None:
        self.outputs = list(outputs)

    def list_ended(self) -> list[KeptOutput]:
        return list(self.outputs)

    def delete_ended(self, gone: Iterable[KeptOutput]) -> None:
        for each in gone:
            self.outputs.remove(each)


class Dispatcher:
    """A dispatcher, here or at the other end of a connection."""

    def __init__(self, *forgotten: str) -> None:
        self.forgotten = set(forgotten)
        self.sizes: list[int] = []
        self.posted: list[tuple[str, str]] = []
        self.news: list[object] = []
        self.failure: Exception | None = None
        self.keeps_inputs = True
        self.releases = 0
        self.falsify: Callable[[dict[str, Any]], object] = lambda answer: answer
        self.threads = ThreadPoolExecutor(1)

    async def find_forgotten(
        self, asked: Sequence[KeptOutput]
    ) -> tuple[Sequence[int], int]:
        return self.answer([each.task for each in asked]), FLOOR_MS

    async def keep_inputs(self) -> bool:
        return self.keeps_inputs

    @property
    def blob_store(self) -> Dispatcher:
        return self

    def release_unused(self) -> None:
        self.releases += 1

    def answer(self, names: Sequence[str]) -> list[int]:
        self.sizes.append(len(names))
        if self.failure is not None:
            raise self.failure
        return [index for index, name in enumerate(names) if name in self.forgotten]

    @property
    def connections(self) -> Dispatcher:
        return self

    @contextmanager
    def connect_to(self, holder: Holder) -> Iterator[_Connection]:
        yield _Connection(self, holder)


class _Connection:
    """A connection to a node."""

    def __init__(self, dispatcher: Dispatcher, holder: Holder) -> None:
        self._dispatcher, self._holder = dispatcher, holder

    def post_json(self, path: str, body: Any, *, timeout_s: float) -> Any:
        self._dispatcher.posted.append((self._holder.name, path))
        if path == WAKE_PATH:
            self._dispatcher.news.append(body)
            return {}
        names = [each[0] for each in body["kept"]]
        indices = self._dispatcher.answer(names)
        return self._dispatcher.falsify({"forgotten": indices, "before_ms": FLOOR_MS})


def view_of(node: NodeId | None) -> DispatcherView | None:
    if node is None:
        return None
    return DispatcherView(is_self=node == ME, node=node, epoch=epoch())


def outputs_of(
    archive: Archive, dispatcher: Dispatcher, at: NodeId | None, *others: Holder
) -> ForgottenOutputs:
    return ForgottenOutputs(
        cast("OutputArchive", archive),
        cast("BlobFetcher", dispatcher),
        dispatcher=lambda: view_of(at),
        other_nodes=lambda: others,
        find_forgotten=dispatcher.find_forgotten,
        keep_inputs=dispatcher.keep_inputs,
    )


@pytest.mark.parametrize("at", [ME, OTHER], ids=["here", "at another node"])
async def test_only_what_the_dispatcher_names_is_deleted(at: NodeId) -> None:
    """What ended after the floor is not even asked about."""
    archive = Archive(kept("old"), kept("waits"), kept("old", FLOOR_MS + 1))
    dispatcher = Dispatcher("old")

    await outputs_of(archive, dispatcher, at).delete_forgotten()

    assert archive.outputs == [kept("waits"), kept("old", FLOOR_MS + 1)]
    assert dispatcher.sizes == [0, 2]
    assert dispatcher.posted == ([] if at == ME else [(OTHER, ASK_PATH)] * 2)


async def test_many_outputs_are_asked_for_in_bounded_requests() -> None:
    """A request names at most `KEPT_OUTPUTS_MAX`."""
    names = [f"task-{number}" for number in range(KEPT_OUTPUTS_MAX + 1)]
    archive, dispatcher = Archive(*map(kept, names)), Dispatcher(*names)

    await outputs_of(archive, dispatcher, OTHER).delete_forgotten()

    assert archive.outputs == []
    assert dispatcher.sizes == [0, KEPT_OUTPUTS_MAX, 1]


async def test_a_node_that_keeps_nothing_does_not_ask() -> None:
    """So most nodes of a large mesh cost the dispatcher nothing."""
    dispatcher = Dispatcher()

    await outputs_of(Archive(), dispatcher, OTHER).delete_forgotten()

    assert dispatcher.sizes == []


@pytest.mark.parametrize(
    ("at", "failure"),
    [
        (ME, CatchingUp("a missing node may know more")),
        (ME, NotDispatcher("not any more")),
        (OTHER, HolderBusy()),
        (OTHER, HolderUnreachable("it cannot be reached")),
        (None, None),
    ],
    ids=["catches up", "was replaced", "busy", "unreachable", "unknown"],
)
async def test_nothing_is_deleted_while_the_dispatcher_cannot_tell(
    at: NodeId | None, failure: Exception | None
) -> None:
    """It goes at the next look, once it can."""
    archive, dispatcher = Archive(kept("old")), Dispatcher("old")
    dispatcher.failure = failure
    outputs = outputs_of(archive, dispatcher, at)

    assert not await outputs.delete_forgotten()
    assert archive.outputs == [kept("old")]

    dispatcher.failure = None
    assert await outputs_of(archive, dispatcher, OTHER).delete_forgotten()
    assert archive.outputs == []


async def test_a_node_asks_again_soon_that_got_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not told of the forgotten tasks again."""
    monkeypatch.setattr(forgotten_outputs, "PAUSE_S", 0.0)
    monkeypatch.setattr(forgotten_outputs, "RETRY_S", 0.0)
    archive, dispatcher = Archive(kept("old")), Dispatcher("old")
    dispatcher.failure = CatchingUp("a missing node may know more")
    outputs = outputs_of(archive, dispatcher, ME)
    looking = asyncio.create_task(outputs.run())

    outputs.wake()
    while not dispatcher.sizes:  # noqa: ASYNC110
        await asyncio.sleep(0)
    dispatcher.failure = None
    async with asyncio.timeout(5):
        while archive.outputs:  # noqa: ASYNC110
            await asyncio.sleep(0)

    looking.cancel()


@pytest.mark.parametrize("are_kept", [True, False])
async def test_inputs_are_released_once_those_of_unfinished_tasks_are_kept(
    are_kept: bool,
) -> None:
    """Here and at all other nodes, and only after a request to forget."""
    dispatcher = Dispatcher()
    dispatcher.keeps_inputs = are_kept
    outputs = outputs_of(Archive(), dispatcher, ME, Holder(OTHER, ("https://b",)))
    looking = asyncio.create_task(outputs.run())

    outputs.announce()
    async with asyncio.timeout(5):
        while not dispatcher.news or dispatcher.releases < are_kept:  # noqa: ASYNC110
            await asyncio.sleep(0)

    looking.cancel()
    assert dispatcher.news == [{"may_release_inputs": are_kept}]
    assert dispatcher.releases == are_kept


@pytest.mark.parametrize("are_kept", [True, False])
async def test_a_node_that_is_told_to_release_keeps_its_copies_first(
    monkeypatch: pytest.MonkeyPatch,
    are_kept: bool,
) -> None:
    """A standby may have the only copy of what a waiting task needs."""
    monkeypatch.setattr(forgotten_outputs, "PAUSE_S", 0.0)
    dispatcher = Dispatcher()
    dispatcher.keeps_inputs = are_kept
    archive = Archive(kept("old"))
    outputs = outputs_of(archive, dispatcher, OTHER)
    looking = asyncio.create_task(outputs.run())

    outputs.wake(may_release_inputs=True)
    async with asyncio.timeout(5):
        while len(dispatcher.sizes) < 2 or dispatcher.releases < are_kept:  # noqa: ASYNC110
            await asyncio.sleep(0)

    looking.cancel()
    assert dispatcher.releases == are_kept


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {"forgotten": [-1], "before_ms": FLOOR_MS},
        {"forgotten": [1], "before_ms": FLOOR_MS},
        {"forgotten": ["0"], "before_ms": FLOOR_MS},
        {"forgotten": [0]},
    ],
    ids=str,
)
async def test_an_invalid_answer_deletes_nothing(answer: object) -> None:
    """Indices count from the start of what was asked."""
    archive, dispatcher = Archive(kept("old")), Dispatcher("old")
    dispatcher.falsify = lambda right: answer if dispatcher.sizes[1:] else right

    await outputs_of(archive, dispatcher, OTHER).delete_forgotten()

    assert dispatcher.sizes == [0, 1]
    assert archive.outputs == [kept("old")]
